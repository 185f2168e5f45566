"""Vocabularies: the same on every run; extended where a domain needs it."""

import os
import subprocess
import sys

import pytest
from corpora import WORDS, make_documents, write_jsonl

from bert_jax import tokenizer as tokenizers
from bert_jax.cli import UserError
from bert_jax.tokenizer import SPECIAL_TOKENS, Tokenizer
from data_prep import vocab
from data_prep.vocab import VocabOptions

_TRAIN = """
import sys
from data_prep import vocab
print(vocab.train(vocab.VocabOptions((sys.argv[1],), vocab_size=300)).fingerprint)
"""


def test_same_on_every_run(corpus_file):
    """In processes of their own: hash seeds and thread counts are what used to change it."""
    fingerprints = set()
    for seed, threads in (("1", "1"), ("2", "2"), ("3", "4")):
        environment = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        environment["TOKENIZERS_PARALLELISM"] = str(threads != "1").lower()
        result = subprocess.run(
            [sys.executable, "-c", _TRAIN, corpus_file],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        fingerprints.add(result.stdout.strip())
    assert len(fingerprints) == 1


def test_contents(corpus_file, tmp_path):
    tokenizer = vocab.train(VocabOptions((corpus_file,), vocab_size=300), tmp_path / "t")
    assert tokenizer.vocab[:5] == SPECIAL_TOKENS
    assert tokenizer.vocab_size == len(set(tokenizer.vocab)) == 300
    letters = sorted({c for word in WORDS for c in word} | {"."})
    assert list(tokenizer.vocab[5 : 5 + len(letters)]) == letters
    assert tokenizers.load(tmp_path / "t") == tokenizer
    text = "Bakon dusk."
    assert tokenizer.decode(tokenizer.encode(text)) == text.lower().replace(".", ".")


def test_letters_are_ordinary_tokens(corpus_file):
    tokenizer = vocab.train(VocabOptions((corpus_file,), vocab_size=300))
    assert int(tokenizer.is_special_V.sum()) == 5
    # A letter that was still a special token would be cut out of every word.
    assert len(tokenizer.encode("ban")) < 3


def test_cased(tmp_path):
    source = write_jsonl(tmp_path / "c.jsonl", ["Übung Über Alle. Übung macht."] * 5)
    cased = vocab.train(VocabOptions((source,), vocab_size=60, lowercase=False))
    assert "Ü" in cased.vocab and not cased.lowercase
    uncased = vocab.train(VocabOptions((source,), vocab_size=60))
    assert "ü" not in uncased.vocab and "u" in uncased.vocab


def test_rare_letters_are_left_out(tmp_path):
    source = write_jsonl(tmp_path / "c.jsonl", ["aaa bbb aab z"] * 3)
    tokenizer = vocab.train(VocabOptions((source,), vocab_size=30, alphabet_size=2))
    assert "z" not in tokenizer.vocab and {"a", "b"} < set(tokenizer.vocab)


def test_max_mb_takes_from_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.corpus.UNIT_BYTES", 10_000)
    for name in ("ab", "cd"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} " * 300] * 30)
    options = VocabOptions((str(tmp_path / "*.jsonl"),), vocab_size=100, max_mb=0.02)
    tokenizer = vocab.train(options)
    assert {"a", "b", "c", "d"} < set(tokenizer.vocab)


def test_mistakes(tmp_path, corpus_file):
    with pytest.raises(UserError, match=r"--vocab_size is 20: expected at least \d+"):
        vocab.train(VocabOptions((corpus_file,), vocab_size=20), tmp_path / "t")
    assert not (tmp_path / "t").exists()
    source = write_jsonl(tmp_path / "c.jsonl", ["", "\u200b"])
    with pytest.raises(UserError, match="holds no text to learn"):
        vocab.train(VocabOptions((source,)))


BASE = Tokenizer(
    (*SPECIAL_TOKENS, "[unused0]", "[unused1]", *"abcdefghijklmnopqrstuvwxyz.", "the")
    + tuple("##" + c for c in "abcdefghijklmnopqrstuvwxyz")
)


@pytest.fixture
def domain(tmp_path):
    # Worth, as count * (pieces - 1): myocardium 36, atrium 15, vena 9, node 3; the 0.
    texts = ["the myocardium. the atrium."] * 3 + ["myocardium vena vena vena node"]
    return VocabOptions((write_jsonl(tmp_path / "c.jsonl", texts),), min_frequency=1)


def test_extension_takes_unused_slots_first(domain):
    got = vocab.extend(BASE, domain)
    assert got.added == ("myocardium", "atrium")
    assert got.tokenizer.vocab[5:7] == ("myocardium", "atrium")
    assert got.tokenizer.vocab[7:] == BASE.vocab[7:]
    # 22 words: 6 the, 6 full stops, 4 myocardium (10), 3 atrium (6), 3 vena (4), 1 node (4).
    assert got.pieces_per_word_before == pytest.approx((6 + 6 + 40 + 18 + 12 + 4) / 23)
    assert got.pieces_per_word_after == pytest.approx((6 + 6 + 4 + 3 + 12 + 4) / 23)


def test_extension_appends(domain, tmp_path):
    bigger = VocabOptions(domain.input, vocab_size=len(BASE.vocab) + 1, min_frequency=2)
    got = vocab.extend(BASE, bigger, tmp_path / "t")
    assert got.added == ("myocardium", "atrium", "vena")
    assert got.tokenizer.vocab[len(BASE.vocab) :] == ("vena",)
    assert tokenizers.load(tmp_path / "t") == got.tokenizer


def test_extension_without_room(domain):
    full = Tokenizer(tuple(t for t in BASE.vocab if "unused" not in t))
    with pytest.raises(UserError, match=r"no \[unused…\] slots: give a --vocab_size"):
        vocab.extend(full, domain)


def test_command(tmp_path, corpus_file, capsys):
    base, extended = tmp_path / "base", tmp_path / "extended"
    assert vocab.main([f"--input={corpus_file}", f"--output={base}", "--vocab_size=120"]) is None
    arguments = [f"--input={corpus_file}", f"--output={extended}", f"--from_tokenizer={base}"]
    assert vocab.main([*arguments, "--vocab_size=130"]) is None
    out = capsys.readouterr().out
    assert "120 tokens" in out and "130 tokens, 10 of them new" in out and "pieces per word" in out


def test_documents_of_the_spool_come_back(tmp_path):
    documents = make_documents(50)
    source = write_jsonl(tmp_path / "c.jsonl", documents)
    with vocab._Spool(VocabOptions((source,))) as spool, vocab.Progress("", 0) as progress:
        assert list(spool.read(progress)) == documents
