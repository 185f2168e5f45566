"""Vocabularies: the same on every run; extended where a domain needs it."""

import collections
import dataclasses
import os
import re
import subprocess
import sys

import pytest
from corpora import WORDS, make_documents, write_jsonl

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.tokenizer import SPECIAL_TOKENS, AddedToken, WordPieceTokenizer
from data_prep import vocab
from data_prep.sources import corpus
from data_prep.vocabulary import alphabet
from data_prep.vocabulary import spool as spooling
from data_prep.vocabulary.extension import extend
from data_prep.vocabulary.options import VocabOptions
from data_prep.vocabulary.wordpiece import train

_TRAIN = """
import sys
from data_prep.vocab import VocabOptions, run
print(run(VocabOptions((sys.argv[1],), vocab_size=300)).tokenizer.fingerprint)
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
    tokenizer = train(VocabOptions((corpus_file,), vocab_size=300), tmp_path / "t").tokenizer
    assert tokenizer.vocab[:5] == SPECIAL_TOKENS
    assert tokenizer.vocab_size == len(set(tokenizer.vocab)) == 300
    letters = sorted({c for word in WORDS for c in word} | {"."})
    assert list(tokenizer.vocab[5 : 5 + len(letters)]) == letters
    assert tokenizers.load(tmp_path / "t") == tokenizer
    text = "Bakon dusk."
    assert tokenizer.decode(tokenizer.encode(text)) == text.lower().replace(".", ".")


def test_letters_are_ordinary_tokens(corpus_file):
    tokenizer = train(VocabOptions((corpus_file,), vocab_size=300)).tokenizer
    assert int(tokenizer.is_special_V.sum()) == 5
    # A letter that was still a special token would be cut out of every word.
    assert len(tokenizer.encode("ban")) < 3


def test_cased(tmp_path):
    source = write_jsonl(tmp_path / "c.jsonl", ["Übung Über Alle. Übung macht."] * 5)
    cased = train(VocabOptions((source,), vocab_size=60, lowercase=False)).tokenizer
    assert "Ü" in cased.vocab and not cased.lowercase
    uncased = train(VocabOptions((source,), vocab_size=60)).tokenizer
    assert "ü" not in uncased.vocab and "u" in uncased.vocab


def test_rare_letters_are_left_out(tmp_path, caplog):
    source = write_jsonl(tmp_path / "c.jsonl", ["aaa bbb aab z"] * 3)
    tokenizer = train(VocabOptions((source,), vocab_size=30, alphabet_size=2)).tokenizer
    assert "z" not in tokenizer.vocab and {"a", "b"} < set(tokenizer.vocab)
    assert "10.00% of the text's characters are none of its 2 most frequent" in caplog.text
    assert "--alphabet_size" in caplog.text
    caplog.clear()
    train(VocabOptions((source,), vocab_size=30, alphabet_size=3))
    assert "--alphabet_size" not in caplog.text


def test_a_rare_letter_is_left_out_silently(tmp_path, caplog):
    source = write_jsonl(tmp_path / "c.jsonl", ["aaa bbb aab"] * 200 + ["z"])
    tokenizer = train(VocabOptions((source,), vocab_size=30, alphabet_size=2)).tokenizer
    assert "z" not in tokenizer.vocab and "--alphabet_size" not in caplog.text


def test_max_mb_takes_from_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.corpus.UNIT_BYTES", 10_000)
    for name in ("ab", "cd"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} " * 300] * 30)
    options = VocabOptions((str(tmp_path / "*.jsonl"),), vocab_size=100, max_mb=0.02)
    tokenizer = train(options).tokenizer
    assert {"a", "b", "c", "d"} < set(tokenizer.vocab)


@pytest.fixture
def many_files(tmp_path, monkeypatch):
    """Sources of 20, 9 and 1 files, each of three units of 4, 5 and 3 documents of 216 bytes."""
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    monkeypatch.setattr(spooling, "MAX_OPEN_PARTS", 4)
    for name, count in (("a", 20), ("b", 9), ("c", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            write_jsonl(tmp_path / name / f"{i:02d}.jsonl", [f"{name}{i} " + "word " * 40] * 12)
    return tuple(str(tmp_path / name / "*.jsonl") for name in "abc")


@pytest.fixture
def opened(monkeypatch):
    """Notes the parts that are read, and how many are open at once at most."""
    found = collections.Counter()
    found.parts = []
    read_units = corpus.read_units

    def noting(part):
        found.parts.append(part)
        found["now"] += 1
        found["most"] = max(found["most"], found["now"])
        try:
            yield from read_units(part)
        finally:
            found["now"] -= 1

    monkeypatch.setattr(corpus, "read_units", noting)
    return found


def spooled(sources, max_mb=1000.0):
    """How often each document is in the spool, and the spool's size."""
    options = VocabOptions(sources, max_mb=max_mb)
    with spooling.Spool(options) as spool, spooling.Progress("", 0) as progress:
        return collections.Counter(spool.read(progress)), spool.megabytes


