"""What `predict` reads: lines, tables and data sets, as records with a command's fields.

A source is read twice: checked as a whole before a model is loaded, and again, record by record,
while results are written, so that the size of a file of lines is no matter.
"""

import codecs
import dataclasses
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from bert_jax import config as config_lib
from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.tasks import answers, tables, tokens

Record = dict[str, Any]
Pair = tuple[Record, Record]  # an input as it stands there, and by the command's fields
_HEAD = 1 << 16  # bytes that tell a file's kind
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
CONLL_SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio")
CONLL = ("tags_column", "word_index", "tag_index")  # settings of the recipe, by which it is read


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


def parse_columns(text: str) -> dict[str, str]:
    """'text=review,text_pair=title' -> {'text': 'review', 'text_pair': 'title'}.

    Raises:
      UserError: no such field, or no column for one.
    """
    fields = {field for fields in FIELDS.values() for field in fields}
    known = sorted({*fields, *OPTIONAL, *CONLL})
    names = {}
    for part in filter(None, text.split(",")):
        field, _, column = part.partition("=")
        if field not in known or not column:
            raise UserError(
                f"--columns={text!r}: expected FIELD=COLUMN, by commas; fields are "
                f"{', '.join(known)}"
            )
        names[field] = column
    return names


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
        **{name: name for name in CONLL},
    }
    return {
        field: str(settings[name])
        for field, name in names.items()
        if settings.get(name) not in (None, "")
    }


def read(
    source: str, command: str, jsonl: bool, names: Callable[[], Mapping[str, str]], mask: str = ""
) -> Records:
    """The records of a source, all checked.

    Args:
      source: "-", a file, or a data set as `tables.load` takes it. What `finetune` reads is read
        by the same code: tables (.csv, .tsv), data sets, for `tag` CoNLL, for `answer` SQuAD
        (.json). Of any other file a line is a record, empty ones are skipped.
      command: a key of FIELDS.
      jsonl: whether lines are JSON objects; those of a .jsonl file always are.
      names: called where fields have names: field -> its column.
      mask: what every record must have in its text.

    Raises:
      UserError: nothing there, not UTF-8, no JSON, a field that is missing or of another type, or
        one that results would replace; names the line. Or a file of another command's kind.
    """
    if is_labelled(source, command):
        rows = _labelled(source, command, names())
        return _checked(source, command, {}, lambda: iter(rows), "", mask)
    if not jsonl and source.endswith((".json", *CONLL_SUFFIXES)):
        reader = "answer" if source.endswith(".json") else "tag"
        raise UserError(
            f"{source} is of a kind that `predict {reader}` reads: expected lines of text, .jsonl, "
            f".csv or .tsv (to take its lines as texts: predict {command} < {source})"
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

    digest = hashlib.sha256()
    with opened() as file:
        while block := file.read(1 << 20):
            digest.update(block)
    fields = names() if as_json else {}
    return _checked(name, command, fields, records, digest.hexdigest(), mask)


def is_labelled(source: str, command: str) -> bool:
    """Whether `source` is one of the kinds of labelled data that `finetune` reads, but JSON lines.

    A CoNLL file is known by its suffix, else by its lines: of one number of columns, the last a
    label of entities.
    """
    if tables.is_data_set(source) or source.endswith((".csv", ".tsv")):
        return True
    if command == "answer":
        return source.endswith(".json")
    if command != "tag" or source == "-" or files.is_stream(source):
        return False
    if source.endswith(CONLL_SUFFIXES):
        return True
    with _opener(source)() as file:
        block = file.read(_HEAD)
    lines = block.decode("utf-8-sig", "replace").split("\n")
    lines = lines if len(block) < _HEAD else lines[:-1]
    rows = [line.split("\t" if "\t" in line else None) for line in lines if line.strip()]
    widths = {len(row) for row in rows}
    labels = all(re.fullmatch(r"O|[BIESLU](-\S+)?", row[-1].strip()) for row in rows)
    return len(rows) > 1 and len(widths) == 1 and widths != {1} and labels


def _labelled(source: str, command: str, names: Mapping[str, str]) -> list[tuple[str, Record]]:
    """(place, record) of every example of labelled data; labels are not looked at."""
    column = {field: names.get(field, field) for field in (*FIELDS[command], *OPTIONAL)}
    if command == "answer":
        questions = answers.read_squad(source, max_skipped=0.0, training=False)
        return [
            (
                f"{source}: question {x.id!r}",
                {"id": x.id, "question": x.question, "context": x.context},
            )
            for x in questions
        ]
    if command == "tag":
        reading = config_lib.recipe("finetune/token_classification")
        reading.max_skipped = 0.0
        reading.words_column = names.get("tokens", reading.words_column)
        reading.tags_column = names.get("tags_column", reading.tags_column)
        reading.word_index = int(names.get("word_index", reading.word_index))
        reading.tag_index = int(names.get("tag_index", reading.tag_index))
        sentences = tokens.read_sentences(source, reading)
        return [(x.place, {"tokens": list(x.words)}) for x in sentences]
    given = [field for field in OPTIONAL if field in names]
    if command == "choose":
        several = [name.strip() for name in column["choices"].split(",")]
        wanted = {field: column[field] for field in ("context", *given)}
        rows = tables.read(source, [*wanted.values(), *several])
        return [
            (
                row.place,
                {field: row.values[name] for field, name in wanted.items()}
                | {"choices": [row.values[name] for name in several]},
            )
            for row in rows
        ]
    wanted = {field: column[field] for field in ("text", *given)}
    return [
        (row.place, {field: row.values[name] for field, name in wanted.items()})
        for row in tables.read(source, list(wanted.values()))
    ]


def _checked(
    name: str,
    command: str,
    columns: Mapping[str, str],
    placed: Callable[[], Iterator[tuple[str, Record]]],
    digest: str,
    mask: str,
) -> Records:
    def again() -> Iterator[Pair]:
        for place, record in placed():
            yield record, _fields(place, record, command, columns, mask)

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


def _fields(
    place: str, record: Record, command: str, columns: Mapping[str, str], mask: str
) -> Record:
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
        if (value := record.get(names[field])) is not None:
            if not isinstance(value, str):
                raise UserError(f"{place}: {names[field]!r} is not a text")
            fields[field] = value
    for field in wanted:
        value = record.get(names[field])
        if field == "choices" and value is None and "," in names[field]:  # in columns of their own
            value = [record.get(name.strip()) for name in names[field].split(",")]
        fields[field] = value
        if field in LISTS:
            fits = isinstance(value, list) and len(value) > 0 and None not in value
            expected = f"a list of {LISTS[field]}, not empty"
        else:
            fits = isinstance(value, str) and len(value) > 0
            expected = "a text, not empty"
        if not fits:
            raise UserError(f"{place}: {command} needs the field {names[field]!r} ({expected})")
    if mask and mask not in fields["text"] + fields.get("text_pair", ""):
        raise UserError(f"{place}: no {mask} in {fields['text'][:80]!r}")
    return fields
