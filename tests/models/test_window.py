"""Attention within a window: every implementation equals the plain one, in linear memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.errors import ModelError
from bert_jax.models.layers.attention import attend, probabilities

BATCH, HEADS, SIZE = 3, 2, 8


def inputs(length, packed):
    """q, k, v, weights of the outputs (0 at padding), and the mask; the second row has padding."""
    rng = np.random.default_rng(0)
    q, k, v, weights = rng.standard_normal((4, BATCH, length, HEADS, SIZE)).astype(np.float32)
    mask = np.ones((BATCH, length), np.int32)
    mask[1, 5 * length // 8 :] = 0
    if packed:
        mask[0, length // 3 :] = 2
        mask[1, length // 4 : length // 2] = 2
    return q, k, v, weights * (mask > 0)[..., None, None], mask


def plain(q, k, v, mask, packed, window):
    """By the whole matrix of probabilities."""
    return jnp.einsum("BHQS,BSHK->BQHK", probabilities(q, k, mask, packed, window), v)


def results(function, q, k, v, weights, mask):
    """The real rows of the output, and gradients of q, k and v."""

    def loss(q, k, v):
        y = function(q, k, v, mask)
        return jnp.sum(y * weights), y * (mask > 0)[..., None, None]

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return {"y": y, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "window", "implementation"),
    [(13, 4, "xla"), (40, 4, "xla"), (9, 4, "xla"), (128, 16, "splash")],
    ids=["barely", "banded", "short", "splash"],
)
def test_a_window_is_the_matrix_s_band(length, window, implementation, packed):
    *arrays, weights, mask = inputs(length, packed)
    settings = {"packed": packed, "window": window, "implementation": implementation}
    found = results(lambda *x: attend(*x, **settings), *arrays, weights, mask)
    expected = results(lambda *x: plain(*x, packed, window), *arrays, weights, mask)
    for name in expected:
        assert np.abs(expected[name]).max() > 0.1
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=5e-6, err_msg=name)
    # The matrix itself: by hand, for a query in the middle.
    q, k, v = arrays
    i = length // 2
    near = np.abs(np.arange(length) - i) <= window
    for b in np.flatnonzero(mask[:, i]):
        keys = near & ((mask[b] == mask[b, i]) if packed else (mask[b] > 0))
        scores = np.exp(k[b, keys, 0] @ q[b, i, 0] / np.sqrt(SIZE))
        by_hand = scores @ v[b, keys, 0] / scores.sum()
        np.testing.assert_allclose(found["y"][b, i, 0], by_hand, atol=1e-5)


def test_64_to_each_side_are_seen_and_65_are_not():
    q, k, v, _, mask = inputs(300, False)
    apply = jax.jit(lambda v: attend(q, k, v, mask * 0 + 1, window=64))
    before = apply(v)
    for distance, is_seen in ((64, True), (-64, True), (65, False), (-65, False)):
        v_ = v.copy()
        v_[:, 150 + distance] += 100
        assert (np.abs(apply(v_) - before)[:, 150].max() > 1e-3) == is_seen, distance


def test_memory_grows_with_the_length():
    def temporary_bytes(length):
        x = jax.ShapeDtypeStruct((1, length, HEADS, SIZE), np.float32)
        mask = jax.ShapeDtypeStruct((1, length), np.int32)

        def loss(q, k, v, mask):
            return jnp.sum(attend(q, k, v, mask, window=64))

        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, mask).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192) < 2.1 * temporary_bytes(4096)


def test_the_kernel_that_has_no_window_is_refused():
    q, k, v, _, mask = inputs(32, False)
    with pytest.raises(ModelError, match="attention=fused attends to whole sequences alone"):
        attend(q, k, v, mask, window=4, implementation="fused")
