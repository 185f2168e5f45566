"""Pieces of text that were turned into ids once, to be looked up from then on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Encoded(NamedTuple):
    """What sentences became.

    Attributes:
      ids: of all sentences, one after another.
      length_S: how many each sentence has.
      long_words_S: how many words of it are [UNK] for their length, whatever their letters.
    """

    ids: np.ndarray
    length_S: np.ndarray
    long_words_S: np.ndarray


class _Index(dict):
    """piece -> row; a piece that is not there yet gets the next row."""

    def __missing__(self, piece: str) -> int:
        row = self[piece] = len(self)
        return row


class PieceTable:
    """The ids of pieces.

    Attributes:
      rows: piece -> its row; asked for a new piece, it gives the next row, and the piece's ids must
        be added before they are taken.
    """

    def __init__(self, dtype: type[np.unsignedinteger], capacity: int):
        """`capacity` is the number of pieces at which it is emptied."""
        self._dtype, self._capacity = dtype, capacity
        self.clear()

    def clear(self) -> None:
        self.rows = _Index()
        self._starts = np.zeros(0, np.int64)  # of each row's ids in _ids
        self._lengths = np.zeros(0, np.int64)
        self._ids = np.zeros(0, self._dtype)
        self._long_words = np.zeros(0, np.int64)  # in each row's piece

    def clear_if_full(self) -> None:
        if len(self.rows) > self._capacity:
            self.clear()

    @property
    def new_pieces(self) -> list[str]:
        """Those that were asked for and not yet added, in the order of their rows."""
        known = len(self._lengths)
        return list(self.rows)[known:] if len(self.rows) > known else []

    def add(
        self, ids: np.ndarray, start_N: np.ndarray, length_N: np.ndarray, long_words_N: np.ndarray
    ) -> None:
        """Adds the ids of `new_pieces`: those of piece n are ids[start_N[n] :][: length_N[n]]."""
        self._starts = np.concatenate([self._starts, len(self._ids) + start_N])
        self._lengths = np.concatenate([self._lengths, length_N])
        self._ids = np.concatenate([self._ids, ids])
        self._long_words = np.concatenate([self._long_words, long_words_N])

    def take(self, rows: Sequence[int], ends: Sequence[int]) -> Encoded:
        """The ids of sentences that are runs of pieces.

        Args:
          rows: of all their pieces.
          ends: for each sentence, where its pieces end in `rows`.
        """
        row_N = np.array(rows, np.int64)
        length_N = self._lengths[row_N]
        end_N = np.cumsum(length_N)
        # Where each output id is read from: its piece's start plus its place within the piece.
        source = np.repeat(self._starts[row_N] - (end_N - length_N), length_N)
        source += np.arange(len(source))
        ids = self._ids[source]
        token_ends = np.concatenate([[0], end_N])[np.array(ends, np.int64)]
        long_words = np.concatenate([[0], np.cumsum(self._long_words[row_N])])
        long_words_S = np.diff(long_words[np.array(ends, np.int64)], prepend=0)
        return Encoded(ids, np.diff(token_ends, prepend=0), long_words_S)
