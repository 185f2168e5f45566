"""The rows of a data set as batches on the mesh.

The data position is the step: step s takes rows [s·B, (s+1)·B) of an endless stream (`order.py`),
and each host reads those that its devices need, from whichever shards hold them: resuming from a
step is exact, costs nothing, and does not depend on the number of hosts or shards. A further phase
on the same data begins behind the rows of the former.

A row is an example or, with packing, several (`packing.py`). Which ones is settled when the data is
opened, for groups of records that stay together in every epoch.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax import files
from bert_jax.data import packing as packing_lib
from bert_jax.data.order import SAMPLING, WINDOW_RECORDS, Order, Piece
from bert_jax.data.placing import (
    batch_shapes,
    concatenated,
    local_rows,
    on_devices,
)
from bert_jax.data.split import Split

# Threads that read and prepare batches, and batches made ahead to smooth that: of a disk, where two
# keep two cores busy, and of a bucket, where a read takes tens of milliseconds.
THREADS_LOCAL, PREFETCH_LOCAL = 2, 8
THREADS_REMOTE, PREFETCH_REMOTE = 16, 32
# Batches ahead take memory of the host: 256 rows of 128 tokens 0.5 MB each, a large batch on one
# host (65,536 rows) 120 MB.
MAX_PREFETCH_BYTES = 2**30


class PretrainingData(Split):
    """One split of a DATA_DIR, and the batches made of it.

    Attributes:
      num_rows: of an epoch; num_examples, or fewer with packing.
      packing: the most examples in a row; 0 for one example a row, without what packing adds.
    """

    def __init__(
        self,
        data_dir: str,
        split: str,
        batch_size: int,
        seed: int,
        packing: int = 0,
        threads: int = 0,
        prefetch: int = 0,
        sampling: int = SAMPLING,
        masked_lm_prob: float = 0.0,
    ):
        """
        Args:
          batch_size: rows of a batch, over all devices.
          seed: of the order and the masks.
          threads, prefetch: that read batches, and batches made ahead; 0 for what suits the place
            where the data lies.
          sampling: the version of order and masks (`order.py`).
          masked_lm_prob: as of `Split`.

        Raises:
          UserError: the data set is none, or incomplete, has no such split or cannot be packed.
        """
        super().__init__(data_dir, split, seed, sampling, masked_lm_prob)
        remote = files.is_remote(data_dir)
        self._threads = threads or (THREADS_REMOTE if remote else THREADS_LOCAL)
        self._prefetch = prefetch or (PREFETCH_REMOTE if remote else PREFETCH_LOCAL)
        self.packing = packing
        self._batch_size = batch_size
        self._first_examples = np.concatenate([[0], np.cumsum(self.sizes)])
        rows_of_group = self.sizes  # a record is a group, an example a row
        if packing:
            self._row_of_example, rows_of_group = packing_lib.rows_of_examples(
                self.data_dir, split, self.sizes, self.max_seq_length, packing
            )
        window = WINDOW_RECORDS // (packing_lib.GROUP_RECORDS if packing else 1)
        self._order = Order(rows_of_group, seed, split == "train", window, sampling)
        self.num_rows = self._order.num_rows

    @property
    def max_predictions_per_row(self) -> int:
        """Positions of a row at which the vocabulary is scored."""
        return packing_lib.max_predictions(self.manifest.arguments, self.packing)

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of so many rows."""
        return batch_shapes(rows, self.max_seq_length, self.max_predictions_per_row, self.packing)

    @property
    def examples_per_row(self) -> float:
        """The mean over an epoch."""
        return self.num_examples / self.num_rows

    @property
    def padding(self) -> float:
        """The share of an epoch's positions that hold no token."""
        tokens = self.manifest.statistics["splits"][self.split]["example_tokens"]
        return 1 - tokens / (self.num_rows * self.max_seq_length)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of the endless stream, as a batch of numpy arrays.

        Those of a window in the order of its records (`Order`), so that [0, 8) is not the first
        half of [0, 16).

        Returns (B = stop - start): what `Split.to_batch` or, with packing, `packing.lay_out` does.
        """
        return self._batch(list(self._order.pieces(start, stop)))

    def _read_rows(self, start: int, rows: Sequence[slice]) -> dict[str, np.ndarray]:
        """The given rows of the batch that starts with row `start`; all are read in one go.

        Args:
          rows: ascending, without overlap.
        """
        pieces, offset = [], 0
        for piece in self._order.pieces(start, start + self._batch_size):
            stop = offset + len(piece.rows)
            inside = [piece.rows[max(r.start - offset, 0) : max(r.stop - offset, 0)] for r in rows]
            pieces.append(piece._replace(rows=np.concatenate(inside)))
            offset = stop
        return self._batch([piece for piece in pieces if len(piece.rows)])

    def _batch(self, pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
        parts = []
        for piece in pieces:
            numbers, example_E, row_E = self._examples_of(piece)
            batch = self.to_batch(self.examples(piece.epoch, numbers)[example_E])
            if self.packing:
                batch = packing_lib.lay_out(
                    batch,
                    row_E,
                    len(piece.rows),
                    self.packing,
                    self.max_predictions_per_row,
                    self.tokenizer.pad_id,
                )
            parts.append(batch)
        return concatenated(parts)

    def _examples_of(self, piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the examples of a piece's rows are.

        Returns: the numbers of their records; of each example (E) its place among all examples of
        these records, and its row, counted from the piece's first.
        """
        ends_G = np.cumsum(self._order.rows_of_group[piece.groups])
        group_R = np.searchsorted(ends_G, piece.rows, side="right")
        used_G = np.unique(group_R)  # of a host with few rows of the batch, few
        groups = piece.groups[used_G]
        first_row_G = ends_G[used_G] - self._order.rows_of_group[groups]
        if not self.packing:
            first_example_G = np.cumsum(self.sizes[groups]) - self.sizes[groups]
            g_R = np.searchsorted(used_G, group_R)
            place_E = first_example_G[g_R] + piece.rows - first_row_G[g_R]
            return groups, place_E, np.arange(len(piece.rows))
        numbers = groups[:, None] * packing_lib.GROUP_RECORDS + np.arange(packing_lib.GROUP_RECORDS)
        numbers = numbers[numbers < len(self.sizes)]
        rows = []
        for group, first_row in zip(groups, first_row_G, strict=True):
            first = group * packing_lib.GROUP_RECORDS
            last = min(first + packing_lib.GROUP_RECORDS, len(self.sizes))
            examples = slice(self._first_examples[first], self._first_examples[last])
            rows.append(self._row_of_example[examples].astype(np.int64) + first_row)
        row_of_place = np.full(ends_G[-1], -1)
        row_of_place[piece.rows] = np.arange(len(piece.rows))
        row_E = row_of_place[np.concatenate(rows)]
        (place_E,) = np.nonzero(row_E >= 0)
        return numbers, place_E, row_E[place_E]

    def first_examples(self, num_records: int) -> dict[str, np.ndarray]:
        """Examples of the first records that training meets, one per row."""
        groups = self._order.first_groups(num_records)
        numbers = groups * (packing_lib.GROUP_RECORDS if self.packing else 1)
        return self.to_batch(self.examples(0, numbers))

    @contextlib.contextmanager
    def batches(
        self, mesh: Mesh, start_step: int, stop_step: int, first_row: int = 0
    ) -> Iterator[Iterator[dict[str, jax.Array]]]:
        """Global batches of the steps after `start_step` up to `stop_step`, on the devices.

        At the end the shards are closed.

        Args:
          first_row: of the endless stream, that step 0 begins with.
        """
        rows = local_rows(mesh, self._batch_size)

        def rows_of(step: int) -> dict[str, np.ndarray]:
            return self._read_rows(first_row + step * self._batch_size, rows)

        stop_step = max(stop_step, start_step)
        batches = self._on_devices(start_step, stop_step, rows_of, mesh, self._batch_size)
        try:
            with contextlib.closing(batches):
                yield batches
        finally:
            self.shards.close()

    def eval_batches(
        self, mesh: Mesh, limit: int, num_parts: int = 1
    ) -> Generator[dict[str, jax.Array], None, None]:
        """The split in order, once, with fixed masks; the last batch is filled with zero weights.

        Args:
          limit: at most so many batches; 0 takes all.
          num_parts: each batch comes in so many parts, one after the other.
        """
        part_size = self._batch_size // num_parts
        count = -(-self.num_examples // part_size)
        if limit:
            count = min(count, limit * num_parts)
        rows = local_rows(mesh, part_size)

        def rows_of(index: int) -> dict[str, np.ndarray]:
            start = index * part_size
            real = min(part_size, self.num_examples - start)
            is_real_B = np.concatenate([np.arange(r.start, r.stop) < real for r in rows])
            kept = [slice(min(r.start, real), min(r.stop, real)) for r in rows]
            # A process without real rows in the last batch needs the shapes all the same.
            part = self._read_rows(start, kept if is_real_B.any() else [slice(0, 1)])
            batch = {k: np.zeros((len(is_real_B), *v.shape[1:]), v.dtype) for k, v in part.items()}
            batch["next_sentence_labels"] -= 1
            for name, values in part.items():
                batch[name][is_real_B] = values[: is_real_B.sum()]
            return batch

        return self._on_devices(0, count, rows_of, mesh, part_size)

    def _on_devices(
        self,
        start: int,
        stop: int,
        rows_of: Callable[[int], dict[str, np.ndarray]],
        mesh: Mesh,
        batch_size: int,
    ) -> Generator[dict[str, jax.Array], None, None]:
        """Batches number [start, stop), made by `rows_of` in threads, ahead of their use."""
        rows = sum(r.stop - r.start for r in local_rows(mesh, batch_size))
        shapes = self.batch_shapes(rows).values()
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
        ahead = max(min(self._prefetch, MAX_PREFETCH_BYTES // size), 1)
        options = grain.ReadOptions(
            num_threads=min(self._threads, ahead), prefetch_buffer_size=ahead
        )
        numbers = grain.MapDataset.range(start, stop)
        return on_devices(iter(numbers.map(rows_of).to_iter_dataset(options)), mesh, batch_size)

    def origin(self, start: int, stop: int) -> dict[str, Any]:
        """Where rows [start, stop) of the endless stream lie, for people to look at them.

        Returns: data_dir; epoch; rows, the range asked for; records, the shard and number of each
        record (of up to 64 examples) with any of their examples; and out_of_vocabulary, the
        examples of them with a token id that the vocabulary does not have, as they come from a
        corrupted shard: record, number of the example in it, and the id.
        """
        found, bad = [], []
        for piece in self._order.pieces(start, stop):
            numbers, place_E, _ = self._examples_of(piece)
            batch = self.to_batch(self.examples(piece.epoch, numbers))
            largest_E = np.maximum(batch["input_ids"].max(1), batch["masked_lm_ids"].max(1))
            is_chosen_E = np.zeros(len(largest_E), bool)
            is_chosen_E[place_E] = True
            ends = np.cumsum(self.sizes[numbers])[:-1]
            for number, is_chosen, largest in zip(
                numbers, np.split(is_chosen_E, ends), np.split(largest_E, ends), strict=True
            ):
                if not is_chosen.any():
                    continue
                name = self.shards.name(number)
                found.append(name)
                bad += [
                    {"record": name, "example": int(i), "token_id": int(largest[i])}
                    for i in np.flatnonzero(is_chosen & (largest >= self.manifest.vocab_size))
                ]
        return {
            "data_dir": str(self.data_dir),
            "epoch": start // self.num_rows,
            "rows": [start, stop],
            "records": found,
            "out_of_vocabulary": bad,
        }
