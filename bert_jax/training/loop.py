"""The pretraining loop: phases, evaluation, checkpoints, and what may go wrong on the way."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath

from bert_jax import files
from bert_jax.cli import Interrupted, UserError
from bert_jax.data import input_pipeline
from bert_jax.data.input_pipeline import PretrainingData
from bert_jax.models import heads
from bert_jax.models.flops import training_flops
from bert_jax.objectives.base import Batch, Scalars
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import distributed, hardware, sharding
from bert_jax.parallel.programs import MeshJit, ShapeCache, compile_together
from bert_jax.runs import checkpoint, telemetry
from bert_jax.runs.state import init_state, reset_moments
from bert_jax.training import phases
from bert_jax.training.evaluation import evaluate, make_eval_step
from bert_jax.training.phases import Phase
from bert_jax.training.warm_start import warm_start

INCIDENTS_FILE = "incidents.jsonl"


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict:
    """Pretrains as `config` says, going on from the last checkpoint in `workdir` if there is one.

    Returns:
      The last evaluation's figures (or the last training step's, with evaluation turned off).

    Raises:
      UserError: data, model, mesh and workdir do not fit each other; or the loss went wrong more
        often than `config.guard` allows.
      Interrupted: asked to stop by SIGTERM or, where one process is the whole run, by Ctrl-C; the
        state is saved.
    """
    with distributed.StopSignal() as stop, contextlib.ExitStack() as closing:
        return _Run(config, workdir, stop, closing).to_the_end()


class _Steps(NamedTuple):
    """A phase's programs, and the evaluated metrics that add up to the loss."""

    training: MeshJit
    evaluation: ShapeCache
    losses: tuple[str, ...]


