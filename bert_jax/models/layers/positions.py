"""Reading some positions of a sequence, and reading tables that lie spread over devices.

Shapes live in names, as in `bert_jax/models/bert.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bert_jax.parallel.sharding import constrain


def gather_positions(x_BLD: jax.Array, rows_BR: jax.Array | None) -> jax.Array:
    """[B, R, D], the states at these positions; of all where none are given."""
    if rows_BR is None:
        return x_BLD
    return jnp.take_along_axis(x_BLD, rows_BR[..., None], axis=1)


def per_shard(
    function: Callable[[jax.Array, jax.Array], jax.Array], tables: jax.Array, x: jax.Array
) -> jax.Array:
    """`function` of each of N tables and the rows of `x` [B, …] that lie with it."""
    parts = len(tables)
    if parts == 1:
        return function(tables[0], x)
    x = x.reshape(parts, -1, *x.shape[1:])
    x = constrain(x, "batch", *(None for _ in x.shape[1:]))
    y = jax.vmap(function)(tables, x)
    return y.reshape(-1, *y.shape[2:])
