"""The pretraining objective: which positions each metric counts."""

import jax
import numpy as np
from small_run import make_tokenizer

from bert_jax.data import input_pipeline
from bert_jax.models import heads
from bert_jax.objectives import mlm
from bert_jax.objectives.mlm import pretraining_objective


def test_evaluation_is_broken_down_by_kind_of_mask_and_by_frequency(config):
    tok, ranks = make_tokenizer(), np.arange(100)[::-1].copy()
    model = heads.make_model(config)
    params = heads.init_params(model, jax.random.key(0))
    data = input_pipeline.open_data(config.data_dir, "train", config)
    batch = data.read(0, 16)
    rows, columns = np.nonzero(batch["masked_lm_weights"])
    positions = batch["masked_lm_positions"][rows, columns]
    labels = batch["masked_lm_ids"][rows, columns]
    assert len(rows) > 20 and (batch["input_ids"][rows, positions] == tok.mask_id).all()
    batch["input_ids"][rows[:7], positions[:7]] = labels[:7]
    batch["input_ids"][rows[7:10], positions[7:10]] = (labels[7:10] - 4) % 95 + 5
    mlm.FREQUENCY_BANDS, bands = (20, 60), mlm.FREQUENCY_BANDS
    try:
        objective = pretraining_objective(model, True, tok.mask_id, ranks)
        weights = jax.device_get(objective.weights(batch))
        sums = jax.device_get(objective.sums(params, batch, None))
    finally:
        mlm.FREQUENCY_BANDS = bands
    assert weights["mlm_accuracy_kept"] == 7 and weights["mlm_accuracy_random"] == 3
    assert weights["mlm_accuracy_mask"] == len(rows) - 10
    kinds = [f"mlm_accuracy_{kind}" for kind in ("mask", "random", "kept")]
    ranges = [f"mlm_accuracy_rank_{band}" for band in ("1_20", "21_60", "61_up")]
    for names in (kinds, ranges):
        assert sum(weights[name] for name in names) == weights["mlm_accuracy"]
        assert sum(sums[name] for name in names) == sums["mlm_accuracy"]
    assert weights["mlm_accuracy_rank_21_60"] == ((labels >= 40) & (labels <= 79)).sum()
