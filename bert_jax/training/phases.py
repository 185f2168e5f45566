"""A run as a sequence of phases: 128 tokens then 512, each with its data, batch and schedule."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from bert_jax.cli import UserError
from bert_jax.models import architectures, heads
from bert_jax.models.heads import PretrainingModel
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.parallel.programs import MeshJit
from bert_jax.runs.state import TrainState, new_state
from bert_jax.training import optimizer
from bert_jax.training.step import make_train_step

FIELDS = (
    "num_steps",
    "data_dir",
    "eval_data_dir",
    "extra_eval_data_dirs",
    "max_seq_length",
    "batch_size",
    "packing",
    "accumulate_steps",
    "masked_lm_prob",
    "model",
    "optimizer",
    "reset_moments",
)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps [start, stop) of a run.

    Attributes:
      config: the run's config, overridden by the phase's fields.
      schedule: step of the run -> learning rate.
      optimizer: gradients -> updates; the moments of all phases are laid out alike.
      reset_moments: whether the optimizer starts with empty moments.
      number: its place in `config.phases`.
    """

    start: int
    stop: int
    config: ml_collections.ConfigDict
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    reset_moments: bool = False
    number: int = 0

    def flag(self, name: str) -> str:
        """The flag that sets a field for this phase: '--config.batch_size', or the phase's own."""
        entries = self.config.phases
        own = name in _given(entries[self.number]) if entries else False
        return f"--config.phases[{self.number}].{name}" if own else f"--config.{name}"

    def abstract_state(self, model: PretrainingModel, mesh: Mesh) -> TrainState:
        """The state before the first step as shapes, laid out on the mesh."""
        # The key is made inside: outside, it would be an array on a device.
        state = jax.eval_shape(
            lambda: new_state(
                heads.init_params(model, jax.random.key(self.config.seed)),
                self.optimizer,
                with_ema=self.config.ema_decay > 0,
            )
        )
        return sharding.abstract(state, sharding.shardings_of(state, mesh))

    def make_train_step(
        self, model: PretrainingModel, mesh: Mesh, next_sentence: bool = True
    ) -> MeshJit:
        """The step that pretraining runs, and that the planner compiles."""
        return make_train_step(
            pretraining_objective(model, next_sentence, z_loss=self.config.z_loss),
            self.optimizer,
            self.schedule,
            mesh,
            self.config.seed,
            self.config.accumulate_steps,
            self.config.guard.max_loss_ratio,
            self.config.ema_decay,
        )


def resolve(config: ml_collections.ConfigDict) -> tuple[Phase, ...]:
    """The phases that `config.phases` describes; without any the whole run is one.

    An entry of the list overrides the config: it lasts its `num_steps` (the last one to the end of
    the run), and fields that it omits, or has empty, are the run's. With `optimizer` (which may be
    {}) it has a schedule of its own, from its start over its steps; without, the run's continues.
    With `model` it computes the encoder otherwise, as by another base of RoPE.

    `config.batch_size_warmup`, ((batch size, steps), …), makes phases of the first one's beginning,
    which differ from it in the batch size alone: so the data position follows from the step.

    Raises:
      UserError: an unknown field, lengths that do not add up, or an impossible optimizer.
    """
    first, *others = _entries(config)
    return (*_warming_up(config.batch_size_warmup, first), *others)


def _warming_up(stages: Any, phase: Phase) -> Iterator[Phase]:
    """The phases that a batch-size warm-up makes of one."""
    start = phase.start
    for stage in stages:
        match stage:
            case [int() as batch_size, int() as num_steps] if batch_size > 0 < num_steps:
                pass
            case _:
                raise UserError(
                    f"config.batch_size_warmup has {stage!r} where a batch size and its steps are "
                    "expected: --config.batch_size_warmup='((64, 1000), (128, 1000))'"
                )
        if start + num_steps >= phase.stop:
            raise UserError(
                f"config.batch_size_warmup lasts to step {start + num_steps:,}, the "
                f"{'phase' if phase.config.phases else 'run'} to step {phase.stop:,}: shorten it"
            )
        settings = phase.config.copy_and_resolve_references()
        settings.batch_size = batch_size
        stop = start + num_steps
        yield dataclasses.replace(
            phase,
            start=start,
            stop=stop,
            config=settings,
            reset_moments=phase.reset_moments and start == phase.start,
        )
        start = stop
    is_whole = start == phase.start
    yield phase if is_whole else dataclasses.replace(phase, start=start, reset_moments=False)


