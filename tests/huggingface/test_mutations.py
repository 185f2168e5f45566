"""Directories with a few random changes: one message each, or read; no traceback, no long wait."""

import json
import random
import shutil
import time

import pytest
from harms import mutated
from small_model import SIZES, TOKENIZER

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import config_json, load

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory without weights: its JSON is read before them."""
    directory = tmp_path_factory.mktemp("mutations") / "base"
    added = tuple(tokenizer.AddedToken(x, in_vocabulary=False) for x in ("[E1]", "[E2]"))
    vocab = (*TOKENIZER.vocab, "[E1]", "[E2]")
    tokenizer.save(tokenizer.WordPieceTokenizer(vocab, added=added), directory)
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    labels = {"id2label": {"0": "a", "1": "b"}, "problem_type": None}
    sizes = SIZES | {"vocab_size": len(vocab)}
    (directory / "config.json").write_text(json.dumps(config | sizes | labels))
    with pytest.raises(UserError, match="has no weights"):
        load.read(directory)
    return directory


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 4))]
)
def test_no_traceback(seed, base, tmp_path):
    rng = random.Random(seed)
    refused = 0
    for number in range(60):
        directory = tmp_path / "m"
        shutil.copytree(base, directory)
        path = directory / rng.choice(FILES)
        text = path.read_text()
        if rng.random() < 0.15:  # bytes
            i = rng.randrange(len(text))
            text = text[:i] + rng.choice(["", "\x00", "{", '"', "[" * 5000]) + text[i + 1 :]
        else:
            value = json.loads(text)
            for _ in range(rng.choice([1, 1, 2, 5])):
                value = mutated(value, rng)
            text = json.dumps(value)
        path.write_text(text)
        start = time.monotonic()
        for read in (tokenizer.load, load.read):
            try:
                read(directory)
            except UserError as error:
                refused += "has no weights" not in str(error)
                assert "\n" not in str(error)[:-1], error
            except Exception as error:
                pytest.fail(f"{seed}/{number} {path.name}: {error!r}\n{text[:2000]}")
        assert time.monotonic() - start < 20, text[:2000]
        shutil.rmtree(directory)
    assert refused >= 30
    assert config_json.read(base / "config.json").labels == ("a", "b")
