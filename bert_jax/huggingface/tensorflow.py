"""Reads the checkpoints of google-research/bert, TensorFlow 1's tensor bundles, without TensorFlow.

A bundle is NAME.index, a table of LevelDB's format (sorted keys in blocks, each key less the prefix
it shares with the one before) from a tensor's name to a BundleEntryProto, and NAME.data-0000i-of-n,
the arrays one after another. Nothing in the index is compressed.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError

_MAGIC = 0xDB4775248B80FB57
_FLOAT, _INT64 = 1, 9  # of TensorFlow's DataType; BERT's checkpoints have no others of use
_DTYPES: dict[int, np.dtype] = {
    _FLOAT: np.dtype("<f4"),
    _INT64: np.dtype("<i8"),
    3: np.dtype("<i4"),
}
_MAX_INDEX = 1 << 28
# Variables that are no parameters: Adam's moments and the step.
_SKIPPED = re.compile(r"(.*/)?(adam_m|adam_v|AdamWeightDecayOptimizer(_1)?|global_step)(/.*)?$")
# Google's names -> transformers', in this order.
_NAMES = (
    (r"/", "."),
    (r"\.layer_(\d+)\.", r".layer.\1."),
    (r"\.kernel$", ".weight"),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"_embeddings$", "_embeddings.weight"),
    (r"^cls\.predictions\.output_bias$", "cls.predictions.bias"),
    (r"^cls\.seq_relationship\.output_weights$", "cls.seq_relationship.weight"),
    (r"^cls\.seq_relationship\.output_bias$", "cls.seq_relationship.bias"),
    (r"^output_weights$", "classifier.weight"),
    (r"^output_bias$", "classifier.bias"),
    (r"^cls\.squad\.output_weights$", "qa_outputs.weight"),
    (r"^cls\.squad\.output_bias$", "qa_outputs.bias"),
)


class _Entry(NamedTuple):
    """A BundleEntryProto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class _DamageError(Exception):
    """Bytes that are no index."""


def is_checkpoint(directory: epath.Path) -> bool:
    """Whether a directory is one of google-research/bert's, and not of transformers."""
    return (directory / "bert_config.json").exists() and not (directory / "config.json").exists()


def read(directory: epath.Path) -> dict[str, np.ndarray]:
    """The parameters of a directory's checkpoint, under the names of transformers' classes.

    Raises:
      UserError: google-crc32c is missing; no checkpoint, several, or a damaged one.
    """
    try:
        import google_crc32c  # noqa: F401
    except ImportError:
        raise UserError(
            f"{directory} needs google-crc32c to be read: pip install 'bert_jax[tfrecord]'"
        ) from None
    found = sorted(path.name for path in directory.iterdir() if path.name.endswith(".index"))
    if len(found) != 1:
        raise UserError(
            f"{directory} holds {len(found)} checkpoints of TensorFlow ({', '.join(found[:5])}): "
            "expected one NAME.ckpt.index with its NAME.ckpt.data-… beside bert_config.json"
        )
    index = directory / found[0]
    files.check_regular(index, _MAX_INDEX)
    try:
        entries = dict(_entries(index.read_bytes()))
    except (_DamageError, struct.error, IndexError, UnicodeDecodeError):
        raise UserError(f"{index} is damaged or not the index of a TensorFlow checkpoint") from None
    tensors = {}
    for name, entry in entries.items():
        if not _SKIPPED.match(name):
            x = _array(index, name, entry, len({e.shard for e in entries.values()}))
            tensors[_their_name(name)] = x.T if name.endswith("/kernel") else x
    return tensors


def _their_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _array(index: epath.Path, name: str, entry: _Entry, shards: int) -> np.ndarray:
    stem = index.name.removesuffix(".index")
    paths = sorted(index.parent.glob(f"{stem}.data-{entry.shard:05d}-of-*"))
    if len(paths) != 1:
        raise UserError(
            f"{index.parent} lacks {stem}.data-{entry.shard:05d}-of-{shards:05d}, which holds "
            f"{name}"
        )
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None or entry.size != dtype.itemsize * int(np.prod(entry.shape, dtype=object)):
        raise UserError(f"{index}: {name} is no array of float32 of the shape {entry.shape}")
    files.check_regular(paths[0], 1 << 40)
    with paths[0].open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) != entry.size or _masked_crc(data) != entry.checksum:
        raise UserError(f"{paths[0]} is damaged: {name} is not what was written")
    return np.frombuffer(data, dtype).reshape(entry.shape)


def _masked_crc(data: bytes) -> int:
    """As TensorFlow stores a CRC32C: rotated, so that a checksum of checksums is one too."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _entries(data: bytes) -> Iterator[tuple[str, _Entry]]:
    """(name, entry) of every tensor of an index file."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise _DamageError
    _, _, position = _handle(data, len(data) - 48)  # of the meta index
    offset, size, _ = _handle(data, position)
    for _, handle in _block(data, offset, size):
        block_offset, block_size, _ = _handle(handle, 0)
        for key, value in _block(data, block_offset, block_size):
            if key:  # the empty key is the bundle's header
                yield key.decode(), _entry(value)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a block."""
    block = data[offset : offset + size]
    if len(block) != size or size < 4 or data[offset + size]:
        raise _DamageError
    checksum = struct.unpack_from("<I", data, offset + size + 1)[0]
    if _masked_crc(data[offset : offset + size + 1]) != checksum:
        raise _DamageError
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]  # before the restart points
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    """(offset, size, position behind it) of a block."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return offset, size, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in seven bits a byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _DamageError


def _entry(data: bytes) -> _Entry:
    fields = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}  # dtype, shard_id, offset, size, crc32c
    shape: tuple[int, ...] = ()
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):  # TensorShapeProto: repeated Dim
            dims = [dim for field, dim in _fields(value) if field == 2 and isinstance(dim, bytes)]
            shape = tuple(int(dict(_fields(dim)).get(1, 0)) for dim in dims)
        elif number in fields and isinstance(value, int):
            fields[number] = value
    return _Entry(fields[1], shape, fields[3], fields[4], fields[5], fields[6])


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffer's fields."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
        elif kind == 5:
            yield tag >> 3, struct.unpack_from("<I", data, position)[0]
            position += 4
        elif kind == 2:
            length, position = _varint(data, position)
            yield tag >> 3, data[position : position + length]
            position += length
        else:
            raise _DamageError
