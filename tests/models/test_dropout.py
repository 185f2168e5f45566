"""Dropout: its rate, its independence, its scale."""

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.layers.dropout import dropout, dropout_keys


@pytest.mark.parametrize("rng", ["threefry", "hash"])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rng):
    x = np.ones((64, 33, 40), np.float32)
    keys = dropout_keys(0, np.int32(3), 64)
    y = np.asarray(dropout(x, keys, 0.1, site=5, rng=rng))
    dropped = (y == 0).mean()
    assert abs(dropped - 0.1) < 4 * np.sqrt(0.09 / x.size)  # four standard errors
    assert np.unique(y).size == 2 and y.max() == pytest.approx(1 / 0.9, rel=1e-4)
    for other in (
        dropout(x, keys, 0.1, site=6, rng=rng),
        dropout(x, dropout_keys(0, np.int32(4), 64), 0.1, site=5, rng=rng),
        dropout(x, dropout_keys(1, np.int32(3), 64), 0.1, site=5, rng=rng),
    ):
        agree = (np.asarray(other) == y).mean()
        assert abs(agree - 0.82) < 0.01  # independent draws agree with 0.9² + 0.1²
    np.testing.assert_array_equal(dropout(x, None, 0.1, site=5, rng=rng), x)


@pytest.mark.parametrize("rng", ["threefry", "hash"])
def test_dropout_s_draws_are_independent(rng):
    keys = dropout_keys(0, np.int32(3), 64)
    dropped = np.asarray(dropout(np.ones((64, 12, 128, 128), np.float32), keys, 0.1, 5, rng)) == 0
    x = (dropped - 0.1) / 0.3  # mean 0, variance 1
    pairs = {f"{lag} along axis 3": x[..., lag:] * x[..., :-lag] for lag in (1, 2, 3, 13, 55)}
    for axis in (0, 1, 2):
        y = np.moveaxis(x, axis, 0)
        pairs[f"1 along axis {axis}"] = y[1:] * y[:-1]
    pairs["three in a row"] = x[..., 2:] * x[..., 1:-1] * x[..., :-2]
    for name, products in pairs.items():
        z = products.mean() / products.std() * np.sqrt(products.size)
        assert abs(z) < 4.5, name  # standard errors
    # Sums over rows spread as those of independent draws do.
    assert x.sum(3).var() / 128 == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("rng", ["threefry", "hash"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dropout_scales_by_what_it_keeps(rng, dtype):
    """bfloat16 has no 0.9: dividing in it would be dividing by 0.8984."""
    x = jnp.ones((8, 64), dtype)
    y = np.asarray(dropout(x, dropout_keys(0, np.int32(3), 8), 0.1, 5, rng)).astype(np.float32)
    expected = np.float32(jnp.asarray(1 / (1 - 6554 / 65536), dtype))
    assert set(np.unique(y)) == {0.0, expected}
