"""TFRecord files of tf.train.Example, written and read without TensorFlow.

The features are those of google-research/bert's create_pretraining_data.py, so that its training
script and others made for it read the shards. A record is framed by its length and two masked
CRC-32C; the Example is protocol buffer wire format, put together with numpy a block at a time.

Shapes: E examples, L positions, M predictions.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

import numpy as np
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data.records import NO_NEXT_SENTENCE_LABEL
from data_prep.examples.writers import Written, appearing_at

_INT64_LIST, _FLOAT_LIST = 3, 2  # field numbers in tf.train.Feature
_READ_AT_ONCE = 4096


def _crc32c():
    try:
        import google_crc32c
    except ImportError:
        raise UserError(
            "TFRecord files need google-crc32c: pip install 'bert_jax[tfrecord]'"
        ) from None
    return google_crc32c.value


@contextlib.contextmanager
def write_tfrecord(path: epath.Path, blocks: Iterable[np.ndarray]) -> Iterator[Written]:
    """Writes struct arrays of masked examples; says what was written.

    The file appears at `path` when the `with` block ends without an exception.
    """
    crc32c = _crc32c()
    with appearing_at(path) as partial:
        with open(partial, "wb") as file:
            for examples in blocks:
                for record in encode_examples(examples):
                    length = struct.pack("<Q", len(record))
                    file.write(length)
                    file.write(struct.pack("<I", _masked(crc32c(length))))
                    file.write(record)
                    file.write(struct.pack("<I", _masked(crc32c(record))))
        yield Written.of(partial)


def _masked(crc: int) -> int:
    """TFRecord's own twist, so that the CRC of data holding CRCs is not weak."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def encode_examples(examples: np.ndarray) -> Iterator[bytes]:
    """Yields serialised tf.train.Example of a struct array (records.example_dtype)."""
    L = examples["input_ids"].shape[1]
    M = examples["masked_lm_positions"].shape[1]
    is_token_EL = np.arange(L) < examples["num_tokens"][:, None]
    is_second_EL = is_token_EL & (np.arange(L) >= examples["second_start"][:, None])
    weights_EM = (np.arange(M) < examples["num_masked"][:, None]).astype("<f4")
    label_E = examples["next_sentence_label"]
    label_E = np.where(label_E == NO_NEXT_SENTENCE_LABEL, 0, label_E)
    columns = [
        _int64_features("input_ids", examples["input_ids"]),
        _int64_features("input_mask", is_token_EL),
        _int64_features("segment_ids", is_second_EL),
        _int64_features("masked_lm_positions", examples["masked_lm_positions"]),
        _int64_features("masked_lm_ids", examples["masked_lm_ids"]),
        [_feature("masked_lm_weights", _FLOAT_LIST, row.tobytes()) for row in weights_EM],
        _int64_features("next_sentence_labels", label_E[:, None]),
    ]
    for features in zip(*columns, strict=True):
        yield _field(1, b"".join(features))


def _int64_features(name: str, values_EN: np.ndarray) -> list[bytes]:
    """One map entry per example, its values as packed varints."""
    values_EN = values_EN.astype(np.uint32)
    # Seven bits a byte, lowest first, the top bit set where more follow; ids have 3 bytes at most.
    shifts = np.arange(5, dtype=np.uint32) * 7
    bytes_EN5 = (values_EN[..., None] >> shifts).astype(np.uint8) & 0x7F
    length_EN = np.maximum(1, (values_EN[..., None] >> shifts > 0).sum(-1))
    bytes_EN5 |= np.where(np.arange(5) < length_EN[..., None] - 1, 0x80, 0).astype(np.uint8)
    flat = bytes_EN5[np.arange(5) < length_EN[..., None]].tobytes()
    ends = np.cumsum(length_EN.sum(1)).tolist()
    starts = [0, *ends[:-1]]
    return [
        _feature(name, _INT64_LIST, flat[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def _feature(name: str, kind: int, packed: bytes) -> bytes:
    """An entry of Features.feature: map<string, Feature>."""
    return _field(1, _field(1, name.encode()) + _field(2, _field(kind, _field(1, packed))))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field of the wire format."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_tfrecord(path: epath.PathLike, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields what write_tfrecord was given, some thousands of examples at a time.

    Raises:
      UserError: a record whose checksum is wrong.
    """
    crc32c = _crc32c()
    with epath.Path(path).open("rb") as file:
        waiting: list[np.void] = []
        for record in _records(file, crc32c, path):
            waiting.append(_decode_example(record, dtype))
            if len(waiting) == _READ_AT_ONCE:
                yield np.array(waiting, dtype)
                waiting = []
        if waiting:
            yield np.array(waiting, dtype)


def _records(file: BinaryIO, crc32c, path: epath.PathLike) -> Iterator[bytes]:
    while header := file.read(12):
        length, length_crc = struct.unpack("<QI", header)
        if _masked(crc32c(header[:8])) != length_crc:
            raise UserError(f"{path} is not a TFRecord file, or is corrupted")
        record = file.read(length)
        if struct.pack("<I", _masked(crc32c(record))) != file.read(4):
            raise UserError(f"{path} is corrupted: a record's checksum is wrong")
        yield record


def _decode_example(record: bytes, dtype: np.dtype) -> np.void:
    features: dict[str, np.ndarray] = {}
    for _, entry in _fields(next(_fields(record))[1]):
        name, feature = (data for _, data in _fields(entry))
        kind, values = next(_fields(feature))
        packed = next(_fields(values))[1]
        features[name.decode()] = (
            np.frombuffer(packed, "<f4") if kind == _FLOAT_LIST else _varints(packed)
        )
    example = np.zeros((), dtype)
    example["input_ids"] = features["input_ids"]
    num_tokens = int(features["input_mask"].sum())
    example["num_tokens"] = num_tokens
    example["second_start"] = num_tokens - int(features["segment_ids"].sum())
    example["next_sentence_label"] = features["next_sentence_labels"][0]
    example["num_masked"] = int(features["masked_lm_weights"].sum())
    example["masked_lm_positions"] = features["masked_lm_positions"]
    example["masked_lm_ids"] = features["masked_lm_ids"]
    return cast(np.void, example[()])


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message."""
    at = 0
    while at < len(data):
        number = data[at] >> 3
        at, length, shift = at + 1, 0, 0
        while True:
            byte = data[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        yield number, data[at : at + length]
        at += length


def _varints(packed: bytes) -> np.ndarray:
    """b'\\x05\\x80\\x01' -> [5, 128]."""
    byte_N = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(byte_N < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(byte_N)) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((byte_N & 0x7F).astype(np.int64) << (7 * place), starts)
