"""What is minimised: sums over the global batch, and the loss that they are made of.

B is the global batch, V the padded vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, as sums: a metric is Σ numerators / Σ weights over the global batch.

    Dividing sums, instead of averaging each device's or microbatch's own mean, weighs every masked
    token alike however the batch is split.

    Attributes:
      losses: the metrics whose values add up to the loss.
      sums: (params, batch, dropout_keys_B) -> numerators; the keys are None for evaluation.
      weights: batch -> denominators, of the same names; depends on the batch alone.
    """

    losses: tuple[str, ...]
    sums: Callable[[Any, Batch, jax.Array | None], Scalars]
    weights: Callable[[Batch], Scalars]


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits) at `labels`, float32[…], of float32[…, V] and int[…].

    The backward pass recomputes the probabilities from the logits, in one pass over them, and
    keeps no array of their size.
    """
    return _cross_entropy(logits, labels)[0]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # The gradient waits for the label's logit too: the loss alone needs it, so XLA would read it
    # after the whole backward pass, and keep the logits until then.
    normaliser, label_logit = jax.lax.optimization_barrier((normaliser, at_labels(logits, labels)))
    return normaliser - label_logit, (logits, labels, normaliser)


def _cross_entropy_gradient(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    logits, labels, normaliser = saved
    probabilities = jnp.exp(logits - normaliser[..., None])
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    return (probabilities - is_label) * gradient[..., None], None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


@jax.custom_vjp
def log_normaliser(logits: jax.Array) -> jax.Array:
    """log Σ exp(logits), float32[…], of float32[…, V]; the backward pass keeps no such array."""
    return jax.nn.logsumexp(logits, axis=-1)


def _log_normaliser(logits: jax.Array) -> tuple[jax.Array, Any]:
    normaliser = log_normaliser(logits)
    return normaliser, (logits, normaliser)


def _log_normaliser_gradient(saved: Any, gradient: jax.Array) -> tuple[jax.Array]:
    logits, normaliser = saved
    return (jnp.exp(logits - normaliser[..., None]) * gradient[..., None],)


log_normaliser.defvjp(_log_normaliser, _log_normaliser_gradient)


def at_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label."""
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the label's logit is above all others, 1/n where it is the largest with n - 1 others.

    So constant logits are right as often as guesses. The maximum is the loss's own: cheaper than an
    argmax. The others are counted in float32, as XLA for TPU sums them in the loss's pass over the
    logits then, and integers in another.
    """
    largest = logits.max(axis=-1)
    ties = jnp.sum(logits == largest[..., None], axis=-1, dtype=jnp.float32)
    return (at_labels(logits, labels) >= largest) / jnp.maximum(ties, 1)
