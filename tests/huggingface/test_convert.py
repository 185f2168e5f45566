"""Conversion against transformers in torch: what we write it reads, what it writes we read."""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import shutil
import sys

import huggingface_hub
import jax
import ml_collections
import numpy as np
import pytest
import transformers
from etils import epath
from small_model import SIZES, TOKENIZER, load_torch

from bert_jax import cli, convert, files, loading
from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import export, keys, parity, weights
from bert_jax.huggingface import files as hf_files
from bert_jax.huggingface import tensors as hf_tensors
from bert_jax.models import architectures, heads
from bert_jax.models.bert import BertConfig
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import kinds

torch = pytest.importorskip("torch")

MODEL = BertConfig(**SIZES)


def parts_of(read):
    return hf_tensors.parts_of(read.params, architectures.make_config(read.config.model))


def head_class(name):
    return keys.BERT.head_class(name)


def random_params(module, shape=(1, 8)):
    """Every array random, biases and LayerNorms too: zeros would hide a wrong conversion."""
    ids = np.zeros(shape, np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def loaded(module, **fields):
    # scan_layers: how a run computed its layers; its parameters are loaded unrolled.
    config = ml_collections.ConfigDict({"model": SIZES | {"scan_layers": True}, **fields})
    return workdirs.Loaded(random_params(module), config, 7, TOKENIZER)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "workdir"
    phases = [{"num_steps": 5, "data_dir": ""}, {"data_dir": "longer", "optimizer": {"b1": 0.5}}]
    run = loaded(heads.PretrainingModel(MODEL), data_dir="books", batch_size=8, phases=phases)
    checkpoint.save_params(path, run.params, run.config, TOKENIZER, run.step)
    (path / "metrics.jsonl").write_text('{"step": 7, "mlm_loss": 2.5}\n')
    return path


@pytest.fixture(scope="module")
def exported(workdir):
    output = workdir.parent / "hf"
    report = convert.to_hugging_face(workdir, output)
    assert report.verified and report.passed and report.largest < 1e-5
    assert set(report.differences) == {"hidden", "pooled", "mlm_logits", "nsp_logits"}
    return output


def test_transformers_classes_load_without_missing_keys(exported):
    for name in ("AutoModel", "BertForPreTraining", "BertForMaskedLM"):
        _, info = load_torch(name, exported)
        assert not info["missing_keys"] and not info["mismatched_keys"], (name, info)
    _, info = load_torch("BertForPreTraining", exported)
    assert not info["unexpected_keys"]


def test_fill_mask_pipeline_and_tokenizer(exported):
    fill = transformers.pipeline("fill-mask", model=str(exported), device="cpu")
    guesses = fill("The capital of [MASK] is Paris.")
    assert len(guesses) == 5 and all(g["token"] < TOKENIZER.vocab_size for g in guesses)
    assert fill.tokenizer.model_max_length == 40
    assert fill.tokenizer("The CAPITAL")["input_ids"] == [2, 5, 6, 3]


def test_card_and_config(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    assert config["hidden_act"] == "gelu_pytorch_tanh"
    assert config["vocab_size"] == TOKENIZER.vocab_size  # without our padding
    card = (exported / "README.md").read_text()
    for text in (
        *("## How to use it", "## Training data", "## Training procedure", "## Evaluation"),
        *("## Limits", "| steps of this checkpoint | 7 |", "| batch size | 8 |", "| phases | 2 |"),
        *("| mlm_loss | 2.5 |", "largest difference", "license: unknown", "BertForPreTraining"),
    ):
        assert text in card, text
    # It may be uploaded: nothing of this machine.
    for text in ("books", "longer", "workdir", str(exported.parent), "gs://"):
        assert text not in card, text


def test_a_card_names_licence_language_and_a_public_base(tmp_path):
    run = loaded(heads.PretrainingModel(MODEL), imported_from="google-bert/bert-base-uncased")
    export.write(run, "run", tmp_path / "hf", license_name="apache-2.0", languages=["en", "de"])
    card = (tmp_path / "hf" / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: apache-2.0\nlanguage:\n- en\n- de\nbase_model: google-bert/bert-base" in front
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    outputs = {}
    exec(code.replace("PATH_OR_NAME_OF_THIS_MODEL", str(tmp_path / "hf")), outputs)
    assert outputs["outputs"].prediction_logits.shape[-1] == TOKENIZER.vocab_size
    run.config.imported_from = str(tmp_path)
    export.write(run, "run", tmp_path / "hf")
    assert str(tmp_path) not in (tmp_path / "hf" / "README.md").read_text()


def test_exports_can_be_read_by_others(workdir, tmp_path):
    before = os.umask(0o027)
    try:
        convert.to_hugging_face(workdir, tmp_path / "hf")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "hf").iterdir()}
    assert set(modes.values()) == {0o640} and len(modes) == 6, modes
    assert (tmp_path / "hf").stat().st_mode & 0o777 == 0o750


def test_what_a_killed_export_left_is_cleared(tmp_path):
    output = epath.Path(tmp_path / "hf")
    in_use = tmp_path / ".hf.export-abc"
    for name in (".hf.export-old", ".hf.export-abc", ".hf2.export-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("x")
    lock = files.lock(in_use / files.LOCK_FILE, "")
    with hf_files.replace_directory(output) as scratch:
        (scratch / "config.json").write_text("{}")
    lock.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".hf.export-abc", ".hf2.export-old", "hf"]
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["config.json"]


def test_round_trip_is_bit_equal(workdir, exported, tmp_path):
    convert.main(["from-hf", f"--model={exported}", f"--output={tmp_path / 'again'}"])
    before, after = checkpoint.load(workdir), checkpoint.load(tmp_path / "again")
    surplus = {"mlm_bias", "embedding"}  # arrays with padding rows, which are not exported

    def check(path, x, y):
        if path[-1].key in surplus and x.shape[0] == MODEL.padded_vocab_size:
            x, y = x[: MODEL.vocab_size], y[: MODEL.vocab_size]
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, before.params, after.params)
    assert after.config.model.hidden_act == "gelu_pytorch_tanh"
    assert after.tokenizer == TOKENIZER


