"""Rotary position embeddings (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Shapes live in names, as in `bert_jax/models/bert.py`.
"""

import jax
import jax.numpy as jnp


def angles(positions: jax.Array, head_size: int, theta: float) -> jax.Array:
    """float32[…, K/2]: position × theta^(-2j/K), for positions int[…].

    In float32 whatever the model computes in: bfloat16 would be off by two positions at 512.
    """
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    return positions.astype(jnp.float32)[..., None] * frequencies


def rotate(x_BLHK: jax.Array, angles: jax.Array) -> jax.Array:
    """Each head's halves (a, b) as (a cos - b sin, b cos + a sin); `angles` [L, K/2] or [B, L, …].

    Halves, not neighbours: as GPT-NeoX and ModernBERT pair them.
    """
    cos, sin = (f(angles)[..., None, :] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BLHK.dtype)
