"""Where a run's metrics go: metrics.jsonl, TensorBoard, W&B; how fast it is."""

import concurrent.futures
import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief
from bert_jax.parallel import distributed

METRICS_FILE = "metrics.jsonl"
LABEL_F1 = "f1_of_"  # before a label: the metric of a fine-tuning
UPLOAD_SECONDS = 30
STARTS_FILE = "starts.jsonl"  # one object a start of the run: when, from which step, on what


class MetricWriter:
    """Appends one JSON object a line to WORKDIR/metrics.jsonl, TensorBoard events, and W&B.

    On gs://, where a file can only be written as a whole, a thread does so from time to time:
    writing a line never waits for it.

    TensorBoard events are written when the extra `tensorboard` is installed, Weights & Biases when
    a project is given. Opened on a step, it first drops lines of later steps, which a resumed run
    computes again. Only the first process of a run writes.

    Args:
      wandb_project: of Weights & Biases, "" for none; an interrupted run is resumed there.
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
        self._events = self._wandb = self._upload = None
        if not self._writes:
            return
        if wandb_project:  # before anything is written
            self._wandb = _wandb_run(wandb_project, workdir, config)
        self._workdir, self._step = workdir, step
        self._path = epath.Path(workdir) / METRICS_FILE
        kept = "".join(json.dumps(line) + "\n" for line in read(workdir) if line["step"] <= step)
        files.write_whole(self._path, kept)
        if files.is_remote(self._path):
            self._upload = Upload(self._path, kept)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics of a step; non-finite ones as null, since JSON has no NaN."""
        if not self._writes:
            return
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        if self._upload:
            self._upload.append(line)
        else:
            with self._path.open("a") as file:
                file.write(line)
        if self._events is None and importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            # Not sooner: a run that has nothing left to do leaves no empty file.
            self._events = tensorboardX.SummaryWriter(str(self._workdir), purge_step=self._step + 1)
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Waits until all lines are stored; from any thread. A checkpoint must not be without."""
        if self._upload:
            self._upload.flush()
        elif self._writes:
            files.sync(self._path)

    def close(self) -> None:
        self.flush()
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()


class Upload:
    """A growing text that a thread stores whole, now and then, so that nobody waits for it.

    Args:
      text: what the file holds already.
    """

    def __init__(self, path: epath.Path, text: str):
        self._path, self._lines = path, [text]
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._running: concurrent.futures.Future[None] | None = None
        self._next = time.monotonic() + UPLOAD_SECONDS

    def append(self, line: str) -> None:
        self._lines.append(line)
        if time.monotonic() < self._next or (self._running and not self._running.done()):
            return
        error = self._running.exception() if self._running else None
        if isinstance(error, Exception):
            logging.warning(f"{self._path} could not be stored ({brief(error)}); trying again")
        self._running = self._thread.submit(self._store)

    def _store(self) -> None:
        started = time.monotonic()
        try:
            self._path.write_text("".join(self._lines))
        finally:  # at most a tenth of the time goes to a long run's file
            ended = time.monotonic()
            self._next = ended + max(UPLOAD_SECONDS, 9 * (ended - started))

    def flush(self) -> None:
        """Stores what has come so far, and waits for it."""
        self._thread.submit(self._store).result()


def check_wandb(project: str) -> None:
    """Raises UserError if metrics are to go to a project and wandb is not installed.

    To be called before anything is written.
    """
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError("config.wandb_project needs wandb: pip install 'bert_jax[wandb]'") from None


def _wandb_run(project: str, workdir: epath.PathLike, config: Mapping[str, Any]) -> Any:
    check_wandb(project)
    import wandb

    path = files.absolute(workdir)
    if not files.is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=project,
        # The same workdir is the same run, however often it was interrupted.
        id=hashlib.sha256(str(path).encode()).hexdigest()[:16],
        name=epath.Path(workdir).name,
        dir=None if files.is_remote(path) else str(path),
        resume="allow",
        config=dict(config),
    )


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line of a JSONL file; None for one that a crash or a disk has damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: epath.Path, **fields: type) -> list[dict[str, Any]]:
    """The objects of a JSONL file in order, without damaged ones; empty if there is no such file.

    Args:
      **fields: name and type of the fields without which an object is a damaged one.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [
        line
        for line in map(_parsed, lines)
        if line and all(isinstance(line.get(name), kind) for name, kind in fields.items())
    ]


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The objects of WORKDIR/metrics.jsonl in order; empty if there is no such file."""
    return read_lines(epath.Path(workdir) / METRICS_FILE, step=int)


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
        kept = [line.get("training_seconds") for line in read(workdir) if line["step"] <= step]
        self._training_seconds = max((x for x in kept if isinstance(x, float)), default=0.0)
        starts = epath.Path(workdir) / STARTS_FILE
        lines = read_lines(starts, time=float)
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

    def speeds(
        self, step: int, examples: float, tokens: float, flops: float, peak: float | None
    ) -> dict[str, float]:
        """Speeds since the last call, and the run's goodput.

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
