"""Where training figures go: metrics.jsonl, TensorBoard and the progress line."""

import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping

from etils import epath

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends one JSON object a line to WORKDIR/metrics.jsonl, and TensorBoard events.

    TensorBoard events are written when the extra `tensorboard` is installed. Opened on a step, it
    first drops lines of later steps: a resumed run computes those anew.
    """

    def __init__(self, workdir: epath.PathLike, step: int = 0):
        self._path = epath.Path(workdir) / METRICS_FILE
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in map(_parsed, lines) if line and line["step"] <= step]
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        partial = self._path.with_name(METRICS_FILE + ".partial")
        partial.write_text(self._text)
        partial.replace(self._path)
        self._events = None
        if importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes figures of a step; non-finite ones as null, since JSON has no NaN."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        if str(self._path).startswith("gs://"):  # object stores can't append
            self._text += line
            self._path.write_text(self._text)
        else:
            with self._path.open("a") as file:
                file.write(line)
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._events:
            self._events.close()


def _parsed(line: str) -> dict | None:
    """A line of metrics.jsonl; None for one that a crash cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def read(workdir: epath.PathLike) -> list[dict]:
    """The objects of WORKDIR/metrics.jsonl in order; empty if there is no such file."""
    path = epath.Path(workdir) / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(_parsed, lines) if line]


def duration(seconds: float) -> str:
    """3725.4 -> '1:02:05'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Progress:
    """One line about the run: rewritten in place on a terminal, a new line elsewhere."""

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._start: tuple[int, float] | None = None  # set by the first update: compiling is over
        self._in_place = sys.stderr.isatty()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows step, the figures given and the time left at the average speed so far."""
        now = time.monotonic()
        first_step, started = self._start = self._start or (step, now)
        left = (now - started) / max(step - first_step, 1) * (self._num_steps - step)
        figures = "  ".join(
            f"{name} {value:.2e}" if 0 < abs(value) < 1e-3 else f"{name} {value:,.4g}"
            for name, value in metrics.items()
        )
        eta = f"  ETA {duration(left)}" if step > first_step else ""
        line = f"step {step:,}/{self._num_steps:,}  {figures}{eta}"
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Prints a line of its own, leaving the progress line whole."""
        print(("\n" if self._in_place else "") + text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._in_place:
            print(file=sys.stderr)
