"""Masked-language-model masks: token, whole-word, n-gram and given spans; numpy, vectorised.

Shared by the builder (static masks, written to disk) and the loader (dynamic masks, re-sampled in
every epoch). Everything is a pure function of its arguments and of an explicit generator.

Shapes: B examples, L positions, V vocabulary, M max_predictions_per_seq, S spans.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How many tokens are chosen, in which units, and what becomes of them.

    Attributes:
      masked_lm_prob: share of an example's tokens (special ones counted) to predict.
      max_predictions_per_seq: the most tokens predicted in one example; M.
      mask_fraction: of the chosen tokens, the share replaced by [MASK].
      random_fraction: the share replaced by a random ordinary token; the rest is kept.
      whole_word: choose words: a '##' piece goes with the word that it continues.
      max_ngram: choose runs of up to this many units, a run of n with a chance that falls as 1/n
        (ALBERT, section 4.1 uses 3 with whole words); 1 chooses single units.
    """

    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int = 20
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    whole_word: bool = False
    max_ngram: int = 1

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "MaskingConfig":
        """From a manifest's arguments, where they go by the names of data_prep.build's flags."""
        return cls(
            masked_lm_prob=arguments["masked_lm_prob"],
            max_predictions_per_seq=arguments["max_predictions_per_seq"],
            mask_fraction=arguments["mask_fraction"],
            random_fraction=arguments["random_fraction"],
            whole_word=arguments["whole_word_mask"],
            max_ngram=arguments["max_ngram"],
        )


class MaskedBatch(NamedTuple):
    """Masked examples.

    Attributes:
      input_ids_BL: the ids with the chosen tokens replaced (a copy).
      positions_BM: the chosen positions in ascending order, then zeros.
      ids_BM: the original ids at those positions, then zeros.
      num_masked_B: how many of the M are real.
    """

    input_ids_BL: np.ndarray
    positions_BM: np.ndarray
    ids_BM: np.ndarray
    num_masked_B: np.ndarray


def default_max_predictions(max_seq_length: int, masked_lm_prob: float) -> int:
    """The predictions of a full example: 20 for 0.15 of 128 tokens, as published, 77 of 512."""
    # Rounded first: 0.07 * 100 is 7.000000000000001.
    return max(1, math.ceil(round(max_seq_length * masked_lm_prob, 6)))


def mask_tokens(
    rng: np.random.Generator,
    input_ids_BL: np.ndarray,
    num_tokens_B: np.ndarray,
    config: MaskingConfig,
    *,
    mask_id: int,
    is_special_V: np.ndarray,
    is_continuation_V: np.ndarray | None = None,
    spans_S3: np.ndarray | None = None,
) -> MaskedBatch:
    """Chooses tokens and replaces 80 % by [MASK], 10 % by random ones, 10 % by themselves.

    With 'the man ##kind' = [5, 6, 7], [CLS] = 1, [SEP] = 2, [MASK] = 3 and a rate that asks for two
    tokens, whole_word masking can give

        input_ids_BL [[1, 5, 6, 7, 2]] -> [[1, 5, 3, 3, 2]], positions [[2, 3]], ids [[6, 7]].

    The number chosen in an example is min(max_predictions, max(1, round(num_tokens * prob))), as in
    google-research/bert; fewer only where there are fewer candidates or where no remaining unit
    fits. Special tokens are never chosen and never drawn as the random replacement.

    Args:
      rng: all randomness comes from here.
      input_ids_BL: ids with padding after num_tokens; any integer type.
      num_tokens_B: tokens that are not padding, [CLS] and [SEP] counted.
      config: rates and units.
      mask_id: the id of [MASK].
      is_special_V: bool[V], the tokens never chosen nor drawn.
      is_continuation_V: bool[V], the '##' pieces; needed for whole_word.
      spans_S3: rows (example, start, end): phrases or entities that are one unit each, as in
        ERNIE 1.0. They must not overlap within an example.
    """
    num_tokens_B = np.asarray(num_tokens_B).astype(np.int64)
    is_candidate_BL = np.arange(input_ids_BL.shape[1]) < num_tokens_B[:, None]
    is_candidate_BL &= ~is_special_V[input_ids_BL]
    wanted_B = np.rint(num_tokens_B * config.masked_lm_prob).astype(np.int64)
    wanted_B = np.clip(wanted_B, 1, config.max_predictions_per_seq)
    wanted_B = np.minimum(wanted_B, is_candidate_BL.sum(1))
    if not config.whole_word and spans_S3 is None and config.max_ngram == 1:
        is_chosen_BL = _choose_tokens(rng, is_candidate_BL, wanted_B)
    else:
        is_start_BL = is_candidate_BL.copy()
        if config.whole_word:
            if is_continuation_V is None:
                raise ValueError("whole_word masking needs is_continuation_V")
            is_start_BL &= ~is_continuation_V[input_ids_BL]
        for example, start, end in [] if spans_S3 is None else spans_S3.tolist():
            is_start_BL[example, start:end] = False
            is_start_BL[example, start] = True
            is_start_BL[example, end : end + 1] = True
        # A new unit begins after a special token: a piece whose word truncation cut, or [UNK].
        is_start_BL[:, 1:] |= ~is_candidate_BL[:, :-1]
        is_start_BL &= is_candidate_BL
        is_chosen_BL = _choose_units(rng, is_candidate_BL, is_start_BL, wanted_B, config.max_ngram)
    return _replace(rng, input_ids_BL, is_chosen_BL, config, mask_id, is_special_V)


