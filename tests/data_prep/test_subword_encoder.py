"""The word cache of BPE and Unigram gives the ids of the Rust tokenizer, exactly."""

import json

import numpy as np
import pytest
import subword_tokenizers as made
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data import tokenizer as tokenizers
from data_prep.examples.encoders import make_encoder
from data_prep.sources import documents

TRICKY = "aZé'İß中ガ한ｱ–—…«\u200b\u00ad\u0301\u0600\u00a0\u2003\u0085▁ﬁ½١\ufffd👍🏽"


def neox(directory):
    """GPT-NeoX's kind, ModernBERT's ancestor: NFC, and runs of blanks that are tokens."""
    path = made.byte_level(directory, "PreTrainedTokenizerFast") / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"] = {"type": "NFC"}
    flags = {"special": False, "lstrip": False, "rstrip": False, "single_word": False}
    first = max(token["id"] for token in value["added_tokens"]) + 1
    value["added_tokens"] += [
        {"id": first + i, "content": content, "normalized": True, **flags}
        for i, content in enumerate(("  ", "   ", "é's", "sun"))
    ]
    path.write_text(json.dumps(value))
    return directory


MAKERS = {
    "bpe": made.byte_level,
    "neox": neox,
    "xlm-r": made.unigram,
    "albert": lambda path: made.unigram(path, "AlbertTokenizer"),
    "xlnet": lambda path: made.unigram(path, "XLNetTokenizer"),
}


@pytest.fixture(scope="module", params=MAKERS)
def encoders(request, tmp_path_factory):
    tokenizer = tokenizers.load(MAKERS[request.param](tmp_path_factory.mktemp("tokenizer")))
    return tokenizer, make_encoder(tokenizer)


def check(tokenizer, encoder, sentences):
    ids, lengths, _ = encoder.encode(sentences)
    parts = np.split(ids, np.cumsum(lengths))[:-1] if len(sentences) else []
    backend = tokenizer.text_backend
    for sentence, part in zip(sentences, parts, strict=True):
        assert part.tolist() == backend.encode(sentence, add_special_tokens=False).ids, sentence


def test_odd_texts(encoders):
    check(*encoders, made.ODD_TEXTS)
    check(*encoders, made.ODD_TEXTS[::-1])


@settings(max_examples=60, deadline=None)
@given(
    sentences=st.lists(
        st.text(st.sampled_from(TRICKY + "abstXYZ .,!'[]-#19\t  ") | st.characters(), max_size=40),
        max_size=6,
    )
)
def test_equals_the_rust_tokenizer(encoders, sentences):
    check(*encoders, [documents.clean(sentence) for sentence in sentences])


def test_plain_words_are_looked_up(encoders, monkeypatch):
    """So that the cache is what was tested: of known words the Rust tokenizer sees none."""
    _, encoder = encoders
    texts = ["The river's mouths, 3.5% of them.", "the mouths of the rivers."]
    encoder.encode(texts)
    seen = []
    monkeypatch.setattr(encoder, "_ids", lambda pieces: seen.append(pieces) or [])
    encoder.encode(["the mouths of them.", "The rivers."][: 1 if encoder._finds_added else 2])
    assert not seen


def test_sentences_of_a_document_are_those_of_one_text(tmp_path):
    """RoBERTa tells a word within a text by the blank before it; XLM-R puts one before each."""
    sentences = ["The river. ", "The sun.  ", "It's warm."]
    bpe = tokenizers.load(made.byte_level(tmp_path / "bpe"))
    encoder = make_encoder(bpe)
    whole = bpe.encode("The river. The sun. It's warm.")
    assert encoder.encode(encoder.of_document(sentences)).ids.tolist() == whole
    encoder = make_encoder(tokenizers.load(made.unigram(tmp_path / "unigram")))
    assert [*encoder.of_document(sentences)] == ["The river.", "The sun.", "It's warm."]
