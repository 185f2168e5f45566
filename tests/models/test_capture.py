"""Hidden states and attention probabilities, beside transformers' own."""

import jax
import numpy as np
import pytest

from bert_jax.models import architectures, capture, heads
from bert_jax.models.capture import ATTENTIONS, HIDDEN_STATES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "initializer_range": 0.3,
}
FIELDS = {**SIZES, "attention_probs_dropout_prob": 0.1}
BATCH, LENGTH = 3, 24


@pytest.fixture(scope="module")
def both():
    """(our encoder, its parameters, inputs, transformers' encoder of the same parameters)."""
    from bert_jax.huggingface import tensors

    config = architectures.make_config(FIELDS, "float32")
    model = heads.PretrainingModel(config)
    params = heads.init_params(model, jax.random.key(0))
    theirs = transformers.BertModel(
        transformers.BertConfig(**SIZES, attn_implementation="eager")
    ).eval()
    stored = {
        key.removeprefix("bert."): torch.from_numpy(np.array(x))
        for key, x in tensors.to_tensors(params, config).items()
        if key.startswith("bert.")
    }
    theirs.load_state_dict(stored)
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [9], [17]])).astype(np.int32)
    ids = rng.integers(0, SIZES["vocab_size"], (BATCH, LENGTH))
    types = rng.integers(0, 2, (BATCH, LENGTH))
    encoder = architectures.of(config).encoder(config)
    return encoder, params["bert"], (ids, mask, types), theirs


def test_states_and_probabilities_equal_transformers(both):
    encoder, params, inputs, theirs = both
    collections = (HIDDEN_STATES, ATTENTIONS)
    (hidden_BLD, _), captured = jax.jit(
        lambda *inputs: capture.apply(encoder, params, *inputs, collections=collections)
    )(*inputs)
    with torch.no_grad():
        names = ("input_ids", "attention_mask", "token_type_ids")
        expected = theirs(
            **dict(zip(names, map(torch.from_numpy, inputs), strict=True)),
            output_hidden_states=True,
            output_attentions=True,
        )
    real_BL = inputs[1] > 0
    assert len(captured[HIDDEN_STATES]) == len(expected.hidden_states) == 4
    for ours, other in zip(captured[HIDDEN_STATES], expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours[real_BL], other.numpy()[real_BL], atol=1e-5)
    np.testing.assert_array_equal(captured[HIDDEN_STATES][-1], hidden_BLD)
    assert len(captured[ATTENTIONS]) == len(expected.attentions) == 3
    for ours, other in zip(captured[ATTENTIONS], expected.attentions, strict=True):
        rows = np.moveaxis(np.asarray(ours), 1, 2)[real_BL]
        np.testing.assert_allclose(rows, np.moveaxis(other.numpy(), 1, 2)[real_BL], atol=1e-5)


def test_nothing_is_computed_unless_asked_for(both):
    encoder, params, inputs, _ = both
    collections = (HIDDEN_STATES, ATTENTIONS)
    plain = jax.make_jaxpr(lambda *x: encoder.apply({"params": params}, *x))(*inputs)
    unasked = jax.make_jaxpr(lambda *x: capture.apply(encoder, params, *x, collections=()))(*inputs)
    asked = jax.make_jaxpr(lambda *x: capture.apply(encoder, params, *x, collections=collections))(
        *inputs
    )
    assert str(unasked) == str(plain)
    assert len(asked.out_avals) == len(plain.out_avals) + 4 + 3
    assert encoder.init(jax.random.key(0), *inputs).keys() == {"params"}


def test_layers_are_in_order_beyond_the_tenth():
    fields = FIELDS | {"num_hidden_layers": 12, "hidden_size": 8, "vocab_size": 10}
    config = architectures.make_config(fields, "float32")
    encoder = architectures.of(config).encoder(config)
    ids = np.zeros((1, 4), np.int32)
    params = encoder.init(jax.random.key(0), ids, ids + 1, ids)["params"]
    states = capture.apply(
        encoder, params, ids, ids + 1, ids, collections=[HIDDEN_STATES, ATTENTIONS]
    )[1]
    # Each layer's probabilities, from the states that it began with.
    for i in (1, 2, 10, 11):
        layer = params["encoder"][f"layer_{i}"]["attention"]
        x_LD = states[HIDDEN_STATES][i][0]
        q, k = (
            (x_LD @ layer[name]["kernel"] + layer[name]["bias"]).reshape(4, 4, 2)
            for name in ("query", "key")
        )
        expected = jax.nn.softmax(np.einsum("qhk,shk->hqs", q, k) * 2**-0.5)
        np.testing.assert_allclose(states[ATTENTIONS][i][0], expected, atol=1e-6)
