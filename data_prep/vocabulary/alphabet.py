"""Which letters a vocabulary has, and which of them in the middle of words too."""

import collections
import dataclasses
from collections.abc import Mapping

from bert_jax.data.tokenizer import CONTINUATION_PREFIX, SPECIAL_TOKENS

# Share of the text's characters that an alphabet may lack without a warning.
MAX_DROPPED = 1e-3
# A word lost to [UNK] counts like so many tokens saved: a larger weight keeps rarer letters.
_TOKENS_PER_LOST_WORD = 4


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The letters of a vocabulary.

    Attributes:
      letters: in code point order.
      continuing: those of them that occur inside of words: each has a '##' form too.
      dropped: the share of the text's characters that other letters are.
    """

    letters: list[str]
    continuing: list[str]
    dropped: float

    @property
    def tokens(self) -> list[str]:
        return [
            *SPECIAL_TOKENS,
            *self.letters,
            *(CONTINUATION_PREFIX + letter for letter in self.continuing),
        ]


def choose(words: Mapping[str, int], vocab_size: int, size: int | None = None) -> Alphabet:
    """Takes the most frequent letters of a text's words.

    Without a size: those letters which occur more than a quarter as often as the words that a
    vocabulary of whole words would just have room for, since an id saves more tokens elsewhere. It
    is at least those that make up 99.9 % of the text, and else at most half of the vocabulary.

    Args:
      words: how often each occurs; not empty.
      vocab_size: of the vocabulary to be.
      size: the most letters to take.
    """
    counts: collections.Counter[str] = collections.Counter()
    inside: set[str] = set()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
        inside.update(word[1:])
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))
    total = counts.total()
    if size is None:
        size = _size(words, vocab_size, frequent, counts, inside)
    letters = sorted(frequent[:size])
    return Alphabet(
        letters,
        [letter for letter in letters if letter in inside],
        sum(counts[letter] for letter in frequent[size:]) / total,
    )


def _size(
    words: Mapping[str, int],
    vocab_size: int,
    frequent: list[str],
    counts: Mapping[str, int],
    inside: set[str],
) -> int:
    least = 0
    if len(words) > vocab_size:
        least = sorted(words.values(), reverse=True)[vocab_size] // _TOKENS_PER_LOST_WORD
    most_dropped = MAX_DROPPED * sum(counts.values())
    needed = useful = room = len(frequent)
    dropped = 0
    for rank in range(len(frequent) - 1, -1, -1):
        dropped += counts[frequent[rank]]
        if dropped > most_dropped:
            break
        needed = rank
    useful = next((i for i, c in enumerate(frequent) if counts[c] <= least), len(frequent))
    ids = 0
    for rank, letter in enumerate(frequent):
        ids += 1 + (letter in inside)
        if ids > (vocab_size - len(SPECIAL_TOKENS)) // 2:
            room = rank
            break
    return max(needed, min(useful, room))
