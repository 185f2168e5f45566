"""Reads the examples of a shard back and sums up what they are."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from array_record.python import array_record_module
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data.masking import MaskingConfig
from bert_jax.data.records import Manifest
from bert_jax.data.tokenizer import Tokenizer
from data_prep.examples.tfrecord import read_tfrecord

_RECORDS_AT_ONCE = 64


@dataclasses.dataclass
class Tally:
    """Sums over examples; tallies of shards are added up."""

    examples: int = 0
    tokens: int = 0
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    lengths: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    predictions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    wanted: int = 0
    masked: int = 0
    became_mask: int = 0
    became_other: int = 0
    malformed: int = 0
    special_masked: int = 0
    special_drawn: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        def added(a, b):
            if not isinstance(a, np.ndarray):
                return a + b
            size = max(len(a), len(b))
            return np.pad(a, (0, size - len(a))) + np.pad(b, (0, size - len(b)))

        return Tally(
            **{
                field.name: added(getattr(self, field.name), getattr(other, field.name))
                for field in dataclasses.fields(self)
            }
        )


def read_examples(path: epath.PathLike, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields a shard's examples in order, some thousands at a time."""
    if str(path).endswith(".tfrecord"):
        yield from read_tfrecord(path, dtype)
        return
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        if not reader.ok():  # it opens a file that is not there as one without records
            raise UserError(f"{path} cannot be opened: it is missing, or no ArrayRecord file")
        count = reader.num_records()
        for start in range(0, count, _RECORDS_AT_ONCE):
            records = reader.read(list(range(start, min(start + _RECORDS_AT_ONCE, count))))
            yield np.frombuffer(b"".join(records), dtype)
    finally:
        reader.close()


def tally_examples(examples: np.ndarray, manifest: Manifest, tokenizer: Tokenizer) -> Tally:
    """Measures a struct array of examples (records.example_dtype)."""
    input_ids_EL = examples["input_ids"].astype(np.int64)
    num_tokens_E = examples["num_tokens"].astype(np.int64)
    E, L = input_ids_EL.shape
    tally = Tally(
        examples=E,
        tokens=int(num_tokens_E.sum()),
        labels=np.bincount(examples["next_sentence_label"], minlength=256),
        lengths=np.bincount(num_tokens_E, minlength=L + 1),
    )
    row_E = np.arange(E)
    is_padding_EL = np.arange(L) >= num_tokens_E[:, None]
    second_start_E = examples["second_start"].astype(np.int64)
    is_good_E = (num_tokens_E >= 3) & (num_tokens_E <= L) & (second_start_E <= num_tokens_E)
    is_good_E &= (input_ids_EL < tokenizer.vocab_size).all(1)
    prefix, suffix = tokenizer.prefix_ids, tokenizer.suffix_ids
    is_good_E &= (input_ids_EL[:, : len(prefix)] == prefix).all(1)
    for back, token in enumerate(reversed(suffix)):
        is_good_E &= input_ids_EL[row_E, np.clip(num_tokens_E - 1 - back, 0, L - 1)] == token
    is_pair_E = second_start_E < num_tokens_E
    for back, token in enumerate(reversed(tokenizer.middle_ids)):
        found_E = input_ids_EL[row_E, np.clip(second_start_E - 1 - back, 0, L - 1)]
        is_good_E &= (found_E == token) | ~is_pair_E
    is_good_E &= ((input_ids_EL == tokenizer.pad_id) | ~is_padding_EL).all(1)
    if manifest.is_static:
        config = MaskingConfig.from_arguments(manifest.arguments)
        wanted_E = np.rint(num_tokens_E * config.masked_lm_prob).astype(np.int64)
        tally.wanted = int(np.clip(wanted_E, 1, config.max_predictions_per_seq).sum())
        positions_EM = examples["masked_lm_positions"].astype(np.int64)
        ids_EM = examples["masked_lm_ids"].astype(np.int64)
        num_masked_E = examples["num_masked"].astype(np.int64)
        M = positions_EM.shape[1]
        is_real_EM = np.arange(M) < num_masked_E[:, None]
        is_ascending_EM = np.diff(positions_EM, axis=1, prepend=0) > 0
        is_good_E &= (is_ascending_EM | ~is_real_EM).all(1)
        is_good_E &= ((positions_EM < num_tokens_E[:, None]) | ~is_real_EM).all(1)
        is_good_E &= num_masked_E <= M
        found_EM = np.take_along_axis(input_ids_EL, np.clip(positions_EM, 0, L - 1), 1)
        original, found = ids_EM[is_real_EM], found_EM[is_real_EM]
        is_other = (found != original) & (found != tokenizer.mask_id)
        in_vocabulary = np.clip(original, 0, tokenizer.vocab_size - 1)
        found_clipped = np.clip(found, 0, tokenizer.vocab_size - 1)
        tally.predictions = np.bincount(num_masked_E, minlength=M + 1)
        tally.masked = len(original)
        tally.became_mask = int((found == tokenizer.mask_id).sum())
        tally.became_other = int(is_other.sum())
        tally.special_masked = int(tokenizer.is_special_V[in_vocabulary].sum())
        tally.special_drawn = int((tokenizer.is_special_V[found_clipped] & is_other).sum())
    else:
        # The loader masks: a mask here would be one that it cannot predict.
        is_good_E &= (input_ids_EL != tokenizer.mask_id).all(1)
    tally.malformed = int(E - is_good_E.sum())
    return tally