def test_many_files_are_read_one_after_another(many_files, opened, monkeypatch):
    documents, _ = spooled(many_files)
    assert len(documents) == 30 and set(documents.values()) == {12}
    assert opened["most"] == 1
    options = VocabOptions(many_files, vocab_size=60)
    tokenizer = train(options).tokenizer
    monkeypatch.setattr(spooling, "MAX_OPEN_PARTS", 30)
    assert train(options).tokenizer == tokenizer
    assert opened["most"] == 30


def test_max_mb_takes_its_share_of_many_files(many_files, opened):
    documents, megabytes = spooled(many_files, max_mb=0.05)
    assert len(documents) == 30
    assert 0.05 <= megabytes < 0.052
    # A unit of each, then a second one of some: by size, one each was what was left.
    assert set(documents.values()) == {4, 9}
    assert opened["most"] == 1


def test_max_mb_below_a_unit_of_each_file(many_files, opened):
    documents, megabytes = spooled(many_files, max_mb=0.01)
    names = {document.split()[0] for document in documents}
    assert names == {
        *("a0", "a16", "a8", "a4", "a12", "a2", "a18"),
        *("b0", "b8", "b4", "b2"),
        "c0",
    }
    assert 0.01 <= megabytes < 0.011
    assert len(opened.parts) == 12  # nothing is read past the limit


def test_reading_stops_at_the_limit_with_few_files(many_files, opened):
    spooled(many_files[2:] * 3, max_mb=0.001)
    assert len(opened.parts) == 2


