"""Which rows a step gets: a function of the seed and the step alone."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Rows of one epoch that a batch gets.

    Attributes:
      groups: int64[G], numbers of the groups that have them.
      rows: int64[R], ascending; counted from the first row of the first of `groups`, as if those
        lay end to end.
    """

    epoch: int
    groups: np.ndarray
    rows: np.ndarray


class Order:
    """The endless stream of rows, epoch after epoch; each visits the groups in an order of its own.

    A group is what stays together in every epoch: a record or, with packing, several.

    Attributes:
      num_rows: of an epoch.
    """

    def __init__(self, rows_of_group: np.ndarray, seed: int, shuffled: bool):
        """
        Args:
          rows_of_group: int64[G], how many rows each group has.
          shuffled: whether the order is drawn; else it is that of the groups.
        """
        self.rows_of_group = rows_of_group
        self.num_rows = int(rows_of_group.sum())
        self._seed, self._shuffled = seed, shuffled

    @functools.lru_cache(maxsize=2)  # noqa: B019  (an order lives as long as the run)
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the groups in an epoch, and where each starts among the epoch's rows."""
        order = np.arange(len(self.rows_of_group))
        if self._shuffled:
            order = np.random.default_rng((self._seed, epoch)).permutation(order)
        return order, np.concatenate([[0], np.cumsum(self.rows_of_group[order])])

    def first_groups(self, count: int) -> np.ndarray:
        """The numbers of the groups that training meets first."""
        return self._epoch(0)[0][:count]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Rows [start, stop) of the stream, epoch by epoch."""
        while start < stop:
            epoch, first = divmod(start, self.num_rows)
            last = min(first + stop - start, self.num_rows)
            order, starts = self._epoch(epoch)
            low = np.searchsorted(starts, first, side="right") - 1
            high = np.searchsorted(starts, last, side="left")
            yield Piece(epoch, order[low:high], np.arange(first, last) - starts[low])
            start += last - first
