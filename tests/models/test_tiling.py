"""A larger model begins with a smaller one's weights."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax.models import architectures, heads, tiling
from bert_jax.models.errors import ModelError

SMALL = architectures.make_config(
    {
        "architecture": "modernbert",
        "vocab_size": 100,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 6,
    }
)
LARGE = dataclasses.replace(
    SMALL, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=10
)


@pytest.fixture(scope="module")
def params():
    module = heads.PretrainingModel(SMALL)
    ids = np.zeros((1, 8), np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def test_arrays_lie_in_the_centre_and_wrap_around():
    found = tiling._tiled("x", np.array([1, 2, 3]), (5,))
    np.testing.assert_array_equal(found, [3, 1, 2, 3, 1])
    found = tiling._tiled("x", np.array([[1, 2], [3, 4]]), (2, 4))
    np.testing.assert_array_equal(found, [[2, 1, 2, 1], [4, 3, 4, 3]])


def test_layers_are_repeated_and_heads_stay_whole(params):
    large = tiling.tile(params, SMALL, LARGE)
    before, after = (tree["modernbert"]["encoder"] for tree in (params, large))
    for layer, source in ((0, 0), (1, 0), (2, 1)):
        small = before[f"layer_{source}"]["attention"]["query"]["kernel"]
        kernel = after[f"layer_{layer}"]["attention"]["query"]["kernel"]
        np.testing.assert_array_equal(kernel[4:12, 4:12], small)
        np.testing.assert_array_equal(kernel[4:12, :4], small[:, 4:])  # the second head
    assert "attention_layer_norm" not in after["layer_0"]
    norm = params["modernbert"]["embeddings"]["layer_norm"]["scale"]
    found = after["layer_1"]["attention_layer_norm"]["scale"]
    np.testing.assert_array_equal(found[4:12], norm)


def test_a_model_of_the_same_size_is_itself(params):
    same = tiling.tile(params, SMALL, SMALL)
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 120}, "it has 100 tokens here, 120 there"),
        ({"intermediate_size": 4}, "has 6 there and 4 here: tiling only enlarges"),
    ],
)
def test_what_cannot_be_tiled_is_refused(params, fields, message):
    with pytest.raises(ModelError, match=message):
        tiling.tile(params, SMALL, dataclasses.replace(SMALL, **fields))
    bert = architectures.make_config({"vocab_size": 100})
    with pytest.raises(ModelError, match="keeps the architecture"):
        tiling.tile(params, SMALL, bert)
