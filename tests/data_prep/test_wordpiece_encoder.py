"""The word cache gives the ids of the Rust tokenizer, exactly."""

import glob
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer import SPECIAL_TOKENS, AddedToken, WordPieceTokenizer, load
from data_prep.examples.encoders import make_encoder
from data_prep.examples.wordpiece_encoder import WordPieceEncoder
from data_prep.sources import corpus, documents, parsing

# Letters that case folding, accents, width and punctuation rules treat in different ways.
TRICKY = "aZé'İıßΣσς中文한ｱ–—…«\u200b\u00ad\u0301\u0338≮ﬁ١\u00a0\u2003\ufffd𝔘👍🏽"
VOCAB = (
    *SPECIAL_TOKENS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-#[]",
    *("##" + c for c in "abcdefghijklmnopqrstuvwxyz"),
    *("é", "中", "文", "σ", "##σ", "mask", "hello", "you", "ss", "É", "Z", "##Z"),
)


def rust_ids(tokenizer, text):
    backend = WordPieceEncoder(tokenizer)._backend
    return backend.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def encoders(request):
    tokenizer = WordPieceTokenizer(VOCAB, lowercase=request.param)
    return tokenizer, WordPieceEncoder(tokenizer)


def test_example():
    tokenizer = WordPieceTokenizer(VOCAB)
    ids, lengths, long_words = WordPieceEncoder(tokenizer).encode(["Hello, hello", "you"])
    assert [VOCAB[i] for i in ids] == ["hello", ",", "hello", "you"]
    assert lengths.tolist() == [3, 1] and long_words.tolist() == [0, 0]


def test_long_words_are_counted():
    """A word over 100 letters is [UNK] whatever they are; so is one that has them only once cut."""
    encoder = WordPieceEncoder(WordPieceTokenizer(VOCAB))
    decomposed = "\u1fa7" * 40  # four characters each, three of which are marks
    sentences = ["a" * 100, "a" * 101, f"{'b' * 300} you-{'a' * 101}", "中" * 300, decomposed]
    ids, lengths, long_words = encoder.encode(sentences)
    assert long_words.tolist() == [0, 1, 2, 0, 0]
    unknown = [int((part == 1).sum()) for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert unknown == [0, 1, 2, 0, 1]
    kept = WordPieceTokenizer(VOCAB, strip_accents=False)
    assert WordPieceEncoder(kept).encode(["\u1fa7" * 101]).long_words_S.tolist() == [1]
    korean = WordPieceTokenizer(VOCAB)  # a syllable becomes two or three letters
    assert WordPieceEncoder(korean).encode(["한" * 40]).long_words_S.tolist() == [1]
    longer = WordPieceTokenizer(VOCAB, max_word_length=300)
    assert WordPieceEncoder(longer).encode(sentences).long_words_S.tolist() == [0] * 5


def test_added_tokens_are_found():
    """Marks of entities, which may have blanks in them and are no pieces of words."""
    added = tuple(AddedToken(t, in_vocabulary=False) for t in ("[E1]", "new york"))
    tokenizer = WordPieceTokenizer((*VOCAB, "[E1]", "new york"), added=added)
    text = f"you [E1] new york hello[E1] {'a' * 101}"
    ids, lengths, long_words = WordPieceEncoder(tokenizer).encode([text, "you"])
    expected = ["you", "[E1]", "new york", "hello", "[E1]", "[UNK]", "you"]
    assert [tokenizer.vocab[i] for i in ids] == expected
    assert lengths.tolist() == [6, 1] and long_words.tolist() == [1, 0]


def test_marks_are_counted():
    marks = WordPieceEncoder(WordPieceTokenizer(VOCAB)).marks
    assert marks.count(["e\u0301 ガカ é\n"]) == (5, 3)
    assert (
        marks.examples({"ガ": 2, "é": 1, "\u0941": 3, "a": 9})
        == "◌\u0941 removed, ガ -> カ, é -> e"
    )
    for tokenizer in (
        WordPieceTokenizer(VOCAB, strip_accents=False),
        WordPieceTokenizer(VOCAB, lowercase=False),
    ):
        assert WordPieceEncoder(tokenizer).marks.count(["e\u0301 ガカ é\n"]) == (5, 0)


def test_special_tokens_in_text_are_text():
    ids = WordPieceEncoder(WordPieceTokenizer(VOCAB)).encode(["[MASK] [SEP]"]).ids
    assert [VOCAB[i] for i in ids][:3] == ["[", "mask", "]"]
    assert not np.isin(ids, [2, 3, 4]).any()


@settings(max_examples=400, deadline=None)
@given(
    sentences=st.lists(
        st.text(st.sampled_from(TRICKY + "abcXYZ .,!'[]-#19\t") | st.characters(), max_size=40),
        max_size=6,
    )
)
def test_equals_the_rust_tokenizer(encoders, sentences):
    tokenizer, encoder = encoders
    sentences = [documents.clean(sentence) for sentence in sentences]
    ids, lengths, _ = encoder.encode(sentences)
    assert len(lengths) == len(sentences)
    parts = np.split(ids, np.cumsum(lengths))[:-1] if sentences else []
    for sentence, part in zip(sentences, parts, strict=True):
        assert part.tolist() == rust_ids(tokenizer, sentence)


def test_a_full_cache_is_emptied(monkeypatch):
    monkeypatch.setattr("data_prep.examples.wordpiece_encoder._MAX_CACHED", 3)
    tokenizer = WordPieceTokenizer(VOCAB)
    encoder = WordPieceEncoder(tokenizer)
    for text in ("a b c d e", "e d f you", "hello a"):
        assert encoder.encode([text])[0].tolist() == rust_ids(tokenizer, text)


@pytest.mark.slow
def test_equals_the_rust_tokenizer_on_a_corpus(tokenizer):
    """All of $BERT_JAX_TEXT (a glob) with $BERT_JAX_TOKENIZER; by default 2 MB of pydocs."""
    if "BERT_JAX_TOKENIZER" in os.environ:
        tokenizer = load(os.environ["BERT_JAX_TOKENIZER"])
    pattern = os.environ.get("BERT_JAX_TEXT")
    sources = sorted(glob.glob(pattern)) if pattern else ["pydocs:2"]
    encoder = make_encoder(tokenizer)
    compared = 0
    for part in corpus.list_parts(sources):
        for unit in corpus.read_units(part):
            texts, _ = parsing.parse_unit(unit)
            sentences = [s for text in texts for s in documents.sentences(text)]
            ids, lengths, _ = encoder.encode(sentences)
            expected = encoder._backend.encode_batch_fast(sentences, add_special_tokens=False)
            assert lengths.tolist() == [len(e.ids) for e in expected]
            assert np.array_equal(ids, [i for e in expected for i in e.ids])
            compared += len(ids)
    assert compared > 100_000
