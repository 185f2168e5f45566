"""The training step: how a batch changes the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bert_jax.models.layers.dropout import dropout_keys
from bert_jax.objectives.base import Batch, Objective, Scalars
from bert_jax.parallel import sharding
from bert_jax.parallel.programs import MeshJit, ShapeCache, compiler_options
from bert_jax.runs.state import TrainState
from bert_jax.training.optimizer import apply_updates

# Of the loss's moving average: about the last hundred steps.
LOSS_MEMORY = 0.99


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    seed: int,
    accumulate_steps: int = 1,
    max_loss_ratio: float = 0.0,
    ema_decay: float = 0.0,
) -> MeshJit:
    """The jitted step (state, batch) -> (state, metrics); it donates the state's buffers.

    A batch whose loss or gradient is not finite, or whose loss is a spike, leaves parameters and
    moments as they were; the step is counted, and the metric `accepted` is 0.

    Args:
      optimizer: gradients -> updates (bert_jax.training.optimizer).
      schedule: step -> learning rate.
      accumulate_steps: the gradient is accumulated over that many microbatches, to the same
        result with less memory.
      max_loss_ratio: a loss above this multiple of its moving average is a spike; 0 for no limit.
      ema_decay: how much of the parameters' average stays in a step; used where the state has one.
    """
    gradients, update = _parts(
        objective, optimizer, schedule, mesh, accumulate_steps, max_loss_ratio, ema_decay
    )

    def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Scalars]:
        return update(state, *gradients(state.params, state.step, batch, seed))

    jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options(mesh))
    return MeshJit(jitted, mesh, (_as_argument(seed),))


class StepByLength:
    """The training step for batches of several lengths, as two programs.

    The gradient is compiled for each length and the update once, which is half of the compilation.

    Attributes:
      gradients: (params, step, batch) -> (gradients, means).
      update: (state, gradients, means) -> (state, metrics). Both are to be compiled together.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        schedule: optax.Schedule,
        mesh: Mesh,
        seed: int,
    ):
        gradients, update = _parts(objective, optimizer, schedule, mesh)

        def placed(*args: Any) -> tuple[Any, Scalars]:
            grads, means = gradients(*args)
            shardings = sharding.shardings_of(grads, mesh)
            return jax.lax.with_sharding_constraint(grads, shardings), means

        options = compiler_options(mesh, by_length=True)
        jitted = jax.jit(placed, compiler_options=options)
        self.gradients = ShapeCache(MeshJit(jitted, mesh, (_as_argument(seed),)))
        jitted = jax.jit(update, donate_argnums=0, compiler_options=options)
        self.update = ShapeCache(MeshJit(jitted, mesh))

    def gradient_arguments(self, state: TrainState, batch: Batch) -> tuple[Any, ...]:
        return state.params, state.step, batch

    def update_arguments(self, state: TrainState, batch: Batch) -> tuple[Any, ...]:
        """What the update is compiled for: gradients are laid out as the parameters."""
        _, means = self.gradients.function.trace(*self.gradient_arguments(state, batch)).out_info
        return state, state.params, means

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        return self.update(state, *self.gradients(*self.gradient_arguments(state, batch)))


def _as_argument(seed: int) -> np.int32:
    """A seed to be passed to a program: its lower 32 bits, which are those that JAX uses."""
    return np.int64(seed).astype(np.int32)


def _parts(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    accumulate_steps: int = 1,
    max_loss_ratio: float = 0.0,
    ema_decay: float = 0.0,
) -> tuple[Callable[..., tuple[Any, Scalars]], Callable[..., tuple[TrainState, Scalars]]]:
    """What a step consists of: gradients, and the update of the state by them."""

    def loss_and_metrics(params: Any, batch: Batch, dropout_keys_B: jax.Array, weights: Scalars):
        sums = objective.sums(params, batch, dropout_keys_B)
        means = {name: sums[name] / jnp.maximum(weights[name], 1.0) for name in sums}
        return sum(means[name] for name in objective.losses), means

    grad_fn = jax.grad(loss_and_metrics, has_aux=True)

    def accumulated(params: Any, batch: Batch, dropout_keys_B: jax.Array, weights: Scalars):
        # Strided parts, so that each part is spread over all devices as the batch is.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate_steps, *x.shape[1:]), 0, 1),
            (batch, dropout_keys_B),
        )

        def add(total: Any, part: tuple[Batch, jax.Array]):
            return jax.tree.map(jnp.add, total, grad_fn(params, *part, weights)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(grad_fn, params, *first, weights)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    def gradients(
        params: Any, step: jax.Array, batch: Batch, seed: jax.Array
    ) -> tuple[Any, Scalars]:
        dropout_keys_B = dropout_keys(seed, step, jax.tree.leaves(batch)[0].shape[0])
        weights = objective.weights(batch)
        fn = grad_fn if accumulate_steps == 1 else accumulated
        return fn(params, batch, dropout_keys_B, weights)

    def update(state: TrainState, grads: Any, means: Scalars) -> tuple[TrainState, Scalars]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        learning_rate = schedule(state.step)
        params = apply_updates(state.params, updates, learning_rate)

        loss = sum(means[name] for name in objective.losses)
        norm = optax.tree.norm(grads)
        average, is_first = state.loss_average, state.loss_average == 0
        accepted = jnp.isfinite(loss) & jnp.isfinite(norm)
        if max_loss_ratio:
            accepted &= is_first | (loss <= max_loss_ratio * average)
        average = jnp.where(is_first, loss, LOSS_MEMORY * average + (1 - LOSS_MEMORY) * loss)
        ema = None
        if state.ema is not None:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, state.ema, params)
        new_state = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            TrainState(state.step, params, opt_state, average, ema),
            state,
        ).replace(step=state.step + 1)
        new_state = jax.lax.with_sharding_constraint(
            new_state, sharding.shardings_of(new_state, mesh)
        )
        return new_state, {
            "loss": loss,
            **means,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(learning_rate, jnp.float32),
            "accepted": accepted.astype(jnp.float32),
        }

    return gradients, update
