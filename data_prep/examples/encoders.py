"""The fastest encoder that is exact, for each kind of tokenizer."""

from bert_jax.data.tokenizer import SubwordTokenizer, Tokenizer, WordPieceTokenizer
from data_prep.examples.subword_encoder import SubwordEncoder
from data_prep.examples.wordpiece_encoder import WordPieceEncoder

Encoder = WordPieceEncoder | SubwordEncoder


def make_encoder(tokenizer: Tokenizer) -> Encoder:
    """Encodes sentences, several times faster than the Rust tokenizer and equal to it."""
    if isinstance(tokenizer, WordPieceTokenizer):
        return WordPieceEncoder(tokenizer)
    assert isinstance(tokenizer, SubwordTokenizer)
    return SubwordEncoder(tokenizer)