class _Run:
    """One process's part of a run; opening it checks all that can be checked before compiling."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: epath.PathLike,
        stop: distributed.StopSignal,
        closing: contextlib.ExitStack,
    ):
        self.config, self.workdir, self.stop = config, epath.Path(workdir), stop
        with distributed.shared_errors():
            self.open_inputs()

        # State: a checkpoint in workdir > config.init_from > fresh parameters.
        tokenizer = self.data[0].tokenizer
        identity = {
            "tokenizer": tokenizer.fingerprint,
            "phases": {
                str(phase.start): {
                    "batch_size": phase.config.batch_size,
                    "packing": phase.config.packing,
                    "data": data.fingerprint,
                }
                for phase, data in zip(self.phases, self.data, strict=True)
            },
        }
        self.store = checkpoint.CheckpointStore(workdir, config, tokenizer, identity)
        closing.callback(self.store.close)
        self.state = init_state(
            lambda key: heads.init_params(self.model, key),
            self.phases[0].optimizer,
            self.mesh,
            config.seed,
        )
        if self.store.latest_step is not None:
            self.state = self.store.restore(self.state)
        elif config.init_from:
            with distributed.shared_errors():
                self.state = warm_start(self.state, config.init_from, self.model.config, tokenizer)
        self.step = int(self.state.step)
        self.guard = _Guard(config.guard, self.workdir, self.step)
        self.last: dict[str, float] = {}
        with distributed.shared_errors():
            self.writer = telemetry.MetricWriter(
                workdir, self.step, config.wandb_project, json.loads(config.to_json())
            )
            closing.callback(self.writer.close)
            self.progress = telemetry.Progress(config.num_steps)
            closing.callback(self.progress.close)
            self.telemetry = telemetry.Telemetry(workdir, self.step)
            self.profiler = telemetry.Profiler(workdir, config.profile_steps)
            closing.callback(self.profiler.stop)

    def open_inputs(self) -> None:
        """Opens the data of all phases and makes their steps; checks, and writes nothing.

        So that the second phase does not fail after a week of the first.
        """
        config = self.config
        self.mesh = sharding.make_mesh(**config.mesh)
        self.model = heads.make_model(config)
        self.phases = phases.resolve(config)
        check_guard(config.guard)
        check_numbers(config)
        self.data = [
            input_pipeline.open_data(phase.config.data_dir, "train", phase.config)
            for phase in self.phases
        ]
        self.eval_data = [
            input_pipeline.open_eval_data(phase.config) if config.eval_every else {}
            for phase in self.phases
        ]
        tokenizer = self.data[0].tokenizer
        for data in (*self.data, *(d for sets in self.eval_data for d in sets.values())):
            if data.tokenizer.fingerprint != tokenizer.fingerprint:
                raise UserError(
                    f"{data.data_dir} was built with another vocabulary than "
                    f"{self.data[0].data_dir}: build both with the same tokenizer"
                )
        for phase, data, eval_data in zip(self.phases, self.data, self.eval_data, strict=True):
            input_pipeline.check_batch(phase.config, self.mesh)
            if eval_data and data.has_next_sentence_labels:
                input_pipeline.check_has_pairs(eval_data["eval_"])
        self.steps = [self.make_steps(number) for number in range(len(self.phases))]
        for number, phase in enumerate(self.phases):
            if number and not config.phases[number].get("data_dir") and distributed.is_first():
                how = "goes on with" if self.first_row(number) else "begins again with"
                logging.warning(
                    f"the phase from step {phase.start:,} has no data of its own and {how} "
                    f"{phase.config.data_dir}: set '--config.phases[{number}].data_dir=DATA_512' "
                    "for sequences of 512 tokens"
                )
        left_out = config.phases[len(self.phases) :]
        if left_out and distributed.is_first():
            logging.warning(
                f"config.num_steps={config.num_steps:,} ends the run in phase {len(self.phases)}: "
                f"the last {len(left_out)} of {len(config.phases)} are left out; to fit them in, "
                "shorten the others: '--config.phases[0].num_steps=…'"
            )

    def make_steps(self, number: int) -> "_Steps":
        """A phase's programs, traced: compiling them goes on from there.

        Raises:
          UserError: an optimizer's rule that matches nothing, or an attention that cannot be.
        """
        phase, data = self.phases[number], self.data[number]
        objective = pretraining_objective(
            self.model, data.has_next_sentence_labels, data.tokenizer.mask_id, data.token_ranks_V
        )
        steps = _Steps(
            phase.make_train_step(self.model, self.mesh, data.has_next_sentence_labels),
            ShapeCache(make_eval_step(objective, self.mesh)),
            objective.losses,
        )
        state = phase.abstract_state(self.model, self.mesh)
        rows, parts = phase.config.batch_size, phase.config.accumulate_steps
        steps.training.trace(state, sharding.abstract_batch(data.batch_shapes(rows), self.mesh))
        for held_out in self.eval_data[number].values():
            shapes = held_out.batch_shapes(rows // parts)
            batch = sharding.abstract_batch(shapes, self.mesh)
            steps.evaluation.function.trace(state.params, batch)
        return steps

    def first_row(self, number: int) -> int:
        """The row of its data that a phase begins with: behind those that earlier ones took of it.

        It follows from the config alone, so that going on from a step is exact.
        """
        data = self.data[number]
        return sum(
            (phase.stop - phase.start) * phase.config.batch_size
            for phase, former in zip(self.phases[:number], self.data[:number], strict=True)
            if (former.fingerprint, former.packing) == (data.fingerprint, data.packing)
        )

    def to_the_end(self) -> dict[str, float]:
        """All phases from the present step on; the last figures."""
        if self.step >= self.config.num_steps:
            self.progress.note(
                f"{self.workdir} is trained to the end already: {self.step:,} steps, "
                f"config.num_steps={self.config.num_steps}"
            )
            return self.last
        if self.step:
            self.progress.note(f"going on from step {self.step:,} in {self.workdir}")
        for number, phase in enumerate(self.phases):
            if self.step < phase.stop:
                self.train_phase(number)
        self.progress.note(
            f"finished: {self.workdir}; to transformers with python -m bert_jax.convert to-hf "
            f"--checkpoint={self.workdir} --output=DIR"
        )
        return self.last

    def train_phase(self, number: int) -> None:
        """Trains from the present step to the end of a phase."""
        phase, data, config = self.phases[number], self.data[number], self.config
        batch_size = phase.config.batch_size
        if phase.reset_moments and self.step == phase.start:
            self.state = reset_moments(self.state, phase.optimizer, self.mesh)
        flops = training_flops(
            self.model.config,
            data.max_seq_length,
            data.max_predictions_per_row,
            batch_size,
        )
        self.progress.note(
            f"phase {number + 1} of {len(self.phases)}, to step {phase.stop:,}: "
            f"{data.num_examples:,} examples of {data.max_seq_length} tokens, batch {batch_size}: "
            f"an epoch is {data.num_rows / batch_size:,.0f} steps; "
            f"{data.examples_per_row:.2f} examples a sequence, {data.padding:.1%} padding; "
            f"mesh {dict(self.mesh.shape)} on {jax.devices()[0].device_kind}; compiling"
        )

        compiled, constants = None, self.steps[number].training.constants
        pending: tuple[int, Scalars] | None = None  # metrics of a step that may still be running
        taken, total = self.step - phase.start, phase.stop - phase.start
        with data.batches(self.mesh, taken, total, self.first_row(number)) as batches:
            for batch in self.telemetry.waited(batches):
                if compiled is None:
                    with self.telemetry.pause():
                        compiled = self.compile(number, batch)
                self.profiler.before(self.step + 1)
                self.state, step_metrics = compiled(self.state, batch, *constants)
                self.step += 1
                # One step late: the device is busy with this step while the host reads the last.
                if pending:
                    self.report(*pending, phase, data, flops)
                pending = (self.step, step_metrics)
                is_last = self.step == config.num_steps
                stopping = self.stop.after(self.step)
                evaluating = bool(config.eval_every) and (
                    self.step % config.eval_every == 0 or is_last
                )
                saving = stopping or is_last or self.step % config.checkpoint_every == 0
                if evaluating or saving or self.guard.rolls_back:
                    # What follows reads the state, so this step must have been looked at.
                    self.report(*pending, phase, data, flops)
                    pending = None
                if evaluating:
                    with self.telemetry.pause():
                        self.evaluate(number)
                if saving:
                    with self.telemetry.pause():
                        self.writer.flush()
                        self.store.save(self.step, self.state)
                if stopping and not is_last:
                    raise Interrupted(
                        f"stopped by {self.stop.received or 'SIGTERM'}: step {self.step:,} is "
                        f"saved in {self.workdir}; the same command goes on from there"
                    )
        if pending:
            self.report(*pending, phase, data, flops)

    def compile(self, number: int, batch: Batch) -> jax.stages.Compiled:
        """The compiled training step of a phase; its evaluation is compiled for the held-out sets.

        Raises:
          UserError: one of them does not fit into the devices' memory.
        """
        before = time.monotonic()
        train_step, eval_step, _ = self.steps[number]
        eval_batches = (
            next(self.eval_batches(number, data)) for data in self.eval_data[number].values()
        )
        one_of_each = {ShapeCache.key(batch): batch for batch in eval_batches}
        advice = (
            "take a smaller config.batch_size or more config.accumulate_steps, set "
            "config.model.remat=dots (or full), or split the parameters with config.mesh.fsdp"
        )
        try:
            compiled = train_step.lower(self.state, batch).compile()
            compile_together(
                [(eval_step, (self.state.params, batch)) for batch in one_of_each.values()]
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            cause = str(error).strip().splitlines()[0]
            raise UserError(f"the step does not fit into memory ({cause}): {advice}") from None
        moments = _bytes_held(self.state.opt_state)  # lie there while the parameters are evaluated
        evaluating = [_bytes_needed(program) + moments for program in eval_step.programs.values()]
        needed = max([_bytes_needed(compiled), *evaluating])
        available = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        if available and needed > available:
            raise UserError(
                f"the step needs {needed / 2**30:.1f} GiB a device, which has "
                f"{available / 2**30:.1f}: {advice}"
            )
        self.progress.note(
            f"compiled in {time.monotonic() - before:.0f} s; {needed / 2**30:.2f} GiB a device"
        )
        return compiled

    def report(
        self, step: int, values: Scalars, phase: Phase, data: PretrainingData, flops: float
    ) -> None:
        """Reads a step's metrics from the device (waits for it), judges and writes them."""
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        self.profiler.after(step)
        if not values.pop("accepted"):
            taken = (step - 1 - phase.start) * phase.config.batch_size
            first = self.first_row(phase.number) + taken
            origin = data.origin(first, first + phase.config.batch_size)
            self.guard.incident(step, values, origin)
            if self.guard.rolls_back and self.store.latest_step is not None:
                saved = self.store.restore(self.state)
                if phase.reset_moments and int(saved.step) <= phase.start:
                    saved = reset_moments(saved, phase.optimizer, self.mesh)
                logging.warning(
                    f"rolled back to the parameters of step {int(saved.step):,}; the batches since "
                    "then are left out"
                )
                self.state = saved.replace(step=self.state.step)
        if step % self.config.log_every == 0 or step in (1, self.config.num_steps):
            peak = hardware.peak_flops(jax.devices()[0])
            rows = phase.config.batch_size
            speed = self.telemetry.speeds(
                step,
                rows * data.examples_per_row,
                rows * data.max_seq_length * (1 - data.padding),
                flops,
                peak and peak * jax.device_count(),
            )
            speed["padding"] = data.padding
            self.last = values | speed
            self.writer.write(step, self.last)
            names = ("loss", "mlm_loss", "nsp_loss", "model_flops_utilization")
            shown = {name: self.last[name] for name in names if name in self.last}
            self.progress.update(step, shown | {"sequences/s": speed["sequences_per_second"]})

    def eval_batches(self, number: int, data: PretrainingData) -> Iterator[Batch]:
        """Batches as large as the parts that a step works off: what fits there fits here."""
        parts = self.phases[number].config.accumulate_steps
        return data.eval_batches(self.mesh, self.config.eval_batches, parts)

    def evaluate(self, number: int) -> None:
        """Evaluates on the phase's held-out sets; keeps the parameters if its best so far."""
        _, eval_step, losses = self.steps[number]
        self.last = {}
        for prefix, data in self.eval_data[number].items():
            batches = self.eval_batches(number, data)
            results = evaluate(eval_step, self.state.params, batches, losses)
            self.last |= {f"{prefix}{name}": value for name, value in results.items()}
        self.writer.write(self.step, self.last)
        names = ("eval_mlm_loss", "eval_mlm_accuracy", "eval_nsp_accuracy")
        self.progress.update(
            self.step, {name: self.last[name] for name in names if name in self.last}
        )
        loss = self.last["eval_loss"]
        if self.config.keep_best and math.isfinite(loss):
            start = self.phases[number].start
            self.store.save_if_best(self.step, self.state.params, loss, start)


