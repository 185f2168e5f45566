"""The state of a training run: all that a checkpoint holds."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh

from bert_jax.parallel import sharding


class TrainState(flax.struct.PyTreeNode):
    """All that a checkpoint holds, and nothing random.

    Attributes:
      step: int32, batches taken, which is the position in the data.
      params: float32.
      opt_state: moments, laid out as the parameters.
      loss_average: float32, moving average of the loss, 0 before the first step; what a spike is
        measured against.
      ema: the parameters' exponential moving average, laid out as they are; None where none is
        kept.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    loss_average: jax.Array
    ema: Any = None


def new_state(
    params: Any, optimizer: optax.GradientTransformation, with_ema: bool = False
) -> TrainState:
    """The state before the first step; an average begins with the parameters."""
    zero = jnp.zeros([], jnp.float32)
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    return TrainState(zero.astype(jnp.int32), params, optimizer.init(params), zero, ema)


def init_state(
    init_params: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    with_ema: bool = False,
    given: Mapping[str, np.ndarray] | None = None,
) -> TrainState:
    """A fresh state, born sharded: no device ever holds more than its shard.

    Args:
      given: "path/of/a/parameter" -> its value, on the host. Only the others are drawn, as they
        would be without it, so only they are compiled.
    """
    key = jax.random.key(seed)

    def init(key: jax.Array, given: Mapping[str, jax.Array]) -> TrainState:
        drawn = traverse_util.flatten_dict(init_params(key), sep="/")
        params = traverse_util.unflatten_dict(drawn | dict(given), sep="/")
        return new_state(params, optimizer, with_ema)

    state = jax.eval_shape(init, key, {})
    shardings = sharding.shardings_of(state, mesh)
    shapes = traverse_util.flatten_dict(state.params, sep="/")
    layouts = traverse_util.flatten_dict(shardings.params, sep="/")
    placed = {
        path: jax.device_put(x.astype(shapes[path].dtype), layouts[path])
        for path, x in (given or {}).items()
    }
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(key, placed)


def reset_moments(
    state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """`state` with the optimizer's moments empty, as before its first step."""
    shardings = sharding.shardings_of(state.opt_state, mesh)
    with jax.set_mesh(mesh):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings)(state.params)
    return state.replace(opt_state=opt_state)
