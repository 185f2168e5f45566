"""Which rows and arrays of another model a run begins with, and what is refused."""

import dataclasses

import jax
import ml_collections
import numpy as np
import optax
import pytest
import small_run
from ml_collections import ConfigDict
from small_model import SIZES, TOKENIZER
from small_run import make_tokenizer

from bert_jax import pretrain
from bert_jax.cli import UserError
from bert_jax.data.tokenizer import WordPieceTokenizer
from bert_jax.models import architectures, heads
from bert_jax.models.bert import BertConfig
from bert_jax.models.stacking import unstack_layers
from bert_jax.parallel import distributed, program_cache, sharding
from bert_jax.runs import checkpoint
from bert_jax.runs.state import init_state
from bert_jax.training import warm_start

MODEL = BertConfig(**SIZES)


def new_state(model):
    module = heads.PretrainingModel(model)
    return init_state(
        lambda key: heads.init_params(module, key), optax.sgd(0.0), sharding.make_mesh(), 5
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A workdir of MODEL, with another seed."""
    directory = tmp_path_factory.mktemp("source") / "run"
    module = heads.PretrainingModel(MODEL)
    params = jax.device_get(heads.init_params(module, jax.random.key(1)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), params)
    config = ConfigDict({"model": SIZES})
    checkpoint.save_params(directory, params, config, TOKENIZER, 3)
    return directory


def tables(params):
    params = unstack_layers(jax.device_get(params))
    embeddings = params["bert"]["embeddings"]
    return {
        "word": embeddings["word_embeddings"]["embedding"],
        "position": embeddings["position_embeddings"]["embedding"],
        "bias": params["mlm_bias"][:, None],
    }


# 200 are padded to more rows, 50 are not.
@pytest.mark.parametrize(("added", "scan_layers"), [(50, False), (200, True)])
def test_longer_tables_keep_their_rows(source, added, scan_layers, caplog):
    caplog.set_level("INFO")
    words = tuple(f"new{i}" for i in range(added))
    tokenizer = dataclasses.replace(TOKENIZER, vocab=TOKENIZER.vocab + words)
    count, total = TOKENIZER.vocab_size, tokenizer.vocab_size
    model = dataclasses.replace(
        MODEL, vocab_size=total, max_position_embeddings=80, scan_layers=scan_layers
    )
    fresh = new_state(model)
    before = tables(fresh.params)
    got = tables(warm_start.warm_start(fresh, str(source), model, tokenizer).params)
    old = tables(checkpoint.load(source).params)
    for name, rows in (("word", count), ("position", 40), ("bias", count)):
        np.testing.assert_array_equal(got[name][:rows], old[name][:rows], err_msg=name)
        # New rows, and the padding, are as they were drawn: not the padding of the old.
        np.testing.assert_array_equal(got[name][rows:], before[name][rows:], err_msg=name)
    assert f"{added} ids are new" in caplog.text and "stand for other" not in caplog.text
    assert f"word_embeddings/embedding {count} of {total} rows (there {count})" in caplog.text
    assert "position_embeddings/embedding 40 of 80 rows" in caplog.text


def test_a_run_at_a_learning_rate_of_zero_keeps_the_rows_that_it_began_with(config, tmp_path):
    fields = config.model.to_dict() | {"vocab_size": 60, "max_position_embeddings": 20}
    model = architectures.make_config(fields)
    params = jax.device_get(heads.init_params(heads.PretrainingModel(model), jax.random.key(1)))
    words = WordPieceTokenizer(make_tokenizer().vocab[:60])  # the data's have 40 more
    checkpoint.save_params(tmp_path / "old", params, ConfigDict({"model": fields}), words, 3)
    config.update(init_from=str(tmp_path / "old"), num_steps=2, eval_every=0, checkpoint_every=2)
    config.optimizer.update(learning_rate=0.0, warmup_steps=0)
    pretrain.run(config, tmp_path / "run")
    got, old = (tables(checkpoint.load(tmp_path / run).params) for run in ("run", "old"))
    for name, rows in (("word", 60), ("position", 20), ("bias", 60)):
        np.testing.assert_array_equal(got[name][:rows], old[name][:rows], err_msg=name)


def test_new_tokens_begin_as_the_mean_of_their_pieces(source):
    tokenizer = dataclasses.replace(TOKENIZER, vocab=(*TOKENIZER.vocab, "capitals", "##xyz"))
    model = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    fresh = new_state(model)
    before = tables(fresh.params)["word"]
    state = warm_start.warm_start(fresh, str(source), model, tokenizer, new_rows="mean")
    got, old = tables(state.params)["word"], tables(checkpoint.load(source).params)["word"]
    ids = [TOKENIZER.ids["capital"], TOKENIZER.ids["##s"]]
    np.testing.assert_allclose(got[TOKENIZER.vocab_size], old[ids].mean(0), rtol=1e-6)
    # Of no pieces that are known.
    np.testing.assert_array_equal(got[TOKENIZER.vocab_size + 1], before[TOKENIZER.vocab_size + 1])
    with pytest.raises(UserError, match="neither 'random' nor 'mean'"):
        warm_start.warm_start(fresh, str(source), model, tokenizer, new_rows="zero")


def test_shorter_tables_are_cut(source):
    tokenizer = WordPieceTokenizer(TOKENIZER.vocab[:120])
    model = dataclasses.replace(MODEL, vocab_size=120, max_position_embeddings=16)
    state = warm_start.warm_start(new_state(model), str(source), model, tokenizer)
    got, old = tables(state.params), tables(checkpoint.load(source).params)
    np.testing.assert_array_equal(got["word"][:120], old["word"][:120])
    np.testing.assert_array_equal(got["position"], old["position"][:16])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads is 4 there, 2 here"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu_pytorch_tanh' there, 'gelu' here"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-12 there, 1e-05 here"),
    ],
)
def test_settings_without_a_shape_are_refused(source, change, message):
    model = dataclasses.replace(MODEL, **change)
    for partial in (False, True):
        with pytest.raises(UserError, match=message):
            warm_start.warm_start(new_state(model), str(source), model, TOKENIZER, partial)


def test_a_small_share_is_an_error_unless_allowed(source, tmp_path):
    model = dataclasses.replace(MODEL, num_hidden_layers=4)
    with pytest.raises(UserError, match="num_hidden_layers is 2 there, 4 here"):
        warm_start.warm_start(new_state(model), str(source), model, TOKENIZER)
    state = warm_start.warm_start(new_state(model), str(source), model, TOKENIZER, partial=True)
    got, old = state.params["bert"]["encoder"], checkpoint.load(source).params["bert"]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, got["layer_1"], old["layer_1"])

    loaded = checkpoint.load(source)
    del loaded.params["bert"]["encoder"]["layer_1"]
    checkpoint.save_params(tmp_path / "run", loaded.params, loaded.config, TOKENIZER, 0)
    with pytest.raises(UserError, match=r"only \d\d\.\d% .*layer_1.*--config.init_partial=True"):
        warm_start.warm_start(new_state(MODEL), str(tmp_path / "run"), MODEL, TOKENIZER)


@pytest.mark.parametrize("encoder", ["roberta", "modernbert"])
def test_the_architecture_comes_from_the_model_to_start_from(encoder, config, tmp_path):
    fields = {"architecture": encoder, **SIZES, **small_run.ENCODERS[encoder]}
    model = architectures.make_config(fields)
    saved = ml_collections.ConfigDict({"model": fields})
    checkpoint.save_params(tmp_path / "source", {"x": np.zeros(1)}, saved, TOKENIZER, 0)
    config.init_from = str(tmp_path / "source")
    warm_start.adopt_model(config, (), tmp_path / "run")
    expected = dataclasses.replace(model, vocab_size=small_run.VOCAB_SIZE)
    assert architectures.make_config(config.model) == expected


def test_sizes_come_from_the_model_to_start_from(source, config, tmp_path, monkeypatch):
    """config is the recipe bert_tiny:laptop's, whose sizes are others."""
    from bert_jax.training import loop

    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "hf")
    monkeypatch.setattr(distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(program_cache, "tidy", lambda: None)
    seen = []
    monkeypatch.setattr(loop, "train_and_evaluate", lambda config, *_: seen.append(config))
    for path in (source, tmp_path / "hf"):
        flags = [
            *("--config=bert_tiny:laptop", f"--workdir={tmp_path / 'run'}"),
            *(f"--config.data_dir={config.data_dir}", f"--config.init_from={path}"),
        ]
        pretrain.main(flags)
        pretrain.main([*flags, "--config.model.num_attention_heads=8"])
        model, given = seen[-2].model, seen[-1].model
        expected = SIZES | {"vocab_size": 100}  # the data's
        assert {name: model[name] for name in SIZES} == expected
        assert model.hidden_act == ("gelu_pytorch_tanh" if path == source else "gelu")
        assert given.num_attention_heads == 8 and given.hidden_size == 32
