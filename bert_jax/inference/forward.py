"""A model on the device, and rows of different lengths through it: few shapes, little padding.

N rows, B rows per batch, L length, D hidden width.
"""

import collections
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from bert_jax.cli import UserError
from bert_jax.data import batching
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models import architectures, heads
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import kinds

Row = dict[str, Any]  # "input_ids", "token_type_ids", and what else the model is called with
# Padded lengths: each is a program to compile.
BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Forward:
    """What `bert_jax.inference.model.Model` documents, without the methods.

    Raises:
      UserError: `max_seq_length` is more than the model's positions.
    """

    def __init__(
        self,
        parts: workdirs.Loaded,
        dtype: str = "float32",
        batch_size: int = 32,
        max_seq_length: int | None = None,
    ):
        self.settings: ml_collections.ConfigDict = parts.config
        self.tokenizer: Tokenizer = parts.tokenizer
        self.task: str = self.settings.get("task", "pretraining")  # pretraining's have none
        self.labels: tuple[str, ...] = tuple(self.settings.get("labels", ()))
        self.config = architectures.make_config(self.settings.model, dtype)
        self.encoder = architectures.of(self.config)
        self.batch_size = batch_size
        longest = self.config.max_length
        if max_seq_length and max_seq_length > longest:
            raise UserError(
                f"max_seq_length={max_seq_length} is more than the model's {longest} positions: "
                f"give {longest} or less"
            )
        self.length_is_own = max_seq_length is None
        self.max_seq_length: int = max_seq_length or min(
            self.settings.get("max_seq_length", longest), longest
        )
        if self.task in kinds.HEADS:
            self.module = kinds.make_module(self.task, self.config, len(self.labels))
        else:
            self.module = heads.PretrainingModel(self.config)
        self.params = jax.device_put(parts.params)
        self._programs: dict[Any, Callable[..., Any]] = {}

    @property
    def architecture(self) -> str:
        """The encoder's name in `bert_jax.models.architectures`."""
        return self.encoder.name

    @property
    def encoder_params(self) -> Any:
        return self.params[self.encoder.prefix]

    @property
    def fingerprint(self) -> str:
        """A checksum of parameters and vocabulary: models that differ in one digit have another."""
        total = zlib.crc32(self.tokenizer.fingerprint.encode())
        for leaf in jax.tree.leaves(self.params):
            total = zlib.crc32(np.ascontiguousarray(leaf).data, total)
        return f"{total:08x}"

    def compiled(self, key: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
        """`jax.jit(apply)`, the one made before if there is one of that key."""
        if key not in self._programs:
            self._programs[key] = jax.jit(apply)
        return self._programs[key]

    def logits(self, rows: Sequence[Row]) -> list[Any]:
        """The head's output for every row, padded as the row was."""
        apply = self.compiled(
            "logits", lambda params, *x: self.module.apply({"params": params}, *x)
        )
        return self.outputs(apply, self.params, rows)

    def outputs(
        self,
        apply: Callable[..., Any],
        params: Any,
        rows: Sequence[Row],
        extra: Sequence[str] = (),
    ) -> list[Any]:
        """`apply`'s output for every row, on the host.

        Args:
          apply: compiled; called with `params`, the encoder's batch fields int32[B, L], and the
            arrays of the rows named in `extra`; returns arrays, or a tree of them, [B, …].
        """
        if not rows:
            return []
        batching.check_segments(rows, self.config.type_vocab_size)
        results: list[Any] = [None] * len(rows)
        lengths = [np.shape(row["input_ids"])[-1] for row in rows]
        longest = self.max_seq_length
        buckets = (*(length for length in BUCKETS if length < longest), longest)
        # A single text is no batch of 32.
        size = min(self.batch_size, 1 << (len(rows) - 1).bit_length())
        names = (*self.encoder.batch_fields, *extra)
        # One batch is collated and sent while the one before is computed.
        waiting: collections.deque[tuple[np.ndarray, Any]] = collections.deque()
        for indices, batch in batching.iterate(rows, batches(lengths, size), buckets, size):
            waiting.append((indices, apply(params, *(batch[name] for name in names))))
            if len(waiting) > 1:
                _fetch(*waiting.popleft(), results)
        _fetch(*waiting.popleft(), results)
        return results


def _fetch(indices: np.ndarray, output: Any, results: list[Any]) -> None:
    """Writes a batch's output to the places of its rows; not of those that fill it up."""
    leaves, structure = jax.tree.flatten(jax.device_get(output))
    for place, i in enumerate(indices):
        results[i] = jax.tree.unflatten(structure, [leaf[place] for leaf in leaves])


def batches(lengths_N: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """All row indices by ascending length; the batch that is not full holds the shortest.

    batches([5, 3, 9], 2) -> [[1], [0, 2]]
    """
    order_N = np.argsort(np.asarray(lengths_N), kind="stable")
    first = len(order_N) % batch_size or batch_size
    return np.split(order_N, range(first, len(order_N), batch_size))
