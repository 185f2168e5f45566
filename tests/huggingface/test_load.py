"""Directories of others: read for what they are, or refused in one message."""

import dataclasses
import json
import re
import shutil

import flax.serialization
import flax.traverse_util
import numpy as np
import pytest
import transformers
from small_model import SIZES, TOKENIZER, load_torch

import bert_jax
from bert_jax import convert
from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.finetuning import inputs
from bert_jax.huggingface import keys, load, parity, tensors, weights
from bert_jax.models import architectures
from bert_jax.runs import checkpoint

torch = pytest.importorskip("torch")

GOOGLE = "tests/huggingface/google_bert"  # written by TensorFlow 2.21's Saver, values of rng(0)


def save(directory, name="BertForPreTraining", **fields):
    """A random model of transformers; fields are config.json's."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.BertConfig(**SIZES)).eval()
    model.save_pretrained(directory)
    tokenizer.save(TOKENIZER, directory, 40)
    edit(directory, **fields)
    return model


def edit(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("load") / "model"
    save(directory)
    return directory


def has(read):
    return tensors.parts_of(read.params, architectures.make_config(read.config.model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers 10,000,000, the weights are of 2"),
        ({"num_hidden_layers": 1}, "num_hidden_layers 1, the weights are of 2"),
        ({"hidden_size": 2**70}, r"hidden_size is 1180591620717411303424, expected 1 to"),
        ({"vocab_size": -1}, "vocab_size is -1, expected 1 to"),
        ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]"),
        ({"id2label": ["a", "b"]}, "'id2label' is .* expected an object"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label has the keys"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, r"calls 2 classes 'a' \(0, 1\)"),
        ({"id2label": {"0": 1}}, "'id2label.0' is 1, expected a text"),
        ({"architectures": "BertModel"}, "'architectures' is 'BertModel', expected a list"),
        ({"architectures": [1]}, "'architectures.0' is 1"),
        ({"model_type": 7}, "'model_type' is 7"),
        ({"classifier_dropout": "x"}, "classifier_dropout is 'x'"),
    ],
)
def test_crafted_configs(fields, message, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "m")
    edit(tmp_path / "m", **fields)
    with pytest.raises(UserError, match=message):
        load.read(tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", '{"a": ' * 100_000, "is not JSON"),
        ("config.json", '{"model_type": "bert"}', "says nothing of a model"),
        ("config.json", '{"modules": 1, "_name_or_path": "x"}', "says nothing of a model"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}', "lists '../x'"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd'"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "sub/x"}}', "lists 'sub/x'"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "'weight_map' is"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
            "has model.safetensors, which transformers reads, and model.safetensors.index.json",
        ),
        ("modules.json", "{}", "expected a list"),
        ("modules.json", '[{"type": "x.Transformer"}, {"type": "x.Dense"}]', "Transformer, Dense"),
        ("modules.json", '[{"type": "x.Transformer", "path": "/etc"}]', "names '/etc'"),
    ],
)
def test_crafted_files(file, text, message, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "m")
    (tmp_path / "m" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load.read(tmp_path / "m")


def test_a_file_without_end_is_not_read(model_dir, tmp_path):
    for file in ("model.safetensors", "config.json"):
        shutil.copytree(model_dir, tmp_path / file)
        (tmp_path / file / file).unlink()
        (tmp_path / file / file).symlink_to("/dev/zero")
        with pytest.raises(UserError, match="is not a regular file"):
            load.read(tmp_path / file)
    shutil.copytree(model_dir, tmp_path / "sparse")
    with open(tmp_path / "sparse" / "model.safetensors", "ab") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="1,099,511,627,776 bytes, more than"):
        load.read(tmp_path / "sparse")


def test_a_dropout_of_the_classifier(tmp_path):
    save(tmp_path / "m", "BertForSequenceClassification", classifier_dropout=0.25)
    read = load.read(tmp_path / "m")
    assert read.config.model.classifier_dropout == 0.25
    checkpoint.save_params(tmp_path / "run", read.params, read.config, read.tokenizer, 0)
    convert.to_hugging_face(tmp_path / "run", tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["classifier_dropout"] == 0.25


def test_a_masked_lm_with_a_pooler_of_a_class_of_its_own(tmp_path):
    """As antiberty 0.1.3 has it on PyPI."""
    save(tmp_path / "m", architectures=["AntiBERTy"])
    state = weights.read(tmp_path / "m", lambda: 2**30)
    state = {key: x for key, x in state.items() if "seq_relationship" not in key}
    weights.write(tmp_path / "m", state, 10**9)
    convert.from_hugging_face(tmp_path / "m", tmp_path / "run")
    report = convert.to_hugging_face(tmp_path / "run", tmp_path / "hf")
    assert report.passed and set(report.differences) == {"hidden", "mlm_logits"}
    _, info = load_torch("BertForMaskedLM", tmp_path / "hf")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(
    ("extra", "class_name"),
    [
        ({"cls.chain.weight": (2, 32)}, "BertForMaskedLM"),
        ({"linear.weight": (16, 32)}, "HF_ColBERT"),
        ({"classifier.weight": (3, 32), "classifier.bias": (3,), "crf.t": (3, 3)}, "BertCRF"),
    ],
)
def test_heads_that_are_not_known(extra, class_name, model_dir, tmp_path, caplog):
    shutil.copytree(model_dir, tmp_path / "m")
    edit(tmp_path / "m", architectures=[class_name])
    state = weights.read(tmp_path / "m", lambda: 2**30)
    state |= {key: np.zeros(shape, np.float32) for key, shape in extra.items()}
    weights.write(tmp_path / "m", state, 10**9)
    names = re.escape(", ".join(f"{key} {list(extra[key])}" for key in sorted(extra)))
    message = f"{len(extra)} array.s. of a head that is not known here: {names}. .*--ignore_unexp"
    with pytest.raises(UserError, match=message):
        convert.from_hugging_face(tmp_path / "m", tmp_path / "run")
    convert.main(
        [
            *("from-hf", f"--model={tmp_path / 'm'}", f"--output={tmp_path / 'run'}"),
            "--ignore_unexpected",
        ]
    )
    assert "skipped" in caplog.text
    read = checkpoint.load(tmp_path / "run")
    assert has(read) == ("encoder", "pooler", "MLM head", "NSP head") and not read.config.labels


LAYOUTS = {
    "old": (
        ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"),
        {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        {"max_seq_length": 24, "do_lower_case": False},
    ),
    "6": (
        (
            "sentence_transformers.base.modules.transformer.Transformer",
            "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        ),
        {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True},
        {"transformer_task": "feature-extraction"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folder", ["", "0_Transformer"])
def test_sentence_transformers(layout, folder, model_dir, tmp_path):
    (encoder, pooling), pooling_config, encoder_config = LAYOUTS[layout]
    root = tmp_path / "st"
    shutil.copytree(model_dir, root / folder)
    modules = [
        {"idx": 0, "name": "0", "path": folder, "type": encoder},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": pooling},
        {
            "idx": 2,
            "name": "2",
            "path": "2_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ]
    (root / "1_Pooling").mkdir()
    for name, value in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling_config),
        (f"{folder or '.'}/sentence_bert_config.json", encoder_config),
    ):
        (root / name).write_text(json.dumps(value))
    expected = {
        "pooling": "mean",
        "normalize": True,
        "max_seq_length": 24 if layout == "old" else 40,
    }
    convert.from_hugging_face(root, tmp_path / "run")
    config = checkpoint.load(tmp_path / "run").config
    assert {name: config[name] for name in expected} == expected
    if not folder:  # they travel with an export
        convert.to_hugging_face(tmp_path / "run", tmp_path / "hf")
        config = load.read(tmp_path / "hf").config
        assert {name: config[name] for name in expected} == expected
    others = {"pooling_mode": "weightedmean"}
    (root / "1_Pooling/config.json").write_text(json.dumps(others))
    with pytest.raises(UserError, match="the pooling weightedmean"):
        load.read(root)


def test_weights_of_flax(model_dir, tmp_path):
    """As the Flax classes of transformers 4 save them."""
    shutil.copytree(model_dir, tmp_path / "m")
    state = weights.read(tmp_path / "m", lambda: 2**30)
    flat = {}
    for key, x in state.items():
        name, _, kind = key.rpartition(".")
        if kind == "weight":
            kind = "kernel"
            if "LayerNorm" in name:
                kind = "scale"
            elif "embeddings" in name:
                kind = "embedding"
        flat[f"{name}.{kind}"] = x.T if kind == "kernel" else x
    tree = flax.traverse_util.unflatten_dict(flat, sep=".")
    (tmp_path / "m/flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    (tmp_path / "m/model.safetensors").unlink()
    again = weights.read(tmp_path / "m", lambda: 2**30)
    assert again.keys() == state.keys()
    for key, x in state.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)
    (tmp_path / "m/flax_model.msgpack").write_bytes(b"\x81\xa1a\x01")
    with pytest.raises(UserError, match="expected an array"):
        load.read(tmp_path / "m")
    (tmp_path / "m/flax_model.msgpack").unlink()
    (tmp_path / "m/tf_model.h5").write_text("")
    with pytest.raises(UserError, match=r"tf_model.h5: transformers 4.57 .* from_tf=True"):
        load.read(tmp_path / "m")


def test_a_checkpoint_of_google(tmp_path):
    """Against transformers with the arrays laid out by hand."""
    pytest.importorskip("google_crc32c")
    read = load.read(GOOGLE)
    assert has(read) == ("encoder", "pooler", "MLM head", "NSP head")
    fields = {k: v for k, v in read.config.model.to_dict().items() if k != "architecture"}
    model = transformers.BertForPreTraining(transformers.BertConfig(**fields)).eval()
    rng = np.random.default_rng(0)
    draw = lambda *shape: torch.tensor(rng.normal(0, 0.2, shape).astype(np.float32))  # noqa: E731
    bert, cls = model.bert, model.cls
    parameters = []

    def fill(parameter, *shape):
        x = draw(*shape) if shape else draw(*parameter.shape)
        parameters.append((parameter, x if not shape else x.T))

    def linear(module):
        fill(module.weight, *module.weight.shape[::-1])
        fill(module.bias)

    def norm(module):
        fill(module.weight)
        fill(module.bias)

    for name in ("word", "position", "token_type"):
        fill(getattr(bert.embeddings, f"{name}_embeddings").weight)
    norm(bert.embeddings.LayerNorm)
    for layer in bert.encoder.layer:
        attention = layer.attention
        for module in (
            *(attention.self.query, attention.self.key, attention.self.value),
            *(attention.output.dense, layer.intermediate.dense, layer.output.dense),
        ):
            linear(module)
        norm(attention.output.LayerNorm)
        norm(layer.output.LayerNorm)
    linear(bert.pooler.dense)
    linear(cls.predictions.transform.dense)
    norm(cls.predictions.transform.LayerNorm)
    fill(cls.predictions.bias)
    fill(cls.seq_relationship.weight)
    fill(cls.seq_relationship.bias)
    with torch.no_grad():
        for parameter, x in parameters:
            parameter.copy_(x)
    config = architectures.make_config(read.config.model)
    for batch in parity.inputs(config, read.tokenizer):
        ours = parity.flax_outputs(read.params, config, "pretraining", batch)
        head_class = keys.BERT.head_class("BertForPreTraining")
        theirs = parity.torch_outputs(model, head_class, batch)
        differences = parity.differences([ours], [theirs])
        assert len(differences) == 4 and max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("bert_model.ckpt.index", lambda data: data[:-1], "is damaged or not the index"),
        ("bert_model.ckpt.index", lambda data: b"\xff" + data[1:], "is damaged or not the index"),
        ("bert_model.ckpt.index", lambda data: b"", "is damaged or not the index"),
        ("bert_model.ckpt.data-00000-of-00001", lambda data: b"\0" + data[1:], "is damaged: "),
        ("bert_model.ckpt.data-00000-of-00001", lambda data: data[:-900], "is damaged: "),
    ],
)
def test_a_damaged_checkpoint_of_google(file, change, message, tmp_path):
    pytest.importorskip("google_crc32c")
    shutil.copytree(GOOGLE, tmp_path / "g")
    path = tmp_path / "g" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        load.read(tmp_path / "g")
    path.unlink()
    with pytest.raises(UserError, match=r"holds 0 checkpoints|lacks"):
        load.read(tmp_path / "g")


def test_the_source_has_its_say_on_the_tokenizer(model_dir, tmp_path):
    """What we write was made by our tokenizer: it would agree with itself."""
    shutil.copytree(model_dir, tmp_path / "m")
    convert.from_hugging_face(tmp_path / "m", tmp_path / "run")
    cased = dataclasses.replace(TOKENIZER, lowercase=False)
    tokenizer.save(cased, tmp_path / "run" / "tokenizer", 40)  # as a wrong reading would have it
    with pytest.raises(UserError, match=r"the tokenizer of .*m gives other ids for 'The capital"):
        convert.to_hugging_face(tmp_path / "run", tmp_path / "hf")


def test_pairs_are_no_text_for_a_model_of_one_segment(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, type_vocab_size=1)
    transformers.BertModel(config).save_pretrained(tmp_path / "m")
    tokenizer.save(TOKENIZER, tmp_path / "m", 40)
    model = bert_jax.load(tmp_path / "m")
    assert model.encode(["the capital"])["last_hidden_state"].shape[-1] == 32
    with pytest.raises(UserError, match="pairs of texts have two segments, and the model tells 1"):
        model.encode(["the capital"], pairs=["of france"])
    (tmp_path / "rows.csv").write_text("text,other,label\nthe,of,a\nis,many,b\n")
    recipe = bert_jax.recipe("finetune/text_classification", text_pair_column="other")
    recipe.train_file = recipe.validation_file = str(tmp_path / "rows.csv")
    recipe.max_seq_length = 32
    with pytest.raises(UserError, match="pairs of texts have two segments"):
        inputs.read_inputs(recipe, tmp_path / "m")
