"""What a pretraining says while it runs: metrics.jsonl, TensorBoard, W&B, the progress line."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from bert_jax.objectives.base import Scalars
from bert_jax.parallel import hardware
from bert_jax.runs import telemetry
from bert_jax.training.inputs import Inputs, PhaseInputs

SHOWN = ("loss", "mlm_loss", "nsp_loss", "model_flops_utilization")
SHOWN_OF_EVALUATION = ("eval_mlm_loss", "eval_mlm_accuracy", "eval_nsp_accuracy")


class Reporter:
    """Writes a run's metrics, and shows them if `show` is set.

    Args:
      step: the run starts with the step after this one.

    Attributes:
      last: the metrics of the last evaluation or, without, those that were written last.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: epath.Path,
        inputs: Inputs,
        step: int,
        show: bool,
    ):
        self._config, self._inputs = config, inputs
        self._profiler = telemetry.Profiler(workdir, config.profile_steps)
        settings = json.loads(config.to_json())
        self._writer = telemetry.MetricWriter(workdir, step, config.wandb_project, settings)
        self._telemetry = telemetry.Telemetry(workdir, step)
        self._progress = telemetry.Progress(config.num_steps) if show else None
        self._evaluated = _evaluations(workdir)
        self.last: dict[str, float] = {}
        for step in sorted(self._evaluated):
            self.last = self._evaluated[step]

    def note(self, text: str) -> None:
        """Shows a line of its own."""
        if self._progress:
            self._progress.note(text)

    def phase(self, part: PhaseInputs) -> None:
        """Shows what a phase trains on."""
        phase, data, mesh = part.phase, part.data, self._inputs.mesh
        batch_size = phase.config.batch_size
        self.note(
            f"phase {phase.number + 1} of {len(self._inputs.phases)}, to step {phase.stop:,}\n"
            f"  data     {data.num_examples:,} examples of {data.max_seq_length} tokens in "
            f"{data.data_dir}\n"
            f"           {data.examples_per_row:.2f} examples per sequence, {data.padding:.1%} "
            "padding\n"
            f"  batch    {batch_size:,} sequences; an epoch is {data.num_rows / batch_size:,.0f} "
            "steps\n"
            f"  devices  {mesh.size} × {jax.devices()[0].device_kind}, mesh "
            + " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
            + "\n  compiling"
        )

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """`batches`, with the time spent waiting for each counted."""
        return self._telemetry.waited(batches)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is no training: it does not count in the speed."""
        with self._telemetry.pause():
            yield

    def before_step(self, step: int) -> None:
        self._profiler.before(step)

    def step(self, step: int, values: Scalars, part: PhaseInputs) -> dict[str, float]:
        """Reads a step's metrics from the device (waits for it), and writes them if due."""
        read = {name: float(value) for name, value in jax.device_get(values).items()}
        self._profiler.after(step)
        metrics = {name: value for name, value in read.items() if name != "accepted"}
        if step % self._config.log_every == 0 or step in (1, self._config.num_steps):
            data, rows = part.data, part.phase.config.batch_size
            peak = hardware.peak_flops(jax.devices()[0])
            speeds = self._telemetry.speeds(
                step,
                rows * data.examples_per_row,
                rows * data.max_seq_length * (1 - data.padding),
                self._inputs.flops(part),
                peak and peak * jax.device_count(),
            )
            line = metrics | speeds | {"padding": data.padding}
            self._writer.write(step, line)
            if not self._config.eval_every:
                self.last = line
            shown = {name: line[name] for name in SHOWN if name in line}
            self._show(step, shown | {"sequences/s": line["sequences_per_second"]})
        return read

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Writes an evaluation's metrics."""
        self.last = self._evaluated[step] = metrics
        self._writer.write(step, metrics)
        self._show(step, {name: metrics[name] for name in SHOWN_OF_EVALUATION if name in metrics})

    def evaluated_loss(self, step: int) -> float | None:
        """The loss of the evaluation after a step, NaN if it was not finite; None without one."""
        if step not in self._evaluated:
            return None
        loss = self._evaluated[step]["eval_loss"]
        return math.nan if loss is None else loss

    def flush(self) -> None:
        """Waits until the lines written so far are stored; from any thread."""
        self._writer.flush()

    def close(self) -> None:
        self._profiler.stop()
        if self._progress:
            self._progress.close()
        self._writer.close()

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._progress:
            self._progress.update(step, metrics)


def _evaluations(workdir: epath.Path) -> dict[int, dict[str, Any]]:
    """The evaluations in metrics.jsonl by step."""
    return {
        line["step"]: {name: value for name, value in line.items() if name != "step"}
        for line in telemetry.read(workdir)
        if "eval_loss" in line
    }
