"""Where training figures go: metrics.jsonl, TensorBoard, the progress line; command: curves."""

import argparse
import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence

from etils import epath

from bert_jax.cli import UserError, run

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


# Panels of the figure: title, names in metrics.jsonl. Evaluation is drawn over training.
_PANELS = (
    ("MLM loss (nats a masked token)", "mlm_loss"),
    ("MLM accuracy", "mlm_accuracy"),
    ("NSP loss (nats a pair)", "nsp_loss"),
    ("NSP accuracy", "nsp_accuracy"),
)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over the last `window` values, at each point."""
    return [
        sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))
    ]


def _lines_of_run(workdir: str) -> list[dict]:
    """`read`, or a UserError where there is nothing to read."""
    lines = read(workdir)
    if not lines:
        raise UserError(f"{workdir} has no {METRICS_FILE}: expected the workdir of a run")
    return lines


def plot(workdirs: Sequence[str], target: epath.PathLike, window: int) -> None:
    """Draws the curves of one or several runs together: training smoothed, evaluation dotted.

    Raises:
      UserError: matplotlib is not installed, or a run has no metrics.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'bert_jax[plot]'") from None
    runs = {workdir: _lines_of_run(workdir) for workdir in workdirs}
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (title, name) in zip(axes.flat, _PANELS, strict=True):
        for number, (workdir, lines) in enumerate(runs.items()):
            color = f"C{number}"
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, smoothed(values, window), color, alpha=0.5, label=f"{workdir}")
            held_out = f"eval_{name}"
            points = [(p["step"], p[held_out]) for p in lines if p.get(held_out) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), f"{color}o-", ms=3, label="held-out")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    with epath.Path(target).open("wb") as file:
        figure.savefig(file, format=epath.Path(target).suffix.lstrip(".") or "png", dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.metrics",
        description="Prints the last figures of runs, or draws their curves together.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of pretraining runs")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the curves into this file")
    parser.add_argument("--window", type=int, default=10, help="logged steps to smooth over")
    options = parser.parse_args(argv)
    if options.plot:
        plot(options.workdirs, options.plot, options.window)
        return
    for workdir in options.workdirs:
        last = {name: value for line in _lines_of_run(workdir) for name, value in line.items()}
        width = max(map(len, last))
        print(workdir)
        for name, value in last.items():
            print(f"  {name:<{width}}  {value}")


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
