"""JSON that others wrote: read once, its shape checked against a TypedDict before it is used."""

import json
import os
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError

Shape = TypeVar("Shape")
MAX_BYTES = 1 << 30  # the largest tokenizer.json on the hub has about 35 MB
_MAX_INT = 2**63 - 1


def read_json(path: epath.Path, shape: type[Shape]) -> Shape:
    """The object in a JSON file; {} where there is no file.

    Fields that `shape` (a TypedDict) does not name are left as they are.

    Raises:
      UserError: not a regular file, too large, not JSON, no object, or a field of another type:
        all such fields in one message.
    """
    if not os.path.lexists(path) and not path.exists():
        return typing.cast(Shape, {})
    check_regular(path, MAX_BYTES)
    return checked(files.read_json(path), shape, path)


def read_list(path: epath.Path) -> list[dict[str, Any]]:
    """The objects in a JSON file that is a list of them.

    Raises:
      UserError: as `read_json`.
    """
    check_regular(path, MAX_BYTES)
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
    if not (path.is_file() if files.is_remote(path) else os.path.isfile(path)):
        raise UserError(f"{path} is not a regular file: expected the file itself")
    size, _ = files.size_and_time(path)
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
