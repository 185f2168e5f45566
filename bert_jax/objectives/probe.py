"""A linear probe: what of a label can be read off frozen states by one linear layer.

Multinomial logistic regression, as scikit-learn's `LogisticRegression` on standardised features.
N examples, D hidden width, C classes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 200  # of L-BFGS at most
TOLERANCE = 1e-4  # of the mean loss's gradient, as scikit-learn's


class Probe(NamedTuple):
    """weights: float32[D, C]; bias: float32[C]; mean and scale of the features: float32[D]."""

    weights_DC: jax.Array
    bias_C: jax.Array
    mean_D: jax.Array
    scale_D: jax.Array

    def predict(self, x_ND: jax.Array | np.ndarray) -> jax.Array:
        """The likeliest class of each example, int32[N]."""
        return jnp.argmax(_standardised(x_ND, self) @ self.weights_DC + self.bias_C, -1)


def _standardised(x_ND: jax.Array | np.ndarray, probe: Probe) -> jax.Array:
    return (jnp.asarray(x_ND) - probe.mean_D) / probe.scale_D


@functools.partial(jax.jit, static_argnames="num_classes")
def fit(
    x_ND: jax.Array | np.ndarray, labels_N: jax.Array | np.ndarray, num_classes: int, l2: float = 1
) -> Probe:
    """The probe with the lowest Σ cross-entropy + l2 / 2 · ‖weights‖², found by L-BFGS.

    Args:
      x_ND: states.
      labels_N: int, classes from 0.
      l2: 1 / C of scikit-learn.
    """
    x_ND = jnp.asarray(x_ND)
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0)
    count, width = x_ND.shape
    scale_D = jnp.where(scale_D > 0, scale_D, 1)
    start = Probe(jnp.zeros((width, num_classes)), jnp.zeros(num_classes), mean_D, scale_D)
    standard_ND = _standardised(x_ND, start)

    def loss(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights_DC, bias_C = params
        logits_NC = standard_ND @ weights_DC + bias_C
        loss_N = optax.softmax_cross_entropy_with_integer_labels(logits_NC, labels_N)
        return loss_N.mean() + l2 / (2 * count) * (weights_DC**2).sum()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, taken, _ = carry
        value, grads = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        largest = jnp.maximum(*(jnp.abs(x).max() for x in grads))
        return optax.apply_updates(params, updates), state, taken + 1, largest

    def goes_on(carry):
        _, _, taken, largest = carry
        return (taken < STEPS) & (largest > TOLERANCE)

    params = (start.weights_DC, start.bias_C)
    carry = (params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.inf)
    (weights_DC, bias_C), *_ = jax.lax.while_loop(goes_on, step, carry)
    return Probe(weights_DC, bias_C, mean_D, scale_D)
