"""Files that appear whole or not at all; shards in ArrayRecord format."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module
from etils import epath

from bert_jax import files
from bert_jax.data.records import EXAMPLES_PER_RECORD, sha256

# One group a record: random access decompresses nothing else. zstd level 3 already takes a
# 128-token static example from 343 bytes to about 270; level 9 costs three times the time for 1 %.
_ARRAY_RECORD_OPTIONS = "group_size:1,zstd:3"


class Written(NamedTuple):
    """A file that was written: the SHA-256 of its bytes, in hexadecimal, and their number."""

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, path: str) -> "Written":
        return cls(sha256(path), os.path.getsize(path))


@contextlib.contextmanager
def write_array_record(path: epath.Path, blocks: Iterable[np.ndarray]) -> Iterator[Written]:
    """Writes struct arrays as records of EXAMPLES_PER_RECORD; says what was written.

    The file appears at `path` when the `with` block ends without an exception.

    Args:
      path: where the finished file appears.
      blocks: arrays of examples; all but the last a multiple of EXAMPLES_PER_RECORD long.
    """
    with appearing_at(path) as partial:
        writer = array_record_module.ArrayRecordWriter(partial, _ARRAY_RECORD_OPTIONS)
        try:
            for examples in blocks:
                for start in range(0, len(examples), EXAMPLES_PER_RECORD):
                    writer.write(examples[start : start + EXAMPLES_PER_RECORD].tobytes())
        finally:
            writer.close()
        yield Written.of(partial)


def save_array(path: epath.Path, array: np.ndarray) -> str:
    """Writes a .npy file; returns its SHA-256."""
    with appearing_at(path) as partial:
        with open(partial, "wb") as file:
            np.save(file, array)
        return sha256(partial)


@contextlib.contextmanager
def appearing_at(path: epath.Path) -> Iterator[str]:
    """A local path to write to; on success the file moves to `path`, on failure it is removed."""
    remote = files.is_remote(path)
    if remote:
        directory = tempfile.mkdtemp()
        partial = os.path.join(directory, path.name)
    else:
        partial = f"{path}.partial-{uuid.uuid4().hex[:8]}"
    try:
        yield partial
        if remote:
            epath.Path(partial).copy(path, overwrite=True)
        else:
            files.sync(partial)
            os.replace(partial, path)
    finally:
        if remote:
            shutil.rmtree(directory)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)
