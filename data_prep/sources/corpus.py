"""Where text comes from: SOURCE strings to streams of documents, and documents to sentences.

Reading is cut in two so that it can be spread over processes. `list_parts` turns a SOURCE into
parts (a file, or a run of small ones), `read_units` turns a part into units of about 4 MB of raw
text, and `parse_unit` decodes a unit into documents. Units depend on the input alone, never on the
number of workers: they are what is computed, stored and resumed.
"""

import dataclasses
import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief
from data_prep.sources import compression, parquet, pydocs, streams

UNIT_BYTES = 4 << 20
# A longer document is cut: it bounds memory where a whole file is one line (text8, enwik9).
MAX_DOCUMENT_BYTES = 16 << 20

TEXT, LINES, JSON = "text", "lines", "json"
_PARQUET, _STREAM = "parquet", "stream"
_KINDS = {".txt": TEXT, ".text": TEXT, ".jsonl": JSON, ".json": JSON, ".parquet": _PARQUET}
# Sources that are not files: what a SOURCE begins with -> texts of (SOURCE, field), in order. A new
# one is a row here, and a line in the epilog of data_prep.build's help.
_STREAMS: dict[str, Callable[[str, str], Iterator[str]]] = {
    "hf:": streams.hf_texts,
    "tfds:": streams.tfds_texts,
    "pydocs": pydocs.texts,
}

