"""Tables of embeddings: rows by id, with gradients that are summed in float32.

In bfloat16 a row that thousands of tokens read would stop growing when their sum is 256 times what
is added: gradients of token types were off by a tenth.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def lookup(table_VD: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table, [..., D]; ids outside of it give NaN. The gradient has the table's dtype."""
    return jnp.take(table_VD, ids, axis=0)


def _lookup(table_VD: jax.Array, ids: jax.Array) -> tuple[jax.Array, Any]:
    return lookup(table_VD, ids), (ids, table_VD)


def _lookup_gradient(saved: Any, dy: jax.Array) -> tuple[jax.Array, None]:
    ids, table_VD = saved
    sums_VD = jnp.zeros(table_VD.shape, jnp.float32).at[ids].add(dy.astype(jnp.float32))
    return sums_VD.astype(table_VD.dtype), None


lookup.defvjp(_lookup, _lookup_gradient)


def select_rows(table_TD: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table that has a few, [..., D], without the scattered sums of a lookup's gradient.

    Ids outside of the table read its first row.
    """
    rows = jnp.broadcast_to(table_TD[0], (*ids.shape, table_TD.shape[1]))
    for i in range(1, len(table_TD)):
        rows = jnp.where((ids == i)[..., None], table_TD[i], rows)
    return rows


def zero_rows_from(count: int, initializer: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`initializer` with zeros from row `count` on, for the padding of a vocabulary."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        is_row = jnp.arange(shape[0]) < count
        return jnp.where(is_row[:, None], initializer(key, shape, dtype), 0)

    return init