def _bytes_needed(compiled: jax.stages.Compiled) -> int:
    """Memory of a device that the compiled step takes: state, batch, results, temporaries."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _bytes_held(tree: Any) -> int:
    """Memory of a device that arrays take."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for numbers that are out of range."""
    least_of = {
        "log_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 1,
        "eval_every": 0,
        "eval_batches": 0,
        "seed": 0,
    }
    for field, least in least_of.items():
        if config[field] < least:
            raise UserError(
                f"config.{field}={config[field]}, expected at least {least}"
                + (" (0 turns evaluation off)" if field == "eval_every" else "")
            )


def check_guard(guard: ml_collections.ConfigDict) -> None:
    """Raises UserError unless the rule for bad losses is one of those there are."""
    if guard.action not in ("skip", "rollback"):
        raise UserError(f"config.guard.action={guard.action!r} is neither 'skip' nor 'rollback'")
    if guard.max_loss_ratio and guard.max_loss_ratio <= 1:
        raise UserError(
            f"config.guard.max_loss_ratio={guard.max_loss_ratio}: a spike is more than 1 times "
            "the average; 0 turns the limit off"
        )


class _Guard:
    """Writes WORKDIR/incidents.jsonl, a line a batch that was not accepted, and counts them."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path, step: int):
        self._config, self._path = config, workdir / INCIDENTS_FILE
        # Those of lost steps will happen again.
        kept = [i for i in telemetry.read_lines(self._path) if i["step"] <= step]
        self._incidents = distributed.as_in_first(kept)  # their number ends the run in all of them

    @property
    def rolls_back(self) -> bool:
        return self._config.action == "rollback"

    def incident(self, step: int, values: dict[str, float], origin: dict[str, Any]) -> None:
        """Records a batch that was not accepted.

        Raises:
          UserError: it is one more than the config allows.
        """
        finite = math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])
        reason = "spike" if finite else "not finite"
        figures = {name: repr(values[name]) for name in ("loss", "gradient_norm")}
        self._incidents.append({"step": step, "reason": reason, **figures, **origin})
        if distributed.is_first():
            lines = (json.dumps(incident) + "\n" for incident in self._incidents)
            files.write_whole(self._path, "".join(lines))
        bad = origin["out_of_vocabulary"]
        logging.warning(
            f"step {step:,}: the loss ({values['loss']:.4g}) or gradient "
            f"({values['gradient_norm']:.4g}) is {'a spike' if finite else 'not finite'}; the "
            f"batch changes nothing. It came from {', '.join(origin['records'])} of "
            f"{origin['data_dir']}"
            + "".join(
                f"; example {b['example']} of {b['record']} has token id {b['token_id']}"
                for b in bad[:3]
            )
            + f" (recorded in {self._path})"
        )
        if len(self._incidents) > self._config.max_incidents:
            raise UserError(
                f"gave up at step {step:,}: {len(self._incidents)} batches were not accepted, "
                f"config.guard.max_incidents={self._config.max_incidents}. {self._path} names "
                "them. Lower the learning rate or mend the data, then run the same command"
            )
