"""The loss that every objective is made of, and what counts as right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.objectives.base import cross_entropy, is_right


def test_cross_entropy_is_optaxs():
    logits = jax.random.normal(jax.random.key(0), (4, 3, 50)).at[..., 40:].set(-1e30)
    labels = (
        jax.random.randint(jax.random.key(1), (4, 3), 0, 40).at[0, 0].set(logits[0, 0].argmax())
    )
    weights = jnp.arange(12.0).reshape(4, 3)
    both = [
        jax.value_and_grad(lambda x, f=f: jnp.sum(f(x, labels) * weights))(logits)
        for f in (cross_entropy, optax.softmax_cross_entropy_with_integer_labels)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *both)
    assert (is_right(logits, labels) == (logits.argmax(-1) == labels)).all()
    assert is_right(logits, labels)[0, 0]


def test_constant_logits_are_right_as_often_as_a_guess():
    for classes in (2, 50):
        labels = jnp.arange(100) % classes
        right = is_right(jnp.zeros((100, classes)), labels)
        np.testing.assert_allclose(right, 1 / classes, rtol=1e-6)
    logits = jnp.array([[3.0, 3.0, 1.0], [3.0, 3.0, 1.0], [3.0, 3.0, 1.0], [0.0, 2.0, 1.0]])
    np.testing.assert_array_equal(is_right(logits, jnp.array([0, 1, 2, 1])), [0.5, 0.5, 0, 1])
    assert not is_right(jnp.full((1, 3), jnp.nan), jnp.array([0])).any()


def test_padding_of_the_vocabulary_costs_nothing_and_cannot_be_a_label():
    """-inf, where a large negative number would pass for a loss."""
    logits = jax.random.normal(jax.random.key(0), (2, 8)).at[:, 6:].set(-jnp.inf)
    value_and_grad = jax.value_and_grad(lambda x, labels: cross_entropy(x, labels).sum())
    loss, gradient = value_and_grad(logits, jnp.array([1, 5]))
    expected, exact = value_and_grad(logits[:, :6], jnp.array([1, 5]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :6], exact, atol=1e-6)
    assert (gradient[:, 6:] == 0).all()
    assert cross_entropy(logits, jnp.array([1, 6]))[1] == jnp.inf
