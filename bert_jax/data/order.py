"""Which rows a step gets: a function of the seed and the step alone.

The order has versions, since another order is another run: config.sampling. In 1 records move as
blocks, so that at a batch of 32 three quarters of a batch's examples meet again in one batch of the
next epoch. In 2 rows are permuted within windows of several records too.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SAMPLING = 2  # the version of new runs
# Records whose rows are permuted among themselves. Of a batch of 32 4 % of the examples then meet
# again in one batch of the next epoch (3 % if they were independent; windows of 8: 23 %). More of
# them would be read for the first row of a small batch.
WINDOW_RECORDS = 32
# What numbers are drawn for. numpy's default_rng((s, 0)) is default_rng(s): without a tag the order
# of an epoch and the masks of its record 0 came from one stream.
_ORDER, _WINDOW, _MASKS = 1, 2, 3


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


def mask_rng(seed: int, epoch: int, record: int, sampling: int = SAMPLING) -> np.random.Generator:
    """Of the masks of a record's examples in an epoch."""
    tag = () if sampling == 1 else (_MASKS,)
    return np.random.default_rng((seed, *tag, epoch, record))


class Order:
    """The endless stream of rows, epoch after epoch; each visits the groups in an order of its own.

    A group is what stays together in every epoch: a record or, with packing, several. Each epoch
    permutes the rows within windows of groups in its own way. Rows of a window that are of one
    batch come in the order of the records, so that a host with few rows of a batch reads few
    records.

    Attributes:
      num_rows: of an epoch.
    """

    def __init__(
        self,
        rows_of_group: np.ndarray,
        seed: int,
        shuffled: bool,
        window: int = 1,
        sampling: int = SAMPLING,
    ):
        """
        Args:
          rows_of_group: int64[G], how many rows each group has.
          shuffled: whether the order is drawn; else it is that of the groups.
          window: groups whose rows are permuted among themselves.
          sampling: the version of the order.
        """
        self.rows_of_group = rows_of_group
        self.num_rows = int(rows_of_group.sum())
        self._seed, self._shuffled, self._sampling = seed, shuffled, sampling
        self._window = window

    @functools.lru_cache(maxsize=2)  # noqa: B019  (an order lives as long as the run)
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the groups in an epoch, and where each window starts among the epoch's rows."""
        order = np.arange(len(self.rows_of_group))
        if self._shuffled:
            tag = () if self._sampling == 1 else (_ORDER,)
            order = np.random.default_rng((self._seed, *tag, epoch)).permutation(order)
        starts = np.concatenate([[0], np.cumsum(self.rows_of_group[order])])
        return order, np.append(starts[: -1 : self._window], starts[-1])

    def first_groups(self, count: int) -> np.ndarray:
        """The numbers of the groups that training meets first."""
        return self._epoch(0)[0][:count]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Rows [start, stop) of the stream, epoch by epoch."""
        while start < stop:
            epoch, first = divmod(start, self.num_rows)
            last = min(first + stop - start, self.num_rows)
            order, starts = self._epoch(epoch)
            low = int(np.searchsorted(starts, first, side="right")) - 1
            high = int(np.searchsorted(starts, last, side="left"))
            rows = [
                self._rows(epoch, window, starts, first, last) - starts[low]
                for window in range(low, high)
            ]
            groups = order[low * self._window : high * self._window]
            yield Piece(epoch, groups, np.concatenate(rows))
            start += last - first

    def _rows(
        self, epoch: int, window: int, starts: np.ndarray, first: int, last: int
    ) -> np.ndarray:
        """Rows of a window that lie at [first, last) of the epoch, ascending."""
        begin, end = starts[window], starts[window + 1]
        low, high = max(first - begin, 0), min(last, end) - begin
        if not self._shuffled or self._sampling == 1 or high - low == end - begin:
            return begin + np.arange(low, high)
        rng = np.random.default_rng((self._seed, _WINDOW, epoch, window))
        return begin + np.sort(rng.permutation(end - begin)[low:high])
