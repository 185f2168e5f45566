"""Every encoder is fine-tuned, exported, loaded and asked as BERT is."""

import numpy as np
import pytest
from small_finetune import reviews_config
from small_models import random_model
from small_run import ENCODERS

import bert_jax
from bert_jax import finetune


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["roberta", "modernbert"])
def test_from_init_to_predictions(encoder, tmp_path):
    fields = {"architecture": encoder, **ENCODERS[encoder]}
    fields["initializer_range"] = 0.2  # of the head: so narrow a model learns nothing from 0.02
    workdir, exported = random_model(tmp_path / "model", "pretraining", [], 0.2, fields=fields)
    config = reviews_config(tmp_path)
    results = finetune.run(config, exported, tmp_path / "run")  # from an export as from a WORKDIR
    assert results["accuracy"] > 0.9

    model = bert_jax.load(tmp_path / "run" / "hf")
    assert model.architecture == encoder
    answers = model.classify(["the film was very good", "the plot was very bad"])
    assert [answer["prediction"] for answer in answers] == ["yes", "no"]
    texts = ["the film was fine", "a plot"]
    encoded = bert_jax.load(workdir).encode(
        texts, output_hidden_states=True, output_attentions=True
    )
    assert encoded.last_hidden_state.shape == (2, 6, 32)
    np.testing.assert_allclose(encoded.hidden_states[-1], encoded.last_hidden_state, atol=1e-6)
    np.testing.assert_allclose(encoded.attentions[0][0].sum(-1), 1, atol=1e-5)
    assert "pooler_output" not in encoded
    np.testing.assert_allclose(
        bert_jax.load(exported).embed(texts, pooling="mean")[0],
        encoded.last_hidden_state[0].mean(0),
        atol=1e-5,
    )
