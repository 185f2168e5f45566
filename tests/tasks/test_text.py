"""Classes and scores of texts: labels, their spellings, rows that cannot be used."""

import csv
import importlib
import json

import datasets
import numpy as np
import pytest
import transformers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.tasks import classes
from bert_jax.tasks.text import MultiLabelClassification, TextClassification, TextRegression
from configs.finetune import glue, multi_label_classification, text_regression
from configs.finetune import text_classification as recipe

TOKENIZER = tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *(f"w{i}" for i in range(50))))


def read(path, rows, **fields):
    """(task, examples) of a training file of (text, label) rows."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    config = recipe.get_config()
    config.update(fields)
    task = TextClassification(config, TOKENIZER)
    return task, task.read(str(path), training=True)


def test_labels_of_the_data_may_be_merged(tmp_path):
    rows = [("w1", 1), ("w2", 2), ("w3", 3), ("w4", 3)]
    task, examples = read(tmp_path / "stars.csv", rows, labels="1=bad,2=bad,3=good")
    assert task.labels == ("bad", "good")
    features = task.features(examples)
    assert [feature.arrays["labels"] for feature in features] == [0, 0, 1, 1]


def test_labels_argument():
    assert classes.parse_labels("0=no, 1=yes") == {"0": "no", "1": "yes"}
    assert classes.parse_labels("b,a") == {"b": "b", "a": "a"}
    assert classes.parse_labels('["a=b", "c, d"]') == {"a=b": "a=b", "c, d": "c, d"}
    assert classes.parse_labels('{"c, d": "x", "e": "y"}') == {"c, d": "x", "e": "y"}
    for text in ("a,a", '{"a": "x", "a": "y"}'):
        with pytest.raises(UserError, match="twice"):
            classes.parse_labels(text)
    for text in ('["a"', "[1]", '{"a": ["b"]}'):
        with pytest.raises(UserError, match="expected a JSON object or list of texts"):
            classes.parse_labels(text)
    for names in ({"0": "no", "1": "yes"}, {"a, b": "x", "c": "d=e"}, {" a": "b", "[c": "d"}):
        assert classes.parse_labels(classes.format_labels(names)) == names


@pytest.mark.parametrize(
    ("found", "labels", "indices"),
    [
        # pandas' floats beside whole numbers; numbers by value
        (["1", "0", "1.0", "0.0"], ("0", "1"), [1, 0, 1, 0]),
        (["10", "9", "2.0"], ("2.0", "9", "10"), [2, 1, 0]),
        (["0.5", "10.5", "9.5"], ("0.5", "9.5", "10.5"), [0, 2, 1]),
        (["-1", "1", "0"], ("-1", "0", "1"), [0, 2, 1]),
        (["True", "false", "False", "true"], ("false", "true"), [1, 0, 0, 1]),
        (["01", "1"], ("01", "1"), [0, 1]),  # codes
        (["b", "a"], ("a", "b"), [1, 0]),
    ],
)
def test_spellings_of_one_label_are_one_class(found, labels, indices, tmp_path):
    task, examples = read(tmp_path / "x.csv", [("w1", label) for label in found])
    assert task.labels == labels
    assert [feature.arrays["labels"] for feature in task.features(examples)] == indices


def test_spellings_of_another_file(tmp_path):
    task, _ = read(tmp_path / "x.csv", [("w1", 0), ("w2", 1)])
    (tmp_path / "y.jsonl").write_text('{"text": "w1", "label": 1.0}\n{"text": "w1", "label": 0}\n')
    assert [x.label for x in task.read(str(tmp_path / "y.jsonl"))] == ["1", "0"]
    task, _ = read(tmp_path / "x.csv", [("w1", 0), ("w2", 1)], labels="0=no,1=yes")
    assert [x.label for x in task.read(str(tmp_path / "y.jsonl"))] == ["yes", "no"]
    task, _ = read(tmp_path / "x.csv", [("w1", "true"), ("w2", "false")])
    (tmp_path / "y.jsonl").write_text(
        '{"text": "w1", "label": true}\n{"text": "w1", "label": "x"}\n'
    )
    examples = task.read(str(tmp_path / "y.jsonl"))
    assert examples[0].label == "true"
    with pytest.raises(UserError, match=r"y\.jsonl:2 has the label 'x', which the training set"):
        task.features(examples)


def test_rows_without_a_label_are_skipped(tmp_path, caplog):
    """SNLI marks what its annotators could not agree on by -1 or "-"."""
    rows = [("w1", i % 3) for i in range(40)]
    for mark, labels in (("-1", "0=a,1=b,2=c"), ("-", "0=a,1=b,2=c"), ("-1", ""), ("", "")):
        caplog.clear()
        task, examples = read(tmp_path / "x.csv", [*rows, ("w2", mark)], labels=labels)
        assert len(examples) == 40 and len(task.labels) == 3
        assert "skipping 1 of 41 rows" in caplog.text and "x.csv:42" in caplog.text
        assert len(task.read(str(tmp_path / "x.csv"))) == 40  # as the validation file
    # Named, or as frequent as others, it is a class; beside 0 and 1 alone it may be one.
    for more, labels in (
        ([("w2", -1)], "-1,0,1,2"),
        ([("w2", -1)] * 9, ""),
    ):
        task, examples = read(tmp_path / "x.csv", rows + more, labels=labels)
        assert task.labels == ("-1", "0", "1", "2") and len(examples) == len(rows + more)
    task, _ = read(tmp_path / "x.csv", [("w1", i % 2) for i in range(40)] + [("w1", -1)])
    assert task.labels == ("-1", "0", "1")
    task, _ = read(tmp_path / "x.csv", [("w1", "+-"[i % 2]) for i in range(4)])
    assert task.labels == ("+", "-")


def test_nan_is_a_missing_value(tmp_path):
    lines = [
        {"text": "good film", "label": 1.0},
        {"text": float("nan"), "label": 0.0},
        {"text": "bad film", "label": float("nan")},
        {"text": "dull", "label": 0.0},
    ]
    path = tmp_path / "nan.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = TextClassification(recipe.get_config(), TOKENIZER)
    with pytest.raises(
        UserError, match=r"2 of 4 rows cannot be used.*nan\.jsonl:2 has an empty.*:3 has no label"
    ):
        task.read(str(path), training=True)
    config = recipe.get_config()
    config.max_skipped = 0.5
    task = TextClassification(config, TOKENIZER)
    assert [x.label for x in task.read(str(path), training=True)] == ["1.0", "0.0"]


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "hf"])
def test_qqp_has_questions_without_a_second(suffix, tmp_path, monkeypatch):
    """glue.py:qqp on rows as GLUE's: two have an empty second question, one an empty first."""
    rows = [(f"w{i}", f"w{i + 1}", i % 2) for i in range(40)]
    rows[3] = ("w3", "", 0)
    rows[5] = ("w5", float("nan") if suffix == "jsonl" else "", 1)
    rows[7] = ("", "w8", 1)
    config = glue.get_config("qqp")
    columns = ("question1", "question2", "label")
    if suffix == "hf":
        labels = datasets.ClassLabel(names=["not_duplicate", "duplicate"])
        text = datasets.Value("string")
        data = datasets.Dataset.from_list(
            [dict(zip(columns, row, strict=True)) for row in rows],
            features=datasets.Features(dict(zip(columns, (text, text, labels), strict=True))),
        )
        names = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *x, split: names.append(x) or data)
    else:
        config.train_file = str(tmp_path / f"train.{suffix}")
        with open(config.train_file, "w") as file:
            for row in [columns, *rows] if suffix == "tsv" else rows:
                line = "\t".join(map(str, row))
                if suffix == "jsonl":
                    line = json.dumps(dict(zip(columns, row, strict=True)))
                print(line, file=file)
    task = TextClassification(config, TOKENIZER)
    examples = task.read(config.train_file, training=True)
    if suffix == "hf":
        assert names == [("nyu-mll/glue", "qqp")]
    assert len(examples) == 39 and task.labels == ("not_duplicate", "duplicate")
    features = task.features(examples)
    tokenizer.save(TOKENIZER, tmp_path / "tokenizer")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    # In batches: of one pair alone transformers drops an empty second text.
    wanted = reference(*map(list, zip(*(x.texts for x in examples), strict=True)))
    for name in ("input_ids", "token_type_ids"):
        assert [feature.arrays[name] for feature in features] == wanted[name]
    assert features[3].arrays["labels"] == 0 and examples[3].texts == ("w3", "")


