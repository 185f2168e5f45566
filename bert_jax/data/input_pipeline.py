"""Shards → Grain → batches on the mesh.

The data position is the step: row n of the endless stream lies in epoch n // N, and each epoch
visits the records in an order drawn from (seed, epoch). Step s takes rows [s·B, (s+1)·B), and each
host reads those that its devices need, from whichever shards hold them: going on from a step is
exact, costs nothing, and does not depend on the number of hosts or shards. A further phase on the
same data begins behind the rows of the former.

A row is an example or, with packing, several (`packing.py`). Which ones is settled when the
data is opened, for groups of records that stay together in every epoch.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from array_record.python import array_record_data_source
from etils import epath
from jax.sharding import Mesh

from bert_jax.cli import UserError
from bert_jax.data import masking, packing, records, tokenizer
from bert_jax.data.records import EXAMPLES_PER_RECORD
from bert_jax.parallel import sharding

NUM_THREADS = 2
# Batches made ahead, to smooth reading. They take host memory: 256 rows of 128 tokens 4 MB, a large
# batch on one host (65,536 rows) 0.9 GB.
PREFETCH = 8
CACHED_GROUPS = 4  # read and masked once for the batches that share them


class PretrainingData:
    """One split of a DATA_DIR, and the batches made of it.

    Attributes:
      data_dir: where it is.
      manifest: the contents of dataset.json.
      num_examples: of the split.
      num_rows: of an epoch; num_examples, or fewer with packing.
      packing: the most examples in a row; 0 for one example a row, without what packing adds.
    """

    def __init__(self, data_dir: str, split: str, batch_size: int, seed: int, packing: int = 0):
        self.manifest = records.Manifest.read(data_dir)
        if self.manifest.arguments["format"] != "array_record":
            raise UserError(
                f"{data_dir} is in the format {self.manifest.arguments['format']}, which is for "
                "other programs: build it anew without --format to train on it here"
            )
        self.split = split
        shards = self.manifest.splits.get(split, [])
        self.num_examples = self.manifest.num_examples(split)
        if not self.num_examples:
            raise UserError(
                f"{data_dir} has no {split} examples (splits: {', '.join(self.manifest.splits)}); "
                "rebuild it with --validation_fraction above 0, give --config.eval_data_dir, or "
                "turn evaluation off with --config.eval_every=0"
            )
        self.data_dir = epath.Path(data_dir)
        self.packing = packing
        self._batch_size = batch_size
        self._seed = seed
        missing = [s.name for s in shards if not (self.data_dir / s.name).exists()]
        if missing:
            raise UserError(f"{data_dir} is incomplete: {', '.join(missing)} missing; rebuild it")
        self._source = array_record_data_source.ArrayRecordDataSource(
            [str(self.data_dir / s.name) for s in shards if s.num_examples]
        )
        # Number of examples of each record: all full, but for the last of each shard.
        self._sizes = np.concatenate(
            [
                np.minimum(EXAMPLES_PER_RECORD, n - np.arange(0, n, EXAMPLES_PER_RECORD))
                for n in (s.num_examples for s in shards)
            ]
        ).astype(np.int64)
        self._first_examples = np.concatenate([[0], np.cumsum(self._sizes)])
        self._rows_of_group = self._sizes  # a record is a group, an example a row
        if packing:
            self._row_of_example, self._rows_of_group = self._packed()
        self.num_rows = int(self._rows_of_group.sum())

    def _packed(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every example its row within its group, uint16; of every group its rows."""
        path = self.data_dir / records.NUM_TOKENS.format(split=self.split)
        if not path.exists():
            raise UserError(
                f"{self.data_dir} has no {path.name}, which packing needs: build the data set anew "
                "(data_prep.build writes it since it knows of packing), or train with "
                "--config.packing=0"
            )
        with path.open("rb") as file:
            num_tokens_E = np.load(file)
        if len(num_tokens_E) != self.num_examples:
            raise UserError(
                f"{path} has {len(num_tokens_E)} lengths, the shards {self.num_examples} examples: "
                "it is another data set's; build the data set anew"
            )
        ends = [*range(0, len(self._sizes), packing.GROUP_RECORDS), len(self._sizes)]
        sizes_G = np.diff(self._first_examples[ends])
        most = packing.GROUP_RECORDS * EXAMPLES_PER_RECORD
        is_example_GE = np.arange(most) < sizes_G[:, None]
        num_tokens_GE = np.zeros(is_example_GE.shape, np.uint16)
        num_tokens_GE[is_example_GE] = num_tokens_E
        row_GE = np.concatenate(
            [
                packing.first_fit(part_GE, self.max_seq_length, self.packing)
                for part_GE in np.array_split(num_tokens_GE, -(-len(num_tokens_GE) // 1024))
            ]
        )
        return row_GE[is_example_GE].astype(np.uint16), row_GE.max(1).astype(np.int64) + 1

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.load(self.data_dir / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of the split's shards, in order, and how they are masked here."""
        described: list[Any] = [shard.sha256 for shard in self.manifest.splits[self.split]]
        if not self.manifest.is_static:
            config = masking.MaskingConfig.from_arguments(self.manifest.arguments)
            described.append(dataclasses.asdict(config))
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    @property
    def token_ranks_V(self) -> np.ndarray | None:
        """int32[V]: each token's rank by frequency in the data, the most frequent 0; None if lost.

        Tokens that never occur rank last. The counts are made by data_prep.build.
        """
        path = self.data_dir / records.TOKEN_COUNTS
        if not path.exists():
            return None
        with path.open("rb") as file:
            counts_V = np.load(file)
        ranks_V = np.empty(len(counts_V), np.int32)
        ranks_V[np.argsort(-counts_V, kind="stable")] = np.arange(len(counts_V))
        return ranks_V

    @property
    def max_seq_length(self) -> int:
        return self.manifest.arguments["max_seq_length"]

    @property
    def has_next_sentence_labels(self) -> bool:
        """Whether the examples are pairs with a label (NSP, or SOP's order)."""
        return self.manifest.arguments["objective"] in ("nsp", "sop")

    @property
    def max_predictions_per_row(self) -> int:
        """Positions of a row at which the vocabulary is scored."""
        return packing.max_predictions(self.manifest.arguments, self.packing)

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

    @functools.lru_cache(maxsize=2)  # noqa: B019  (a data set lives as long as the run)
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the groups in an epoch, and where each starts among the epoch's rows."""
        order = np.arange(len(self._rows_of_group))
        if self.split == "train":
            order = np.random.default_rng((self._seed, epoch)).permutation(order)
        return order, np.concatenate([[0], np.cumsum(self._rows_of_group[order])])

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, int, int]]:
        """Rows [start, stop) of the endless stream as (epoch, groups, first, last).

        They are rows [first, last) of those groups laid end to end.
        """
        while start < stop:
            epoch, first = divmod(start, self.num_rows)
            last = min(first + stop - start, self.num_rows)
            order, starts = self._epoch(epoch)
            low = np.searchsorted(starts, first, side="right") - 1
            high = np.searchsorted(starts, last, side="left")
            yield epoch, order[low:high], int(first - starts[low]), int(last - starts[low])
            start += last - first

    def _records(self, groups: np.ndarray) -> np.ndarray:
        """The numbers of the records of `groups`, one after another."""
        if not self.packing:
            return groups
        numbers = groups[:, None] * packing.GROUP_RECORDS + np.arange(packing.GROUP_RECORDS)
        return numbers[numbers < len(self._sizes)]

    def _rows(self, groups: np.ndarray) -> np.ndarray:
        """The row of every example of `groups`, counted from the first row of the first group."""
        if not self.packing:
            return np.arange(self._sizes[groups].sum())
        rows, first_row = [], 0
        for group in groups:
            first = group * packing.GROUP_RECORDS
            last = min(first + packing.GROUP_RECORDS, len(self._sizes))
            examples = slice(self._first_examples[first], self._first_examples[last])
            rows.append(self._row_of_example[examples].astype(np.int64) + first_row)
            first_row += self._rows_of_group[group]
        return np.concatenate(rows)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of the endless stream, as a batch of numpy arrays.

        Returns (B = stop - start): int32 input_ids, attention_mask, token_type_ids [B, L],
        masked_lm_positions, masked_lm_ids [B, M], float32 masked_lm_weights [B, M], int32
        next_sentence_labels [B] (-1: no label). With packing: see `packing.lay_out`.
        """
        parts = []
        for epoch, groups, first, last in self._pieces(start, stop):
            if not self.packing:
                examples = self.examples(epoch, groups)
                parts.append({k: v[first:last] for k, v in examples.items()})
                continue
            examples = _concatenated([self._group(epoch, int(group)) for group in groups])
            row_E = self._rows(groups)
            chosen_E = (row_E >= first) & (row_E < last)
            parts.append(
                packing.lay_out(
                    {k: v[chosen_E] for k, v in examples.items()},
                    row_E[chosen_E] - first,
                    last - first,
                    self.packing,
                    self.max_predictions_per_row,
                    self.tokenizer.pad_id,
                )
            )
        return _concatenated(parts)

    @functools.lru_cache(maxsize=CACHED_GROUPS)  # noqa: B019
    def _group(self, epoch: int, group: int) -> dict[str, np.ndarray]:
        return self.examples(epoch, self._records(np.array([group])))

    def first_examples(self, num_records: int) -> dict[str, np.ndarray]:
        """The first records that training meets, an example a row."""
        return self.examples(0, self._records(self._epoch(0)[0])[:num_records])

    def examples(self, epoch: int, record_numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Whole records, an example a row: what `read` returns without packing."""
        raw = self._source.__getitems__(record_numbers.tolist())
        examples = np.frombuffer(b"".join(raw), self.manifest.dtype)
        return self._to_batch(examples, epoch, record_numbers)

    def _to_batch(
        self, examples: np.ndarray, epoch: int, record_numbers: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Structs of whole records -> arrays, drawing the masks if the data set has none."""
        positions_L = np.arange(self.max_seq_length)
        num_tokens_B1 = examples["num_tokens"][:, None].astype(np.int32)
        second_start_B1 = examples["second_start"][:, None].astype(np.int32)
        if self.manifest.is_static:
            input_ids_BL = examples["input_ids"]
            positions_BM, ids_BM = examples["masked_lm_positions"], examples["masked_lm_ids"]
            num_masked_B = examples["num_masked"]
        else:
            input_ids_BL, positions_BM, ids_BM, num_masked_B = self._draw_masks(
                examples, epoch, record_numbers
            )
        labels_B = examples["next_sentence_label"].astype(np.int32)
        weights_BM = np.arange(positions_BM.shape[1]) < num_masked_B[:, None]
        second_BL = (positions_L >= second_start_B1) & (positions_L < num_tokens_B1)
        return {
            "input_ids": input_ids_BL.astype(np.int32),
            "attention_mask": (positions_L < num_tokens_B1).astype(np.int32),
            "token_type_ids": second_BL.astype(np.int32),
            "masked_lm_positions": positions_BM.astype(np.int32),
            "masked_lm_ids": ids_BM.astype(np.int32),
            "masked_lm_weights": weights_BM.astype(np.float32),
            "next_sentence_labels": np.where(
                labels_B == records.NO_NEXT_SENTENCE_LABEL, -1, labels_B
            ).astype(np.int32),
        }

    def _draw_masks(
        self, examples: np.ndarray, epoch: int, record_numbers: np.ndarray
    ) -> masking.MaskedBatch:
        """Dynamic masks: new in every epoch, a function of (seed, epoch, record) alone."""
        tok = self.tokenizer
        config = masking.MaskingConfig.from_arguments(self.manifest.arguments)
        parts = []
        ends = np.cumsum(self._sizes[record_numbers])
        for number, part in zip(record_numbers, np.split(examples, ends[:-1]), strict=True):
            parts.append(
                masking.mask_tokens(
                    np.random.default_rng((self._seed, epoch, number)),
                    part["input_ids"],
                    part["num_tokens"],
                    config,
                    mask_id=tok.mask_id,
                    is_special_V=tok.is_special_V,
                    is_continuation_V=tok.is_continuation_V,
                )
            )
        return masking.MaskedBatch(*map(np.concatenate, zip(*parts, strict=True)))

    def batches(
        self, mesh: Mesh, start_step: int, stop_step: int, first_row: int = 0
    ) -> contextlib.AbstractContextManager[Iterator[dict[str, jax.Array]]]:
        """Global batches of the steps after `start_step` up to `stop_step`, on the devices.

        Args:
          first_row: of the endless stream, that step 0 begins with.
        """
        rows = local_rows(mesh, self._batch_size)
        steps = grain.MapDataset.range(start_step, max(stop_step, start_step)).map(
            lambda step: self._read_rows(first_row + step * self._batch_size, rows)
        )
        options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCH)
        iterator = iter(steps.to_iter_dataset(options))
        return contextlib.closing(_on_devices(iterator, mesh, self._batch_size))

    def _read_rows(self, start: int, rows: Sequence[slice]) -> dict[str, np.ndarray]:
        """The given rows of the batch that starts with row `start`."""
        return _concatenated([self.read(start + r.start, start + r.stop) for r in rows])

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
        local = local_rows(mesh, part_size)

        def rows_of(index: int) -> dict[str, np.ndarray]:
            start = index * part_size
            parts = []
            for rows in local:
                stop = min(start + rows.stop, self.num_examples)
                kept = max(stop - start - rows.start, 0)
                part = self.read(stop - kept, stop) if kept else self.read(0, 1)
                part = {k: _padded(v[:kept], rows.stop - rows.start) for k, v in part.items()}
                part["next_sentence_labels"][kept:] = -1
                parts.append(part)
            return _concatenated(parts)

        options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCH)
        steps = grain.MapDataset.range(count).map(rows_of).to_iter_dataset(options)
        return _on_devices(iter(steps), mesh, part_size)

    def origin(self, start: int, stop: int) -> dict[str, Any]:
        """Where rows [start, stop) of the endless stream lie, for people to look at them.

        Returns: data_dir; epoch; rows, the range asked for; records, the shard and number of each
        record (of up to 64 examples) with any of their examples; and out_of_vocabulary, the
        examples of them with a token id that the vocabulary does not have, as they come from a
        damaged shard: record, number of the example in it, and the id.
        """
        names = [
            f"{shard.name}#{number}"
            for shard in self.manifest.splits[self.split]
            for number in range(-(-shard.num_examples // EXAMPLES_PER_RECORD))
        ]
        found, bad = [], []
        for epoch, groups, first, last in self._pieces(start, stop):
            numbers = self._records(groups)
            row_E = self._rows(groups)
            is_chosen_E = (row_E >= first) & (row_E < last)
            ends = np.cumsum(self._sizes[numbers])
            for record, is_chosen in zip(numbers, np.split(is_chosen_E, ends[:-1]), strict=True):
                if not is_chosen.any():
                    continue
                found.append(names[record])
                batch = self.examples(epoch, np.array([record]))
                largest = np.maximum(batch["input_ids"].max(1), batch["masked_lm_ids"].max(1))
                bad += [
                    {"record": names[record], "example": int(i), "token_id": int(largest[i])}
                    for i in np.flatnonzero(is_chosen & (largest >= self.manifest.vocab_size))
                ]
        return {
            "data_dir": str(self.data_dir),
            "epoch": start // self.num_rows,
            "rows": [start, stop],
            "records": found,
            "out_of_vocabulary": bad,
        }


def local_rows(mesh: Mesh, batch_size: int) -> list[slice]:
    """The rows of a batch that this process's devices need, without overlap, in order.

    Usually one range. Processes that share rows (a tensor axis across hosts) each read them.
    """
    indices = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    ranges = {index[0].indices(batch_size)[:2] for index in indices.values()}
    return [slice(start, stop) for start, stop in sorted(ranges)]


def _concatenated(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def batch_shapes(
    batch_size: int, max_seq_length: int, max_predictions: int, packing: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch as `PretrainingData.read` makes it."""
    bl, bm = (batch_size, max_seq_length), (batch_size, max_predictions)
    bk = (batch_size, packing) if packing else (batch_size,)
    shapes = {
        "input_ids": jax.ShapeDtypeStruct(bl, np.int32),
        "attention_mask": jax.ShapeDtypeStruct(bl, np.int32),
        "token_type_ids": jax.ShapeDtypeStruct(bl, np.int32),
        "masked_lm_positions": jax.ShapeDtypeStruct(bm, np.int32),
        "masked_lm_ids": jax.ShapeDtypeStruct(bm, np.int32),
        "masked_lm_weights": jax.ShapeDtypeStruct(bm, np.float32),
        "next_sentence_labels": jax.ShapeDtypeStruct(bk, np.int32),
    }
    if packing:
        shapes["position_ids"] = jax.ShapeDtypeStruct(bl, np.int32)
        shapes["first_token_positions"] = jax.ShapeDtypeStruct(bk, np.int32)
    return shapes


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1))


