"""Linear layers: how they are initialised, and their matmul in the form that is fast."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.layers.attention import platform_of


class Dense(nn.Module):
    """x·kernel + bias, with the published initialisation: truncated normal, zero bias.

    As `flax.linen.Dense`, but for the bias's gradient, which is summed over the tokens in float32:
    in bfloat16 it was off by a third where the summands are alike, as those of attention's values.

    Attributes:
      config: an encoder's (`architectures.EncoderConfig`).
      wide: the result is float32 whatever `config.dtype` is, for what few matmuls follow.
      init_scale: times `config.initializer_range`, the kernel's standard deviation before it is
        truncated at two of them.
    """

    config: Any
    features: int
    wide: bool = False
    use_bias: bool = True
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        std = self.config.initializer_range * self.init_scale
        init = nn.initializers.truncated_normal(std)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        dtype = self.config.dtype
        over_D = (((x.ndim - 1,), (0,)), ((), ()))
        result = jnp.float32 if self.wide else None
        y = dot_general(x.astype(dtype), kernel.astype(dtype), over_D, result)
        if not self.use_bias:
            return y
        bias_F = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return _add_bias(y, bias_F)


def dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, preferred_element_type: Any = None
) -> jax.Array:
    """`jax.lax.dot_general` of [B, L, D] and a matrix; on a CPU, with B·L as one axis.

    With two axes of rows, XLA for CPU brings the matrix's gradient into order by computing whatever
    its operands come from once more, transposed: a fifth of the step time. XLA for TPU lays out
    three axes better than two: a tenth of the step time, by its own estimate.
    """
    rows = x.shape[:-1]
    if platform_of(jax.sharding.get_abstract_mesh()) == "cpu":
        ((_, axes), batch_axes) = dimension_numbers
        x, dimension_numbers = x.reshape(-1, x.shape[-1]), (((1,), axes), batch_axes)
    y = jax.lax.dot_general(
        x, kernel, dimension_numbers, preferred_element_type=preferred_element_type
    )
    return y.reshape(*rows, -1)


@jax.custom_vjp
def _add_bias(y: jax.Array, bias_F: jax.Array) -> jax.Array:
    return y + bias_F.astype(y.dtype)


def _add_bias_gradient(_: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return dy, dy.astype(jnp.float32).sum(range(dy.ndim - 1))


_add_bias.defvjp(lambda y, bias_F: (_add_bias(y, bias_F), None), _add_bias_gradient)
