"""Tables of embeddings: rows by id, with gradients that are summed in float32.

In bfloat16 a row that thousands of tokens read would stop growing when their sum is 256 times what
is added: gradients of token types were off by a tenth.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.models.layers.linear import dot_general
from bert_jax.models.layers.positions import per_shard
from bert_jax.parallel.sharding import batch_parts, constrain

VOCAB_MULTIPLE = 128  # the lane width of a TPU, and even shards on meshes of up to 128 devices


@jax.custom_vjp
def lookup(table_VD: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table, float32[..., D]; ids outside of it give NaN.

    The gradient has the table's dtype, its sums are made in float32.
    """
    return jnp.take(table_VD, ids, axis=0).astype(jnp.float32)


def _lookup(table_VD: jax.Array, ids: jax.Array) -> tuple[jax.Array, Any]:
    return lookup(table_VD, ids), (ids, table_VD)


def _lookup_gradient(saved: Any, dy: jax.Array) -> tuple[jax.Array, None]:
    ids, table_VD = saved
    if table_VD.dtype == jnp.float32:
        return jnp.zeros_like(table_VD).at[ids].add(dy), None
    # A row's float32 sum lies where its first token does, and reaches the table as one number. So
    # XLA adds it in place to the gradient of the output matmul; of a float32 table of sums it would
    # fuse the two, late, and keep the logits of the whole batch until then.
    ids_T, dy_TD = ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
    rows, places_T = len(table_VD), jnp.arange(len(ids_T))
    first_V = jnp.full(rows, len(ids_T)).at[ids_T].min(places_T)
    first_T = first_V[ids_T]
    sums_TD = jnp.zeros_like(dy_TD).at[first_T].add(dy_TD).astype(table_VD.dtype)
    rows_T = jnp.where(first_T == places_T, ids_T, rows + places_T)  # beyond the end: dropped
    sums_VD = jnp.zeros_like(table_VD).at[rows_T].add(sums_TD, mode="drop", unique_indices=True)
    return sums_VD, None


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


def padded_rows(vocab_size: int) -> int:
    """The rows of a vocabulary's table, a multiple of VOCAB_MULTIPLE."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def per_shard_tables(table_VD: jax.Array, batch: int) -> jax.Array:
    """The token embeddings [N, V, D], once for each of the N shards of a batch.

    Reading the same tables for the lookup and for the output matmul has each device add up its
    gradients of both before the devices add theirs: one reduction of V × D, not two.
    """
    parts = batch_parts(batch)
    tables_NVD = jnp.broadcast_to(table_VD, (parts, *table_VD.shape))
    return constrain(tables_NVD, "batch" if parts > 1 else None, "tensor", None)


def tied_scores(x_BMD: jax.Array, tables_NVD: jax.Array, bias_V: jax.Array) -> jax.Array:
    """Scores against every token embedding (the tied output matrix), float32[B, M, V]."""

    def of_shard(table_VD: jax.Array, x_BMD: jax.Array) -> jax.Array:
        over_D = (((x_BMD.ndim - 1,), (1,)), ((), ()))
        y_BMV = dot_general(x_BMD, table_VD, over_D, preferred_element_type=jnp.float32)
        return y_BMV + bias_V

    return per_shard(of_shard, tables_NVD, x_BMD)
