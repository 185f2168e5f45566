"""What a fine-tuning says while it runs: metrics.jsonl, TensorBoard, and the screen."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from bert_jax import screen
from bert_jax.runs import telemetry


class Reporter:
    """Writes a run's metrics, and shows them if `show` is set.

    Args:
      step: the run starts with the step after this one.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        step: int,
        config: ml_collections.ConfigDict,
        steps_per_epoch: int,
        num_steps: int,
        show: bool,
    ):
        self._config, self._steps_per_epoch = config, steps_per_epoch
        settings = json.loads(config.to_json())
        self._writer = telemetry.MetricWriter(workdir, step, config.wandb_project, settings)
        self._num_steps, self._shows = num_steps, show
        self._training: screen.Stage | None = None
        self._last = step, time.monotonic()
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._skipped = 0

    def step(self, step: int, values: dict[str, jax.Array]) -> None:
        """A training step's metrics, which the device may still compute.

        They are read one step late: the device works on this step while the host reads the one
        before.
        """
        self._read_pending()
        self._pending = step, values

    def epoch_trained(self, step: int, num_batches: int) -> None:
        """The end of an epoch's training: its last step is written whatever `log_every` says."""
        self._read_pending(always=True)
        if self._skipped:
            self.note(
                f"{self._skipped:,} of {num_batches:,} steps changed nothing: their loss or "
                "gradient was not finite (a lower --config.optimizer.learning_rate may help)"
            )
        self._skipped = 0

    def evaluated(
        self, step: int, values: Mapping[str, float], by_label: Mapping[str, float]
    ) -> None:
        """An evaluation's metrics, before the checkpoint that they belong to is saved.

        Args:
          by_label: further ones, which are written and not shown.
        """
        written = {**values, **by_label}
        self._writer.write(step, {f"eval_{name}": value for name, value in written.items()})
        self.note(
            f"epoch {-(-step // self._steps_per_epoch)} of {self._config.num_epochs}: "
            + "  ".join(f"{name} {screen.number(value)}" for name, value in values.items())
        )
        self.flush()

    def note(self, text: str) -> None:
        """Shows lines that stay."""
        if self._shows:
            screen.say(text)

    @contextlib.contextmanager
    def pause(self, name: str, total: int = 0) -> Iterator[screen.Stage]:
        """What happens inside is no training: it is shown, and does not count in the speed."""
        before = time.monotonic()
        with screen.Stage(name, total, self._shows) as stage:
            yield stage
        step, since = self._last
        self._last = step, since + time.monotonic() - before

    def trained(self) -> None:
        """The end of training: the live line goes."""
        if self._training:
            self._training.close()

    def flush(self) -> None:
        """To be called before a checkpoint, which the metrics so far lead to."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        self.trained()

    def _read_pending(self, always: bool = False) -> None:
        if not self._pending:
            return
        step, values = self._pending
        self._pending = None
        self._skipped += not values["accepted"]  # waits for the step
        if always or step % self._config.log_every == 0:
            self._write(step, values)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        line = {name: float(values[name]) for name in ("loss", "gradient_norm", "learning_rate")}
        before, since = self._last
        self._last = step, time.monotonic()
        seconds = max(self._last[1] - since, 1e-9)
        line["epoch"] = step / self._steps_per_epoch
        line["sequences_per_second"] = (step - before) * self._config.batch_size / seconds
        self._writer.write(step, line)
        if self._shows:
            # Not sooner: a first time is known when compiling is over.
            self._training = self._training or screen.Stage("", self._num_steps, every=True)
            fields = [
                f"step {step:,}/{self._num_steps:,}",
                f"loss {screen.number(line['loss'])}",
                screen.ETA,
                f"{screen.number(line['sequences_per_second'])} sequences/s",
            ]
            self._training.update(step, fields)
