"""Features of different lengths to batches of few shapes: buckets, order, padding.

A bucket is a length that batches are padded to, and the examples that fit it and no shorter one.
N examples, B rows a batch, L length.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bert_jax.cli import UserError

# Arrays with one entry a token (their last axis is padded to the bucket's length) and the padding.
# Targets of -1 are not scored. The padding id is hidden by the attention mask: any will do.
TOKEN_PADDING = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "token_labels": -1}
MULTIPLE = 2  # of tokens, that buckets are: cuDNN's attention takes even lengths alone
Batch = dict[str, np.ndarray]


def bucket_lengths(
    lengths_N: Sequence[int], count: int, longest: int, least_saving: float = 0.0
) -> tuple[int, ...]:
    """At most `count` padded lengths, multiples of 2 (or `longest`), with the least padding in all.

        bucket_lengths([3, 5, 30], count=2, longest=128) -> (6, 30)

    Args:
      longest: no example is longer.
      least_saving: the padding, in tokens, that a bucket more must save.
    """
    rounded_N = np.minimum(-(-np.asarray(lengths_N) // MULTIPLE) * MULTIPLE, longest)
    candidates, counts = np.unique(rounded_N, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    size = len(candidates)
    # cost[j] = tokens, padded, of the examples up to candidate j with the buckets so far.
    cost = np.concatenate([[0], np.full(size, np.inf)])
    best: list[np.ndarray] = []
    for _ in range(min(count, size)):
        new, choice = cost.copy(), np.full(size + 1, -1)
        for j in range(1, size + 1):
            costs = cost[:j] + (total[j] - total[:j]) * candidates[j - 1]
            if costs.min() < new[j]:
                new[j], choice[j] = costs.min(), costs.argmin()
        if cost[-1] - new[-1] < least_saving:
            break
        cost = new
        best.append(choice)
    chosen, j = [], size
    for choice in reversed(best):
        if choice[j] >= 0:
            chosen.append(int(candidates[j - 1]))
            j = choice[j]
    return tuple(sorted(chosen))


def epoch_batches(
    lengths_N: Sequence[int], buckets: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The example indices of an epoch's batches, in a random order of (seed, epoch).

    A batch holds examples of one bucket; what is left over joins those of the next longer one.
    """
    rng = np.random.default_rng((seed, epoch))
    order_N = rng.permutation(len(lengths_N))
    bucket_N = np.searchsorted(buckets, np.asarray(lengths_N)[order_N])
    batches, left = [], order_N[:0]
    for i in range(len(buckets)):
        its = np.concatenate([left, order_N[bucket_N == i]])
        whole = len(its) - len(its) % batch_size
        batches += [its[j : j + batch_size] for j in range(0, whole, batch_size)]
        left = its[whole:]
    if len(left):
        batches.append(left)
    return [batches[i] for i in rng.permutation(len(batches))]


def used_buckets(
    lengths_N: Sequence[int], batches: Iterable[np.ndarray], buckets: Sequence[int]
) -> list[int]:
    """The buckets that some of `batches` will be padded to."""
    return sorted({_bucket(max(lengths_N[i] for i in batch), buckets) for batch in batches})


def _bucket(length: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds `length`."""
    return next(bucket for bucket in buckets if bucket >= length)


def sorted_batches(lengths_N: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """All example indices, sorted by length: evaluation's batches, with the least padding."""
    order_N = np.argsort(np.asarray(lengths_N), kind="stable")
    return [order_N[i : i + batch_size] for i in range(0, len(order_N), batch_size)]


def collate(features: Sequence[dict[str, Any]], buckets: Sequence[int], batch_size: int) -> Batch:
    """One batch of `features`, padded to the shortest bucket that holds them.

    Adds attention_mask, and weights float32[B]: 0 for the rows that fill up the batch, which repeat
    the first.
    """
    features = [
        {"attention_mask": np.ones_like(feature["input_ids"]), **feature} for feature in features
    ]
    length = max(np.shape(feature["input_ids"])[-1] for feature in features)
    width = _bucket(length, buckets)
    filling = batch_size - len(features)
    batch = {}
    for name in features[0]:
        arrays = [np.asarray(feature[name]) for feature in [*features, *features[:1] * filling]]
        if name in TOKEN_PADDING:
            padding = [(0, 0)] * (arrays[0].ndim - 1)
            arrays = [
                np.pad(x, [*padding, (0, width - x.shape[-1])], constant_values=TOKEN_PADDING[name])
                for x in arrays
            ]
        stacked = np.stack(arrays)
        batch[name] = stacked.astype(np.float32 if stacked.dtype.kind == "f" else np.int32)
    batch["weights"] = np.array([1.0] * len(features) + [0.0] * filling, np.float32)
    return batch


def check_segments(rows: Iterable[dict[str, Any]], known: int) -> None:
    """Raises UserError for pairs of texts to a model that tells fewer than two segments apart.

    A lookup beyond the end of a table is clamped silently.

    Args:
      known: the model's type_vocab_size.
    """
    if known < 2 and any(np.max(row["token_type_ids"], initial=0) >= known for row in rows):
        raise UserError(
            f"pairs of texts have two segments, and the model tells {known} apart "
            "(type_vocab_size): give single texts, or a model of two"
        )


def iterate(
    features: Sequence[dict[str, Any]],
    batches: Sequence[np.ndarray],
    buckets: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(indices, batch) over the batches that list them."""
    for indices in batches:
        yield indices, collate([features[i] for i in indices], buckets, batch_size)
