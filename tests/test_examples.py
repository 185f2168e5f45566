"""The scripts in examples/, on small models."""

import importlib.util
import pathlib

import transformers
from small_finetune import write_reviews

from bert_jax import convert, loading
from bert_jax.runs import telemetry
from bert_jax.training import loop

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_finetune_with_transformers(pretrained, tmp_path, one_thread):
    convert.to_hugging_face(pretrained, tmp_path / "export")
    for name, count in (("train", 600), ("dev", 101)):
        path = tmp_path / f"{name}.csv"
        write_reviews(path, count, len(name))
        path.write_text(path.read_text().replace("review,verdict", "text,label"))
    accuracy = load("finetune_with_transformers").main(
        [
            f"--model={tmp_path / 'export'}",
            f"--train_file={tmp_path / 'train.csv'}",
            f"--validation_file={tmp_path / 'dev.csv'}",
            f"--output={tmp_path / 'classifier'}",
            "--epochs=2",
            "--learning_rate=1e-2",
            "--max_length=32",
        ]
    )
    assert accuracy > 0.9
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "classifier"))
    assert classify("the film was good")[0]["label"] == "yes"
    # What torch wrote comes back.
    assert list(loading.load_parts(tmp_path / "classifier").config.labels) == ["no", "yes"]


def test_a_loop_of_ones_own_is_the_same_as_pretraining(config, tmp_path):
    config.num_steps, config.eval_every = 4, 0
    found = list(load("own_loop").train(config))
    loop.train_and_evaluate(config, tmp_path)
    expected = [line for line in telemetry.read(tmp_path) if "loss" in line]
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("mlm_loss", "mlm_accuracy", "nsp_loss", "learning_rate"):
            assert ours[name] == theirs[name]
