"""Shards → Grain → batches on the mesh.

The data position is the step: example n of the endless stream lies in epoch n // N, and each epoch
visits the records in an order drawn from (seed, epoch). Step s takes examples [s·B, (s+1)·B) and
each host reads its rows of them, so going on from a step is exact, costs nothing, and does not
depend on the number of hosts.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from array_record.python import array_record_data_source
from etils import epath
from jax.sharding import Mesh

from bert_jax import masking, records, sharding, tokenizer
from bert_jax.cli import UserError
from bert_jax.records import EXAMPLES_PER_RECORD

NUM_THREADS = 2
PREFETCH = 8  # batches made ahead: smooths reading, costs a few MB of host memory


class PretrainingData:
    """One split of a DATA_DIR, and the batches made of it.

    Attributes:
      manifest: the contents of dataset.json.
      num_examples: of the split.
    """

    def __init__(self, data_dir: str, split: str, batch_size: int, seed: int):
        self.manifest = records.Manifest.read(data_dir)
        self.split = split
        shards = self.manifest.splits.get(split, [])
        self.num_examples = self.manifest.num_examples(split)
        if not self.num_examples:
            raise UserError(
                f"{data_dir} has no {split} examples (splits: {', '.join(self.manifest.splits)}); "
                "rebuild it with --validation_fraction above 0, give --config.eval_data_dir, or "
                "turn evaluation off with --config.eval_every=0"
            )
        self._data_dir = epath.Path(data_dir)
        self._batch_size = batch_size
        self._seed = seed
        missing = [s.name for s in shards if not (self._data_dir / s.name).exists()]
        if missing:
            raise UserError(f"{data_dir} is incomplete: {', '.join(missing)} missing; rebuild it")
        self._source = array_record_data_source.ArrayRecordDataSource(
            [str(self._data_dir / s.name) for s in shards if s.num_examples]
        )
        # Number of examples of each record: all full, but for the last of each shard.
        self._sizes = np.concatenate(
            [
                np.minimum(EXAMPLES_PER_RECORD, n - np.arange(0, n, EXAMPLES_PER_RECORD))
                for n in (s.num_examples for s in shards)
            ]
        ).astype(np.int64)

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.load(self._data_dir / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of the split's shards, in order."""
        hashes = [shard.sha256 for shard in self.manifest.splits[self.split]]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    @property
    def max_seq_length(self) -> int:
        return self.manifest.arguments["max_seq_length"]

    @property
    def has_next_sentence_labels(self) -> bool:
        """Whether the examples are pairs with a label (NSP, or SOP's order)."""
        return self.manifest.arguments["objective"] in ("nsp", "sop")

    @functools.lru_cache(maxsize=2)  # noqa: B019  (a data set lives as long as the run)
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the records in an epoch, and where each starts among the epoch's examples."""
        order = np.arange(len(self._sizes))
        if self.split == "train":
            order = np.random.default_rng((self._seed, epoch)).permutation(order)
        return order, np.concatenate([[0], np.cumsum(self._sizes[order])])

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Examples [start, stop) of the endless stream, as a batch of numpy arrays.

        Returns (B = stop - start): int32 input_ids, attention_mask, token_type_ids [B, L],
        masked_lm_positions, masked_lm_ids [B, M], float32 masked_lm_weights [B, M], int32
        next_sentence_labels [B] (-1: no label).
        """
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.num_examples)
            last = min(first + stop - start, self.num_examples)
            order, starts = self._epoch(epoch)
            low = np.searchsorted(starts, first, side="right") - 1
            high = np.searchsorted(starts, last, side="left")
            chosen = order[low:high]
            raw = self._source.__getitems__(chosen.tolist())
            examples = np.frombuffer(b"".join(raw), self.manifest.dtype)
            offset = starts[low]
            batch = self._to_batch(examples, epoch, chosen)
            parts.append({k: v[first - offset : last - offset] for k, v in batch.items()})
            start += last - first
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

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
        self, mesh: Mesh, start_step: int, stop_step: int
    ) -> contextlib.AbstractContextManager[Iterator[dict[str, jax.Array]]]:
        """Global batches of the steps after `start_step` up to `stop_step`, on the devices."""
        steps = grain.MapDataset.range(start_step, max(stop_step, start_step)).map(self._local_rows)
        options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=PREFETCH)
        iterator = iter(steps.to_iter_dataset(options))
        return contextlib.closing(_on_devices(iterator, mesh, self._batch_size))

    def _local_rows(self, step: int) -> dict[str, np.ndarray]:
        """This host's rows of the batch after `step` steps."""
        local = self._batch_size // jax.process_count()
        start = step * self._batch_size + jax.process_index() * local
        return self.read(start, start + local)

    def eval_batches(self, mesh: Mesh, limit: int) -> Iterator[dict[str, jax.Array]]:
        """The split in order, once, with fixed masks; the last batch is filled with zero weights.

        Args:
          limit: at most so many batches; 0 takes all.
        """
        count = -(-self.num_examples // self._batch_size)
        local = self._batch_size // jax.process_count()
        for index in range(min(count, limit) if limit else count):
            start = index * self._batch_size + jax.process_index() * local
            stop = min(start + local, self.num_examples)
            rows = self.read(start, stop) if stop > start else self.read(0, 1)
            missing = local - max(stop - start, 0)
            if missing:
                kept = local - missing
                rows = {k: _padded(v[:kept], local) for k, v in rows.items()}
                rows["next_sentence_labels"][kept:] = -1
            yield to_devices(rows, mesh, self._batch_size)


def batch_shapes(
    batch_size: int, max_seq_length: int, max_predictions_per_seq: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch as `PretrainingData.read` makes it."""
    bl, bm = (batch_size, max_seq_length), (batch_size, max_predictions_per_seq)
    return {
        "input_ids": jax.ShapeDtypeStruct(bl, np.int32),
        "attention_mask": jax.ShapeDtypeStruct(bl, np.int32),
        "token_type_ids": jax.ShapeDtypeStruct(bl, np.int32),
        "masked_lm_positions": jax.ShapeDtypeStruct(bm, np.int32),
        "masked_lm_ids": jax.ShapeDtypeStruct(bm, np.int32),
        "masked_lm_weights": jax.ShapeDtypeStruct(bm, np.float32),
        "next_sentence_labels": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1))


def to_devices(rows: dict[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This host's rows -> the global batch, split over the mesh."""
    layout = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(layout, x, (batch_size, *x.shape[1:]))
        for name, x in rows.items()
    }


def _on_devices(iterator: Any, mesh: Mesh, batch_size: int) -> Iterator[dict[str, jax.Array]]:
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


def open_data(data_dir: str, split: str, config: ml_collections.ConfigDict) -> PretrainingData:
    """Opens a split and checks that it fits the model.

    Raises:
      UserError: no data directory given, or its vocabulary or length does not fit the model's.
    """
    if not data_dir:
        raise UserError("no data set given: add --config.data_dir=DATA_DIR")
    data = PretrainingData(data_dir, split, config.batch_size, config.seed)
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
    return data


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError unless the batch divides over devices, hosts and accumulation."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = rows * config.accumulate_steps
    if config.batch_size % parts or config.batch_size % jax.process_count():
        raise UserError(
            f"config.batch_size={config.batch_size} must be a multiple of {parts} "
            f"(data × fsdp = {rows} device groups, × accumulate_steps={config.accumulate_steps}) "
            f"and of the {jax.process_count()} host(s)"
        )