@pytest.mark.parametrize(
    ("name", "file_format"),
    [
        ("BertModel", "safetensors"),
        ("BertForPreTraining", "sharded"),
        ("BertForMaskedLM", "bin"),
        ("BertForSequenceClassification", "safetensors"),
        ("BertForTokenClassification", "safetensors"),
        ("BertForQuestionAnswering", "safetensors"),
        ("BertForMultipleChoice", "safetensors"),
    ],
)
def test_import_of_transformers_models(name, file_format, tmp_path):
    names = ("x", "y") if name == "BertForQuestionAnswering" else ("x", "y", "z")
    config = transformers.BertConfig(**SIZES, id2label=dict(enumerate(names)))
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if file_format == "sharded" else "1GB")
    if file_format == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer.save(TOKENIZER, tmp_path, 40)
    read = loading.load_parts(tmp_path)
    assert read.config.model.hidden_act == "gelu"
    has = parts_of(read)
    assert ("NSP head" in has) == (name == "BertForPreTraining")
    without_pooler = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")
    assert ("pooler" in has) == (name not in without_pooler)
    # Outputs agree, and each tensor comes back bit for bit.
    gelu = architectures.make_config(read.config.model)
    batch = parity.inputs(MODEL, TOKENIZER)[0]
    ours = parity.flax_outputs(read.params, gelu, read.config.task, batch)
    differences = parity.differences([ours], [parity.torch_outputs(model, head_class(name), batch)])
    assert max(differences.values()) < 1e-5, differences
    back = hf_tensors.to_tensors(read.params, gelu)
    state = model.state_dict()
    prefix = "bert." if name == "BertModel" else ""
    compared = [key for key in state if "decoder" not in key and "position_ids" not in key]
    assert len(compared) == len(back)
    for key in compared:
        np.testing.assert_array_equal(back[prefix + key], state[key].numpy(), err_msg=key)
    named = name in ("BertForSequenceClassification", "BertForTokenClassification")
    assert read.config.labels == (["x", "y", "z"] if named else [])


@pytest.mark.parametrize(
    ("task", "name", "num_labels"),
    [
        ("text_classification", "BertForSequenceClassification", 3),
        ("token_classification", "BertForTokenClassification", 3),
        ("question_answering", "BertForQuestionAnswering", 0),
        ("multiple_choice", "BertForMultipleChoice", 0),
    ],
)
def test_fine_tuned_heads_export(task, name, num_labels, tmp_path):
    labels = ["good", "bad", "ugly"][:num_labels]
    shape = (1, 2, 8) if task == "multiple_choice" else (1, 8)
    params = random_params(kinds.make_module(task, MODEL, num_labels), shape)
    run = dataclasses.replace(
        loaded(heads.PretrainingModel(MODEL), task=task, labels=labels), params=params
    )
    report = export.write(run, "run", tmp_path / "hf")
    assert report.verified and report.largest < 1e-5 and set(report.differences) == {"logits"}
    model, info = load_torch(name, tmp_path / "hf")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if labels:
        assert list(model.config.id2label.values()) == labels
    # Back again.
    read = loading.load_parts(tmp_path / "hf")
    assert (read.config.task, read.config.labels) == (task, labels)
    back = hf_tensors.to_tensors(read.params, MODEL)
    for key, x in hf_tensors.to_tensors(params, MODEL).items():
        np.testing.assert_array_equal(back[key], x, err_msg=key)