def _entries(config: ml_collections.ConfigDict) -> tuple[Phase, ...]:
    """The phases of `config.phases`, before a batch-size warm-up."""
    total = config.num_steps
    if total < 1:
        raise UserError(f"config.num_steps={total}, expected at least 1")
    run_schedule = optimizer.make_schedule(config.optimizer, total)
    run_optimizer = optimizer.make_optimizer(config.optimizer)
    if not config.phases:
        return (Phase(0, total, config, run_schedule, run_optimizer),)
    result: list[Phase] = []
    start = 0
    for number, entry in enumerate(config.phases):
        entry = _given(entry)
        if unknown := sorted(entry.keys() - set(FIELDS)):
            raise UserError(
                f"config.phases[{number}] has the field(s) {', '.join(unknown)}; a phase may have "
                f"{', '.join(FIELDS)}"
            )
        is_last = number == len(config.phases) - 1
        length = entry.pop("num_steps", 0)
        if length < 0 or (not length and not is_last):
            raise UserError(f"config.phases[{number}].num_steps={length}: expected at least 1")
        if is_last and length and start + length != total:
            raise UserError(
                f"config.phases[{number}].num_steps={length:,} ends the last phase at step "
                f"{start + length:,}, config.num_steps={total:,} the run: leave the phase's out "
                f"(it lasts to the run's end), or give --config.num_steps={start + length}"
            )
        # The run's num_steps is the limit, so a trial run needs that one flag alone.
        stop = total if is_last else min(start + length, total)
        reset = entry.pop("reset_moments", False)
        own = entry.pop("optimizer", None)
        own_model = entry.pop("model", {})
        overlaid = ml_collections.ConfigDict(config.to_dict() | {"max_seq_length": 0} | entry)
        known = architectures.named(overlaid.model.architecture).phase_fields
        if unknown := sorted(set(own_model) - set(known)):
            raise UserError(
                f"config.phases[{number}].model has the field(s) {', '.join(unknown)}; a phase of "
                f"this encoder may have {', '.join(known) or 'none'}"
            )
        overlaid.model.update(own_model)
        schedule, tx = run_schedule, run_optimizer
        if own is not None:
            if unknown := sorted(set(own) - set(overlaid.optimizer)):
                raise UserError(
                    f"config.phases[{number}].optimizer has the field(s) {', '.join(unknown)}, "
                    "which config.optimizer has not"
                )
            # One of the phase's own counts, whatever the other is in the run; 0 steps are none.
            if "warmup_fraction" in own:
                overlaid.optimizer.warmup_steps = 0
            elif "warmup_steps" in own:
                overlaid.optimizer.warmup_fraction = 0.0
            overlaid.optimizer.update(own)
            own_field = f"phases[{number}].optimizer"
            tx = optimizer.make_optimizer(overlaid.optimizer, own_field)
            # Its warm-up may be the run's, which has no field here.
            field = own_field if "warmup_steps" in own else "optimizer"
            own_schedule = optimizer.make_schedule(overlaid.optimizer, stop - start, field)
            schedule = _from(start, own_schedule)
        result.append(Phase(start, stop, overlaid, schedule, tx, reset, number))
        start = stop
        if start == total:
            break
    return tuple(result)


def _given(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry of `config.phases` that are not left empty."""
    return {name: value for name, value in entry.items() if value not in ("", 0, None)}


def _from(start: int, schedule: optax.Schedule) -> optax.Schedule:
    """`schedule`, counted from step `start` of the run."""

    def shifted(step: jax.Array) -> jax.Array:
        return schedule(jnp.asarray(step) - start)

    return shifted
