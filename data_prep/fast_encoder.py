"""Text to WordPiece ids, several times faster than the Rust tokenizer and equal to it.

BERT's tokenizer treats whitespace-separated words, and within them every punctuation mark,
independently. So each distinct piece of text between spaces and ASCII punctuation is given to the
Rust tokenizer once and looked up from then on. Everything that is not plain ASCII stays inside its
piece, and the Rust tokenizer decides what to do with it: accents, Chinese characters, Unicode
punctuation, invisible characters.
"""

import re
from collections.abc import Iterable

import numpy as np
import tokenizers

from bert_jax.tokenizer import Tokenizer

# Runs without space and ASCII punctuation, or one ASCII punctuation mark.
split_pieces = re.compile(r"[^\s!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]").findall
_MAX_CACHED = 400_000  # pieces, about 60 MB: enough for 99 % of running English text


class _Index(dict):
    """piece -> row; a piece that is not there yet gets the next row."""

    def __missing__(self, piece: str) -> int:
        row = self[piece] = len(self)
        return row


class FastEncoder:
    """Encodes sentences with `tokenizer`; the ids are those of its Rust backend, exactly.

    Special tokens written out in the text ("[MASK]") are ordinary text here: three pieces.
    """

    def __init__(self, tokenizer: Tokenizer):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.encode_special_tokens = True
        self._backend = backend
        self._dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        self._clear()

    def _clear(self) -> None:
        self._rows = _Index()
        self._starts = np.zeros(0, np.int64)  # of each row's ids in _ids
        self._lengths = np.zeros(0, np.int64)
        self._ids = np.zeros(0, self._dtype)

    def encode(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """['Hello, hello', 'you'] -> (ids [7592, 1010, 7592, 2017], lengths [3, 1]).

        The text is expected without control characters (`corpus.clean`).
        """
        if len(self._rows) > _MAX_CACHED:
            self._clear()
        row_of = self._rows.__getitem__
        known = len(self._rows)
        rows: list[int] = []
        ends: list[int] = []
        for sentence in sentences:
            rows.extend(map(row_of, split_pieces(sentence)))
            ends.append(len(rows))
        self._add_pieces(list(self._rows)[known:] if len(self._rows) > known else [])
        row_N = np.array(rows, np.int64)
        length_N = self._lengths[row_N]
        end_N = np.cumsum(length_N)
        # Where each output id is read from: its piece's start plus its place within the piece.
        source = np.repeat(self._starts[row_N] - (end_N - length_N), length_N)
        source += np.arange(len(source))
        ids = self._ids[source]
        token_ends = np.concatenate([[0], end_N])[np.array(ends, np.int64)]
        lengths = np.diff(token_ends, prepend=0)
        return ids, lengths

    def _add_pieces(self, pieces: list[str]) -> None:
        if not pieces:
            return
        encoded = [e.ids for e in self._backend.encode_batch_fast(pieces, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        starts = len(self._ids) + np.cumsum(lengths) - lengths
        flat = np.fromiter((i for ids in encoded for i in ids), self._dtype, int(lengths.sum()))
        self._starts = np.concatenate([self._starts, starts])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, flat])
