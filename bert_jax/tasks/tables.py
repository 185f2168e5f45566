"""Labelled data as rows of named columns: CSV, TSV and JSONL files, data sets (hf:, tfds:)."""

import csv
import dataclasses
import io
import json
import logging
import math
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


class Skipped:
    """Rows of a source that cannot be used: counted, the first few named, refused if too many.

    Public data sets have a few without a label or a text; BERT's own scripts skip them too.

    Args:
      most: the share of the rows that may be skipped (config.max_skipped).
    """

    NAMED = 3

    def __init__(self, source: str, most: float):
        if not 0 <= most <= 1:
            raise UserError(f"config.max_skipped={most}, expected a share from 0 to 1")
        self._source, self._most = source, most
        self._reasons: list[str] = []

    @property
    def count(self) -> int:
        return len(self._reasons)

    def add(self, reason: str) -> None:
        """Skips a row, e.g. because "train.csv:7 has no label (column 'label')"."""
        self._reasons.append(reason)

    def check(self, used: int) -> None:
        """Warns of what was skipped, once all rows are read; `used` are those that were not.

        Raises:
          UserError: more than the share are skipped, or none is left.
        """
        count = self.count
        if not count:
            return
        named = "; ".join(self._reasons[: self.NAMED])
        named += f"; and {count - self.NAMED:,} more" if count > self.NAMED else ""
        rows = f"{count:,} of {count + used:,} rows"
        if not used or count > self._most * (count + used):
            raise UserError(
                f"{self._source}: {rows} cannot be used, more than config.max_skipped={self._most} "
                f"allows: {named}"
            )
        logging.warning(f"{self._source}: skipping {rows}: {named}")


def is_missing(value: Any) -> bool:
    """Whether a value is null or NaN, which pandas writes for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def read(source: str, columns: Sequence[str], lists: Sequence[str] = ()) -> list[Row]:
    """Reads the wanted columns of every row, as strings; a missing value (null, NaN) is "".

    Args:
      source: a .csv (quoted as Excel and pandas write it), .tsv (no quoting, as GLUE's files) or
        .jsonl file, the first two with a header line; or a data set, as `load` takes it.
      columns: names that must be there.
      lists: those of them that hold lists, which are left as they are; None where missing.

    Raises:
      UserError: nothing there, another format, not UTF-8, a column that is missing or there
        twice, a broken row, a list or an object for a value or none for a list, no rows.
    """
    rows = list(_data_set_rows(source) if is_data_set(source) else _file_rows(source, columns))
    if not rows:
        raise UserError(f"{source} has no rows")
    place = rows[0].place if source.endswith(".jsonl") else source
    _check_columns(place, [*rows[0].values], columns)
    result = []
    for row in rows:  # objects of a JSONL file may leave out what they have no value for
        values = {
            name: (_list if name in lists else _text)(row.place, name, row.values.get(name))
            for name in columns
        }
        result.append(Row(row.place, values))
    return result


def _text(place: str, column: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise UserError(
            f"{place}: column {column!r} has a {'list' if isinstance(value, list) else 'object'}, "
            f"expected one text or number: {str(value)[:80]}"
        )
    return "" if is_missing(value) else str(value)


def _list(place: str, column: str, value: Any) -> list[Any] | None:
    if is_missing(value):
        return None
    if not isinstance(value, list) or any(isinstance(part, list | dict) for part in value):
        raise UserError(f"{place}: column {column!r} has {str(value)[:80]!r}, expected a list")
    return value


def _check_columns(place: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing and not present:
        raise UserError(f"{place} is empty: expected the columns {', '.join(map(repr, missing))}")
    if missing:
        other = re.search("[;\t|]", present[0]) if len(present) == 1 else None
        if other:
            how = (
                f"they seem to be separated by {other[0]!r}: expected commas in .csv, tabs in .tsv"
            )
        else:
            how = (
                "name yours: --config.…_column of finetune, --…_column of evaluate, --columns of "
                "predict"
            )
        raise UserError(
            f"{place} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, present))} ({how})"
        )
    if twice := [name for name in wanted if list(present).count(name) > 1]:
        raise UserError(
            f"{place} has the column {twice[0]!r} {list(present).count(twice[0])} times: rename "
            "or remove all but one"
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
    """Any JSON value; NaN is null, halves of a character (a cut emoji) become U+FFFD.

    Raises:
      ValueError: it is not JSON, nested too deeply, or an object has a name twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"an object has the name {twice!r} twice")
        return values

    def constant(name: str) -> float | None:
        return None if name == "NaN" else float(name)

    def mended(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, list):
            return [mended(part) for part in value]
        if isinstance(value, dict):
            return {mended(name): mended(part) for name, part in value.items()}
        return value

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
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

        load("hf:nyu-mll/glue/sst2:train") -> [{"sentence": "…", "label": 1}, …],
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
    # "a/b" may be a repository, or an old data set and its configuration; "a/b/c" is the latter.
    head, _, tail = name.rpartition("/")
    meanings = [(name,), (head, tail)] if head else [(name,)]
    reasons = []
    for arguments in meanings if head.count("/") == 0 else reversed(meanings):
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
            elif isinstance(row[column], list):
                row[column] = [names[column][x] if x >= 0 else None for x in row[column]]
        yield Row(f"{source} row {number}", row)
