"""Embedding tables: their gradients in bfloat16, their padding rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bert_jax.models import architectures, heads
from bert_jax.models.layers.tables import lookup, select_rows
from bert_jax.objectives.mlm import pretraining_objective

BATCH, LENGTH, MASKED, VOCAB = 256, 128, 20, 200  # 32,768 tokens
FIELDS = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def make_batch() -> dict[str, jax.Array]:
    """Token ids by Zipf's law, [MASK] (id 4) at every masked position, two segments."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, VOCAB - 4)
    ids = 5 + rng.choice(VOCAB - 5, (BATCH, LENGTH), p=shares / shares.sum())
    order = rng.random((BATCH, LENGTH - 1)).argsort(axis=1)
    positions = 1 + order[:, :MASKED]
    read = ids.copy()
    np.put_along_axis(read, positions, 4, axis=1)
    segments = np.arange(LENGTH) > rng.integers(LENGTH // 4, 3 * LENGTH // 4, (BATCH, 1))
    arrays = {
        "input_ids": read,
        "attention_mask": np.ones((BATCH, LENGTH)),
        "token_type_ids": segments,
        "masked_lm_positions": positions,
        "masked_lm_ids": np.take_along_axis(ids, positions, axis=1),
        "next_sentence_labels": rng.integers(0, 2, BATCH),
    }
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
    return batch | {"masked_lm_weights": jnp.ones((BATCH, MASKED))}


def test_gradients_in_bfloat16_are_near_float32s_however_many_tokens_there_are():
    params = heads.init_params(
        heads.PretrainingModel(architectures.make_config(FIELDS)), jax.random.key(0)
    )
    batch = make_batch()

    def gradients(dtype: str) -> dict[str, np.ndarray]:
        objective = pretraining_objective(
            heads.PretrainingModel(architectures.make_config(FIELDS, dtype))
        )

        def loss(params):
            sums, weights = objective.sums(params, batch, None), objective.weights(batch)
            return sum(sums[name] / weights[name] for name in objective.losses)

        return flatten_dict(jax.device_get(jax.jit(jax.grad(loss))(params)), sep="/")

    exact, half = gradients("float32"), gradients("bfloat16")
    words = "bert/embeddings/word_embeddings/embedding"
    for side in (exact, half):
        side["[MASK]"] = side[words][4]
    errors = {
        name: np.linalg.norm(half[name] - x) / np.linalg.norm(x)
        for name, x in exact.items()
        if not name.endswith("key/bias")  # 0, but for rounding: a softmax does not see it
    }
    assert len(errors) > 20
    assert {name: error for name, error in errors.items() if error > 0.03} == {}


def test_lookup_and_selection_equal_indexing():
    table = jax.random.normal(jax.random.key(0), (3, 4))
    ids = jnp.array([[0, 2, 2], [1, 0, 2]])
    weights = jax.random.normal(jax.random.key(1), (2, 3, 4))
    expected = jax.value_and_grad(lambda x: jnp.sum(x[ids] * weights))(table)
    for rows in (lookup, select_rows):
        found = jax.value_and_grad(lambda x, rows=rows: jnp.sum(rows(x, ids) * weights))(table)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert jnp.isnan(lookup(table, jnp.array([3]))).all()


def test_the_gradient_of_a_row_is_the_float32_sum_over_its_tokens():
    """Added one by one in bfloat16, the sum of 3,000 ones stops at 256."""
    table = jnp.zeros((4, 2), jnp.bfloat16)
    ids = jnp.array([[1] * 3000, [3] * 2999 + [1]])
    found = jax.grad(lambda x: jnp.sum(lookup(x, ids)))(table)
    expected = jnp.array([0, 3001, 0, 2999], jnp.bfloat16)[:, None]
    np.testing.assert_array_equal(found, jnp.broadcast_to(expected, (4, 2)))


@pytest.mark.parametrize("vocab_size", [129, 200])
def test_rows_that_pad_the_vocabulary_start_at_zero(vocab_size):
    """LAMB's trust ratio is that of the whole array."""
    config = architectures.make_config(FIELDS | {"vocab_size": vocab_size})
    params = heads.init_params(heads.PretrainingModel(config), jax.random.key(0))
    table = np.asarray(params["bert"]["embeddings"]["word_embeddings"]["embedding"])
    assert len(table) == 256 and (table[vocab_size:] == 0).all()
    assert (table[:vocab_size] != 0).all(axis=1).all()
