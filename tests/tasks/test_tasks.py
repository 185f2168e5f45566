"""What tasks share: joining texts as transformers does, data sets of libraries, recipes."""

import functools
import sys
import types

import datasets
import numpy as np
import pytest
import transformers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.tasks import base, kinds, tables
from bert_jax.tasks.answers import read_squad
from bert_jax.tasks.tokens import read_sentences
from configs.finetune import token_classification

TOKENIZER = tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *(f"w{i}" for i in range(50))))


def test_join_cuts_as_transformers_does(tmp_path):
    tokenizer.save(TOKENIZER, tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    words = [f"w{i}" for i in range(50)]
    for first in (0, 1, 4, 9, 20):
        for second in (None, 1, 4, 5, 9, 20):
            for limit in (8, 9, 12, 64):
                texts = [" ".join(words[:first])]
                if second is not None:
                    texts.append(" ".join(words[20 : 20 + second]))
                wanted = reference(*texts, truncation=True, max_length=limit)
                encoded = [TOKENIZER.encode(text) for text in texts]
                ids, segments = base.join(
                    TOKENIZER, encoded[0], encoded[1] if second is not None else None, limit
                )
                assert ids == wanted["input_ids"], (first, second, limit)
                assert segments == wanted["token_type_ids"]


def settings(**fields):
    config = token_classification.get_config()
    config.update(fields)
    return config


def test_hugging_face_data_sets(monkeypatch):
    """hf: sources, with the hub replaced by data sets of the same structure."""
    names = datasets.ClassLabel(names=["negative", "positive"])
    sst2 = datasets.Dataset.from_dict(
        {"sentence": ["good", "bad", "?"], "label": [1, 0, -1]},
        features=datasets.Features({"sentence": datasets.Value("string"), "label": names}),
    )
    tags = datasets.ClassLabel(names=["O", "B-PER"])
    conll = datasets.Dataset.from_dict(
        {"tokens": [["Ann", "sings"]], "ner_tags": [[1, 0]]},
        features=datasets.Features(
            {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(tags)}
        ),
    )
    squad = datasets.Dataset.from_dict(
        {
            "id": ["x"],
            "question": ["who sings?"],
            "context": ["Ann sings."],
            "answers": [{"text": ["Ann"], "answer_start": [0]}],
        }
    )
    unlabelled = conll.map(lambda row: {"ner_tags": [1, -1]})
    uneven = squad.map(lambda row: {"answers": {"text": ["Ann"], "answer_start": [0, 4]}})
    hub = {("glue", "sst2"): sst2, ("someone/conll",): conll, ("rajpurkar/squad",): squad}
    hub |= {("unlabelled",): unlabelled, ("uneven",): uneven}

    def load_dataset(*arguments, split):
        assert split == "train"
        if arguments not in hub:
            raise FileNotFoundError(f"no {arguments}")
        return hub[arguments]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = tables.read("hf:glue/sst2:train", ["sentence", "label"])
    assert [tuple(row.values.values()) for row in rows] == [
        ("good", "positive"), ("bad", "negative"), ("?", "")
    ]  # fmt: skip
    sentences = read_sentences("hf:someone/conll:train", settings(tags_column="ner_tags"))
    assert [(x.words, x.labels) for x in sentences] == [(("Ann", "sings"), ("B-PER", "O"))]
    with pytest.raises(UserError, match=r"unlabelled:train row 0 has words without a label"):
        read_sentences("hf:unlabelled:train", settings(tags_column="ner_tags"))
    for name, wrong in (("glue/sst2", "'id'"), ("uneven", "zip")):
        with pytest.raises(UserError, match=rf"has not SQuAD's columns .*; wrong: {wrong}"):
            read_squad(f"hf:{name}:train", 0.1, training=True)
    question = read_squad("hf:rajpurkar/squad:train", 0.1, training=True)[0]
    assert (question.id, question.answers, question.start) == ("x", ("Ann",), 0)
    with pytest.raises(UserError, match=r"could not be loaded \(FileNotFoundError: no"):
        tables.read("hf:nowhere:train", ["x"])
    with pytest.raises(UserError, match=r"no \('some/where',\); or .*no \('some', 'where'\)"):
        tables.read("hf:some/where:train", ["x"])
    with pytest.raises(UserError, match=r"name a split, e\.g\. hf:squad:train"):
        tables.read("hf:squad", ["x"])


def test_tensorflow_data_sets(monkeypatch):
    """tfds: sources, with the library replaced by data sources of the same structure."""
    label = types.SimpleNamespace(names=["negative", "positive"])
    tags = types.SimpleNamespace(feature=types.SimpleNamespace(names=["O", "B-PER"]))
    text = types.SimpleNamespace()
    bytes_array = functools.partial(np.array, dtype=object)
    data = {
        ("glue/sst2:2.0.0", "train[:1%]"): (
            [
                {"idx": np.int32(0), "sentence": "schön".encode(), "label": np.int64(1)},
                {"idx": np.int32(1), "sentence": b"?", "label": np.int64(-1)},
            ],
            {"idx": text, "sentence": text, "label": label},
        ),
        ("conll", "dev"): (
            [{"tokens": bytes_array([b"Ann", b"sings"]), "ner": np.array([1, 0])}],
            {"tokens": types.SimpleNamespace(feature=text), "ner": tags},
        ),
        ("squad", "train"): (
            [
                {
                    "id": b"x",
                    "question": b"who sings?",
                    "context": b"Ann sings.",
                    "answers": {"text": bytes_array([b"Ann"]), "answer_start": np.array([0])},
                }
            ],
            {name: text for name in ("id", "question", "context", "answers")},
        ),
    }

    class Source(list):
        def __init__(self, rows, features):
            super().__init__(rows)
            self.dataset_info = types.SimpleNamespace(features=features)

    fake = types.SimpleNamespace(data_source=lambda name, split: Source(*data[name, split]))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    rows = tables.read("tfds:glue/sst2:2.0.0:train[:1%]", ["sentence", "label", "idx"])
    assert [tuple(row.values.values()) for row in rows] == [
        ("schön", "positive", "0"), ("?", "", "1")
    ]  # fmt: skip
    sentences = read_sentences("tfds:conll:dev", settings(tags_column="ner"))
    assert [(x.words, x.labels) for x in sentences] == [(("Ann", "sings"), ("B-PER", "O"))]
    question = read_squad("tfds:squad:train", 0.1, training=True)[0]
    assert (question.id, question.answers, question.start) == ("x", ("Ann",), 0)
    with pytest.raises(UserError, match=r"could not be loaded \(KeyError"):
        tables.read("tfds:nowhere:train", ["x"])
    with pytest.raises(UserError, match=r"name a split, e\.g\. tfds:squad:train"):
        tables.read("tfds:squad", ["x"])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs: pip install 'bert_jax\[tfds\]'"):
        tables.read("tfds:squad:train", ["x"])


def test_every_recipe_reads():
    """Each file of configs/finetune gives a config whose task exists."""
    import importlib
    import pathlib

    import configs.finetune

    for path in sorted(pathlib.Path(configs.finetune.__file__).parent.glob("[!_]*.py")):
        if path.stem == "base":
            continue
        module = importlib.import_module(f"configs.finetune.{path.stem}")
        assert f"configs/finetune/{path.name}" in module.__doc__  # its own command
        for argument in getattr(module, "TASKS", [None]):
            config = module.get_config(argument) if argument else module.get_config()
            assert kinds.make_task(config, TOKENIZER).metric
    # What GLUE's leaderboard goes by.
    glue = {name: configs.finetune.glue.get_config(name) for name in ("cola", "qqp", "mnli")}
    metrics = {name: kinds.make_task(config, TOKENIZER).metric for name, config in glue.items()}
    assert metrics == {"cola": "matthews", "qqp": "f1", "mnli": "accuracy"}
