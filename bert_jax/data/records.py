"""The on-disk format of examples, shared by the builder (data_prep) and the loader.

A DATA_DIR holds `train-00000-of-00016.array_record` … and `validation-…`, the manifest
`dataset.json` and a copy of the tokenizer in `tokenizer/`. One ArrayRecord record is a run of up to
`EXAMPLES_PER_RECORD` examples, each a fixed-size numpy struct: reading is `np.frombuffer`, and the
compressor removes the padding. Only the last record of a shard may be shorter.
"""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief

EXAMPLES_PER_RECORD = 64
FORMAT_VERSION = 2  # 1 had no checksums of the manifest and of tokenizer/, and no sizes of shards
READABLE_VERSIONS = (1, 2)
MANIFEST = "dataset.json"
TOKENIZER = "tokenizer"
TOKEN_COUNTS = "token_counts.npy"  # int64[V]: occurrences of each token id in the examples
NUM_TOKENS = "num_tokens-{split}.npy"  # uint16[E]: of every example of a split, in order
_QUICKLY = 64 << 20  # bytes of a file that are read in a fraction of a second
NO_NEXT_SENTENCE_LABEL = 255  # objectives without a sentence-pair label (full_sentences, …)


def example_dtype(
    max_seq_length: int, vocab_size: int, max_predictions_per_seq: int = 0
) -> np.dtype:
    """The struct of one example.

    Fields (L = max_seq_length, M = max_predictions_per_seq):
      input_ids[L]: token ids, [CLS] A [SEP] B [SEP], padded with the pad id.
      num_tokens: how many of them are not padding.
      second_start: the first position of segment B; equals num_tokens if there is none.
      next_sentence_label: 0 B follows A (IsNext), 1 B is random, 255 no such label. For the
        objective `sop`: 0 in order, 1 swapped.
      masked_lm_positions[M], masked_lm_ids[M], num_masked: only with static masks, that is with
        M > 0: the positions that were masked in ascending order and the original ids there.
    """
    ids = np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
    fields: list[Any] = [
        ("input_ids", ids, (max_seq_length,)),
        ("num_tokens", "<u2"),
        ("second_start", "<u2"),
        ("next_sentence_label", "u1"),
    ]
    if max_predictions_per_seq:
        fields += [
            ("num_masked", "<u2"),
            ("masked_lm_positions", "<u2", (max_predictions_per_seq,)),
            ("masked_lm_ids", ids, (max_predictions_per_seq,)),
        ]
    return np.dtype(fields)


