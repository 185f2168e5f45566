"""Every encoder is fine-tuned, exported, loaded and asked as BERT is."""

import jax
import ml_collections
import numpy as np
import pytest
from small_finetune import SIZES, TOKENIZER, reviews_config
from small_run import ENCODERS

import bert_jax
from bert_jax import convert, finetune
from bert_jax.models import architectures, heads
from bert_jax.runs import checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["roberta", "modernbert"])
def test_from_init_to_predictions(encoder, tmp_path):
    fields = {"architecture": encoder, **SIZES, **ENCODERS[encoder]}
    module = heads.PretrainingModel(architectures.make_config(fields))
    params = jax.device_get(heads.init_params(module, jax.random.key(0)))
    workdir, exported = tmp_path / "model", tmp_path / "export"
    saved = ml_collections.ConfigDict({"model": fields})
    checkpoint.save_params(workdir, params, saved, TOKENIZER, 3)
    convert.to_hugging_face(workdir, exported)
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
