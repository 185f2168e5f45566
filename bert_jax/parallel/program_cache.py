"""Compiled programs on disk: JAX's cache without entries that were cut short, and not too large."""

import contextlib
import logging
import os
import pathlib
import time

from jax._src import compilation_cache  # how an entry is packed has no public name

LIMIT = 10 * 2**30  # bytes: hundreds of programs of BERT-large
# Its time says when entries were looked at; younger ones may still be being written.
CHECKED = ".checked"
BEING_WRITTEN = 120.0  # seconds


def tidy(limit: int = LIMIT) -> None:
    """Removes entries that were cut short, which JAX never replaces, and the longest unused ones.

    JAX writes an entry in place: of a process that is killed, or on a full disk, a part stays, with
    which every later run compiles again and warns. Only entries that are new since the last call
    are read. The cache is $JAX_COMPILATION_CACHE_DIR (see bert_jax/cli.py).

    Args:
      limit: bytes that the cache may hold.
    """
    directory = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    if not directory.name or "://" in str(directory) or not directory.is_dir():
        return
    with contextlib.suppress(OSError):  # of other users, or removed by another process meanwhile
        checked = directory / CHECKED
        last = checked.stat().st_mtime if checked.exists() else 0.0
        until = time.time() - BEING_WRITTEN
        entries = [(path, path.stat()) for path in directory.glob("*-cache")]
        broken = [
            path
            for path, status in entries
            if last < status.st_mtime <= until and not _is_whole(path)
        ]
        total, surplus = sum(status.st_size for _, status in entries), []
        for path, status in sorted(entries, key=lambda e: max(e[1].st_atime, e[1].st_mtime)):
            if total <= limit:
                break
            surplus.append(path)
            total -= status.st_size
        for path in {*broken, *surplus}:
            path.unlink(missing_ok=True)
        if broken:
            logging.info(f"removed {len(broken)} programs from {directory} that were cut short")
        checked.touch()
        os.utime(checked, (until, until))


def _is_whole(path: pathlib.Path) -> bool:
    try:
        compilation_cache.decompress_executable(path.read_bytes())
    except Exception:  # of whichever packer is installed
        return False
    return True
