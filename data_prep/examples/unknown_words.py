"""The words of a text that a tokenizer turns into [UNK]."""

import collections
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from bert_jax.data.tokenizer import Tokenizer

MOST_SENTENCES = 1000  # of a unit of text that are searched: they are encoded once more
MOST_WORDS = 60  # that are kept of a corpus
_MOST_OF_UNIT = 10 * MOST_WORDS
_MOST_LETTERS = 40


class UnknownWords:
    """Finds the words behind [UNK], as they stand in the text."""

    def __init__(self, tokenizer: Tokenizer):
        self._backend = tokenizer.text_backend
        self._unknown_id = tokenizer.unknown_id

    def count(
        self, sentences: Sequence[str], ids: np.ndarray, length_S: np.ndarray
    ) -> dict[str, int]:
        """['a 한 b', 'c'], [7, 1, 8, 9], [3, 1] -> {'한': 1}, where 1 is [UNK].

        Of sentences with an [UNK] the first MOST_SENTENCES are counted.

        Args:
          ids: of all sentences, one after another.
          length_S: how many each has.
        """
        places = np.flatnonzero(ids == self._unknown_id)
        found = np.unique(np.searchsorted(np.cumsum(length_S), places, side="right"))
        counts: collections.Counter[str] = collections.Counter()
        for i in found[:MOST_SENTENCES]:
            encoding = self._backend.encode(sentences[i], add_special_tokens=False)
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == self._unknown_id:
                    counts[_shortened(sentences[i][start:end].strip())] += 1
        return commonest(counts, _MOST_OF_UNIT)


def commonest(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """The words with the highest counts, in the order of these and of the alphabet."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(itertools.islice(order, number))


def _shortened(word: str) -> str:
    return word if len(word) <= _MOST_LETTERS else f"{word[:_MOST_LETTERS]}…"