def test_pipelines(tmp_path):
    for task, pipeline in (
        ("text_classification", "text-classification"),
        ("token_classification", "token-classification"),
    ):
        params = random_params(kinds.make_module(task, MODEL, 2))
        run = loaded(heads.PretrainingModel(MODEL), task=task, labels=["good", "bad"])
        export.write(dataclasses.replace(run, params=params), "run", tmp_path / task)
        answers = transformers.pipeline(pipeline, model=str(tmp_path / task))(["the capital"])[0]
        for answer in answers if isinstance(answers, list) else [answers]:
            assert answer.get("label", answer.get("entity")) in ("good", "bad")


def test_parts_that_a_class_does_not_have_are_left_out(tmp_path, caplog):
    """Such as the pooler of a BertModel that a tagger was made from; transformers 5 wants none."""
    params = random_params(kinds.make_module("token_classification", MODEL, 2))
    everything = random_params(heads.PretrainingModel(MODEL))
    params["bert"]["pooler"] = everything["bert"]["pooler"]
    params |= {name: x for name, x in everything.items() if name != "bert"}
    run = loaded(heads.PretrainingModel(MODEL), task="token_classification", labels=["a", "b"])
    report = export.write(dataclasses.replace(run, params=params), "run", tmp_path / "hf")
    assert report.verified and report.passed
    assert "BertForTokenClassification has no pooler, no MLM head, no NSP head" in caplog.text
    assert parts_of(loading.load_parts(tmp_path / "hf")) == ("encoder", "classifier")


def test_regression_has_one_output(tmp_path):
    config = transformers.BertConfig(**SIZES, num_labels=3, problem_type="regression")
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save(TOKENIZER, tmp_path, 40)
    with pytest.raises(UserError, match="a regression head with 3 outputs"):
        loading.load_parts(tmp_path)


def test_an_import_that_was_cut_off_is_not_mixed_with_another(exported, tmp_path):
    convert.from_hugging_face(exported, tmp_path / "run")
    (tmp_path / "run/config.json").unlink()  # it is written last
    with pytest.raises(UserError, match=r"run holds checkpoints and no config\.json"):
        convert.from_hugging_face(exported, tmp_path / "run")


def test_a_bucket(workdir, exported, bucket):
    for _ in range(2):  # written, and replaced
        convert.to_hugging_face(workdir, "gs://bucket/hf", max_shard_size=20_000)
    assert "hf/model.safetensors.index.json" in bucket.names()
    jax.tree.map(
        np.testing.assert_array_equal,
        loading.load_parts("gs://bucket/hf").params,
        loading.load_parts(exported).params,
    )
    bucket.delete("hf/model.safetensors.index.json")  # cut off, it does not look whole
    with pytest.raises(UserError, match="has no weights"):
        loading.load_parts("gs://bucket/hf")
    convert.to_hugging_face(workdir, "gs://bucket/hf")
    assert parts_of(loading.load_parts("gs://bucket/hf"))


def test_remote_exports_end_with_the_weights(tmp_path):
    names = ["vocab.txt", "model-00001-of-00002.safetensors", "config.json", "README.md"]
    names += ["model.safetensors.index.json", "model-00002-of-00002.safetensors"]
    paths = sorted(map(tmp_path.joinpath, names), key=hf_files._upload_order)
    order = [path.name for path in paths]
    assert (order[0], order[-1]) == ("config.json", "model.safetensors.index.json")
    assert all("safetensors" in name for name in order[-3:])


def test_partial_models_export_as_what_they_are(tmp_path):
    run = loaded(heads.PretrainingModel(MODEL))
    for drop, name in (
        (["nsp_classifier", "pooler"], "BertForMaskedLM"),
        (["nsp_classifier", "mlm_transform", "mlm_layer_norm", "mlm_bias"], "BertModel"),
    ):
        params = {key: x for key, x in run.params.items() if key not in drop}
        params["bert"] = {key: x for key, x in params["bert"].items() if key not in drop}
        partial = workdirs.Loaded(params, run.config, 0, TOKENIZER)
        assert export.write(partial, "run", tmp_path / name).passed
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architectures"] == [name]