def to_devices(rows: dict[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows (`local_rows`, one after another) -> the global batch on the mesh."""
    layout = sharding.batch_sharding(mesh)
    offsets, offset = {}, 0  # where each range of rows starts among this process's
    for wanted in local_rows(mesh, batch_size):
        offsets[wanted.start] = offset
        offset += wanted.stop - wanted.start

    def place(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return x[offsets[start] : offsets[start] + stop - start]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), layout, part)

    return {name: place(x) for name, x in rows.items()}


def _on_devices(
    iterator: Any, mesh: Mesh, batch_size: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Copies one batch ahead, so that a step never waits for the transfer."""
    try:
        ahead = None
        for rows in iterator:
            batch = to_devices(rows, mesh, batch_size)
            if ahead is not None:
                yield ahead
            ahead = batch
        if ahead is not None:
            yield ahead
    finally:
        iterator.close()


def open_data(
    data_dir: str, split: str, config: ml_collections.ConfigDict, field: str = "data_dir"
) -> PretrainingData:
    """Opens a split and checks that it fits the model.

    Args:
      field: of the config, that `data_dir` is given in; for messages.

    Raises:
      UserError: no data directory given, its vocabulary or length does not fit the model's, or its
        examples cannot be packed as the config asks.
    """
    if config.packing < 0 or config.packing == 1:
        raise UserError(
            f"config.packing={config.packing}: expected 0 for one example a row, or the most "
            "examples in a row, such as 8"
        )
    if not data_dir:
        raise UserError("no data set given: add --config.data_dir=DATA_DIR")
    # Held-out examples are read one a row: what they say does not depend on how one trains.
    packed = config.packing if split == "train" else 0
    data = PretrainingData(data_dir, split, config.batch_size, config.seed, packed)
    if data.manifest.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{data_dir} was built with a vocabulary of {data.manifest.vocab_size} tokens, but "
            f"config.model.vocab_size is {config.model.vocab_size}: build the data with the "
            f"model's tokenizer, or train with --config.model.vocab_size={data.manifest.vocab_size}"
        )
    if data.max_seq_length > config.model.max_position_embeddings:
        raise UserError(
            f"{data_dir} has sequences of {data.max_seq_length} tokens, but the model has "
            f"config.model.max_position_embeddings={config.model.max_position_embeddings}: build "
            "the data with a smaller --max_seq_length, or raise the model's positions"
        )
    if config.get("max_seq_length") and data.max_seq_length != config.max_seq_length:
        raise UserError(
            f"{data_dir} has sequences of {data.max_seq_length} tokens, but this phase of the "
            f"config wants {config.max_seq_length}: give the phase's own data set, "
            f"--config.phases[N].{field}=DATA_DIR (N counts from 0)"
        )
    _check_ids(data)
    return data


def _check_ids(data: PretrainingData) -> None:
    """Raises UserError if an example among the first thousand has impossible contents.

    XLA clamps or poisons what is out of range without a word, so it must be seen here.
    """
    sample = data.first_examples(16)
    largest = max(sample["input_ids"].max(), sample["masked_lm_ids"].max())
    if largest >= data.manifest.vocab_size:
        raise UserError(
            f"{data.data_dir} holds token id {largest}, but its vocabulary has "
            f"{data.manifest.vocab_size} tokens: python -m data_prep.check tells which shards are "
            "damaged; build it again"
        )
    lengths_B1 = sample["attention_mask"].sum(1, keepdims=True)
    if (sample["masked_lm_positions"] >= lengths_B1).any():
        raise UserError(
            f"{data.data_dir} predicts tokens behind an example's end: python -m data_prep.check "
            "tells which shards are damaged; build it again"
        )


def open_eval_data(config: ml_collections.ConfigDict) -> dict[str, PretrainingData]:
    """The validation splits to evaluate on: prefix of their metrics -> data.

    "eval_" is that of `eval_data_dir` or, without one, `data_dir`; "eval_NAME_" those of
    `extra_eval_data_dirs`, NAME being the directory's.

    Raises:
      UserError: a directory has no validation split or does not fit the model, or two have one
        name.
    """
    field = "eval_data_dir" if config.eval_data_dir else "data_dir"
    sources = {"eval_": (config[field], field)}
    for directory in filter(None, config.extra_eval_data_dirs.split(",")):
        prefix = f"eval_{epath.Path(directory).name}_"
        if prefix in sources:
            raise UserError(
                f"config.extra_eval_data_dirs={config.extra_eval_data_dirs}: the metrics of two "
                f"directories would be called {prefix}…; rename one, or link to it by another name"
            )
        sources[prefix] = directory, "extra_eval_data_dirs"
    return {
        prefix: open_data(directory, "validation", config, field)
        for prefix, (directory, field) in sources.items()
    }


def check_has_pairs(data: PretrainingData) -> None:
    """Raises UserError if held-out data, by which the best parameters are chosen, has no pairs."""
    if not data.has_next_sentence_labels:
        raise UserError(
            f"{data.data_dir} has no sentence pairs to evaluate the next-sentence loss with, which "
            "the training data has: give --config.eval_data_dir=DATA_DIR of pairs; text without "
            "them may go to --config.extra_eval_data_dirs"
        )


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError unless the batch divides over devices and accumulation."""
    if config.accumulate_steps < 1:
        raise UserError(f"config.accumulate_steps={config.accumulate_steps}, expected at least 1")
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = rows * config.accumulate_steps
    if config.batch_size < 1 or config.batch_size % parts:
        raise UserError(
            f"config.batch_size={config.batch_size} must be a positive multiple of {parts} "
            f"(data × fsdp = {rows} device groups, × accumulate_steps={config.accumulate_steps})"
        )
