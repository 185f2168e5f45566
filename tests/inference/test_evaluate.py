"""bert_jax.evaluate: the metrics of fine-tuning, of a model as it is."""

import json

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
from small_models import generated_texts, random_model

import bert_jax
from bert_jax import evaluate

TEXTS = generated_texts(30, 3)


def test_text_classification(tmp_path, capsys):
    labels = ["bad", "good", "fine"]
    settings = {"text_column": "review", "label_column": "verdict", "max_seq_length": 8}
    workdir, _ = random_model(tmp_path, "text_classification", labels, 0.7, seed=7, **settings)
    truth = [labels[i % 3] for i in range(30)]
    rows = [f"{label},{text}" for text, label in zip(TEXTS, truth, strict=True)]
    source = tmp_path / "test.csv"
    source.write_text("\n".join(["verdict,review", *rows]) + "\n")
    found = [x["prediction"] for x in bert_jax.load(workdir).classify(TEXTS)]
    outputs = [tmp_path / "metrics.json", tmp_path / "predictions.jsonl"]
    evaluate.main(
        [str(workdir), str(source), f"--output={outputs[0]}", f"--predictions={outputs[1]}"]
    )
    metrics = json.loads(outputs[0].read_text())[str(source)]
    assert metrics["accuracy"] == sklearn.metrics.accuracy_score(truth, found)
    macro = sklearn.metrics.f1_score(truth, found, average="macro", zero_division=0)
    assert metrics["f1"] == pytest.approx(macro)
    assert f"accuracy         {metrics['accuracy']:.4f}" in capsys.readouterr().out
    lines = [json.loads(line) for line in outputs[1].read_text().splitlines()]
    assert [line["prediction"] for line in lines] == found
    # Other columns, and other names of the labels, by flags.
    rows = [f"{labels.index(label)},{text}" for label, text in zip(truth, TEXTS, strict=True)]
    source.write_text("\n".join(["a,b", *rows]) + "\n")
    names = ",".join(f"{i}={label}" for i, label in enumerate(labels))
    flags = {"text_column": "b", "label_column": "a", "labels": names}
    assert evaluate.run(str(workdir), [str(source)], **flags) == {str(source): metrics}


def test_token_classification(tmp_path):
    labels = ["O", "B-PER", "I-PER"]
    _, export = random_model(tmp_path, "token_classification", labels, 0.7, seed=7)
    rng = np.random.default_rng(0)
    words = [text.split() for text in TEXTS]
    truth = [["O" if x < 2 else "B-PER" for x in rng.integers(0, 3, len(x))] for x in words]
    lines = [
        "".join(f"{word} {label}\n" for word, label in zip(*pair, strict=True))
        for pair in zip(words, truth, strict=True)
    ]
    (tmp_path / "test.conll").write_text("\n".join(lines))
    found = [x["labels"] for x in bert_jax.load(export).tag(words)]
    (metrics,) = evaluate.run(str(export), [str(tmp_path / "test.conll")]).values()
    assert metrics["f1"] == pytest.approx(seqeval.metrics.f1_score(truth, found))
    assert metrics["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(truth, found))


def test_a_model_without_a_head_is_refused(tmp_path):
    workdir, _ = random_model(tmp_path, "pretraining", [])
    with pytest.raises(bert_jax.UserError, match="expected a model that was fine-tuned"):
        evaluate.run(str(workdir), ["test.csv"])
