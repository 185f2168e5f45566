"""One split of a DATA_DIR as arrays: its records, read once for all batches that share them."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import threading
from typing import Any

import numpy as np
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import masking, order, records, tokenizer
from bert_jax.data.records import EXAMPLES_PER_RECORD
from bert_jax.data.shards import Shards

# Records kept for the batches that share them: 256 of 128 tokens take 6 MB, of 512 24 MB.
CACHED_RECORDS = 256


class Split:
    """The records of one split.

    Attributes:
      data_dir: where it is.
      manifest: the contents of dataset.json.
      split: its name.
      num_examples: of the split.
      sizes: int64[R], examples of each record: all full, but for the last of each shard.
      shards: where they lie.
    """

    def __init__(
        self,
        data_dir: str,
        split: str,
        seed: int,
        sampling: int = order.SAMPLING,
        masked_lm_prob: float = 0.0,
    ):
        """
        Args:
          seed: of the masks, if the data set has none.
          sampling: the version of how they are drawn.
          masked_lm_prob: the share of tokens to predict, in place of the data set's; 0: that.

        Raises:
          UserError: the data set is none, incomplete or changed, or has no such split; or its masks
            are fixed, and of another share.
        """
        self.manifest = records.Manifest.read(data_dir)
        if masked_lm_prob:
            self.manifest = _with_rate(self.manifest, data_dir, masked_lm_prob)
        if self.manifest.arguments["format"] != "array_record":
            raise UserError(
                f"{data_dir} is in the format {self.manifest.arguments['format']}, which is for "
                "other programs: rebuild it without --format to train on it here"
            )
        self.data_dir, self.split = epath.Path(data_dir), split
        self._seed, self._sampling = seed, sampling
        self.num_examples = self.manifest.num_examples(split)
        if not self.num_examples:
            raise UserError(
                f"{data_dir} has no {split} examples (splits: {', '.join(self.manifest.splits)}); "
                "rebuild it with --validation_fraction above 0, give --config.eval_data_dir, or "
                "turn evaluation off with --config.eval_every=0"
            )
        self.manifest.verify_quickly(data_dir, (split,))
        shards = self.manifest.splits[split]
        sizes_of_shard = [
            np.minimum(
                EXAMPLES_PER_RECORD,
                shard.num_examples - np.arange(0, shard.num_examples, EXAMPLES_PER_RECORD),
            )
            for shard in shards
        ]
        self.sizes = np.concatenate(sizes_of_shard).astype(np.int64)
        self.shards = Shards(
            self.data_dir, [shard.name for shard in shards], [len(s) for s in sizes_of_shard]
        )
        self._lock = threading.Lock()
        self._cache: dict[tuple[int, int], concurrent.futures.Future[np.ndarray]] = {}

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.load(self.data_dir / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over `contents`, and how they are masked here."""
        described: list[Any] = self.contents
        if not self.manifest.is_static:
            config = masking.MaskingConfig.from_arguments(self.manifest.arguments)
            described.append(dataclasses.asdict(config))
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    @property
    def contents(self) -> list[str]:
        """The hashes of the split's shards, in order."""
        return [shard.sha256 for shard in self.manifest.splits[self.split]]

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

    def examples(self, epoch: int, numbers: np.ndarray) -> np.ndarray:
        """The examples of records, one record after another, as structs with masks.

        Those that were read lately, or that another thread is reading, are not read again; all
        others are read in one go.
        """
        # The masks of static data are those of every epoch.
        keys = [(0 if self.manifest.is_static else epoch, int(number)) for number in numbers]
        mine: dict[tuple[int, int], concurrent.futures.Future[np.ndarray]] = {}
        with self._lock:
            futures = []
            for key in keys:
                future = self._cache.pop(key, None)
                if future is None:
                    future = mine[key] = concurrent.futures.Future()
                self._cache[key] = future  # at the end: the first are those not used for longest
                futures.append(future)
            for key in list(self._cache)[: max(len(self._cache) - CACHED_RECORDS, 0)]:
                del self._cache[key]
        if mine:
            try:
                loaded = self._load(epoch, np.array([number for _, number in mine]))
            except BaseException as error:
                with self._lock:
                    for key, future in mine.items():
                        if self._cache.get(key) is future:
                            del self._cache[key]
                for future in mine.values():
                    future.set_exception(error)
                raise
            for future, record in zip(mine.values(), loaded, strict=True):
                future.set_result(record)
        return np.concatenate([future.result() for future in futures])

    def _load(self, epoch: int, numbers: np.ndarray) -> list[np.ndarray]:
        """Structs of each record, with masks drawn if the data set has none."""
        raw = self.shards.read(numbers.tolist())
        dtype = self.manifest.dtype
        for number, record in zip(numbers, raw, strict=True):
            if len(record) != self.sizes[number] * dtype.itemsize:
                raise UserError(
                    f"{self.data_dir / self.shards.name(number)} has {len(record)} bytes, "
                    f"dataset.json says {self.sizes[number]} examples of {dtype.itemsize}: it is "
                    "another data set's; restore it, or build the data set again"
                )
        parts = [np.frombuffer(record, dtype) for record in raw]
        if self.manifest.is_static:
            return parts
        return [self._masked(part, epoch, n) for n, part in zip(numbers, parts, strict=True)]

    def _masked(self, examples: np.ndarray, epoch: int, number: int) -> np.ndarray:
        """Dynamic masks: new in every epoch, a function of (seed, epoch, record) alone."""
        tok = self.tokenizer
        drawn = masking.mask_tokens(
            order.mask_rng(self._seed, epoch, number, self._sampling),
            examples["input_ids"],
            examples["num_tokens"],
            masking.MaskingConfig.from_arguments(self.manifest.arguments),
            mask_id=tok.mask_id,
            is_special_V=tok.is_special_V,
            is_continuation_V=tok.is_continuation_V,
        )
        result = np.empty(len(examples), self._masked_dtype)
        for name in ("num_tokens", "second_start", "next_sentence_label"):
            result[name] = examples[name]
        result["input_ids"], result["num_masked"] = drawn.input_ids_BL, drawn.num_masked_B
        result["masked_lm_positions"], result["masked_lm_ids"] = drawn.positions_BM, drawn.ids_BM
        return result

    @functools.cached_property
    def _masked_dtype(self) -> np.dtype:
        arguments = self.manifest.arguments
        predictions = arguments["max_predictions_per_seq"]
        return records.example_dtype(
            arguments["max_seq_length"], self.manifest.vocab_size, predictions
        )

    def to_batch(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """Structs with masks -> the arrays of a batch, an example per row.

        Returns (B examples): int32 input_ids, attention_mask, token_type_ids [B, L],
        masked_lm_positions, masked_lm_ids [B, M], float32 masked_lm_weights [B, M], int32
        next_sentence_labels [B] (-1: no label).
        """
        positions_L = np.arange(self.max_seq_length)
        num_tokens_B1 = examples["num_tokens"][:, None].astype(np.int32)
        second_start_B1 = examples["second_start"][:, None].astype(np.int32)
        labels_B = examples["next_sentence_label"].astype(np.int32)
        predictions = examples["masked_lm_positions"].shape[1]
        weights_BM = np.arange(predictions) < examples["num_masked"][:, None]
        second_BL = (positions_L >= second_start_B1) & (positions_L < num_tokens_B1)
        second_BL &= self.tokenizer.writes_token_types
        return {
            "input_ids": examples["input_ids"].astype(np.int32),
            "attention_mask": (positions_L < num_tokens_B1).astype(np.int32),
            "token_type_ids": second_BL.astype(np.int32),
            "masked_lm_positions": examples["masked_lm_positions"].astype(np.int32),
            "masked_lm_ids": examples["masked_lm_ids"].astype(np.int32),
            "masked_lm_weights": weights_BM.astype(np.float32),
            "next_sentence_labels": np.where(
                labels_B == records.NO_NEXT_SENTENCE_LABEL, -1, labels_B
            ).astype(np.int32),
        }


def _with_rate(manifest: records.Manifest, data_dir: str, rate: float) -> records.Manifest:
    """A manifest as of data that was built to be masked at another rate.

    Raises:
      UserError: the masks are in the data, or the rate is none.
    """
    arguments = manifest.arguments
    if not 0 < rate < 1:
        raise UserError(f"config.masked_lm_prob={rate}, expected more than 0 and less than 1")
    if manifest.is_static and rate != arguments["masked_lm_prob"]:
        raise UserError(
            f"config.masked_lm_prob={rate}, but the masks of {data_dir} are fixed, "
            f"{arguments['masked_lm_prob']} of the tokens: build it with --masking=dynamic"
        )
    most = masking.default_max_predictions(arguments["max_seq_length"], rate)
    changed = {"masked_lm_prob": rate, "max_predictions_per_seq": most}
    return dataclasses.replace(manifest, arguments={**arguments, **changed})
