"""The word cache gives the ids of the Rust tokenizer, exactly."""

import glob
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load
from data_prep.examples.fast_encoder import FastEncoder
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
    backend = FastEncoder(tokenizer)._backend
    return backend.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def encoders(request):
    tokenizer = Tokenizer(VOCAB, lowercase=request.param)
    return tokenizer, FastEncoder(tokenizer)


def test_example():
    tokenizer = Tokenizer(VOCAB)
    ids, lengths = FastEncoder(tokenizer).encode(["Hello, hello", "you"])
    assert [VOCAB[i] for i in ids] == ["hello", ",", "hello", "you"]
    assert lengths.tolist() == [3, 1]


def test_special_tokens_in_text_are_text():
    ids, _ = FastEncoder(Tokenizer(VOCAB)).encode(["[MASK] [SEP]"])
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
    ids, lengths = encoder.encode(sentences)
    assert len(lengths) == len(sentences)
    parts = np.split(ids, np.cumsum(lengths))[:-1] if sentences else []
    for sentence, part in zip(sentences, parts, strict=True):
        assert part.tolist() == rust_ids(tokenizer, sentence)


def test_a_full_cache_is_emptied(monkeypatch):
    monkeypatch.setattr("data_prep.examples.fast_encoder._MAX_CACHED", 3)
    tokenizer = Tokenizer(VOCAB)
    encoder = FastEncoder(tokenizer)
    for text in ("a b c d e", "e d f you", "hello a"):
        assert encoder.encode([text])[0].tolist() == rust_ids(tokenizer, text)


@pytest.mark.slow
def test_equals_the_rust_tokenizer_on_a_corpus(tokenizer):
    """All of $BERT_JAX_TEXT (a glob) with $BERT_JAX_TOKENIZER; by default 2 MB of pydocs."""
    if "BERT_JAX_TOKENIZER" in os.environ:
        tokenizer = load(os.environ["BERT_JAX_TOKENIZER"])
    pattern = os.environ.get("BERT_JAX_TEXT")
    sources = sorted(glob.glob(pattern)) if pattern else ["pydocs:2"]
    encoder = FastEncoder(tokenizer)
    compared = 0
    for part in corpus.list_parts(sources):
        for unit in corpus.read_units(part):
            texts, _ = parsing.parse_unit(unit)
            sentences = [s for text in texts for s in documents.sentences(text)]
            ids, lengths = encoder.encode(sentences)
            expected = encoder._backend.encode_batch_fast(sentences, add_special_tokens=False)
            assert lengths.tolist() == [len(e.ids) for e in expected]
            assert np.array_equal(ids, [i for e in expected for i in e.ids])
            compared += len(ids)
    assert compared > 100_000
