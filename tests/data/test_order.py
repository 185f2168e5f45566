"""The order of rows alone, without files: who meets whom, and from which streams it is drawn."""

import numpy as np
import pytest

from bert_jax.data import order
from bert_jax.data.order import Order

GROUPS, ROWS = 500, 64


def batch_of_each_row(stream: Order, epoch: int, size: int = 32) -> np.ndarray:
    """int64[N]: the number of the batch of an epoch that each row is in."""
    result = np.full(GROUPS * ROWS, -1)
    for number in range(stream.num_rows // size):
        start = epoch * stream.num_rows + number * size
        for piece in stream.pieces(start, start + size):
            rows = piece.groups[piece.rows // ROWS] * ROWS + piece.rows % ROWS
            assert (result[rows] == -1).all()
            result[rows] = number
    assert (result >= 0).all()  # every row once
    return result


def share_that_meets_again(sampling: int) -> float:
    """Of a batch's rows, those that share a batch of the next epoch with another one of them."""
    sizes = np.full(GROUPS, ROWS)
    stream = Order(sizes, 0, shuffled=True, window=order.WINDOW_RECORDS, sampling=sampling)
    first, second = batch_of_each_row(stream, 0), batch_of_each_row(stream, 1)
    _, counts = np.unique(np.stack([first, second]), axis=1, return_counts=True)
    return counts[counts > 1].sum() / len(first)


def test_a_batch_s_rows_part_in_the_next_epoch():
    assert share_that_meets_again(1) > 0.5  # records move as blocks
    assert share_that_meets_again(2) < 0.05  # 0.03 if they were independent


@pytest.mark.parametrize("sampling", [1, 2])
def test_any_part_of_the_stream_follows_from_its_position(sampling):
    sizes = np.random.default_rng(0).integers(1, 9, 50)
    stream = Order(sizes, 3, shuffled=True, window=4, sampling=sampling)
    starts = np.cumsum(sizes) - sizes

    def rows(start: int, stop: int) -> set[tuple[int, int]]:
        found = []
        for piece in stream.pieces(start, stop):
            assert (np.diff(piece.rows) > 0).all()
            of_groups = np.concatenate([starts[g] + np.arange(sizes[g]) for g in piece.groups])
            found += [(piece.epoch, int(row)) for row in of_groups[piece.rows]]
        assert len(found) == len(set(found)) == stop - start
        return set(found)

    for start in range(0, 3 * stream.num_rows, 37):
        whole = rows(start, start + 29)
        assert whole == rows(start, start + 11) | rows(start + 11, start + 29)
    assert rows(0, stream.num_rows) == {(0, row) for row in range(stream.num_rows)}


def test_held_out_rows_stay_in_order():
    stream = Order(np.full(20, 64), 0, shuffled=False, window=8)
    (piece,) = stream.pieces(100, 200)
    np.testing.assert_array_equal(
        piece.groups[piece.rows // 64] * 64 + piece.rows % 64, range(100, 200)
    )


def test_order_windows_and_masks_come_from_streams_of_their_own():
    drawn = [
        tuple(rng.integers(2**60, size=3).tolist())
        for epoch in range(3)
        for rng in (
            np.random.default_rng((5, order._ORDER, epoch)),
            *(np.random.default_rng((5, order._WINDOW, epoch, window)) for window in range(3)),
            *(order.mask_rng(5, epoch, record) for record in range(3)),
        )
    ]
    assert len(set(drawn)) == len(drawn)
    # In version 1 an epoch's order and the masks of its record 0 came from one stream.
    groups = np.full(40, 64)
    old = Order(groups, 5, shuffled=True, sampling=1).first_groups(40)
    np.testing.assert_array_equal(old, order.mask_rng(5, 0, 0, sampling=1).permutation(40))
    new = Order(groups, 5, shuffled=True).first_groups(40)
    assert (new != order.mask_rng(5, 0, 0).permutation(40)).any()
