"""A small corpus with sentences of all lengths, a tokenizer for it, a data set of both."""

import pytest
from corpora import WORDS, make_documents, write_jsonl

from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, WordPieceTokenizer
from data_prep.build import BuildOptions
from data_prep.build import run as build


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Whole words, all ASCII letters and their '##' forms."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = ["##" + c for c in letters if c.isalnum()]
    return WordPieceTokenizer((*SPECIAL_TOKENS, *letters, *pieces, *WORDS[40:]))


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizers.save(tokenizer, directory)
    return str(directory)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "documents.jsonl", make_documents(400))


@pytest.fixture
def options(corpus_file, tokenizer_dir):
    return BuildOptions((corpus_file,), tokenizer_dir, num_shards=4, dupe_factor=2)


@pytest.fixture(scope="session")
def built(tmp_path_factory, corpus_file, tokenizer_dir):
    directory = tmp_path_factory.mktemp("built") / "data"
    options = BuildOptions((corpus_file,), tokenizer_dir, num_shards=4, dupe_factor=2)
    return directory, build(options, directory, workers=1)