def _choose_tokens(
    rng: np.random.Generator, is_candidate_BL: np.ndarray, wanted_B: np.ndarray
) -> np.ndarray:
    """bool[B, L]: `wanted_B` candidates an example, every subset equally likely."""
    B, L = is_candidate_BL.shape
    # A random key a position, the position in its low bits so that no two are equal: the chosen
    # ones have the smallest keys. 32 bits sort twice as fast as 64 and leave 23 random at L = 512.
    position_bits = int(L - 1).bit_length()
    dtype = np.uint32 if position_bits <= 10 else np.uint64
    key_BL = rng.integers(0, np.iinfo(dtype).max, (B, L), dtype)
    key_BL >>= dtype(1)
    key_BL &= ~dtype((1 << position_bits) - 1)
    key_BL |= np.arange(L).astype(dtype)
    key_BL[~is_candidate_BL] = np.iinfo(dtype).max
    most = int(wanted_B.max(initial=0))
    if most == 0:
        return np.zeros((B, L), bool)
    sorted_BM = np.sort(key_BL, axis=1)[:, :most]
    largest_B = np.take_along_axis(sorted_BM, np.maximum(wanted_B - 1, 0)[:, None], 1)
    return (key_BL <= largest_B) & (wanted_B > 0)[:, None]


