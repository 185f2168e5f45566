"""Layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450), derivative included.

Shapes live in names, as in `bert_jax/models/bert.py`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis, in the dtype of `x`; statistics and parameters are float32.

    The derivative is written out: differentiating the mean inside the variance leaves a sum over
    every vector that is zero, and that the compiler computes.
    """
    return _normalize(x, scale_D, bias_D, epsilon)[0]


def _normalize(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> Any:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * (inverse_std * scale_D) + bias_D
    return y.astype(x.dtype), (x, scale_D, mean, inverse_std)


def _normalize_gradient(epsilon: float, saved: Any, dy: jax.Array) -> Any:
    x, scale_D, mean, inverse_std = saved
    dy = dy.astype(jnp.float32)
    normalized = (x.astype(jnp.float32) - mean) * inverse_std
    scaled = dy * scale_D
    along = (scaled * normalized).mean(-1, keepdims=True)
    dx = (scaled - scaled.mean(-1, keepdims=True) - normalized * along) * inverse_std
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (dy * normalized).sum(rows), dy.sum(rows)


normalize.defvjp(_normalize, _normalize_gradient)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016); see `normalize`."""

    config: Any
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias_D = jnp.zeros(x.shape[-1:], jnp.float32)
        if self.use_bias:
            bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        x = x.astype(self.config.dtype)
        return normalize(x, scale_D, bias_D, self.config.layer_norm_eps)
