"""What `predict` reads: lines, tables and data sets, as records with a command's fields.

A source is read twice: checked as a whole before a model is loaded, and again, record by record,
while results are written, so that the size of a file of lines is no matter.
"""

import codecs
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.tasks import tables

Record = dict[str, Any]
Pair = tuple[Record, Record]  # an input as it stands there, and by the command's fields
MASK = "[MASK]"
# Of each command the fields that a record must have, and those that results have.
FIELDS = {
    "answer": ("question", "context"),
    "choose": ("context", "choices"),
    "classify": ("text",),
    "embed": ("text",),
    "fill-mask": ("text",),
    "tag": ("tokens",),
    "zero-shot": ("text",),
}
RESULTS = {
    "answer": {"prediction", "n_best"},
    "choose": {"prediction", "scores"},
    "classify": {"prediction", "scores"},
    "embed": {"embedding"},
    "fill-mask": {"masks"},
    "tag": {"labels", "scores", "entities", "offsets"},
    "zero-shot": {"prediction", "scores"},
}
LISTS = {"tokens": "words", "choices": "texts"}  # fields that hold a list, and of what
OPTIONAL = ("text_pair", "beginning")  # texts


@dataclasses.dataclass(frozen=True)
class Records:
    """Checked records, that can be iterated over again: (as they stand there, by fields).

    Attributes:
      name: of the source, for messages.
      count: the number of records.
      sha256: of what was read.
    """

    name: str
    count: int
    sha256: str
    again: Callable[[], Iterator[Pair]]

    def __iter__(self) -> Iterator[Pair]:
        return self.again()


def columns(settings: Mapping[str, Any]) -> dict[str, str]:
    """The names that a command's fields have in the data that a model was fine-tuned on.

    columns({"text_column": "review", "words_column": "tokens"}) -> {"text": "review", …}
    """
    names = {
        "text": "text_column",
        "text_pair": "text_pair_column",
        "tokens": "words_column",
        "context": "context_column",
        "choices": "choice_columns",
        "beginning": "beginning_column",
    }
    return {field: settings[name] for field, name in names.items() if settings.get(name)}


def read(source: str, command: str, jsonl: bool, columns: Mapping[str, str]) -> Records:
    """The records of a source, all checked.

    Args:
      source: "-", a file, or a data set as `tables.load` takes it. A .csv or .tsv file has a
        header; of any other a line is a record, empty ones are skipped.
      command: a key of FIELDS.
      jsonl: whether lines are JSON objects; those of a .jsonl file always are.
      columns: field -> the name that it has in tables, data sets and JSON objects.

    Raises:
      UserError: nothing there, not UTF-8, no JSON, a field that is missing or of another type, or
        one that results would replace; names the line.
    """
    if source.endswith((".csv", ".tsv")):
        raise UserError(
            f"--input={source}: expected one text per line, or a .jsonl file with fields"
        )
    name = "standard input" if source == "-" else source
    opened = _opener(source)
    as_json = jsonl or source.endswith(".jsonl") or command in ("answer", "choose")

    def records() -> Iterator[tuple[str, Record]]:
        with opened() as file:
            for number, line in _lines(file, name):
                if line.strip():
                    place = f"{name}:{number}"
                    yield place, _object(place, line) if as_json else {"text": line}

    with opened() as file:
        whole: Any = file  # typeshed asks for more than file_digest does
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    return _checked(name, command, columns, records, digest)


def _checked(
    name: str,
    command: str,
    columns: Mapping[str, str],
    placed: Callable[[], Iterator[tuple[str, Record]]],
    digest: str,
) -> Records:
    def again() -> Iterator[Pair]:
        for place, record in placed():
            yield record, _fields(place, record, command, columns)

    count, sums = 0, hashlib.sha256(digest.encode())
    for record, _ in again():
        count += 1
        if not digest:
            sums.update(json.dumps(record, default=str).encode())
    return Records(name, count, sums.hexdigest(), again)


def _opener(source: str) -> Callable[[], BinaryIO]:
    """What opens a source, each time from its beginning; of pipes what was in them is kept."""
    if source == "-" or files.is_stream(source):
        if source == "-":
            content = sys.stdin.buffer.read()
        else:
            with open(source, "rb") as stream:
                content = stream.read()
        return lambda: io.BytesIO(content)
    path = epath.Path(source)
    if not path.is_file():
        raise UserError(f"file {source} does not exist")
    if files.is_remote(path):
        return lambda: path.open("rb")
    return lambda: open(source, "rb")


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """(number, line) of UTF-8 text, without byte order mark and carriage returns at the end."""
    # Only newlines end a line: a text may hold other separators of Unicode.
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number} is not UTF-8 text ({error})") from None


def _object(place: str, line: str) -> Record:
    try:
        record = tables.parse_json(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{place} is not a JSON object, but {line.strip()[:60]}")
    return record


def _fields(place: str, record: Record, command: str, columns: Mapping[str, str]) -> Record:
    """The fields of a record that a command reads, by its names.

    Raises:
      UserError: it does not fit the command.
    """
    if taken := sorted(record.keys() & RESULTS[command]):
        raise UserError(
            f"{place} has the field {taken[0]!r}, where {command} writes its result: rename it"
        )
    wanted = FIELDS[command]
    names = {field: columns.get(field, field) for field in (*wanted, *OPTIONAL, "text")}
    names |= {field: field for field in names if field in record}
    if command == "tag" and names["tokens"] not in record:
        wanted = ("text",)
    fields: Record = {}
    for field in OPTIONAL:
        if value := record.get(names[field]):
            if not isinstance(value, str):
                raise UserError(f"{place}: {names[field]!r} is not a text")
            fields[field] = value
    for field in wanted:
        value = fields[field] = record.get(names[field])
        if field in LISTS:
            fits = isinstance(value, list) and bool(value) and None not in value
            expected = f"a list of {LISTS[field]}, not empty"
        else:
            fits = isinstance(value, str) and bool(value)
            expected = "a text, not empty"
        if not fits:
            raise UserError(f"{place}: {command} needs the field {names[field]!r} ({expected})")
    if command == "fill-mask" and MASK not in fields["text"] + fields.get("text_pair", ""):
        raise UserError(f"{place}: no {MASK} in {fields['text'][:80]!r}")
    return fields
