"""Padded lengths: as many as pay for their compilation."""

import numpy as np
import pytest

from bert_jax.finetuning import lengths
from bert_jax.models.bert import BertConfig
from configs.finetune import text_classification

TINY = BertConfig(
    num_hidden_layers=2, num_attention_heads=2, hidden_size=128, intermediate_size=512
)
MINILM = BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536)
LARGE = BertConfig(
    num_hidden_layers=24, num_attention_heads=16, hidden_size=1024, intermediate_size=4096
)


def count(rows, model, **fields):
    config = text_classification.get_config()
    config.update(fields)
    drawn = np.random.default_rng(0).normal(50, 15, rows).clip(8, 128).astype(int)
    chosen = lengths.padded_lengths(drawn, config, model)
    assert chosen[-1] >= drawn.max() and len(set(chosen)) == len(chosen)
    return len(chosen)


@pytest.mark.parametrize("rows", [500, 4_000])
def test_a_larger_model_has_more_programs(rows):
    counts = [count(rows, model) for model in (TINY, MINILM, LARGE)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_a_longer_run_has_more_programs_and_a_trial_few():
    assert count(2_000, MINILM) < count(2_000, MINILM, num_epochs=20)
    assert count(20_000, MINILM, max_steps=20) < count(20_000, MINILM)
    assert count(500, TINY) <= 2  # which train for seconds
    assert count(200_000, LARGE) == 24  # config.length_buckets
