"""A small corpus with sentences of all lengths, and a tokenizer for it."""

import pytest
from corpora import WORDS, make_documents, write_jsonl

from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Whole words, all ASCII letters and their '##' forms."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = ["##" + c for c in letters if c.isalnum()]
    return Tokenizer((*SPECIAL_TOKENS, *letters, *pieces, *WORDS[40:]))


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizers.save(tokenizer, directory)
    return str(directory)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "documents.jsonl", make_documents(400))
