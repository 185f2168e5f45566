"""Learning-rate schedules and the optimizer, as optax chains."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from bert_jax.cli import UserError
from bert_jax.sharding import path_of

# No weight decay on biases and LayerNorm (google-research/bert, optimization.py).
NO_DECAY = re.compile(r"(bias|layer_norm/scale)$")


def make_schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then linear decay to 0 at `num_steps`.

    The learning rate of step s (counted from 0) is peak × (s + 1) / warmup_steps while warming up,
    so the first step already moves.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= num_steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup} must be less than num_steps={num_steps}: it "
            f"would never reach its peak; add --config.optimizer.warmup_steps={num_steps // 10}"
        )

    def schedule(step: jax.Array) -> jax.Array:
        warming = (step + 1) / max(warmup, 1)
        decaying = (num_steps - step) / (num_steps - warmup)
        return peak * jnp.clip(jnp.minimum(warming, decaying), 0.0, 1.0)

    return schedule


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everything but biases and LayerNorm parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NO_DECAY.search(path_of(path)) is None, params
    )


def scale_by_adam_uncorrected(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, as BERT was trained (google-research/bert, optimization.py).

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g²;  update = m / (sqrt(v) + eps).
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    config: ml_collections.ConfigDict, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with decoupled weight decay, clipping at a global norm, warm-up and linear decay.

    Args:
      config: the `optimizer` part of a config.
      num_steps: length of the schedule in optimizer steps.
    """
    schedule = make_schedule(config, num_steps)
    adam = optax.scale_by_adam if config.bias_correction else scale_by_adam_uncorrected
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    return optimizer, schedule
