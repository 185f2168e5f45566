"""GELU in both forms (Hendrycks and Gimpel 2016), with derivatives that keep the input alone.

`jax.nn.gelu` leaves its derivative parts of what it computed in memory, which take longer to read
and write than to compute again. Both compute in float32; the result has the dtype of the input.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def _from_slope(function: Callable, slope: Callable) -> Callable[[jax.Array], jax.Array]:
    """`function`, elementwise, with the derivative `slope`; both of float32."""

    @jax.custom_vjp
    def call(x: jax.Array) -> jax.Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    def backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        return ((gradient * slope(x.astype(jnp.float32))).astype(x.dtype),)

    call.defvjp(lambda x: (call(x), x), backward)
    return call


def _cdf(x: jax.Array) -> jax.Array:
    """The cumulative function of the normal distribution."""
    return 0.5 * (1 + jax.lax.erf(math.sqrt(0.5) * x))


def _density(x: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


_FACTOR, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _tanh(x: jax.Array) -> jax.Array:
    return jnp.tanh(_FACTOR * x * (1 + _CUBIC * x * x))


def _tanh_slope(x: jax.Array) -> jax.Array:
    tanh = _tanh(x)
    inner = _FACTOR * (1 + 3 * _CUBIC * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner


exact_gelu = _from_slope(lambda x: x * _cdf(x), lambda x: _cdf(x) + x * _density(x))
tanh_gelu = _from_slope(lambda x: 0.5 * x * (1 + _tanh(x)), _tanh_slope)
