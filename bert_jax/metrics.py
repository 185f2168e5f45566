"""Where training figures go: metrics.jsonl, TensorBoard, the progress line; command: curves."""

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import math
import re
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from bert_jax import files
from bert_jax.cli import HelpFormatter, UserError, run
from bert_jax.parallel import distributed

METRICS_FILE = "metrics.jsonl"
UPLOAD_SECONDS = 30
STARTS_FILE = "starts.jsonl"  # one object a start of the run: when, from which step, on what


class MetricWriter:
    """Appends one JSON object a line to WORKDIR/metrics.jsonl, TensorBoard events, and W&B.

    On gs://, where a file can only be written anew as a whole, lines go out at most every
    UPLOAD_SECONDS, and with `flush`.

    TensorBoard events are written when the extra `tensorboard` is installed, Weights & Biases when
    a project is given. Opened on a step, it first drops lines of later steps: a resumed run
    computes those anew. Only the first process of a run writes.

    Args:
      wandb_project: of Weights & Biases, "" for none; the run goes on there after an interruption.
      config: shown there.

    Raises:
      UserError: a project is given and wandb is not installed.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        step: int = 0,
        wandb_project: str = "",
        config: Mapping[str, Any] = types.MappingProxyType({}),
    ):
        self._writes = distributed.is_first()
        self._events = self._wandb = None
        if not self._writes:
            return
        self._path = epath.Path(workdir) / METRICS_FILE
        self._is_remote = str(self._path).startswith("gs://")
        self._uploaded = time.monotonic()
        kept = [line for line in read(workdir) if line["step"] <= step]
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write_whole(self._path, self._text)
        if importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)
        if wandb_project:
            self._wandb = _wandb_run(wandb_project, workdir, config)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes figures of a step; non-finite ones as null, since JSON has no NaN."""
        if not self._writes:
            return
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        if self._is_remote:
            self._text += line
            if time.monotonic() - self._uploaded > UPLOAD_SECONDS:
                self.flush()
        else:
            with self._path.open("a") as file:
                file.write(line)
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Uploads what is waiting; to be called before a checkpoint, which these lines lead to."""
        if self._writes and self._is_remote:
            self._path.write_text(self._text)
            self._uploaded = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()


def _wandb_run(project: str, workdir: epath.PathLike, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("config.wandb_project needs wandb: pip install 'bert_jax[wandb]'") from None
    name = str(files.absolute(workdir))
    # The same workdir is the same run, however often it was interrupted.
    run_id = hashlib.sha256(name.encode()).hexdigest()[:16]
    return wandb.init(
        project=project,
        id=run_id,
        name=epath.Path(workdir).name,
        resume="allow",
        config=dict(config),
    )


def _parsed(line: str) -> dict | None:
    """A line of a JSONL file; None for one that a crash cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def read_lines(path: epath.Path) -> list[dict]:
    """The objects of a JSONL file in order; empty if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(_parsed, lines) if line]


def read(workdir: epath.PathLike) -> list[dict]:
    """The objects of WORKDIR/metrics.jsonl in order; empty if there is no such file."""
    return read_lines(epath.Path(workdir) / METRICS_FILE)


def duration(seconds: float) -> str:
    """3725.4 -> '1:02:05'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Telemetry:
    """How fast a run trains, and which share of the machines' time it uses well.

    Time that evaluating and starting to save take is no training time. Cumulated training seconds
    are carried over interruptions in metrics.jsonl, where the lines of lost steps are dropped; so

        goodput = training seconds of the steps that count / seconds since the first start.

    Args:
      step: the run starts with the step after this one.
      wall_clock: seconds since the epoch; for tests.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        step: int,
        wall_clock: Callable[[], float] = time.time,
    ):
        self._wall_clock = wall_clock
        self._step = step
        kept = [line["training_seconds"] for line in read(workdir) if "training_seconds" in line]
        self._training_seconds = kept[-1] if kept else 0.0
        starts = epath.Path(workdir) / STARTS_FILE
        lines = read_lines(starts)
        now = wall_clock()
        self._first_start = lines[0]["time"] if lines else now
        if distributed.is_first():
            lines.append(
                {
                    "time": now,
                    "step": step,
                    "processes": jax.process_count(),
                    "devices": jax.device_count(),
                    "device_kind": jax.devices()[0].device_kind,
                    "jax": jax.__version__,
                }
            )
            files.write_whole(starts, "".join(json.dumps(line) + "\n" for line in lines))
        self._reset()

    def _reset(self) -> None:
        self._window_start = time.monotonic()
        self._not_training = self._waiting = 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is no training."""
        before = time.monotonic()
        yield
        self._not_training += time.monotonic() - before

    def waited(self, batches: Iterator[Any]) -> Iterator[Any]:
        """`batches`, with the time spent waiting for each counted."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waiting += time.monotonic() - before
            yield batch

    def figures(
        self, step: int, examples: float, tokens: float, flops: float, peak: float | None
    ) -> dict[str, float]:
        """Figures since the last call, and the run's goodput.

        Args:
          step: steps finished.
          examples, tokens: of an optimizer step, on average; padding is no token.
          flops: model FLOPs of an optimizer step.
          peak: FLOP/s of all devices together at bfloat16; None if unknown.

        Returns:
          sequences_per_second (examples), tokens_per_second, model_flops_utilization (with a known
          peak), data_wait (share of the time in which the host waited for data),
          training_seconds since the run's first step, and goodput.
        """
        seconds = max(time.monotonic() - self._window_start - self._not_training, 1e-9)
        steps = step - self._step
        self._training_seconds += seconds
        alive = max(self._wall_clock() - self._first_start, seconds)
        result = {
            "sequences_per_second": steps * examples / seconds,
            "tokens_per_second": steps * tokens / seconds,
            "data_wait": min(self._waiting / seconds, 1.0),
            "training_seconds": self._training_seconds,
            "goodput": min(self._training_seconds / alive, 1.0),
        }
        if peak:
            result["model_flops_utilization"] = steps * flops / seconds / peak
        self._step = step
        self._reset()
        return result


class Profiler:
    """Writes a trace of some steps into WORKDIR/profile, for TensorBoard or xprof.

    Args:
      steps: (first, last), both traced; () for none.
    """

    def __init__(self, workdir: epath.PathLike, steps: Sequence[int]):
        if steps and (len(steps) != 2 or not 0 < steps[0] <= steps[1]):
            raise UserError(
                f"config.profile_steps={tuple(steps)}: expected () or (first, last), as in (10, 12)"
            )
        self._directory = str(epath.Path(workdir) / "profile")
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """To be called before a step starts."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int) -> None:
        """To be called when a step has ended."""
        if self._steps and step == self._steps[1]:
            self.stop()

    def stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class Progress:
    """One line about the run: rewritten in place on a terminal, a new line elsewhere.

    Of several processes only the first prints.
    """

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._prints = distributed.is_first()
        self._start: tuple[int, float] | None = None  # set by the first update: compiling is over
        self._in_place = sys.stderr.isatty()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows step, the figures given and the time left at the average speed so far."""
        if not self._prints:
            return
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
        if not self._prints:
            return
        print(("\n" if self._in_place else "") + text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._in_place and self._prints:
            print(file=sys.stderr)


# Panels of the figure: title, regex of the names in metrics.jsonl.
_PANELS = (
    ("MLM loss (nats a masked token)", r"mlm_loss"),
    ("MLM accuracy", r"mlm_accuracy"),
    ("held-out MLM accuracy by rank of the token's frequency", r"mlm_accuracy_rank_(\w+)"),
    ("NSP loss (nats a pair)", r"nsp_loss"),
    ("NSP accuracy", r"nsp_accuracy"),
    ("held-out MLM accuracy by what was read", r"mlm_accuracy_(mask|random|kept)"),
)
_MARKS = "os^vDP"  # of several held-out curves in a panel


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


def _series(lines: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _held_out(lines: Sequence[dict], pattern: str) -> dict[str, str]:
    """Names of the evaluation metrics that belong to a panel -> their label in it."""
    labels = {}
    names = {name for line in lines for name in line}
    for name in sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        if match := re.fullmatch(rf"eval_(\w+_)?{pattern}", name):
            data, *part = match.groups()
            if not part:
                labels[name] = f"held-out {data[:-1]}" if data else "held-out"
            elif not data:  # the parts of further data sets would make it illegible
                labels[name] = part[0].replace("_", " to ", 1) if part[0][0].isdigit() else part[0]
    return labels


def plot(workdirs: Sequence[str], target: epath.PathLike, window: int) -> None:
    """Draws the curves of one or several runs together: training smoothed, evaluation marked.

    Raises:
      UserError: matplotlib is not installed, or a run has no metrics.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'bert_jax[plot]'") from None
    suffix = epath.Path(target).suffix.lstrip(".") or "png"
    known = pyplot.gcf().canvas.get_supported_filetypes()
    pyplot.close()
    if suffix not in known:
        raise UserError(
            f"--plot={target}: no figure ends in .{suffix}; expected {', '.join(known)}"
        )
    runs = {workdir: _lines_of_run(workdir) for workdir in workdirs}
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    for axis, (title, pattern) in zip(axes.flat, _PANELS, strict=True):
        for number, (workdir, lines) in enumerate(runs.items()):
            run = f"{epath.Path(workdir).name}: " if len(runs) > 1 else ""
            steps, values = _series(lines, pattern)
            if steps:
                smooth = smoothed(values, window)
                axis.plot(steps, smooth, f"C{number}", alpha=0.5, label=f"{run}training")
            curves = _held_out(lines, pattern)
            for mark, (name, label) in zip(itertools.cycle(_MARKS), curves.items()):
                color = f"C{number if len(runs) > 1 else _MARKS.index(mark)}"
                axis.plot(*_series(lines, name), f"{color}{mark}-", ms=3, label=f"{run}{label}")
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    with epath.Path(target).open("wb") as file:
        figure.savefig(file, format=suffix, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.metrics",
        description="Prints the last figures of runs, or draws their curves together.",
        formatter_class=HelpFormatter,
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
            print(f"  {name:<{width}}  {value:.6g}" if value is not None else f"  {name}  none")


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