def shard_name(split: str, index: int, count: int, extension: str = "array_record") -> str:
    """('train', 3, 16) -> 'train-00003-of-00016.array_record'."""
    return f"{split}-{index:05d}-of-{count:05d}.{extension}"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split: its name in DATA_DIR, number of examples, SHA-256 of its bytes.

    The size in bytes is None in data sets of format version 1.
    """

    name: str
    num_examples: int
    sha256: str
    num_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `dataset.json`.

    Attributes:
      arguments: what determined the bytes (data_prep.build's options, without workers or runner).
      tokenizer_fingerprint: `Tokenizer.fingerprint` of the vocabulary the ids belong to.
      vocab_size: number of tokens of that vocabulary.
      splits: split name -> shards, in order.
      statistics: counts and measures gathered while building, for people and data_prep.check;
        `files` has the SHA-256 of every file that is no shard, by its path in DATA_DIR.
    """

    arguments: dict[str, Any]
    tokenizer_fingerprint: str
    vocab_size: int
    splits: dict[str, list[Shard]]
    statistics: dict[str, Any]
    format_version: int = FORMAT_VERSION

    @property
    def is_static(self) -> bool:
        return self.arguments["masking"] == "static"

    @property
    def dtype(self) -> np.dtype:
        """The struct of one example in this data set's shards."""
        return example_dtype(
            self.arguments["max_seq_length"],
            self.vocab_size,
            self.arguments["max_predictions_per_seq"] if self.is_static else 0,
        )

    def num_examples(self, split: str) -> int:
        return sum(shard.num_examples for shard in self.splits.get(split, []))

    def write(self, data_dir: epath.PathLike) -> None:
        """Writes the manifest atomically: its presence says that the data set is whole."""
        files.write_json(epath.Path(data_dir) / MANIFEST, dataclasses.asdict(self))

    @classmethod
    def read(cls, data_dir: epath.PathLike) -> "Manifest":
        """Reads `dataset.json`.

        Raises:
          UserError: the directory or the manifest is missing or corrupted, or of another format
            version.
        """
        path = epath.Path(data_dir) / MANIFEST
        if not path.exists():
            exists = (
                "has no dataset.json, so it is not a finished data set"
                if (epath.Path(data_dir).exists())
                else "does not exist"
            )
            raise UserError(
                f"data directory {data_dir} {exists}: build it with "
                f"python -m data_prep.build --input=… --tokenizer=… --output={data_dir}"
            )
        fields = files.read_json(path)
        if (version := fields.get("format_version")) not in READABLE_VERSIONS:
            raise UserError(
                f"{path} has format version {version!r}, this program reads versions "
                f"{', '.join(map(str, READABLE_VERSIONS))}: rebuild the data set"
            )
        try:
            fields["splits"] = {
                split: [Shard(**shard) for shard in shards]
                for split, shards in fields["splits"].items()
            }
            manifest = cls(**fields)
            manifest._check_types()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise files.DamagedError(
                f"{path} is corrupted ({brief(error)}): restore a copy, or rebuild the data set"
            ) from None
        return manifest

    def _check_types(self) -> None:
        """Raises an exception if what the program relies on is not there or of another type."""
        numbers = [self.vocab_size, self.arguments["max_seq_length"]]
        numbers.append(self.arguments["max_predictions_per_seq"])
        names = [self.arguments[name] for name in ("format", "masking", "objective")]
        for shard in (shard for shards in self.splits.values() for shard in shards):
            numbers += [shard.num_examples, shard.num_bytes or 0]
            names += [shard.name, shard.sha256]
        for value in numbers:
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"expected a number, found {value!r}")
        for value in (*names, *self.statistics.get("files", {}).values()):
            if not isinstance(value, str):
                raise ValueError(f"expected a text, found {value!r}")
        if self.arguments["masking"] not in ("static", "dynamic"):
            raise ValueError(f"masking is {self.arguments['masking']!r}")

    def verify_quickly(self, data_dir: epath.PathLike, splits: Collection[str]) -> None:
        """Compares what takes no reading of shards: names, sizes, and the small files' contents.

        Args:
          data_dir: where the data set is.
          splits: whose shards and files are needed.

        Raises:
          UserError: a file is missing, or is not the one that was written.
        """
        problems = dict(self.problems(data_dir, splits, max_bytes=_QUICKLY))
        if problems:
            shown = "; ".join(list(problems.values())[:3]) + ("; …" if len(problems) > 3 else "")
            raise files.DamagedError(
                f"{data_dir}: {shown}. Restore a copy, or rebuild the data set "
                f"(python -m data_prep.check {data_dir} reads all of it)"
            )

    def problems(
        self, data_dir: epath.PathLike, splits: Collection[str], max_bytes: int | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yields (file, what is wrong with it); contents of shards are the reader's affair.

        Args:
          data_dir: where the data set is.
          splits: whose files are compared, beside those that all splits need.
          max_bytes: the contents of larger files are not compared.
        """
        directory = epath.Path(data_dir)
        sizes = files.sizes(directory)
        for shard in (shard for split in splits for shard in self.splits.get(split, [])):
            if shard.name not in sizes:
                yield shard.name, f"{shard.name} is missing"
            elif shard.num_bytes is not None and sizes[shard.name] != shard.num_bytes:
                yield (
                    shard.name,
                    f"{shard.name} has {sizes[shard.name]} bytes, and was written with "
                    f"{shard.num_bytes}",
                )
        sizes |= {f"{TOKENIZER}/{n}": s for n, s in files.sizes(directory / TOKENIZER).items()}
        others = [split for split in self.splits if split not in splits]
        for name, expected in self.statistics.get("files", {}).items():
            if any(name.endswith(f"-{split}.npy") for split in others):
                continue
            if name not in sizes:
                yield name, f"{name} is missing"
                continue
            is_compared = max_bytes is None or sizes[name] <= max_bytes
            if is_compared and sha256(directory / name) != expected:
                yield name, f"{name} has changed: its SHA-256 is not the manifest's"


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
