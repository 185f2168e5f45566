"""What holds for every encoder: shortcuts and packing change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.cli import UserError
from bert_jax.models import architectures, heads
from bert_jax.models.layers.dropout import dropout_keys
from bert_jax.models.modernbert import ModernBertConfig
from bert_jax.models.roberta import RobertaConfig

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 44,
    "initializer_range": 0.3,
}
FIELDS = {
    "bert": SIZES,
    "roberta": SIZES | {"pad_token_id": 1},
    # The second layer attends to a window.
    "modernbert": SIZES | {"local_attention": 8, "attention_dropout": 0.1, "mlp_dropout": 0.1},
}
ENCODERS = ["roberta", "modernbert", pytest.param("bert", marks=pytest.mark.slow)]
LENGTH = 40


def encoder_of(name):
    config = architectures.make_config({"architecture": name, **FIELDS[name]})
    encoder = architectures.of(config).encoder(config)
    ids = np.zeros((1, 8), np.int32)
    return encoder, jax.jit(encoder.init)(jax.random.key(0), ids, ids, ids)["params"]


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_examples_are_as_each_alone(name):
    """In the second one a token is the padding's, which RoBERTa counts no position for."""
    encoder, params = encoder_of(name)
    rng = np.random.default_rng(0)
    lengths = (15, 8, 12)
    texts = [rng.integers(5, 100, n) for n in lengths]
    texts[1][3] = 1
    ids, mask, positions = (np.zeros((1, LENGTH), np.int32) for _ in range(3))
    apply = jax.jit(lambda *x: encoder.apply({"params": params}, *x, method="encode"))
    start = 0
    for number, text in enumerate(texts, 1):
        part = np.s_[0, start : start + len(text)]
        ids[part], mask[part], positions[part] = text, number, np.arange(len(text))
        start += len(text)
    types = np.zeros_like(ids)
    packed = apply(ids, mask, types, None, positions)[0]
    start = 0
    for text in texts:
        alone = np.full((1, LENGTH), 1, np.int32)
        alone[0, : len(text)] = text
        seen = (np.arange(LENGTH) < len(text)).astype(np.int32)[None]
        expected = apply(alone, seen, types)[0, : len(text)]
        found = packed[start : start + len(text)]
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(found, expected, atol=1e-5)
        start += len(text)


@pytest.mark.parametrize(
    "name",
    ["modernbert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta", "bert"))],
)
def test_positions_read_alone_equal_those_of_all(name):
    encoder, params = encoder_of(name)
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 100, (3, LENGTH))
    mask = np.ones((3, LENGTH), np.int32)
    mask[1, 30:] = 0
    rows = np.array([[0, 3, 9], [0, 15, 1], [0, 39, 10]])
    keys = dropout_keys(0, np.int32(3), 3)

    def loss(params, rows_BR):
        hidden = encoder.apply(
            {"params": params}, ids, mask, ids % 1, keys, rows_BR=rows_BR, method="encode"
        )
        if rows_BR is None:
            hidden = hidden[np.arange(3)[:, None], rows]
        return jnp.sum(jnp.sin(hidden)), hidden

    grad = jax.value_and_grad(loss, has_aux=True)
    (_, whole), whole_gradients = jax.jit(grad, static_argnums=1)(params, None)
    (_, read), gradients = jax.jit(grad)(params, rows)
    np.testing.assert_allclose(read, whole, atol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradients, whole_gradients
    )


def test_roberta_counts_positions_from_behind_the_padding():
    encoder, _ = encoder_of("roberta")
    ids = np.array([[0, 7, 1, 8, 2, 1, 1], [1, 1, 0, 7, 1, 8, 2]])
    found = encoder.positions(ids, None)
    np.testing.assert_array_equal(found, [[2, 3, 1, 4, 5, 1, 1], [1, 1, 2, 3, 1, 4, 5]])


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (RobertaConfig, {"pad_token_id": -1}, "pad_token_id -1 is not from 0 to below"),
        (RobertaConfig, {"max_position_embeddings": 2}, "leaves no position: the first 2"),
        (ModernBertConfig, {"hidden_size": 36, "num_attention_heads": 12}, "a multiple of twice"),
        (ModernBertConfig, {"local_rope_theta": 0.0}, "local_rope_theta 0.0 is not more than 0"),
        (ModernBertConfig, {"classifier_pooling": "max"}, "classifier_pooling 'max' is not one"),
    ],
)
def test_impossible_models_are_refused(config_class, fields, message):
    with pytest.raises(UserError, match=message):
        config_class(**fields)


def test_published_sizes():
    """Parameters of roberta-base, with its pooler, and of ModernBERT-base, as published."""
    counts = {}
    for name in ("roberta", "modernbert"):
        config = architectures.make_config({"architecture": name})
        encoder = architectures.of(config).encoder(config)
        ids = jax.ShapeDtypeStruct((1, 8), np.int32)
        shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids, ids)["params"]
        counts[name] = sum(x.size for x in jax.tree.leaves(shapes))
        counts[name] -= (config.padded_vocab_size - config.vocab_size) * config.hidden_size
    assert counts == {"roberta": 124_645_632, "modernbert": 149_014_272}


def test_an_encoder_without_pairs_has_no_head_for_them():
    config = architectures.make_config({"architecture": "roberta", **FIELDS["roberta"]})
    module = heads.PretrainingModel(config)
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    assert params.keys() == {"roberta", "mlm_transform", "mlm_layer_norm", "mlm_bias"}
    assert "pooler" not in params["roberta"]
