"""What a pretraining says while it runs: metrics.jsonl, TensorBoard, W&B, and the screen."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from bert_jax import screen
from bert_jax.objectives.base import Scalars
from bert_jax.parallel import distributed, hardware
from bert_jax.runs import telemetry
from bert_jax.runs import workdir as workdirs
from bert_jax.training.inputs import Inputs, PhaseInputs

# Behind step, loss, time and speed, as far as the screen is wide.
SHOWN = ("mlm_loss", "nsp_loss", "model_flops_utilization")
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
        self._config, self._inputs, self._workdir = config, inputs, workdir
        self._shows = show and distributed.is_first()
        self._profiler = telemetry.Profiler(workdir, config.profile_steps)
        settings = json.loads(config.to_json())
        self._writer = telemetry.MetricWriter(workdir, step, config.wandb_project, settings)
        self._telemetry = telemetry.Telemetry(workdir, step)
        self._training: screen.Stage | None = None
        self._evaluated = _evaluations(workdir)
        self.last: dict[str, float] = {}
        for step in sorted(self._evaluated):
            self.last = self._evaluated[step]

    def note(self, text: str) -> None:
        """Shows lines that stay."""
        if self._shows:
            screen.say(text)

    def begin(self, step: int, memory: str) -> None:
        """Shows which run it is, and on what.

        Args:
          step: the one before the first.
          memory: what the state takes.
        """
        model, mesh = self._inputs.model.config, self._inputs.mesh
        found = f"resuming from step {step:,} in" if step else "pretraining in"
        rows = {
            "model": describe_model(self._config.model.architecture, model),
            "memory": memory,
            "devices": f"{mesh.size} × {jax.devices()[0].device_kind}; mesh "
            + " × ".join(f"{name} {size}" for name, size in mesh.shape.items()),
        }
        self.note(f"{found} {self._workdir}\n{screen.facts(rows)}")

    def phase(self, part: PhaseInputs) -> None:
        """Shows what a phase trains on."""
        phase, data = part.phase, part.data
        batch_size = phase.config.batch_size
        rows = {
            "data": f"{data.num_examples:,} examples of {data.max_seq_length} tokens in "
            f"{data.data_dir}; {data.examples_per_row:.2f} examples per sequence, "
            f"{data.padding:.1%} padding",
            "batch": f"{batch_size:,} sequences; an epoch is {data.num_rows / batch_size:,.0f} "
            "steps",
        }
        count = len(self._inputs.phases)
        heading = f"phase {phase.number + 1} of {count}, to step {phase.stop:,}"
        self.note(f"{heading}\n{screen.facts(rows)}")

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """`batches`, with the time spent waiting for each counted."""
        return self._telemetry.waited(batches)

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """What happens inside is no training: it is shown, and does not count in the speed."""
        with self._telemetry.pause(), screen.Stage(name, show=self._shows):
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
            self._show(step, line)
        return read

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Writes an evaluation's metrics."""
        self.last = self._evaluated[step] = metrics
        self._writer.write(step, metrics)
        found = (f"{name} {screen.number(metrics[name])}" for name in _evaluated(metrics))
        self.note("  ".join([f"step {step:,}", *found]))

    def evaluated_loss(self, step: int) -> float | None:
        """The loss of the evaluation after a step, NaN if it was not finite; None without one."""
        if step not in self._evaluated:
            return None
        loss = self._evaluated[step]["eval_loss"]
        return math.nan if loss is None else loss

    def flush(self) -> None:
        """Waits until the lines written so far are stored; from any thread."""
        self._writer.flush()

    def finish(self, step: int) -> None:
        """Shows what has come of the run, and what may be done with it."""
        if not self._shows:
            return
        logged = [line for line in telemetry.read(self._workdir) if line.get("loss") is not None]
        rows: dict[str, str] = {}
        if logged:
            first, last = logged[0], logged[-1]
            rows["loss"] = (
                f"{screen.number(first['loss'])} at step {first['step']:,}, "
                f"{screen.number(last['loss'])} at step {last['step']:,}"
            )
            rows["time"] = f"{screen.duration(last.get('training_seconds') or 0)} of training"
        held_out = self._evaluated.get(step, {}).get("eval_mlm_loss")
        statistics = self._inputs.phases[-1].data.manifest.statistics
        if held_out is not None and (entropy := statistics.get("unigram_entropy_nats")):
            rows["held-out"] = (
                f"MLM loss {screen.number(held_out)}; guessing by frequency alone gives "
                f"{screen.number(entropy)}"
            )
        if best := workdirs.steps_in(self._workdir / workdirs.BEST):
            loss = self._evaluated.get(best[-1], {}).get("eval_loss")
            value = f", eval_loss {screen.number(loss)}" if loss is not None else ""
            rows["best"] = f"step {best[-1]:,}{value}: {self._workdir / workdirs.BEST}"
        rows["last"] = f"step {step:,}: {self._workdir / workdirs.CHECKPOINTS / str(step)}"
        rows["curves"] = f"python -m bert_jax.metrics {self._workdir} --plot=curves.png"
        rows["export"] = (
            f"python -m bert_jax.convert to-hf --checkpoint={self._workdir} --output=DIR"
        )
        if self._training:
            self._training.close()
        self.note(f"finished: {self._workdir}\n{screen.facts(rows)}")

    def close(self) -> None:
        self._profiler.stop()
        if self._training:
            self._training.close()
        self._writer.close()

    def _show(self, step: int, line: Mapping[str, float]) -> None:
        if not self._shows:
            return
        num_steps = self._config.num_steps
        if not self._training:  # a first time is known: compiling is over
            self._training = screen.Stage("", num_steps, every=True)
        fields = [
            f"step {step:,}/{num_steps:,}",
            f"loss {screen.number(line['loss'])}",
            screen.ETA,
            f"{screen.number(line['sequences_per_second'])} sequences/s",
            *(f"{name} {screen.number(line[name])}" for name in SHOWN if name in line),
        ]
        self._training.update(step, fields)


def describe_model(architecture: str, model: Any) -> str:
    """ "bert, 2 layers of 128 units, 30,522 tokens"."""
    return (
        f"{architecture}, {model.num_hidden_layers} layers of {model.hidden_size} units, "
        f"{model.vocab_size:,} tokens"
    )


def _evaluated(metrics: Mapping[str, float]) -> list[str]:
    return [name for name in SHOWN_OF_EVALUATION if name in metrics]


def _evaluations(workdir: epath.Path) -> dict[int, dict[str, Any]]:
    """The evaluations in metrics.jsonl by step."""
    return {
        line["step"]: {name: value for name, value in line.items() if name != "step"}
        for line in telemetry.read(workdir)
        if "eval_loss" in line
    }
