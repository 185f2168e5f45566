"""The count of FLOPs against XLA's own."""

import jax
import jax.numpy as jnp
import pytest

from bert_jax.models.bert import BertConfig
from bert_jax.models.flops import training_flops
from bert_jax.models.heads import PretrainingModel

LENGTH, PREDICTIONS, BATCH = 128, 20, 2
# Wide enough for its matmuls to outweigh elementwise work, as in any real model.
MODEL = BertConfig(
    vocab_size=1024,
    hidden_size=512,
    num_hidden_layers=3,
    num_attention_heads=8,
    intermediate_size=2048,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def xla_flops(predictions: int) -> float:
    """What XLA counts in the gradient of a loss that uses both heads; compiles, runs nothing."""
    model = PretrainingModel(MODEL)
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    positions = jax.ShapeDtypeStruct((BATCH, predictions), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids, ids, ids)["params"]

    def loss(params, ids, positions):
        output = model.apply({"params": params}, ids, ids, ids, positions)
        return jnp.sum(output.mlm_logits_BMV**2) + jnp.sum(output.nsp_logits_B2**2)

    return jax.jit(jax.grad(loss)).lower(params, ids, positions).compile().cost_analysis()["flops"]


def test_training_flops_are_those_xla_counts():
    counted = training_flops(MODEL, LENGTH, PREDICTIONS, BATCH)
    assert xla_flops(PREDICTIONS) == pytest.approx(counted, rel=0.01)


def test_training_flops_of_published_sizes():
    # 6 × parameters × tokens is the rule of thumb: 85 M in base's layers, 302 M in large's.
    base = training_flops(BertConfig(), 128, 20, 1)
    assert base == pytest.approx(6 * 85e6 * 128, rel=0.1)
    large = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    assert training_flops(large, 128, 20, 1) == pytest.approx(6 * 302e6 * 128, rel=0.1)
    assert training_flops(large, 128, 20, 256) == 256 * training_flops(large, 128, 20, 1)