def test_bfloat16_and_shards(workdir, tmp_path):
    report = convert.to_hugging_face(
        workdir, tmp_path / "hf", dtype="bfloat16", max_shard_size=20_000
    )
    assert report.passed and 1e-4 < max(report.rounding.values()) < 0.5
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert "model.safetensors.index.json" in names
    assert all(path.stat().st_size < 24_000 for path in (tmp_path / "hf").glob("model-*"))
    model, info = load_torch("BertForPreTraining", tmp_path / "hf")
    assert model.dtype == torch.bfloat16 and not info["missing_keys"]


def test_a_wrong_conversion_is_not_written(workdir, tmp_path, monkeypatch):
    def broken(params, model):
        tensors = to_tensors(params, model)
        key = "bert.encoder.layer.1.attention.self.query.weight"
        return tensors | {key: tensors[key].T}  # [32, 32] both ways: no shape gives it away

    to_tensors = hf_tensors.to_tensors
    monkeypatch.setattr(hf_tensors, "to_tensors", broken)
    with pytest.raises(UserError, match=r"was not written: parity: largest .* DOES NOT HOLD"):
        convert.to_hugging_face(workdir, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_without_torch_says_not_verified(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    convert.main(["to-hf", f"--checkpoint={workdir}", f"--output={tmp_path / 'hf'}"])
    assert "not verified" in capsys.readouterr().out
    assert parity.ParityReport({}, (), "", {}).largest is None  # null in results.json


def test_large_outputs_may_differ_by_more():
    scores = [{"logits": np.array([[700.0]], np.float32)}]
    near, far = ([{"logits": scores[0]["logits"] + x}] for x in (0.005, 0.05))
    assert parity.ParityReport(parity.differences(scores, near), (), "", {}).passed
    assert not parity.ParityReport(parity.differences(scores, far), (), "", {}).passed


def test_a_difference_that_is_no_number_does_not_hold():
    good, bad = [{"hidden": np.zeros(3)}], [{"hidden": np.full(3, np.nan)}]
    differences = parity.differences(good + bad, good + good)  # not in the first batch
    report = parity.ParityReport(differences, (), "", {})
    assert not report.passed and np.isnan(report.largest)


def test_a_model_of_one_segment(tmp_path):
    run = loaded(heads.PretrainingModel(dataclasses.replace(MODEL, type_vocab_size=1)))
    run.config.model["type_vocab_size"] = 1
    checkpoint.save_params(tmp_path / "run", run.params, run.config, TOKENIZER, run.step)
    report = convert.to_hugging_face(tmp_path / "run", tmp_path / "hf")
    assert report.verified and report.largest < 1e-5


class FakeHub:
    """Stands in for huggingface_hub.HfApi; keeps what it is asked for."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repository, private, exist_ok):
        self.calls.append(("create", repository, "private" if private else "public", exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        names = {path.name for path in pathlib.Path(folder_path).iterdir()}
        # What another upload may have left there, and transformers would read.
        for name in (
            "model.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
        ):
            assert any(fnmatch.fnmatch(name, pattern) for pattern in delete_patterns)
        self.calls.append(("upload", repo_id, names))


def test_push_to_hub(workdir, tmp_path, monkeypatch, capsys):
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    flags = ["to-hf", f"--checkpoint={workdir}", f"--output={tmp_path / 'hf'}"]
    push = [*flags, "--push_to_hub=me/model"]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="me/model needs a token"):
        convert.main(push)
    assert not (tmp_path / "hf").exists()

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    convert.main(push)
    (_, *created), (_, repository, names) = fake.calls
    assert created == ["me/model", "private", True] and repository == "me/model"
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    printed = capsys.readouterr().out
    assert "uploaded README.md, config.json, model.safetensors, tokenizer.json" in printed
    assert printed.rstrip().endswith(" to https://huggingface.co/me/model")
    fake.calls.clear()
    convert.main([*push, "--public"])
    assert fake.calls[0][2] == "public"

    report = parity.ParityReport({"hidden": 1e-6}, (), "", {})
    monkeypatch.setattr(convert, "to_hugging_face", lambda *_, **__: report)

    def refuse(*arguments, **options):
        raise OSError("403: not yours\nsee the documentation")

    fake.create_repo = refuse
    with pytest.raises(
        UserError, match=r"was not uploaded to me/model \(OSError: 403: not yours\)"
    ):
        convert.main(push)
    fake.calls.clear()
    del fake.create_repo
    report = parity.ParityReport({}, (), "torch is not installed", {})
    with pytest.raises(UserError, match="not compared with transformers, so it is not uploaded"):
        convert.main(push)
    assert not fake.calls
    with pytest.raises(UserError, match="needs a local --output"):
        convert.main([*push, "--output=gs://bucket/hf"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs: pip install 'bert_jax\[hf\]'"):
        convert.main(push)


def test_output_directory_is_replaced_only_if_it_is_an_export(workdir, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "hf")
    convert.to_hugging_face(workdir, tmp_path / "hf")  # an earlier export: replaced
    (tmp_path / "hf" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and not an earlier export .*thesis.tex"):
        convert.to_hugging_face(workdir, tmp_path / "hf")
    assert (tmp_path / "hf" / "thesis.tex").exists()
    (tmp_path / "hf" / "thesis.tex").unlink()
    (tmp_path / "hf" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not an earlier export"):
        convert.to_hugging_face(workdir, tmp_path / "hf")
    downloaded = tmp_path / "downloaded"
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(downloaded)
    with pytest.raises(UserError, match="not an earlier export"):
        convert.to_hugging_face(workdir, downloaded)


def test_every_difference_in_one_message(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "hf")
    tensors = weights.read(tmp_path / "hf", lambda: 2**30)
    del tensors["cls.seq_relationship.bias"]
    tensors["bert.pooler.dense.bias"] = np.zeros(5, np.float32)
    tensors["bert.adapter.weight"] = np.zeros((2, 2), np.float32)
    tensors["cls.predictions.decoder.weight"] = np.zeros((SIZES["vocab_size"], 32), np.float32)
    weights.write(tmp_path / "hf", tensors, 10**9)
    with pytest.raises(UserError) as error:
        convert.from_hugging_face(tmp_path / "hf", tmp_path / "run")
    for text in (
        "4 difference(s)",
        "missing key cls.seq_relationship.bias [2] (NSP head)",
        "bert.pooler.dense.bias is [5], expected [32]",
        "unknown key bert.adapter.weight [2, 2]",
        "decoder.weight differs from bert.embeddings.word_embeddings.weight",
    ):
        assert text in str(error.value), text
    assert not (tmp_path / "run").exists()


def test_old_layer_norm_names(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "hf")
    tensors = weights.read(exported, lambda: 2**30)
    renamed = {
        re.sub(r"Norm\.weight$", "Norm.gamma", re.sub(r"Norm\.bias$", "Norm.beta", key)): x
        for key, x in tensors.items()
    }
    weights.write(tmp_path / "hf", renamed, 10**9)
    jax.tree.map(
        np.testing.assert_array_equal,
        loading.load_parts(tmp_path / "hf").params,
        loading.load_parts(exported).params,
    )


def test_bad_directories(exported, tmp_path):
    cases = {
        "no config": ("config.json", None, "has no config.json"),
        "other model": ("config.json", '{"model_type": "gpt2"}', "model_type is 'gpt2'"),
        "no weights": ("model.safetensors", None, "has no weights"),
        "damaged": ("model.safetensors", "garbage", "is damaged"),
        "no vocabulary": ("vocab.txt", None, "has no vocabulary"),
        "no object": ("config.json", "[1]", "config.json is not a JSON object"),
        "no sizes": (
            "config.json",
            '{"hidden_size": "32", "hidden_act": ["gelu"]}',
            r"hidden_act is \['gelu'\], .*; hidden_size is '32', expected one like 768",
        ),
        "no index": ("model.safetensors.index.json", "{}", "has no weight_map"),
    }
    for name, (file, text, message) in cases.items():
        directory = tmp_path / name
        shutil.copytree(exported, directory)
        (directory / file).unlink(missing_ok=True)
        if file == "vocab.txt":
            (directory / "tokenizer.json").unlink()
        if text:
            (directory / file).write_text(text)
        with pytest.raises(UserError, match=message):
            loading.load_parts(directory)
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model.safetensors").unlink()
    torch.save({"state_dict": {}, "epoch": 3}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than a model's weights"):
        loading.load_parts(directory)
    with pytest.raises(UserError, match=r"nowhere does not exist, though .* does"):
        loading.load_parts(tmp_path / "nowhere")


def test_size_argument():
    assert [cli.size(text) for text in ("5GB", "300mb", "1000")] == [
        5 * 10**9,
        3 * 10**8,
        1000,
    ]
