"""Reads .gz and .zst files as streams, and says what a file that cannot be read raises."""

import gzip
import io
import zlib
from typing import Any

import zstandard

SUFFIXES = (".gz", ".zst")
# What the file system and the decompressors raise at a file that is corrupted or cut off.
UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
READ_BYTES = 1 << 20
# Little: all that it decompresses to is held at once.
_ZSTD_READ_BYTES = 64 << 10
# The most that the format has, as of zstd --long=31; by default 128 MB would be.
_ZSTD_WINDOW_BYTES = 1 << 31


def decompressed(path: str, file: io.BufferedIOBase) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFrames(file), READ_BYTES)
    return file


class _ZstdFrames(io.RawIOBase):
    """Decompresses frame after frame; EOFError, as from gzip, where the file ends inside one.

    zstandard's own stream_reader takes such a file for whole.
    """

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None  # None between frames
        self._compressed, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._compressed or self._file.read(_ZSTD_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends before its last zstd frame does")
                return 0
            frame = self._frame or self._decompressor.decompressobj()
            self._output = memoryview(frame.decompress(data))
            self._compressed = frame.unused_data
            self._frame = None if frame.eof else frame
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size
