"""Files that are there whole or not at all, JSON of others, and locks."""

import fcntl
import hashlib
import json
import os
import reprlib
import types
import typing
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

from etils import epath

from bert_jax.cli import UserError, use_patient_buckets

LOCK_FILE = ".lock"  # in a directory that a process is writing to
CHECKSUM = "checksum"  # of a JSON file, over all its other fields
MAX_JSON = 1 << 30  # bytes; the largest tokenizer.json on the hub has about 35 MB
_MAX_INT = 2**63 - 1
Shape = TypeVar("Shape")


class DamagedError(UserError):
    """A file that is there and is not what was written, or cannot be read as what it should be."""


def is_remote(path: str | epath.PathLike) -> bool:
    """Whether a path is of a store such as gs://, and not of this machine's file system."""
    if "://" not in str(path):
        return False
    if str(path).startswith("gs://"):
        use_patient_buckets()
    return True


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


def sizes(directory: str | epath.PathLike) -> dict[str, int]:
    """The size in bytes of each file of a directory, by name, by one listing; {} without it."""
    if is_remote(directory):
        path = epath.Path(directory)
        try:
            entries = path._backend.fs(path).ls(str(path), detail=True)  # etils gives names alone
        except FileNotFoundError:
            return {}
        return {e["name"].rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}
    if not os.path.isdir(directory):
        return {}
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def sync(path: str | epath.PathLike) -> None:
    """Waits until a file's bytes, or a folder's entries, are on this machine's disk.

    A rename may be there before the bytes: a power failure would leave an empty file of the new
    name. Does nothing on gs:// and the like, where an object is whole or not there.
    """
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that does not know it, for folders above all
        if not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file, without the checksum that `write_json` gave it.

    Raises:
      DamagedError: it is not JSON, or no object, or its checksum is that of something else.
    """
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # ValueError also of text that is not UTF-8
        raise DamagedError(
            f"{path} is not JSON ({error}): restore a copy, or make it again"
        ) from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is not a JSON object: restore a copy, or make it again")
    checksum = value.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(value):
        raise DamagedError(
            f"{path} is corrupted: its contents do not match the field {CHECKSUM!r} in it. Restore "
            "a copy; where the file was edited on purpose, remove that field"
        )
    return value


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, as `write_whole` does."""
    whole = dict(value) | {CHECKSUM: _checksum(value)}
    write_whole(path, json.dumps(whole, indent=2) + "\n")


def _checksum(value: Mapping[str, Any]) -> str:
    """'sha256:…' of a JSON object, whatever its layout in a file and the order of its fields."""
    # As a reader sees it: JSON has neither tuples nor keys that are numbers.
    value = json.loads(json.dumps(value))
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_whole(path: str | epath.PathLike, content: str | bytes) -> None:
    """Writes a file durably; until then, and if that fails, what was there of its name stays.

    Several processes may write it at once: it is one's or another's. Of one that is killed a file
    of the name with ".partial-" and eight digits may stay beside it.
    """
    content = content.encode() if isinstance(content, str) else content
    target = epath.Path(path)
    # An object of a store is there whole or not at all, and renaming it would be three requests.
    if is_remote(target) or is_stream(target):
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
    sync(target.parent)


def read_shaped(path: epath.Path, shape: type[Shape]) -> Shape:
    """The object in a JSON file that others wrote, its shape checked before it is used.

    {} where there is no file.

    Fields that `shape` (a TypedDict) does not name are left as they are.

    Raises:
      UserError: not a regular file, too large, not JSON, no object, or a field of another type:
        all such fields in one message.
    """
    if not os.path.lexists(path) and not path.exists():
        return typing.cast(Shape, {})
    check_regular(path, MAX_JSON)
    return checked(read_json(path), shape, path)


def read_shaped_list(path: epath.Path) -> list[dict[str, Any]]:
    """The objects in a JSON file that is a list of them.

    Raises:
      UserError: as `read_shaped`.
    """
    check_regular(path, MAX_JSON)
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    return checked(value, list[dict[str, Any]], path, "the file")


def checked(value: Any, shape: type[Shape], where: str | epath.PathLike, field: str = "") -> Shape:
    """`value`, the object or that field of it, known to be of `shape`.

    Raises:
      UserError: a field of another type; `where` names the file.
    """
    if problems := list(_problems(value, shape, field)):
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{where}: {'; '.join(problems[:5])}{more}")
    return typing.cast(Shape, value)


def check_regular(path: epath.Path, most: int) -> None:
    """Raises UserError unless `path` is a file (no device, pipe or folder) of at most `most` bytes.

    A device may have no end, and a file's size may be a claim.
    """
    # etils' own is_file() is true of devices and pipes too.
    if not (path.is_file() if is_remote(path) else os.path.isfile(path)):
        raise UserError(f"{path} is not a regular file: expected the file itself")
    size, _ = size_and_time(path)
    if size > most:
        raise UserError(f"{path} has {size:,} bytes, more than the {most:,} that it can need")


def _problems(value: Any, shape: Any, where: str) -> Iterator[str]:
    """For each field of another type: 'model.vocab.the' is '5', expected a whole number."""
    if shape is Any:
        return
    if typing.is_typeddict(shape):
        if not isinstance(value, dict):
            yield f"{where!r} is {_shown(value)}, expected an object"
            return
        for name, kind in typing.get_type_hints(shape).items():
            if name in value:
                yield from _problems(value[name], kind, f"{where}.{name}" if where else name)
        return
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if value is not None and len(kinds) == 1:
            yield from _problems(value, kinds[0], where)
        elif not any(not list(_problems(value, kind, where)) for kind in arguments):
            yield f"{where!r} is {_shown(value)}, expected {_names(shape)}"
        return
    if origin in (list, dict):
        if not isinstance(value, origin):
            yield f"{where!r} is {_shown(value)}, expected {_names(shape)}"
            return
        kind = arguments[-1]
        entries: Iterable[tuple[Any, Any]] = (
            value.items() if isinstance(value, dict) else enumerate(value)
        )
        for name, x in entries:
            # A shortcut: vocabularies are long.
            if type(x) is not kind or (kind is int and not 0 <= x <= _MAX_INT):
                yield from _problems(x, kind, f"{where}.{name}")
        return
    is_right = type(value) is shape or (shape is float and type(value) is int)
    if not is_right:
        yield f"{where!r} is {_shown(value)}, expected {_names(shape)}"
    elif shape is int and abs(value) > _MAX_INT:
        yield f"{where!r} is beyond 64 bits"


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _names(shape: Any) -> str:
    if arguments := typing.get_args(shape):
        if typing.get_origin(shape) is list:
            return "a list"
        if typing.get_origin(shape) is dict:
            return "an object"
        return " or ".join(map(_names, arguments))
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "null",
    }
    return names.get(shape, "an object")