def multi_label(path, **fields):
    """(task, examples) of a training file."""
    config = multi_label_classification.get_config()
    config.update(fields)
    task = MultiLabelClassification(config, TOKENIZER)
    return task, task.read(str(path), training=True)


def test_labels_as_columns_and_as_lists(tmp_path):
    table, lists = tmp_path / "x.csv", tmp_path / "x.jsonl"
    table.write_text("text,b,a\nw1,1,0\nw2,true,1.0\nw3,0,False\n")
    rows = [("w1", ["b"]), ("w2", ["b", "a", "b"]), ("w3", [])]
    lists.write_text("".join(json.dumps({"text": t, "labels": x}) + "\n" for t, x in rows))
    task, examples = multi_label(table, label_columns="b,a")
    assert task.labels == ("b", "a")
    assert [x.labels for x in examples] == [("b",), ("b", "a"), ()]
    assert [f.arrays["labels"] for f in task.features(examples)] == [[1, 0], [1, 1], [0, 0]]
    task, examples = multi_label(lists)
    assert task.labels == ("a", "b") and examples[1].labels == ("b", "a")
    task, examples = multi_label(lists, labels="b=B,a=A")
    assert task.labels == ("B", "A") and examples[1].labels == ("B", "A")
    task, examples = multi_label(table, label_columns="b,a", labels="a=A,b=B")
    assert task.labels == ("A", "B") and examples[0].labels == ("B",)


