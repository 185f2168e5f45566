"""The programs of a fine-tuning: one training step and one prediction, each for many lengths."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import optax
from jax.sharding import Mesh

from bert_jax.data import batching
from bert_jax.objectives.base import Objective, Scalars
from bert_jax.parallel import sharding
from bert_jax.parallel.programs import MeshJit, ShapeCache, compile_together, compiler_options
from bert_jax.runs.state import TrainState
from bert_jax.tasks.base import Batch, Task
from bert_jax.training.step import StepByLength


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a run computes with.

    Attributes:
      train: (state, batch) -> (state, metrics).
      predict: (params, batch) -> logits.
    """

    train: StepByLength
    predict: ShapeCache
    mesh: Mesh

    def place(self, batch: batching.Batch) -> Batch:
        """The batch on its devices."""
        return jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def compile(
        self,
        state: TrainState,
        train_batches: Sequence[batching.Batch],
        predict_batches: Sequence[batching.Batch],
        compiled: Callable[[], None],
    ) -> None:
        """Compiles gradients and predictions of these shapes, and the update, side by side.

        Args:
          compiled: called after each program.
        """
        calls: list[tuple[ShapeCache, tuple[Any, ...]]] = []
        for batch in train_batches:
            arguments = self.train.gradient_arguments(state, self.place(batch))
            calls.append((self.train.gradients, arguments))
        arguments = self.train.update_arguments(state, self.place(train_batches[0]))
        calls.append((self.train.update, arguments))
        for batch in predict_batches:
            calls.append((self.predict, (state.params, self.place(batch))))
        compile_together(calls, compiled)


def make_steps(
    config: ml_collections.ConfigDict,
    task: Task,
    module: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    factors: Any,
    mesh: Mesh,
) -> Steps:
    """The steps of a run.

    Args:
      tx: gradients -> updates (bert_jax.training.optimizer).
      schedule: step -> learning rate.
      factors: of the learning rate, by parameter; no gradient is computed where it is 0.
    """

    def apply(params: Any, batch: Batch, dropout_keys_B: jax.Array | None) -> jax.Array:
        arrays = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        logits: Any = module.apply({"params": params}, *arrays, dropout_keys_B=dropout_keys_B)
        return logits

    objective = task_objective(task, apply, factors)
    predict = jax.jit(
        lambda params, batch: apply(params, batch, None),
        compiler_options=compiler_options(mesh, by_length=True),
    )
    return Steps(
        train=StepByLength(objective, tx, schedule, mesh, config.seed),
        predict=ShapeCache(MeshJit(predict, mesh)),
        mesh=mesh,
    )


def task_objective(task: Task, apply: Callable[..., jax.Array], factors: Any) -> Objective:
    """The task's loss.

    Args:
      apply: (params, batch, dropout_keys_B) -> logits.
      factors: of the learning rate, by parameter; no gradient is computed where it is 0.
    """

    def sums(params: Any, batch: Batch, dropout_keys_B: jax.Array | None) -> Scalars:
        params = jax.tree.map(lambda p, x: p if x else jax.lax.stop_gradient(p), params, factors)
        return {"task_loss": task.loss_sum(apply(params, batch, dropout_keys_B), batch)}

    return Objective(
        losses=("task_loss",),
        sums=sums,
        weights=lambda batch: {"task_loss": task.loss_weight(batch)},
    )
