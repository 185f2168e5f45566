"""Sources that are not files: Hugging Face datasets, streamed, and TensorFlow Datasets."""

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.cli import UserError, brief

_log = logging.getLogger(__name__)
# What datasets takes for data in a directory, with or without a compression's suffix.
_DATA_FILE = re.compile(r".+\.(jsonl?|ndjson|parquet|txt|csv|tsv|arrow|xml)(\.\w+)?").fullmatch
_NO_DATA = ("README.md", "config.json", "dataset_info.json", "dataset_infos.json")
_DEFAULT_SPLIT = "train"
_AT_ONCE = 256  # elements fetched together


def parse_hf(spec: str) -> tuple[str, str]:
    """'hf:wikimedia/wikipedia/20231101.en' -> ('wikimedia/wikipedia/20231101.en', 'train')."""
    name, _, split = spec.removeprefix("hf:").partition(":")
    if not name:
        raise UserError(f"input {spec}: expected hf:NAME[/CONFIG][:SPLIT]")
    return name, split or _DEFAULT_SPLIT


def parse_tfds(spec: str) -> tuple[str, str]:
    """'tfds:wiki/20230601.en:1.0.0:train[:1%]' -> ('wiki/20230601.en:1.0.0', 'train[:1%]').

    A colon before a digit belongs to the version.
    """
    match = re.fullmatch(r"tfds:([^:\[]+(?::\d[\w.*]*)?)(?::(.+))?", spec)
    if not match:
        raise UserError(f"input {spec}: expected tfds:NAME[/CONFIG][:VERSION][:SPLIT]")
    return match.group(1), match.group(2) or _DEFAULT_SPLIT


def hf_texts(spec: str, field: str) -> Iterator[str]:
    """Streams a data set of the Hugging Face hub, or of a local directory, in its own order."""
    datasets = _datasets(spec)
    name, split = parse_hf(spec)
    parts = name.split("/")
    # Two parts are an owner and a name, or a name without owner and a configuration.
    choices: list[tuple[str, str | None]] = [(name, None)]
    if not epath.Path(name).exists() and len(parts) > 1:
        configured = ("/".join(parts[:-1]), parts[-1])
        choices = [configured] if len(parts) == 3 else [(name, None), configured]
    rows, errors = None, []
    for path, config in choices:
        try:
            rows = datasets.load_dataset(path, config, split=split, streaming=True)
        except Exception as error:  # the hub client raises a dozen unrelated types
            errors.append(brief(error))
        # Without a connection the second choice would only wait as long again.
        if rows is not None or "ConnectionError" in errors[-1]:
            break
    if rows is None:
        raise UserError(f"input {spec} could not be loaded: {'; '.join(errors)}")
    for row in rows:
        yield _text(row, field, spec)


def _datasets(spec: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"input {spec} needs: pip install 'bert_jax[hf]'") from None
    return datasets


def local_files(spec: str) -> list[str] | None:
    """The files of a split of 'hf:DIRECTORY[:SPLIT]', chosen as datasets does; None if it is none.

    datasets leaves out files that name no split where others do: they are named in a warning.
    """
    name, split = parse_hf(spec)
    if not os.path.isdir(name):
        return None
    try:
        builder = _datasets(spec).load_dataset_builder(name)
    except UserError:
        raise
    except Exception:  # reading says what is wrong with it
        return None
    of_split = {key: list(paths) for key, paths in (builder.config.data_files or {}).items()}
    if split not in of_split or not all(map(os.path.exists, of_split[split])):
        return None
    found = {
        os.path.relpath(os.path.join(folder, file), name)
        for folder, _, files in os.walk(name)
        for file in files
        if _DATA_FILE(file) and file not in _NO_DATA and not file.startswith(".")
    }
    taken = {os.path.relpath(path, name) for paths in of_split.values() for path in paths}
    said = f"input {spec}: split {split} has {len(of_split[split])} of {len(found)} data files"
    if skipped := sorted(found - taken):
        shown = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        _log.warning(
            f"{said}; {len(skipped)} belong to no split and are skipped ({shown}): give the files "
            f"themselves to read all, as in {name}/*.jsonl"
        )
    else:
        _log.info(said)
    return of_split[split]


def tfds_texts(spec: str, field: str) -> Iterator[str]:
    """Reads a TensorFlow Datasets data set through its data source, which needs no TensorFlow."""
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError(f"input {spec} needs: pip install 'bert_jax[tfds]'") from None
    name, split = parse_tfds(spec)
    try:
        source = tensorflow_datasets.data_source(name, split=split)
    except Exception as error:  # not found, not prepared, no network: unrelated types
        raise UserError(f"input {spec} could not be loaded: {brief(error)}") from None
    for start in range(0, len(source), _AT_ONCE):
        indices = range(start, min(start + _AT_ONCE, len(source)))
        for row in source.__getitems__(list(indices)):
            yield _text(row, field, spec)


def _text(row: dict, field: str, spec: str) -> str:
    if field not in row:
        raise UserError(
            f"input {spec}: no field '{field}'; the fields are {', '.join(map(repr, row))} "
            "(choose one with --field=NAME)"
        )
    value = row[field]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if not isinstance(value, str | None):
        raise UserError(
            f"input {spec}: the field '{field}' holds a {type(value).__name__}, not text"
        )
    return value or ""