_BLANK_LINE_BYTES = re.compile(rb"(?:\r\n|\r(?!\n)|\n)[ \t]*(?:\r\n|\r(?!\n)|\n)")


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a SOURCE that is read on its own: files of one kind, or a stream of documents.

    Attributes:
      source: index of the SOURCE it belongs to.
      index: its place in that source.
      kind: 'text', 'lines' (text files with a document per line), 'json', 'parquet' or 'stream'.
      paths: the files in reading order; for a stream the SOURCE string itself.
      num_bytes: the files' size on disk (0 for a stream).
      field: the name of the text field in JSON and Parquet.
    """

    source: int
    index: int
    kind: str
    paths: tuple[str, ...]
    num_bytes: int = 0
    field: str = "text"


@dataclasses.dataclass(frozen=True)
class Block:
    """Raw bytes of a file, cut between documents, and the number of its first line.

    `is_cut` says that it ends inside a document, which was too long.
    """

    path: str
    data: bytes
    first_line: int = 1
    is_cut: bool = False
    disk_bytes: int = 0  # how far reading it took us in the file, for progress


@dataclasses.dataclass(frozen=True)
class Unit:
    """About 4 MB of text in reading order: raw blocks of files, or texts already decoded."""

    name: str
    kind: str
    blocks: tuple[Block, ...] = ()
    texts: tuple[str, ...] = ()
    field: str = "text"

    @property
    def disk_bytes(self) -> int:
        return sum(block.disk_bytes for block in self.blocks)


def list_parts(
    sources: Iterable[str], field: str = "text", document_per_line: bool = False
) -> list[Part]:
    """Finds the files of every SOURCE, in sorted order, small files put together.

    Args:
      sources: SOURCE strings.
      field: the text field in JSON and Parquet.
      document_per_line: in text files every line is a document, instead of what lies between blank
        lines.

    Raises:
      UserError: a path or glob without files, a file of unknown kind, or no source at all.
    """
    parts: list[Part] = []
    for source, spec in enumerate(sources):
        found = _files(spec, document_per_line)
        if found is None:
            parts.append(Part(source, 0, _STREAM, (spec,), field=field))
            continue
        run: list[str] = []
        run_kind, run_bytes, index = "", 0, 0
        for path, kind in found:
            size, _ = files.size_and_time(path)
            # A file with several units stands alone; small ones share a unit.
            if run and (kind != run_kind or run_bytes + size > UNIT_BYTES or kind == _PARQUET):
                parts.append(Part(source, index, run_kind, tuple(run), run_bytes, field))
                run, run_bytes, index = [], 0, index + 1
            run.append(str(path))
            run_kind, run_bytes = kind, run_bytes + size
        parts.append(Part(source, index, run_kind, tuple(run), run_bytes, field))
    if not parts:
        raise UserError("no input: give --input=SOURCE[,SOURCE…]")
    return parts


def _files(spec: str, document_per_line: bool) -> list[tuple[epath.Path, str]] | None:
    """The files of a SOURCE and their kinds; None for a stream."""
    if spec.startswith("hf:"):
        # Read here, text stays text; datasets makes timestamps of ISO dates. A line of a text file
        # is an example there.
        paths = [epath.Path(path) for path in streams.local_files(spec) or ()]
        kinds = {path: kind for path in paths if (kind := _kind(path))}
        if not paths or len(kinds) < len(paths):
            return None
        return [(path, LINES if kind == TEXT else kind) for path, kind in kinds.items()]
    if _stream_of(spec):
        return None
    found = []
    for path in _expand(spec):
        kind = _kind(path)
        if kind is None:
            raise UserError(
                f"input {path}: unknown kind of file; the name must end in "
                f"{', '.join(_KINDS)}, optionally followed by .gz or .zst"
            )
        found.append((path, LINES if kind == TEXT and document_per_line else kind))
    return found


def _stream_of(spec: str) -> Callable[[str, str], Iterator[str]] | None:
    """What reads a SOURCE that is no file; None for a path or glob."""
    prefix, colon, _ = spec.partition(":")
    return _STREAMS.get(prefix + colon) or _STREAMS.get(prefix)


def _expand(spec: str) -> list[epath.Path]:
    path = epath.Path(spec)
    if any(c in spec for c in "*?[") and not os.path.isfile(spec):  # a name may have brackets
        paths = sorted(p for p in _glob(spec) if p.is_file())
        if not paths:
            raise UserError(f"input {spec}: no file matches this glob")
        return paths
    if path.is_dir():
        raise UserError(f"input {spec} is a directory: give its files, such as {spec}/*.jsonl.gz")
    if not path.exists():
        raise UserError(
            f"input {spec} does not exist: expected a file or glob "
            "(.txt, .jsonl, .json, .parquet, each also .gz or .zst), hf:NAME, tfds:NAME or pydocs; "
            r"a comma in a name is written as \,"
        )
    return [path]


def _glob(spec: str) -> Iterable[epath.Path]:
    if "**" in spec:  # etils refuses it: on a store it would take thousands of requests
        if files.is_remote(spec):
            raise UserError(
                f"input {spec}: ** is for local files; give a glob for each depth, with commas "
                "between them"
            )
        return {epath.Path(path) for path in glob.glob(spec, recursive=True)}
    # The part before the first wildcard is the directory to start from.
    fixed = re.split(r"[*?\[]", spec, maxsplit=1)[0].rpartition("/")[0]
    root = epath.Path(fixed or ("/" if spec.startswith("/") else "."))
    pattern = spec[len(fixed) :].lstrip("/")
    return root.glob(pattern) if root.exists() else ()


def _kind(path: epath.Path) -> str | None:
    name = path.name
    for suffix in compression.SUFFIXES:
        name = name.removesuffix(suffix)
    return _KINDS.get("." + name.rpartition(".")[2] if "." in name else "")


def read_units(part: Part) -> Iterator[Unit]:
    """Reads a part once, in order, and yields its units; memory is a unit or two."""
    for index, unit in enumerate(_units(part)):
        yield dataclasses.replace(unit, name=f"{part.source:03d}-{part.index:06d}-{index:06d}")


def _units(part: Part) -> Iterator[Unit]:
    empty = Unit("", part.kind, field=part.field)
    if part.kind in (_STREAM, _PARQUET):
        yield from _pack_texts(empty, _texts(part))
    elif len(part.paths) > 1:
        blocks = tuple(block for path in part.paths for block in _blocks(path, part.kind))
        yield dataclasses.replace(empty, blocks=blocks)
    else:
        for block in _blocks(part.paths[0], part.kind):
            yield dataclasses.replace(empty, blocks=(block,))


def _pack_texts(empty: Unit, texts: Iterable[str]) -> Iterator[Unit]:
    run: list[str] = []
    size = 0
    for text in texts:
        run.append(text)
        size += len(text)
        if size >= UNIT_BYTES:
            yield dataclasses.replace(empty, texts=tuple(run))
            run, size = [], 0
    if run:
        yield dataclasses.replace(empty, texts=tuple(run))


def _texts(part: Part) -> Iterator[str]:
    if part.kind == _PARQUET:
        for path in part.paths:
            yield from parquet.texts(path, part.field)
        return
    spec = part.paths[0]
    read = _stream_of(spec)
    assert read, spec
    try:
        yield from read(spec, part.field)
    except UserError:
        raise
    except Exception as error:  # a lost connection, a corrupted file: unrelated types
        raise UserError(f"input {spec} cannot be read: {brief(error)}") from None


def _blocks(path: str, kind: str) -> Iterator[Block]:
    """Cuts a file between documents into blocks of UNIT_BYTES or somewhat more."""
    try:
        with epath.Path(path).open("rb") as raw, compression.decompressed(path, raw) as file:
            rest, line, first, position = b"", 1, True, 0
            while True:
                data = _read(file, UNIT_BYTES)
                at_end = len(data) < UNIT_BYTES
                if first:
                    data, first = data.removeprefix(b"\xef\xbb\xbf"), False
                data = rest + data
                if kind == JSON and data.lstrip()[:1] == b"[" and line == 1:
                    data += file.read()  # one JSON array: parsed as a whole
                    yield Block(path, data, disk_bytes=raw.tell())
                    return
                cut = len(data) if at_end else _last_boundary(data, kind)
                is_cut = not cut and kind != JSON and len(data) >= MAX_DOCUMENT_BYTES
                if is_cut:
                    cut = _last_blank(data)
                if not cut and not at_end:
                    rest = data
                    continue
                if data[:cut].strip():
                    yield Block(path, data[:cut], line, is_cut, raw.tell() - position)
                    position = raw.tell()
                line += data.count(b"\n", 0, cut)
                rest = data[cut:]
                if at_end:
                    return
    except compression.UNREADABLE as error:
        raise UserError(f"input {path} cannot be read: {error}") from None


def _read(file: io.BufferedIOBase, size: int) -> bytes:
    """Reads exactly `size` bytes or to the end: decompressors return less at a time."""
    chunks = []
    while size and (chunk := file.read(min(size, compression.READ_BYTES))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _last_boundary(data: bytes, kind: str) -> int:
    """The last place in `data` where a document ends; 0 if there is none."""
    if kind in (JSON, LINES):
        return data.rfind(b"\n") + 1
    # Look at the last stretch first: scanning 4 MB for every blank line takes longer.
    for start in (max(0, len(data) - (64 << 10)), 0):
        # A separator that touches the end may go on in the bytes not read yet, which is harmless:
        # what follows begins with blank lines.
        ends = [match.end() for match in _BLANK_LINE_BYTES.finditer(data, start)]
        if ends:
            return ends[-1]
    return 0


def _last_blank(data: bytes) -> int:
    """The last place between two words of a document; without blanks, between two characters."""
    if blank := max(data.rfind(b" "), data.rfind(b"\n")) + 1:
        return blank
    end = len(data)
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:  # a later byte of a character
        end -= 1
    # The byte before says how many follow it: 0 for ASCII, 1, 2 or 3.
    follow = (data[end - 1] >= 0xC0) + (data[end - 1] >= 0xE0) + (data[end - 1] >= 0xF0)
    return len(data) if len(data) - end == follow else end - 1
