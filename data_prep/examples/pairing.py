"""Documents to examples: which tokens form segment A and segment B, and with which label.

Pure functions over sentence offsets; the tokens themselves are not needed. A chunk is a triple of
token offsets (start, middle, end): A is [start, middle) and B is [middle, end), or a random piece
of another document where `end` is None.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IS_NEXT, IS_RANDOM = 0, 1
IN_ORDER, SWAPPED = 0, 1


class Chunk(NamedTuple):
    start: int
    middle: int
    end: int | None


class IsNextBalance:
    """Keeps the share of IsNext at one half although one-sentence chunks cannot be IsNext.

    The published procedure flips a fair coin a chunk, but a chunk of one sentence gets a random B
    whatever the coin said, so IsNext comes to about 46 %. Here the balance of IsNext over random is
    held within ±`BOUND` a shard: the coin decides inside the bounds, and at a bound the next chunk
    that can restores it. (Where most chunks have one sentence nothing can; data_prep.check tells.)
    """

    BOUND = 4

    def __init__(self):
        self._balance = 0

    def decide(self, wants_next: bool, can_be_next: bool) -> bool:
        """Whether the chunk becomes IsNext, given its coin and whether it has two sentences."""
        if self._balance >= self.BOUND:
            wants_next = False
        elif self._balance <= -self.BOUND:
            wants_next = True
        is_next = wants_next and can_be_next
        self._balance += 1 if is_next else -1
        return is_next


def target_length(budget: int, short_seq_prob: float, coin: float, uniform: float) -> int:
    """The length a document's chunks aim at: the budget, or now and then uniform in [2, budget].

    Args:
      budget: tokens that an example holds beside its special tokens.
      short_seq_prob: how often the target is short, so that fine-tuning meets no surprise.
      coin, uniform: random numbers in [0, 1).
    """
    if coin < short_seq_prob and budget > 2:
        return 2 + int(uniform * (budget - 1))
    return budget


def next_sentence_chunks(
    offsets: Sequence[int],
    target: int,
    uniforms: Sequence[Sequence[float]],
    balance: IsNextBalance,
) -> list[Chunk]:
    """google-research/bert's chunks: sentences up to the target, cut in two at a random sentence.

    Where B is random, the sentences after A go back to the stream and begin the next chunk.

    offsets [0, 4, 9, 12], target 9, coins that say IsNext -> [(0, 4, 9), (9, 12, None)]

    Args:
      offsets: token offsets of the document's n sentences and its end: n + 1 numbers.
      target: tokens at which a chunk is full.
      uniforms: n rows; row i is used by the chunk that begins at sentence i: where to cut, and the
        coin (IsNext at 0.5 and above).
      balance: see IsNextBalance; changed.
    """
    chunks = []
    first, n = 0, len(offsets) - 1
    while first < n:
        end = _chunk_end(offsets, first, target)
        size = end - first
        where, coin = uniforms[first][:2]
        middle = first + 1 + int(where * (size - 1))  # uniform in [first + 1, end - 1]
        is_next = balance.decide(coin >= 0.5, size > 1)
        chunks.append(Chunk(offsets[first], offsets[middle], offsets[end] if is_next else None))
        first = end if is_next else middle
    return chunks


def sentence_order_chunks(
    offsets: Sequence[int], target: int, uniforms: Sequence[Sequence[float]]
) -> list[tuple[int, int, int]]:
    """ALBERT's chunks: as for NSP, but B always follows A in the text; swapping comes later.

    A chunk of one sentence is cut inside the sentence, so that no text is lost and no random B
    mixes another task into the labels; a lone token joins no pair and is skipped.

    offsets [0, 4, 9, 12], target 9 -> [(0, 4, 9), (9, 10, 12)]
    """
    chunks = []
    first, n = 0, len(offsets) - 1
    while first < n:
        end = _chunk_end(offsets, first, target)
        size = end - first
        where = uniforms[first][0]
        if size > 1:
            middle = offsets[first + 1 + int(where * (size - 1))]
        else:
            middle = offsets[first] + 1 + int(where * (offsets[end] - offsets[first] - 1))
        if middle < offsets[end]:
            chunks.append((offsets[first], middle, offsets[end]))
        first = end
    return chunks


def _chunk_end(offsets: Sequence[int], first: int, target: int) -> int:
    """One past the last sentence of the chunk that begins at `first`: the first to reach target."""
    return bisect.bisect_left(offsets, offsets[first] + target, first + 1, len(offsets) - 1)


class Partners:
    """Draws documents for a random B: as likely as they are A's, that is by their source's weight.

    Where a single document has a weight, all others are equally likely; it needs two at least.

    Args:
      documents_S: the number of each source's documents, which follow one another.
      weights_S: of the sources.
    """

    def __init__(self, documents_S: Sequence[int], weights_S: Sequence[float]):
        if sum(n for n, weight in zip(documents_S, weights_S, strict=True) if weight) < 2:
            weights_S = [1.0] * len(documents_S)
        self._documents_S, self._weights_S = list(documents_S), list(weights_S)
        masses_S = [n * weight for n, weight in zip(documents_S, weights_S, strict=True)]
        self._first_S = [0, *itertools.accumulate(documents_S)]
        self._begin_S = [0.0, *itertools.accumulate(masses_S)]

    def draw(self, document: int, uniform: float) -> int:
        """A document other than `document`, by a uniform number in [0, 1)."""
        own = bisect.bisect_right(self._first_S, document) - 1
        first, weight = self._first_S[own], self._weights_S[own]
        others = self._documents_S[own] - 1
        before, own_mass = self._begin_S[own], others * weight
        after = self._begin_S[-1] - self._begin_S[own + 1]
        x = uniform * (before + own_mass + after)
        if x < before or not (others or after):  # the latter: x is rounded
            return self._at(min(x, math.nextafter(before, 0)))
        if x < before + own_mass or not after:
            other = first + min(int((x - before) / weight), others - 1)
            return other + (other >= document)
        return self._at(x - before - own_mass + self._begin_S[own + 1])

    def _at(self, x: float) -> int:
        """The document that lies at x, where all lie in order, each as long as it weighs."""
        x = min(x, math.nextafter(self._begin_S[-1], 0))
        # Sources without mass begin where the next one does: the last of those is taken.
        source = bisect.bisect_right(self._begin_S, x) - 1
        within = int((x - self._begin_S[source]) / self._weights_S[source])
        return self._first_S[source] + min(within, self._documents_S[source] - 1)


def filled_end(offsets: Sequence[int], length: int) -> int:
    """The end of whole sentences from offsets[0] that reach `length` tokens, one at least.

    offsets [10, 14, 20, 26], length 5 -> 20
    """
    return int(offsets[_chunk_end(offsets, 0, length)])


class Truncated(NamedTuple):
    """Segment lengths within the budget and the tokens dropped from their fronts; each int64[N]."""

    a_length: np.ndarray
    b_length: np.ndarray
    a_front: np.ndarray
    b_front: np.ndarray


def truncate_pairs(
    rng: np.random.Generator, a_length_N: np.ndarray, b_length_N: np.ndarray, budget: int
) -> Truncated:
    """Drops tokens one at a time from the longer segment, front or back with equal chance.

    The closed form of that procedure (on a tie B loses the token): lengths 10 and 3, budget 9 ->
    6 and 3; the 4 dropped tokens leave A's front by Binomial(4, 0.5).
    """
    half = budget // 2
    a = np.minimum(a_length_N, np.maximum(budget - half, budget - b_length_N))
    b = np.minimum(b_length_N, np.maximum(half, budget - a_length_N))
    return Truncated(a, b, rng.binomial(a_length_N - a, 0.5), rng.binomial(b_length_N - b, 0.5))


class SentencePacker:
    """RoBERTa's FULL-SENTENCES: whole sentences one after another up to the budget.

    Sentences run on across documents, with a separator between two documents; or, with
    `cross_documents=False` (DOC-SENTENCES), an example ends with its document. A sentence longer
    than the budget is cut to pieces of it.

    budget 10, documents [0, 4, 9] and [20, 23] -> [[(0, 9)], [(20, 3)]]: the second document's
    sentence would need the separator and 3 more tokens.
    """

    def __init__(self, budget: int, cross_documents: bool):
        self._budget = budget
        self._cross_documents = cross_documents
        self._spans: list[tuple[int, int]] = []  # of the example that is being filled
        self._used = 0

    def add_document(self, offsets: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Packs a document's sentences; returns the examples that became full, as (start, length).

        Args:
          offsets: token offsets of the n sentences and the end: n + 1 numbers.
        """
        full = []
        is_new_document = True
        for start, end in itertools.pairwise(offsets):
            while start < end:
                length = min(end - start, self._budget)
                separator = 1 if is_new_document and self._spans else 0
                if self._used + separator + length > self._budget:
                    full.append(self._spans)
                    self._spans, self._used, separator = [], 0, 0
                if is_new_document or not self._spans:
                    self._spans.append((start, length))
                else:
                    self._spans[-1] = (self._spans[-1][0], self._spans[-1][1] + length)
                self._used += separator + length
                is_new_document = False
                start += length
        if not self._cross_documents:
            full.extend(self.finish())
        return full

    def finish(self) -> list[list[tuple[int, int]]]:
        """The last, unfilled example, if there is one."""
        full = [self._spans] if self._spans else []
        self._spans, self._used = [], 0
        return full
