"""The on-disk format of examples, shared by the builder (data_prep) and the loader.

A DATA_DIR holds `train-00000-of-00016.array_record` … and `validation-…`, the manifest
`dataset.json` and a copy of the tokenizer in `tokenizer/`. One ArrayRecord record is a run of up to
`EXAMPLES_PER_RECORD` examples, each a fixed-size numpy struct: reading is `np.frombuffer`, and the
compressor removes the padding. Only the last record of a shard may be shorter.
"""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError

EXAMPLES_PER_RECORD = 64
FORMAT_VERSION = 1
MANIFEST = "dataset.json"
TOKEN_COUNTS = "token_counts.npy"  # int64[V]: occurrences of each token id in the examples
NUM_TOKENS = "num_tokens-{split}.npy"  # uint16[E]: of every example of a split, in order
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
    """One file of a split: its name in DATA_DIR, number of examples, SHA-256 of its bytes."""

    name: str
    num_examples: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `dataset.json`.

    Attributes:
      arguments: what determined the bytes (data_prep.build's options, without workers or runner).
      tokenizer_fingerprint: `Tokenizer.fingerprint` of the vocabulary the ids belong to.
      vocab_size: number of tokens of that vocabulary.
      splits: split name -> shards, in order.
      statistics: counts and measures gathered while building, for people and data_prep.check.
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
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        files.write_whole(epath.Path(data_dir) / MANIFEST, text)

    @classmethod
    def read(cls, data_dir: epath.PathLike) -> "Manifest":
        """Reads `dataset.json`.

        Raises:
          UserError: the directory or the manifest is missing, or of another format version.
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
        fields = json.loads(path.read_text())
        if fields.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {fields.get('format_version')}, this program reads "
                f"version {FORMAT_VERSION}: build the data set anew"
            )
        fields["splits"] = {
            split: [Shard(**shard) for shard in shards]
            for split, shards in fields["splits"].items()
        }
        return cls(**fields)
