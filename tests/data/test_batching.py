"""Padded lengths, the order of batches, padding."""

import numpy as np

from bert_jax.data import batching


def test_buckets_have_the_least_padding():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(3, 20, 200), rng.integers(90, 128, 50)])
    rounded = np.minimum(-(-lengths // 2) * 2, 127)

    def padded(buckets):
        return sum(min(b for b in buckets if b >= n) for n in rounded)

    sizes = sorted(set(rounded.tolist()))
    assert batching.bucket_lengths(lengths, 1, 127) == (sizes[-1],)
    two = batching.bucket_lengths(lengths, 2, 127)
    assert padded(two) == min(padded((size, sizes[-1])) for size in sizes)
    assert batching.bucket_lengths(lengths, 99, 127) == tuple(sizes)
    assert batching.bucket_lengths([3, 5, 30], 2, 128) == (6, 30)


def test_a_bucket_saves_what_it_costs():
    # A bucket of 40 beside 8 and 100 saves 6 × 60 tokens.
    lengths = [8] * 990 + [40] * 6 + [100] * 4

    def buckets(least_saving):
        return batching.bucket_lengths(lengths, 9, 128, least_saving)

    assert buckets(0) == buckets(360) == (8, 40, 100)
    assert buckets(361) == (8, 100)
    assert buckets(99_999) == (100,)


def test_epochs_hold_every_example_once_in_another_order():
    lengths = np.random.default_rng(0).integers(3, 100, 1003)
    buckets = (20, 60, 100)
    epochs = [batching.epoch_batches(lengths, buckets, 8, seed=1, epoch=epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert [len(batch) for batch in batches].count(8) == 125 and len(batches) == 126
        assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    together = [{frozenset(batch.tolist()) for batch in batches} for batches in epochs]
    assert not together[0] & together[1]  # other batches, not the same in another order
    again = batching.epoch_batches(lengths, buckets, 8, seed=1, epoch=1)
    assert all(np.array_equal(x, y) for x, y in zip(epochs[1], again, strict=True))


def test_a_batch_holds_examples_of_one_bucket_and_what_was_left_over():
    lengths = np.array([5] * 10 + [30] * 10 + [90] * 5)
    buckets = (20, 60, 100)
    batches = batching.epoch_batches(lengths, buckets, 8, seed=0, epoch=0)
    its_lengths = sorted(np.unique(lengths[batch]).tolist() for batch in batches)
    assert its_lengths == [[5], [5, 30], [30, 90], [90]]
    assert batching.used_buckets(lengths, batches, buckets) == [20, 60, 100]
    # Too few for a batch each: one, as long as the longest.
    (batch,) = batching.epoch_batches([5, 90, 30], buckets, 8, seed=0, epoch=0)
    assert batching.used_buckets([5, 90, 30], [batch], buckets) == [100]


def test_collate():
    names = ("input_ids", "token_type_ids", "token_labels", "labels")
    features = [
        dict(zip(names, values, strict=True))
        for values in (([2, 9, 3], [0, 0, 0], [-1, 4, -1], 1), ([2, 3], [0, 1], [-1, -1], 0))
    ]
    batch = batching.collate(features, buckets=(2, 5, 8), batch_size=3)
    expected = {
        "input_ids": [[2, 9, 3, 0, 0], [2, 3, 0, 0, 0], [2, 9, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]],
        "token_labels": [[-1, 4, -1, -1, -1], [-1, -1, -1, -1, -1], [-1, 4, -1, -1, -1]],
        "labels": [1, 0, 1],
        "weights": [1.0, 1.0, 0.0],
    }
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
