"""Dropout whose draws depend on (seed, step, example) alone.

Keys are explicit, one per example (`dropout_keys_B`), so what an example draws depends neither on
the mesh, nor on accumulation, nor on how layers are run. `dropout_keys_B=None` turns dropout off.
"""

import jax
import jax.numpy as jnp


def dropout_keys(seed: int | jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """One key per example of the global batch, a function of (seed, step, row) alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch_size))


def dropout(
    x: jax.Array,
    dropout_keys_B: jax.Array | None,
    rate: float,
    site: int | jax.Array,
    rng: str = "hash",
    rows_BR: jax.Array | None = None,
    length: int = 0,
) -> jax.Array:
    """Zeroes elements of `x` [B, …, N] with probability `rate` and rescales the rest.

    Args:
      dropout_keys_B: one key per example, or None for no dropout.
      site: which dropout of the model this is; distinct sites draw independently.
      rng: see `BertConfig.dropout_rng`.
      rows_BR: given, `x` [B, …, R, N] holds these rows alone of an array with `length` of them,
        and what is dropped is what would be there.
    """
    drop = threshold(rate)
    if dropout_keys_B is None or drop == 0:
        return x
    dropout_keys_B = fold_site(dropout_keys_B, site)
    shape = x.shape[1:] if rows_BR is None else (*x.shape[1:-2], length, x.shape[-1])
    if rng == "hash":
        keep = _hashed_bits(dropout_keys_B, shape, rows_BR) >= jnp.uint32(drop << 16)
    else:
        half = -(-shape[-1] // 2)  # two draws a word, of which an odd number leaves one
        words = jax.vmap(lambda key: jax.random.bits(key, (*shape[:-1], half), jnp.uint32))(
            dropout_keys_B
        )
        draws = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1, *shape[:-1], 2 * half)
        keep = draws[..., : shape[-1]] >= drop
        if rows_BR is not None:
            keep = jax.vmap(lambda keep, rows_R: jnp.take(keep, rows_R, axis=-2))(keep, rows_BR)
    # In float32: bfloat16 has no 0.9, and would scale by 1.113 for it.
    return jnp.where(keep, x.astype(jnp.float32) / (1 - drop / 2**16), 0).astype(x.dtype)


def threshold(rate: float) -> int:
    """How many of 65,536 draws drop: sixteen random bits per element halve threefry's work."""
    return round(rate * 2**16)


def fold_site(dropout_keys_B: jax.Array, site: int | jax.Array) -> jax.Array:
    """The examples' keys for one dropout of the model."""
    return jax.vmap(jax.random.fold_in, (0, None))(dropout_keys_B, site)


def _hashed_bits(
    dropout_keys_B: jax.Array, shape: tuple[int, ...], rows_BR: jax.Array | None
) -> jax.Array:
    """uint32[B, *shape]: the position in `shape`, mixed with the example's key; or rows of that.

    The upper bits alone are good. Elementwise, so it runs inside the operation that uses the bits,
    no mask is stored, and the mesh does not matter. Threefry's bits are stored and reshaped: a
    quarter of BERT-base's step on TPU v5e.
    """
    words_B2 = jax.random.key_data(dropout_keys_B)
    first, second = (words_B2[:, i].reshape(-1, *(1 for _ in shape)) for i in (0, 1))
    drawn = shape if rows_BR is None else (*shape[:-2], rows_BR.shape[1], shape[-1])
    x = first
    for axis, stride in enumerate(strides(shape)):
        if rows_BR is not None and axis == len(shape) - 2:
            ones = (1,) * axis
            position = rows_BR.astype(jnp.uint32).reshape(-1, *ones, rows_BR.shape[1], 1)
        else:
            position = jax.lax.broadcasted_iota(jnp.uint32, (1, *drawn), axis + 1)
        x = x + position * jnp.uint32(stride)
    return mix(x, second)


def strides(shape: tuple[int, ...]) -> list[int]:
    """Per axis what a step along it adds to the hashed number: row-major Weyl sequence, mod 2³²."""
    result: list[int] = []
    stride = 0x9E3779B1  # 2³² over the golden ratio
    for size in reversed(shape):
        result.insert(0, stride)
        stride = stride * size % 2**32
    return result


def mix(x: jax.Array, second: jax.Array) -> jax.Array:
    """Rounds of MurmurHash3's finaliser on uint32; half of a key comes in `x`, half between."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = x ^ second
    return (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
