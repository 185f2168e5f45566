"""Labelled data as rows of named columns: CSV, TSV and JSONL files, data sets (hf:, tfds:)."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.cli import UserError, brief

FORMATS = (".csv", ".tsv", ".jsonl")
DATA_SETS = ("hf:", "tfds:")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row; `place` says where it stands ("train.csv:12"), for messages."""

    place: str
    values: dict[str, Any]


def read(source: str, columns: Sequence[str]) -> list[Row]:
    """Reads the wanted columns of every row, as strings; an absent value (null) is "".

    Args:
      source: a .csv (quoted as Excel and pandas write it), .tsv (no quoting, as GLUE's files) or
        .jsonl file, the first two with a header line; or a data set, as `load` takes it.
      columns: names that must be there.

    Raises:
      UserError: nothing there, another format, not UTF-8, a column missing, a broken row, a list or
        an object for a value, no rows.
    """
    rows = list(_data_set_rows(source) if is_data_set(source) else _file_rows(source, columns))
    if not rows:
        raise UserError(f"{source} has no rows")
    for row in rows:  # the first row of a table, any object of a JSONL file
        _check_columns(row.place if source.endswith(".jsonl") else source, row.values, columns)
    return [
        Row(row.place, {name: _text(row.place, name, row.values[name]) for name in columns})
        for row in rows
    ]


def _text(place: str, column: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise UserError(
            f"{place}: column {column!r} has a {'list' if isinstance(value, list) else 'object'}, "
            f"expected one text or number: {str(value)[:80]}"
        )
    return "" if value is None else str(value)


def _check_columns(place: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise UserError(
            f"{place} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, present))} (name yours by the config's …_column fields)"
        )


def read_text(source: str, what: str = "file") -> str:
    """The text of a file, without a byte-order mark.

    Raises:
      UserError: it does not exist or is not UTF-8.
    """
    path = epath.Path(source)
    if not path.is_file():
        raise UserError(f"{what} {source} does not exist")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text ({error})") from None


def _file_rows(source: str, columns: Sequence[str]) -> Iterator[Row]:
    path = epath.Path(source)
    if path.suffix not in FORMATS:
        raise UserError(
            f"{source}: expected a file that ends in {', '.join(FORMATS)}, or hf:NAME, tfds:NAME"
        )
    text = read_text(source)
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield Row(f"{source}:{number}", _json_object(f"{source}:{number}", line))
        return
    # newline="": the csv module itself finds the ends of rows, which may hold quoted newlines.
    lines = io.StringIO(text, newline="")
    if path.suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than a long document
    try:
        header = next(reader, [])
        _check_columns(source, header, columns)
        while True:
            place = f"{source}:{reader.line_num + 1}"
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:  # an empty line
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{place} has {len(cells)} cells, the header has {len(header)}: "
                    f"{', '.join(header)}"
                )
            yield Row(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{source}:{reader.line_num} is not valid CSV ({error})") from None


def parse_json(text: str) -> Any:
    """Any JSON value; halves of a character (a cut emoji) become U+FFFD.

    Raises:
      ValueError: it is not JSON.
    """

    def mended(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, list):
            return [mended(part) for part in value]
        if isinstance(value, dict):
            return {mended(name): mended(part) for name, part in value.items()}
        return value

    value = json.loads(text)
    return mended(value) if re.search(r"\\u[dD][89a-fA-F]", text) else value


def _json_object(place: str, line: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{place} is not a JSON object")
    return values


def is_data_set(source: str) -> bool:
    """Whether `source` names a data set, not a file."""
    return source.startswith(DATA_SETS)


def load(source: str) -> tuple[Iterable[dict[str, Any]], dict[str, Sequence[str]]]:
    """The rows of a data set, and the class names of the columns that hold classes.

        load("hf:glue/sst2:train") -> [{"sentence": "…", "label": 1}, …],
                                      {"label": ["negative", "positive"]}

    Args:
      source: "hf:NAME[/CONFIG]:SPLIT" of the Hugging Face hub, or
        "tfds:NAME[/CONFIG][:VERSION]:SPLIT" of TensorFlow Datasets.

    Raises:
      UserError: no split named, the extra not installed, or no such data set or split.
    """
    rows, features = _load_hf(source) if source.startswith("hf:") else _load_tfds(source)
    names = {}
    for column, feature in features.items():
        # A class, or a list of classes.
        found = getattr(feature, "names", None) or getattr(
            getattr(feature, "feature", None), "names", None
        )
        if found:
            names[column] = found
    return rows, names


def _load_hf(source: str) -> tuple[Iterable[dict[str, Any]], Any]:
    name, _, split = source.removeprefix("hf:").partition(":")
    if not split:
        raise UserError(f"{source}: name a split, e.g. {source}:train")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source} needs datasets: pip install 'bert_jax[hf]'") from None
    # "glue/sst2" may be a repository, or a data set and its configuration.
    head, _, tail = name.rpartition("/")
    reasons = []
    for arguments in ([(head, tail)] if head else []) + [(name,)]:
        try:
            data = datasets.load_dataset(*arguments, split=split)
            return data, data.features
        except Exception as error:  # the hub client raises a dozen unrelated types
            reasons.append(brief(error))
    raise UserError(f"{source} could not be loaded ({'; or '.join(dict.fromkeys(reasons))})")


def _load_tfds(source: str) -> tuple[Iterable[dict[str, Any]], Any]:
    """Through the data set's data source, which needs no TensorFlow."""
    # A colon before a digit belongs to the version.
    match = re.fullmatch(r"tfds:([^:\[]+(?::\d[\w.*]*)?):(.+)", source)
    if not match:
        raise UserError(f"{source}: name a split, e.g. {source}:train")
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError(f"{source} needs: pip install 'bert_jax[tfds]'") from None
    try:
        data = tensorflow_datasets.data_source(match[1], split=match[2])
    except Exception as error:  # not found, not prepared, no network: unrelated types
        raise UserError(f"{source} could not be loaded ({brief(error)})") from None
    return (_plain(data[i]) for i in range(len(data))), data.dataset_info.features


def _plain(value: Any) -> Any:
    """Bytes and arrays of TensorFlow Datasets as strings, lists and numbers."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _data_set_rows(source: str) -> Iterator[Row]:
    rows, names = load(source)
    for number, values in enumerate(rows):
        row = dict(values)
        for column in names.keys() & row.keys():
            if isinstance(row[column], int):
                # -1 is the data sets' mark of a row without a label.
                row[column] = names[column][row[column]] if row[column] >= 0 else None
        yield Row(f"{source} row {number}", row)