def test_small_files_are_read_once(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    monkeypatch.setattr(spooling, "MAX_OPEN_PARTS", 4)
    for i in range(60):
        write_jsonl(tmp_path / f"{i:02d}.jsonl", [f"{i:02d} " + "word " * 40])
    documents, _ = spooled((str(tmp_path / "*.jsonl"),))
    assert len(documents) == 60
    assert len(opened.parts) == 15  # four files each


def test_a_stream_among_many_files_is_read_once(many_files, opened, monkeypatch):
    monkeypatch.setitem(corpus._STREAMS, "tfds:", lambda *_: iter(["stream " * 40] * 12))
    documents, _ = spooled((*many_files, "tfds:x"))
    assert documents[("stream " * 40).strip()] == 12 and len(documents) == 31
    assert [part.kind for part in opened.parts].count("stream") == 1


def test_spread():
    parts = [corpus.Part(0, i, "text", (f"{i}.txt",)) for i in range(8)]
    parts.append(corpus.Part(1, 0, "text", ("other.txt",)))
    places = [(part.source, part.index) for part in spooling._spread(parts)]
    assert places == [(0, 0), (1, 0), (0, 4), (0, 2), (0, 6), (0, 1), (0, 5), (0, 3), (0, 7)]


def test_mistakes(tmp_path, corpus_file):
    with pytest.raises(UserError, match=r"--vocab_size is 20: expected at least \d+"):
        train(VocabOptions((corpus_file,), vocab_size=20), tmp_path / "t")
    assert not (tmp_path / "t").exists()
    source = write_jsonl(tmp_path / "c.jsonl", ["", "\u200b"])
    with pytest.raises(UserError, match="holds no text to learn"):
        train(VocabOptions((source,)))


@pytest.mark.parametrize("base", [False, True])
def test_an_output_that_cannot_be_made_is_found_before_training(tmp_path, corpus_file, base):
    (tmp_path / "file").write_text("")
    arguments = [f"--input={corpus_file}", f"--output={tmp_path / 'file'}", "--vocab_size=20"]
    if base:
        tokenizers.save(BASE, tmp_path / "base")
        arguments += [f"--from_tokenizer={tmp_path / 'base'}"]
    with pytest.raises(UserError, match=r"cannot be made: .*file is no directory"):
        vocab.main(arguments)


BASE = WordPieceTokenizer(
    (*SPECIAL_TOKENS, "[unused0]", "[unused1]", *"abcdefghijklmnopqrstuvwxyz.", "the")
    + tuple("##" + c for c in "abcdefghijklmnopqrstuvwxyz")
)


@pytest.fixture
def domain(tmp_path):
    # Worth, as count * (pieces - 1): myocardium 36, atrium 15, vena 9, node 3; the 0.
    texts = ["the myocardium. the atrium."] * 3 + ["myocardium vena vena vena node"]
    return VocabOptions((write_jsonl(tmp_path / "c.jsonl", texts),), min_frequency=1)


def test_extension_takes_unused_slots_first(domain):
    got = extend(BASE, domain)
    assert got.added == ("myocardium", "atrium")
    assert got.tokenizer.vocab[5:7] == ("myocardium", "atrium")
    assert got.tokenizer.vocab[7:] == BASE.vocab[7:]
    # 22 words: 6 the, 6 full stops, 4 myocardium (10), 3 atrium (6), 3 vena (4), 1 node (4).
    assert got.pieces_per_word_before == pytest.approx((6 + 6 + 40 + 18 + 12 + 4) / 23)
    assert got.pieces_per_word == pytest.approx((6 + 6 + 4 + 3 + 12 + 4) / 23)


def test_extension_appends(domain, tmp_path):
    bigger = VocabOptions(domain.input, vocab_size=len(BASE.vocab) + 1, min_frequency=2)
    got = extend(BASE, bigger, tmp_path / "t")
    assert got.added == ("myocardium", "atrium", "vena")
    assert got.tokenizer.vocab[len(BASE.vocab) :] == ("vena",)
    assert tokenizers.load(tmp_path / "t") == got.tokenizer


def test_extension_without_room(domain):
    full = WordPieceTokenizer(tuple(t for t in BASE.vocab if "unused" not in t))
    with pytest.raises(UserError, match=r"no \[unused…\] slots: give a --vocab_size"):
        extend(full, domain)


def test_markers_are_no_slots(domain):
    """[unused1] may be declared as the mark of an entity: its row is trained, and not a word's."""
    marked = dataclasses.replace(BASE, added=(AddedToken("[unused1]"),))
    got = extend(marked, domain)
    assert got.added == ("myocardium",) and got.tokenizer.vocab[5:7] == ("myocardium", "[unused1]")
    marks = (AddedToken("[unused0]"), AddedToken("[unused1]"))
    with pytest.raises(UserError, match=r"no \[unused…\] slots"):
        extend(dataclasses.replace(BASE, added=marks), domain)


def test_words_are_not_appended_behind_added_tokens(domain):
    beside = (AddedToken("[E1]", in_vocabulary=False),)
    base = dataclasses.replace(BASE, vocab=(*BASE.vocab, "[E1]"), added=beside)
    assert extend(base, domain).added == ("myocardium", "atrium")
    with pytest.raises(UserError, match=r"ids are the last: words can take its \[unused…\] slots"):
        extend(base, dataclasses.replace(domain, vocab_size=len(base.vocab) + 1))


def test_continuations_are_of_letters_that_continue(tmp_path):
    """None of punctuation, Chinese characters or letters that only begin words."""
    source = write_jsonl(tmp_path / "c.jsonl", ["xab, xba. 河川 (x)"] * 5)
    vocabulary = train(VocabOptions((source,), vocab_size=40)).tokenizer.vocab
    letters = {*"abx,.()河川"}
    assert letters < {*vocabulary}
    assert {t for t in vocabulary if t.startswith("##") and len(t) == 3} == {"##a", "##b"}


def test_the_alphabet_follows_from_text_and_size():
    letters = "bcdefgh"
    common = {f"{i}{j}{k}": 40 for i in letters for j in letters for k in letters}
    rare = {f"{chr(0x4E00 + i)}": 11 for i in range(20)} | {"bx": 10, "\u0e01": 1}
    # Of 200 words the last would occur 40 times: a letter that occurs 10 times is worth no id.
    found = alphabet.choose(common | rare, 200)
    assert found.letters == [*letters, *map(chr, range(0x4E00, 0x4E00 + 20))]
    assert found.continuing == [*letters] and 0 < found.dropped < 1e-3
    assert len(found.tokens) == 5 + 27 + 7
    # There is room for everything.
    found = alphabet.choose(common | rare, 400)
    assert {"x", "\u0e01"} < {*found.letters} and found.dropped == 0
    assert found.continuing == [*letters, "x"]


def test_the_alphabet_takes_half_of_the_ids_at_most():
    letters = {chr(0x4E00 + i): 100_000 if i < 20 else 1 for i in range(100)}
    assert len(alphabet.choose(letters, 85).letters) == 40
    # But for those that make up 99.9 % of the text.
    assert len(alphabet.choose(dict.fromkeys(letters, 9), 85).letters) == 100


def test_what_the_vocabulary_does_is_said(tmp_path):
    texts = ["bako dusk", f"bako z {'b' * 101} {'d' * 150}"] + ["bako dusk"] * 8
    source = write_jsonl(tmp_path / "c.jsonl", texts)
    result = train(VocabOptions((source,), vocab_size=30, alphabet_size=7, min_frequency=5))
    assert result.long_words == 2
    # 10 bako and 9 dusk, whole; the z is [UNK].
    assert result.pieces_per_word == 1.0
    assert result.unknown_share == pytest.approx(1 / 20)
    assert result.num_letters == 7 + 5  # b and d only begin words, but for the long ones
    line = result.describe()
    assert "pieces per word 1.0000, 5.000% of the words [UNK], " in line
    assert "2 words over 100 characters are [UNK] too (--max_word_length)" in line
    options = VocabOptions((source,), vocab_size=40, max_word_length=120)
    result = train(options, tmp_path / "t")
    assert result.long_words == 1 and result.tokenizer.max_word_length == 120
    assert tokenizers.load(tmp_path / "t") == result.tokenizer
    assert 1 not in result.tokenizer.encode("b" * 101)


HINDI = ["नदी गाँव के पास से बहती है।", "बच्चे पेड़ के नीचे खेल रहे हैं।"] * 10
JAPANESE = ["ガラスの窓から光が入る。", "カラスが屋根に止まった。"] * 10


@pytest.mark.parametrize(
    ("texts", "word", "other", "share", "example"),
    [
        (HINDI, "से", "स", "3[0-9].[0-9]%", "removed"),
        (JAPANESE, "ガラス", "カラス", "1[0-9].[0-9]%", "が -> か"),
    ],
)
def test_marks_that_are_letters(tmp_path, caplog, texts, word, other, share, example):
    """Lowercasing strips them, so that different words are one."""
    source = write_jsonl(tmp_path / "c.jsonl", texts)
    stripped = train(VocabOptions((source,), vocab_size=90)).tokenizer
    assert stripped.encode(word) == stripped.encode(other)
    [message] = [record.message for record in caplog.records if "lose a mark" in record.message]
    assert re.match(share, message) and example in message and "--no-strip_accents" in message
    caplog.clear()
    options = VocabOptions((source,), vocab_size=90, strip_accents=False)
    kept = train(options, tmp_path / "t").tokenizer
    assert kept.encode(word) != kept.encode(other) and "lose a mark" not in caplog.text
    assert tokenizers.load(tmp_path / "t") == kept
    flags = [f"--input={source}", f"--output={tmp_path / 'u'}", "--no-strip_accents"]
    assert vocab.main([*flags, "--vocab_size=90"]) is None
    assert tokenizers.load(tmp_path / "u") == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 0), ("min_frequency", 0), ("alphabet_size", 0), ("max_word_length", 0)]
    + [("max_mb", 0.0), ("max_decode_errors", 2.0)],
)
def test_impossible_options(corpus_file, name, value):
    with pytest.raises(UserError, match=f"--{name} is {value}: expected"):
        train(dataclasses.replace(VocabOptions((corpus_file,)), **{name: value}))


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
    with spooling.Spool(VocabOptions((source,))) as spool, spooling.Progress("", 0) as progress:
        assert list(spool.read(progress)) == documents
