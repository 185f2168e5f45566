"""Rows of a batch on the devices of a mesh: which this process needs, and how they get there."""

from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.parallel import sharding


def local_rows(mesh: Mesh, batch_size: int) -> list[slice]:
    """The rows of a batch that this process's devices need, without overlap, in order.

    Usually one range. Processes that share rows (a tensor axis across hosts) each read them.
    """
    indices = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    ranges = {index[0].indices(batch_size)[:2] for index in indices.values() if index}
    return [slice(start, stop) for start, stop in sorted(ranges)]


def concatenated(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def batch_shapes(
    batch_size: int, max_seq_length: int, max_predictions: int, packing: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch as `PretrainingData.read` makes it."""
    bl, bm = (batch_size, max_seq_length), (batch_size, max_predictions)
    bk = (batch_size, packing) if packing else (batch_size,)
    shapes = {
        "input_ids": jax.ShapeDtypeStruct(bl, np.int32),
        "attention_mask": jax.ShapeDtypeStruct(bl, np.int32),
        "token_type_ids": jax.ShapeDtypeStruct(bl, np.int32),
        "masked_lm_positions": jax.ShapeDtypeStruct(bm, np.int32),
        "masked_lm_ids": jax.ShapeDtypeStruct(bm, np.int32),
        "masked_lm_weights": jax.ShapeDtypeStruct(bm, np.float32),
        "next_sentence_labels": jax.ShapeDtypeStruct(bk, np.int32),
    }
    if packing:
        shapes["position_ids"] = jax.ShapeDtypeStruct(bl, np.int32)
        shapes["first_token_positions"] = jax.ShapeDtypeStruct(bk, np.int32)
    return shapes


def to_devices(rows: dict[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows (`local_rows`, one after another) -> the global batch on the mesh."""
    layout = sharding.batch_sharding(mesh)
    offsets, offset = {}, 0  # where each range of rows starts among this process's
    for wanted in local_rows(mesh, batch_size):
        offsets[wanted.start] = offset
        offset += wanted.stop - wanted.start

    def place(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return x[offsets[start] : offsets[start] + stop - start]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), layout, part)

    return {name: place(x) for name, x in rows.items()}


def on_devices(
    iterator: Any, mesh: Mesh, batch_size: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Copies one batch ahead, so that a step never waits for the transfer."""
    try:
        ahead = None
        for rows in iterator:
            batch = to_devices(rows, mesh, batch_size)
            if ahead is not None:
                yield ahead
            ahead = batch
        if ahead is not None:
            yield ahead
    finally:
        iterator.close()
