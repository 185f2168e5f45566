"""Files that are there whole or not at all, JSON of others, and locks."""

import fcntl
import json
import os
import uuid
from typing import IO, Any

from etils import epath

from bert_jax.cli import UserError

LOCK_FILE = ".lock"  # in a directory that a process is writing to


def is_remote(path: str | epath.PathLike) -> bool:
    """Whether a path is of a store such as gs://, and not of this machine's file system."""
    return "://" in str(path)


def absolute(path: str | epath.PathLike) -> epath.Path:
    """A path that means the same from any working directory, as Orbax and TensorStore want it.

    Of a store such as gs:// it is the path itself: etils' `resolve()` and `absolute()` would make
    it the local path CWD/gs:/…, without an error (etils 1.15).
    """
    path = epath.Path(path)
    return path if is_remote(path) else path.resolve()


def lock(path: str | epath.PathLike, in_use: str) -> IO[bytes] | None:
    """An open file whose lock says that something is in use; the system frees it on a crash.

    None on gs:// and the like, which have no locks.

    Raises:
      UserError: another process holds it; the message is `in_use`. Or the directory cannot be
        written to.
    """
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        return None
    try:
        file = open(path, "wb")  # noqa: SIM115  (held open: the lock)
    except OSError as error:
        raise UserError(f"{directory} cannot be written to ({error})") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(in_use) from None
    except OSError:  # a file system without locks
        pass
    return file


def is_stream(path: str | epath.PathLike) -> bool:
    """Whether it is a pipe or a device, to be written to and not to be replaced."""
    is_special = os.path.exists(path) and not os.path.isfile(path)
    # What /dev/stdout leads to may be a file.
    return is_special or os.path.dirname(path) in ("/dev", "/dev/fd")


def size_and_time(path: str | epath.PathLike) -> tuple[int, int]:
    """A file's size in bytes and the time of its modification in seconds."""
    if is_remote(path):
        stat = epath.Path(path).stat()
        return stat.length, stat.mtime
    # etils also looks up the owner's name, which fails for an id without one, as in containers.
    stat = os.stat(path)
    return stat.st_size, int(stat.st_mtime)


def sync(path: str | epath.PathLike) -> None:
    """Waits until a file's bytes are on this machine's disk, if it is a file of this machine.

    A rename may be there before them: a power failure would leave an empty file of the new name.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: it is not JSON, or no object.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:  # also of text that is not UTF-8
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def write_whole(path: str | epath.PathLike, content: str | bytes) -> None:
    """Writes a file; until it is written, and if that fails, what was there of its name stays.

    Several processes may write it at once: it is one's or another's. Of one that is killed a file
    of the name with ".partial-" and eight digits may stay beside it.
    """
    content = content.encode() if isinstance(content, str) else content
    target = epath.Path(path)
    if is_stream(target):
        target.write_bytes(content)
        return
    if os.path.islink(target):
        target = epath.Path(os.path.realpath(target))
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
