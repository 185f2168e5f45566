"""What a pretraining is made of: mesh, model, and each phase's data and programs, all checked."""

import dataclasses
import itertools
import logging
from typing import Any

import ml_collections
from jax.sharding import Mesh

from bert_jax.cli import UserError
from bert_jax.config import leaves
from bert_jax.data import input_pipeline
from bert_jax.data.input_pipeline import PretrainingData
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models import architectures, heads
from bert_jax.models.flops import training_flops
from bert_jax.models.heads import PretrainingModel
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import distributed, sharding
from bert_jax.parallel.programs import MeshJit, ShapeCache
from bert_jax.training import phases
from bert_jax.training.evaluation import make_eval_step
from bert_jax.training.guard import check_guard
from bert_jax.training.phases import Phase

LEAST = {
    "log_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "eval_every": 0,
    "eval_batches": 0,
    "seed": 0,
}
# What processes may have differently: hosts mount a data set where they like; its contents are
# compared.
PATHS = ("data_dir", "eval_data_dir", "extra_eval_data_dirs")


@dataclasses.dataclass(frozen=True)
class PhaseInputs:
    """A phase with its data and its programs, which are traced and not compiled yet.

    Attributes:
      first_row: of the data, that the phase begins with: behind those that earlier phases took. It
        follows from the config alone, so that resuming from a step is exact.
      eval_data: prefix of the metrics -> held-out data.
      losses: the evaluated metrics that add up to the loss.
    """

    phase: Phase
    data: PretrainingData
    first_row: int
    eval_data: dict[str, PretrainingData]
    train_step: MeshJit
    eval_step: ShapeCache
    losses: tuple[str, ...]

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation's batch: a microbatch's, as what fits there fits here."""
        return self.phase.config.batch_size // self.phase.config.accumulate_steps


@dataclasses.dataclass(frozen=True)
class Inputs:
    mesh: Mesh
    model: PretrainingModel
    phases: tuple[PhaseInputs, ...]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.phases[0].data.tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change under a run, besides its model and seed (see runs/workdir.py)."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "phases": {
                str(part.phase.start): {
                    "batch_size": part.phase.config.batch_size,
                    "packing": part.phase.config.packing,
                    "data": part.data.fingerprint,
                    **self._own_model(part),
                }
                for part in self.phases
            },
        }

    def _own_model(self, part: PhaseInputs) -> dict[str, Any]:
        """How a phase computes the encoder otherwise than the run: fields of its config."""
        run, own = self.model.config, architectures.make_config(part.phase.config.model)
        names = architectures.of(run).phase_fields
        return {x: getattr(own, x) for x in names if getattr(own, x) != getattr(run, x)}

    def facts(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """What must not differ between the processes of a run: settings, and contents of data."""
        settings = {
            f"config.{name}": value
            for name, value in leaves(config)
            if name.rpartition(".")[2] not in PATHS
        }
        held_out = {
            f"contents of {prefix} data of phase {part.phase.number}": data.fingerprint
            for part in self.phases
            for prefix, data in part.eval_data.items()
        }
        contents = {f"contents of {name}": value for name, value in leaves(self.identity)}
        return settings | contents | held_out

    def flops(self, part: PhaseInputs) -> float:
        """Model FLOPs of an optimizer step."""
        data = part.data
        return training_flops(
            self.model.config,
            data.max_seq_length,
            data.max_predictions_per_row,
            part.phase.config.batch_size,
        )


def open_inputs(config: ml_collections.ConfigDict) -> Inputs:
    """Opens the data of all phases and traces their programs; checks, and writes nothing.

    So that the second phase does not fail after a week of the first.

    Raises:
      UserError: data, model, mesh and settings do not fit each other.
    """
    mesh = sharding.make_mesh(**config.mesh)
    model = heads.make_model(config)
    parts = phases.resolve(config)
    check_guard(config.guard)
    check_numbers(config)
    train_data = [
        input_pipeline.open_data(phase.config.data_dir, "train", phase.config) for phase in parts
    ]
    eval_data = [
        input_pipeline.open_eval_data(phase.config) if config.eval_every else {} for phase in parts
    ]
    tokenizer = train_data[0].tokenizer
    for data in (*train_data, *(data for sets in eval_data for data in sets.values())):
        if data.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{data.data_dir} was built with another vocabulary than "
                f"{train_data[0].data_dir}: build both with the same tokenizer"
            )
        input_pipeline.check_model(data, model.config)
    architecture = architectures.of(model.config)
    result: list[PhaseInputs] = []
    for phase, data, held_out in zip(parts, train_data, eval_data, strict=True):
        input_pipeline.check_batch(phase.config, mesh)
        if held_out and data.has_next_sentence_labels and architecture.next_sentence:
            input_pipeline.check_has_pairs(held_out["eval_"])
        first_row = _first_row(result, data)
        of_phase = heads.make_model(phase.config)  # of the same parameters
        result.append(_with_programs(phase, data, held_out, first_row, of_phase, mesh))
    if distributed.is_first():
        _warn(config, result)
    return Inputs(mesh, model, tuple(result))


def _first_row(former: list[PhaseInputs], data: PretrainingData) -> int:
    """The rows of `data` that earlier phases take."""
    return sum(
        (part.phase.stop - part.phase.start) * part.phase.config.batch_size
        for part in former
        if (part.data.contents, part.data.packing) == (data.contents, data.packing)
    )


def _with_programs(
    phase: Phase,
    data: PretrainingData,
    eval_data: dict[str, PretrainingData],
    first_row: int,
    model: PretrainingModel,
    mesh: Mesh,
) -> PhaseInputs:
    """A phase with its programs, traced.

    Raises:
      UserError: an optimizer's rule that matches nothing, an attention that cannot be, or sizes
        beyond memory.
    """
    objective = pretraining_objective(
        model, data.has_next_sentence_labels, data.tokenizer.mask_id, data.token_ranks_V
    )
    part = PhaseInputs(
        phase,
        data,
        first_row,
        eval_data,
        phase.make_train_step(model, mesh, data.has_next_sentence_labels),
        ShapeCache(make_eval_step(objective, mesh)),
        objective.losses,
    )
    state = phase.abstract_state(model, mesh)
    batch = sharding.abstract_batch(data.batch_shapes(phase.config.batch_size), mesh)
    input_pipeline.check_sizes(phase.config, mesh, state, batch)
    part.train_step.trace(state, batch)
    for held_out in eval_data.values():
        batch = sharding.abstract_batch(held_out.batch_shapes(part.eval_rows), mesh)
        part.eval_step.function.trace(state.params, batch)
    return part


def _warn(config: ml_collections.ConfigDict, parts: list[PhaseInputs]) -> None:
    """Names phases that have no data of their own, or that are skipped."""
    for former, part in itertools.pairwise(parts):
        number = part.phase.number
        if number > former.phase.number and not config.phases[number].get("data_dir"):
            how = "continues with" if part.first_row else "begins again with"
            logging.warning(
                f"the phase from step {part.phase.start:,} has no data of its own and {how} "
                f"{part.phase.config.data_dir}: set '--config.phases[{number}].data_dir=DATA_512' "
                "for sequences of 512 tokens"
            )
    if skipped := config.phases[parts[-1].phase.number + 1 :]:
        logging.warning(
            f"config.num_steps={config.num_steps:,} ends the run in phase "
            f"{parts[-1].phase.number + 1}: the last "
            f"{len(skipped)} of {len(config.phases)} are skipped; to fit them in, shorten the "
            "others: '--config.phases[0].num_steps=…'"
        )


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for numbers that are out of range."""
    for field, least in LEAST.items():
        if config[field] < least:
            raise UserError(
                f"config.{field}={config[field]}, expected at least {least}"
                + (" (0 turns evaluation off)" if field == "eval_every" else "")
            )