def _choose_units(
    rng: np.random.Generator,
    is_candidate_BL: np.ndarray,
    is_start_BL: np.ndarray,
    wanted_B: np.ndarray,
    max_ngram: int,
) -> np.ndarray:
    """bool[B, L]: whole units in random order while they fit; one that would not fit is skipped.

    An n-gram that would not fit or that meets a unit already taken is shortened, as in ALBERT.
    """
    B, L = is_candidate_BL.shape
    num_units_B = is_start_BL.sum(1)
    U = int(num_units_B.max(initial=0))
    if U == 0:
        return np.zeros((B, L), bool)
    # unit_BL: which unit a position belongs to; positions that are no candidates go to unit U.
    unit_BL = np.where(is_candidate_BL, np.cumsum(is_start_BL, 1) - 1, U)
    row_B = np.arange(B)
    size_BU = np.zeros((B, U + 1), np.int64)
    np.add.at(size_BU, (np.repeat(row_B, L), unit_BL.ravel()), 1)
    # An n-gram ends where a special token or the padding interrupts the units.
    breaks_after_BU = np.zeros((B, U + 1), bool)
    example, position = np.nonzero(is_candidate_BL[:, :-1] & ~is_candidate_BL[:, 1:])
    breaks_after_BU[example, unit_BL[example, position]] = True
    key_BU = rng.random((B, U))
    key_BU[np.arange(U) >= num_units_B[:, None]] = 2.0
    order_BU = np.argsort(key_BU, axis=1)
    before_BU, after_BU = _extents(rng, (B, U), max_ngram)
    is_taken_BU = np.zeros((B, U + 1), bool)
    left_B = wanted_B.copy()

    def take(place_B: np.ndarray, may_B: np.ndarray) -> np.ndarray:
        """Takes a unit in each example that may and where it is free and fits: where it did."""
        inside_B = np.clip(place_B, 0, U)
        fits_B = (
            may_B
            & (place_B >= 0)
            & (place_B < num_units_B)
            & ~is_taken_BU[row_B, inside_B]
            & (size_BU[row_B, inside_B] <= left_B)
        )
        is_taken_BU[row_B[fits_B], inside_B[fits_B]] = True
        left_B[:] -= np.where(fits_B, size_BU[row_B, inside_B], 0)
        return fits_B

    for rank in range(U):
        unit_B = order_BU[:, rank]
        is_open_B = (rank < num_units_B) & (left_B > 0)
        if not is_open_B.any():
            break
        is_taken_B = take(unit_B, is_open_B)
        for extent_BU, direction in ((after_BU, 1), (before_BU, -1)):
            is_open_B = is_taken_B
            for n in range(1, max_ngram):
                place_B = unit_B + direction * n
                first_B = np.clip(np.minimum(place_B, place_B - direction), 0, U)
                is_open_B = take(
                    place_B,
                    is_open_B & (n <= extent_BU[:, rank]) & ~breaks_after_BU[row_B, first_B],
                )
    is_taken_BU[:, U] = False
    return np.take_along_axis(is_taken_BU, unit_BL, 1)


def _extents(
    rng: np.random.Generator, shape: tuple[int, int], max_ngram: int
) -> tuple[np.ndarray, np.ndarray]:
    """int[B, U] twice: how many units an n-gram has before, and after, the one it is drawn at.

    p(n) is proportional to 1/n (ALBERT, section 3.1). Were all to begin there, the first units of a
    segment would be masked least: nothing before them reaches them.
    """
    if max_ngram == 1:
        return np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    chance = 1.0 / np.arange(1, max_ngram + 1)
    further_BU = rng.choice(max_ngram, shape, p=chance / chance.sum())
    before_BU = rng.integers(0, further_BU + 1)
    return before_BU, further_BU - before_BU


def _replace(
    rng: np.random.Generator,
    input_ids_BL: np.ndarray,
    is_chosen_BL: np.ndarray,
    config: MaskingConfig,
    mask_id: int,
    is_special_V: np.ndarray,
) -> MaskedBatch:
    B, M = len(input_ids_BL), config.max_predictions_per_seq
    example, position = np.nonzero(is_chosen_BL)  # example by example, positions ascending
    original = input_ids_BL[example, position]
    num_masked_B = np.bincount(example, minlength=B)
    column = np.arange(len(example)) - (np.cumsum(num_masked_B) - num_masked_B)[example]
    positions_BM = np.zeros((B, M), np.int32)
    ids_BM = np.zeros((B, M), np.int32)
    positions_BM[example, column] = position
    ids_BM[example, column] = original
    ordinary_ids = np.flatnonzero(~is_special_V)
    uniform = rng.random(len(example))
    random_ids = ordinary_ids[rng.integers(0, len(ordinary_ids), len(example))]
    replacement = np.where(uniform < config.mask_fraction, mask_id, original)
    is_random = (uniform >= config.mask_fraction) & (
        uniform < config.mask_fraction + config.random_fraction
    )
    masked_BL = input_ids_BL.copy()
    masked_BL[example, position] = np.where(is_random, random_ids, replacement)
    return MaskedBatch(masked_BL, positions_BM, ids_BM, num_masked_B.astype(np.int32))