def test_labels_of_a_data_set(monkeypatch):
    labels = datasets.List(datasets.ClassLabel(names=["joy", "fear"]))
    data = datasets.Dataset.from_dict(
        {"text": ["w1", "w2"] * 10, "labels": [[1], [0, 1]] * 10},
        features=datasets.Features({"text": datasets.Value("string"), "labels": labels}),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: data)
    _, examples = multi_label("hf:someone/emotions:train", labels="joy,fear")
    assert [x.labels for x in examples[:2]] == [("fear",), ("joy", "fear")]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("x.csv", "text,a\nw1,2\n", {"label_columns": "a"}, r"x\.csv:2 has '2' in column 'a'"),
        ("x.csv", "text,a\nw1,\n", {"label_columns": "a"}, r"x\.csv:2 has no labels \(column 'a'"),
        ("x.csv", "text,labels\nw1,a\n", {}, r"name them by --config\.label_columns=A,B"),
        (
            "x.jsonl",
            '{"text": "w1", "labels": "a"}',
            {},
            r"column 'labels' has 'a', expected a list",
        ),
        ("x.jsonl", '{"text": "w1", "labels": null}', {}, r"x\.jsonl:1 has no labels"),
        ("x.jsonl", '{"text": "w1", "labels": [NaN]}', {}, r"x\.jsonl:1 has no labels"),
        ("x.jsonl", '{"text": "w1", "labels": []}', {}, r"the training set has no labels"),
        ("x.jsonl", '{"text": "w1", "labels": ["a"]}', {"threshold": 1.0}, r"between 0 and 1"),
        ("x.jsonl", '{"text": "w1", "labels": ["a"]}', {"metric": "f1"}, r"is not one of f1_micro"),
    ],
)
def test_bad_multi_label_files(name, content, fields, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        multi_label(tmp_path / name, **fields)


def test_a_label_that_training_has_not(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "w1", "labels": ["a"]}')
    task, _ = multi_label(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text('{"text": "w1", "labels": ["a", "z"]}')
    with pytest.raises(UserError, match=r"y\.jsonl:1 has the label 'z', which the training set"):
        task.features(task.read(str(tmp_path / "y.jsonl")))


def test_scores_that_are_no_numbers_are_skipped(tmp_path):
    config = text_regression.get_config()
    path = tmp_path / "x.csv"
    path.write_text("text,score\n" + "w1,2.5\n" * 20 + "w2,high\nw3,\n")
    examples = TextRegression(config, TOKENIZER).read(str(path), training=True)
    assert len(examples) == 20
    config.max_skipped = 0.01
    with pytest.raises(UserError, match=r"x\.csv:22 has the score 'high', which is not a number"):
        TextRegression(config, TOKENIZER).read(str(path), training=True)
    config.max_skipped = 2.0
    with pytest.raises(UserError, match=r"config\.max_skipped=2\.0, expected a share from 0 to 1"):
        TextRegression(config, TOKENIZER).read(str(path), training=True)


@pytest.mark.parametrize("name", ["glue", "rte", "sst2", "imdb", "squad", "squad2"])
def test_recipes_name_data_sets_in_full(name):
    config = importlib.import_module(f"configs.finetune.{name}").get_config()
    for source in (config.train_file, config.validation_file):
        if source.startswith("hf:"):
            assert source.removeprefix("hf:").split(":")[0].split("/")[0] in (
                "nyu-mll", "rajpurkar", "stanfordnlp"
            )  # fmt: skip


def test_class_weights_as_torch_weighs(tmp_path):
    torch = pytest.importorskip("torch")
    rows = [("w1", label) for label in "abc"]
    task, _ = read(tmp_path / "x.csv", rows, class_weights="1,4,0.5")
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (5, 3)).astype("f4")
    labels = np.array([0, 1, 2, 2, 1])
    batch = {"labels": labels, "weights": np.array([1, 1, 1, 1, 0], "f4")}  # the last is padding
    ours = task.loss_sum(logits, batch) / task.loss_weight(batch)
    weights = torch.tensor([1, 4, 0.5])
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits[:4]), torch.tensor(labels[:4]), weight=weights
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
