"""Where text comes from: SOURCE strings to streams of documents, and documents to sentences.

Reading is cut in two so that it can be spread over processes. `list_parts` turns a SOURCE into
parts (a file, or a run of small ones), `read_units` turns a part into units of about 4 MB of raw
text, and `parse_unit` decodes a unit into documents. Units depend on the input alone, never on the
number of workers: they are what is computed, stored and resumed.
"""

import dataclasses
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import sentencex
import zstandard
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief

UNIT_BYTES = 4 << 20
# A longer document is cut: it bounds memory where a whole file is one line (text8, enwik9).
MAX_DOCUMENT_BYTES = 16 << 20
# Share of a unit's bytes that may fail to decode as UTF-8 before the run stops. A file in Latin-1
# or UTF-16 is far above it, a stray byte in a crawl far below.
MAX_DECODE_ERRORS = 1e-3
# So many in a unit are let through whatever their share: one in a short file is still a stray byte.
MAX_STRAY_BYTES = 10
# Share of a block's bytes that may be NUL, which UTF-16 is full of and decodes as UTF-8.
MAX_NUL_BYTES = 0.01

_READ_BYTES = 1 << 20
# Little: all that it decompresses to is held at once.
_ZSTD_READ_BYTES = 64 << 10
# The most that the format has, as of zstd --long=31; by default 128 MB would be.
_ZSTD_WINDOW_BYTES = 1 << 31
# What the file system and the decompressors raise at a file that is damaged or cut off.
_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
# JSONDecodeError is a ValueError; so is that of a number of thousands of digits.
_NOT_JSON = (ValueError, RecursionError)
_TEXT, _JSON, _PARQUET = "text", "json", "parquet"
_KINDS = {".txt": _TEXT, ".text": _TEXT, ".jsonl": _JSON, ".json": _JSON, ".parquet": _PARQUET}
_COMPRESSIONS = (".gz", ".zst")
_STREAMS = ("hf:", "tfds:", "pydocs:")

_BLANK_LINE_BYTES = re.compile(rb"(?:\r\n|\r(?!\n)|\n)[ \t]*(?:\r\n|\r(?!\n)|\n)")
_BLANK_LINE = re.compile(r"\n\s*\n")
_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # with lone surrogates


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: paragraphs separated by newlines; `id` names it where the source does."""

    text: str
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a SOURCE that is read on its own: files of one kind, or a stream of documents.

    Attributes:
      source: index of the SOURCE it belongs to.
      index: its place in that source.
      kind: 'text', 'json', 'parquet' or 'stream'.
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
    """Raw bytes of a file, cut between documents, and the number of its first line."""

    path: str
    data: bytes
    first_line: int = 1
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


@dataclasses.dataclass
class ParseCounts:
    """What was met while parsing; sums over units make up the manifest's statistics."""

    source_bytes: int = 0
    decode_errors: int = 0
    empty_documents: int = 0


def list_parts(sources: Iterable[str], field: str = "text") -> list[Part]:
    """Finds the files of every SOURCE, in sorted order, small files put together.

    Raises:
      UserError: a path or glob without files, a file of unknown kind, or no source at all.
    """
    parts: list[Part] = []
    for source, spec in enumerate(sources):
        if spec.startswith(_STREAMS) or spec == "pydocs":
            parts.append(Part(source, 0, "stream", (spec,), field=field))
            continue
        run: list[str] = []
        run_kind, run_bytes, index = "", 0, 0
        for path in _expand(spec):
            kind = _kind(path)
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


def _expand(spec: str) -> list[epath.Path]:
    path = epath.Path(spec)
    if any(c in spec for c in "*?["):
        paths = sorted(p for p in _glob(spec) if p.is_file())
        if not paths:
            raise UserError(f"input {spec}: no file matches this glob")
        return paths
    if path.is_dir():
        raise UserError(f"input {spec} is a directory: give its files, such as {spec}/*.jsonl.gz")
    if not path.exists():
        raise UserError(
            f"input {spec} does not exist: expected a file or glob "
            "(.txt, .jsonl, .json, .parquet, each also .gz or .zst), hf:NAME, tfds:NAME or pydocs"
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


def _kind(path: epath.Path) -> str:
    name = path.name
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    kind = _KINDS.get("." + name.rpartition(".")[2] if "." in name else "")
    if kind is None:
        raise UserError(
            f"input {path}: unknown kind of file; the name must end in "
            f"{', '.join(_KINDS)}, optionally followed by .gz or .zst"
        )
    return kind


def read_units(part: Part) -> Iterator[Unit]:
    """Reads a part once, in order, and yields its units; memory is a unit or two."""
    for index, unit in enumerate(_units(part)):
        yield dataclasses.replace(unit, name=f"{part.source:03d}-{part.index:06d}-{index:06d}")


def _units(part: Part) -> Iterator[Unit]:
    empty = Unit("", part.kind, field=part.field)
    if part.kind in ("stream", _PARQUET):
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
            yield from _parquet_texts(path, part.field)
        return
    spec = part.paths[0]
    # Imported here: each pulls in what only its users need.
    if spec.startswith("pydocs"):
        from data_prep.sources import pydocs

        yield from (document.text for document in pydocs.documents(pydocs.parse_max_mb(spec)))
    else:
        from data_prep.sources import streams

        read = streams.hf_texts if spec.startswith("hf:") else streams.tfds_texts
        try:
            yield from read(spec, part.field)
        except UserError:
            raise
        except Exception as error:  # a lost connection, a damaged file: unrelated types
            raise UserError(f"input {spec} cannot be read: {brief(error)}") from None


def _decompressed(path: str, file: io.BufferedIOBase) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFrames(file), _READ_BYTES)
    return file


class _ZstdFrames(io.RawIOBase):
    """Decompresses frame after frame; EOFError, as from gzip, where the file ends inside one.

    zstandard's own stream_reader takes such a file for whole.
    """

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None  # None between frames
        self._compressed, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._output:
            data = self._compressed or self._file.read(_ZSTD_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends before its last zstd frame does")
                return 0
            frame = self._frame or self._decompressor.decompressobj()
            self._output = memoryview(frame.decompress(data))
            self._compressed = frame.unused_data
            self._frame = None if frame.eof else frame
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _blocks(path: str, kind: str) -> Iterator[Block]:
    """Cuts a file between documents into blocks of UNIT_BYTES or somewhat more."""
    try:
        with epath.Path(path).open("rb") as raw, _decompressed(path, raw) as file:
            rest, line, first, position = b"", 1, True, 0
            while True:
                data = _read(file, UNIT_BYTES)
                at_end = len(data) < UNIT_BYTES
                if first:
                    data, first = data.removeprefix(b"\xef\xbb\xbf"), False
                data = rest + data
                if kind == _JSON and data.lstrip()[:1] == b"[" and line == 1:
                    data += file.read()  # one JSON array: parsed as a whole
                    yield Block(path, data, 1, raw.tell())
                    return
                cut = len(data) if at_end else _last_boundary(data, kind)
                if not cut and not at_end:
                    rest = data
                    continue
                if data[:cut].strip():
                    yield Block(path, data[:cut], line, raw.tell() - position)
                    position = raw.tell()
                line += data.count(b"\n", 0, cut)
                rest = data[cut:]
                if at_end:
                    return
    except _UNREADABLE as error:
        raise UserError(f"input {path} cannot be read: {error}") from None


def _read(file: io.BufferedIOBase, size: int) -> bytes:
    """Reads exactly `size` bytes or to the end: decompressors return less at a time."""
    chunks = []
    while size and (chunk := file.read(min(size, _READ_BYTES))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _last_boundary(data: bytes, kind: str) -> int:
    """The last place in `data` where a document ends; 0 if there is none."""
    if kind == _JSON:
        return data.rfind(b"\n") + 1
    # Look at the last stretch first: scanning 4 MB for every blank line takes longer.
    for start in (max(0, len(data) - (64 << 10)), 0):
        # A separator that touches the end may go on in the bytes not read yet, which is harmless:
        # what follows begins with blank lines.
        ends = [match.end() for match in _BLANK_LINE_BYTES.finditer(data, start)]
        if ends:
            return ends[-1]
    if len(data) < MAX_DOCUMENT_BYTES:
        return 0
    return max(data.rfind(b" "), data.rfind(b"\n")) + 1 or len(data)


def parse_unit(
    unit: Unit, max_decode_errors: float = MAX_DECODE_ERRORS
) -> tuple[list[str], ParseCounts]:
    """Decodes a unit into the cleaned texts of its documents, empty ones left out.

    Block(b'One.\\r\\nTwo.\\n\\nThree\\x00.\\n') -> ['One.\\nTwo.', 'Three.']

    Raises:
      UserError: not UTF-8, not JSON, or without the text field.
    """
    counts = ParseCounts()
    texts: list[str] = list(unit.texts)
    counts.source_bytes += sum(len(text.encode(errors="replace")) for text in texts)
    counts.source_bytes += sum(len(block.data) for block in unit.blocks)
    decoded = [_decode(block) for block in unit.blocks]
    _require_utf8(unit, [errors for _, errors in decoded], max_decode_errors)
    counts.decode_errors = sum(errors for _, errors in decoded)
    for block, (text, _) in zip(unit.blocks, decoded, strict=True):
        if unit.kind == _TEXT:
            texts.extend(_BLANK_LINE.split(_NEWLINES.sub("\n", text)))
        else:
            texts.extend(_json_texts(block, text, unit.field))
    cleaned = [clean(text) for text in texts]
    documents = [text for text in cleaned if text]
    counts.empty_documents = len(cleaned) - len(documents)
    return documents, counts


def _decode(block: Block) -> tuple[str, int]:
    """The text, and how many bytes of it did not decode."""
    _refuse_utf16(block)
    try:
        return block.data.decode(), 0
    except UnicodeDecodeError:
        text = block.data.decode(errors="replace")
        return text, text.count("\ufffd") - block.data.count("\ufffd".encode())


def _require_utf8(unit: Unit, errors_B: Sequence[int], max_share: float) -> None:
    """Raises UserError for too many bytes that did not decode.

    Too many are more than `max_share` of the unit and more than MAX_STRAY_BYTES; if the share is 0,
    any. The file with the largest share of its own is named.
    """
    errors = sum(errors_B)
    allowed = max_share * sum(len(block.data) for block in unit.blocks)
    if errors <= (max(allowed, MAX_STRAY_BYTES) if max_share else 0):
        return
    block, errors = max(
        ((block, n) for block, n in zip(unit.blocks, errors_B, strict=True) if n),
        key=lambda pair: pair[1] / len(pair[0].data),
    )
    try:
        block.data.decode()
    except UnicodeDecodeError as error:
        line = block.first_line + block.data.count(b"\n", 0, error.start)
        raise UserError(
            f"input {block.path} is not UTF-8: {errors} of {len(block.data)} bytes do not "
            f"decode, the first on line {line}; expected at most a share of "
            f"{max_share:g} (--max_decode_errors). Convert it, for instance with: "
            f"iconv -f LATIN1 -t UTF-8"
        ) from None


def _refuse_utf16(block: Block) -> None:
    """Raises UserError for UTF-16, much of which decodes as UTF-8, with NULs between letters."""
    if block.first_line == 1 and block.data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"input {block.path} is not UTF-8: it begins with UTF-16's byte order mark "
            f"({block.data[:2].hex(' ')}). Convert it with: iconv -f UTF-16 -t UTF-8"
        )
    nuls = block.data.count(b"\0")
    if nuls > max(MAX_STRAY_BYTES, MAX_NUL_BYTES * len(block.data)):
        raise UserError(
            f"input {block.path} is not UTF-8: {nuls} of {len(block.data)} bytes are NUL, as in "
            "UTF-16. Convert it with: iconv -f UTF-16LE -t UTF-8 (or UTF-16BE); if it is no "
            "UTF-16, remove them with: tr -d '\\0'"
        )


def _json_texts(block: Block, text: str, field: str) -> Iterator[str]:
    if text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except _NOT_JSON as error:
            raise UserError(f"input {block.path} is not JSON: {error}") from None
        for number, row in enumerate(rows):
            yield _text_field(row, field, f"{block.path}, element {number}")
        return
    for number, line in enumerate(text.split("\n"), block.first_line):
        if line.strip():
            where = f"{block.path}, line {number}"
            try:
                row = json.loads(line)
            except _NOT_JSON as error:
                raise UserError(
                    f"input {where} is not JSON: {error}; expected one object a line"
                ) from None
            yield _text_field(row, field, where)


def _text_field(row: object, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise UserError(
            f"input {where}: expected an object with the field '{field}', found a "
            f"{type(row).__name__}"
        )
    if field not in row:
        raise UserError(
            f"input {where}: no field '{field}'; the fields there are "
            f"{', '.join(map(repr, row)) or 'none'} (choose one with --field=NAME)"
        )
    value = row[field]
    if not isinstance(value, str | None):
        raise UserError(
            f"input {where}: the field '{field}' holds a {type(value).__name__}, not text"
        )
    return value or ""


def _parquet_texts(path: str, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"input {path}: reading Parquet needs pip install pyarrow") from None
    try:
        with epath.Path(path).open("rb") as raw, _decompressed(path, raw) as file:
            # Parquet is read from its end, so a compressed file is decompressed as a whole.
            seekable = io.BytesIO(file.read()) if path.endswith(_COMPRESSIONS) else file
            try:
                table = pyarrow.parquet.ParquetFile(seekable)
            except pyarrow.ArrowInvalid as error:
                raise UserError(f"input {path} is not a Parquet file: {error}") from None
            names = table.schema_arrow.names
            if field not in names:
                raise UserError(
                    f"input {path}: no column '{field}'; the columns are "
                    f"{', '.join(map(repr, names))} (choose one with --field=NAME)"
                )
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    if not isinstance(value, str | None):
                        raise UserError(f"input {path}: the column '{field}' does not hold text")
                    yield value or ""
    except (pyarrow.ArrowException, UnicodeDecodeError, *_UNREADABLE) as error:  # a damaged page
        raise UserError(f"input {path} cannot be read: {error}") from None


def clean(text: str) -> str:
    """'a\\r\\n\\x00b  ' -> 'a\\nb': one kind of newline, no control characters, no blank ends."""
    if _UNCLEAN.search(text):
        text = _CONTROLS.sub("", _NEWLINES.sub("\n", text))
    return text.strip()


def sentences(text: str, language: str = "en", one_per_line: bool = False) -> Iterator[str]:
    """'One. Two.\\nThree.' -> 'One.', 'Two.', 'Three.': paragraph by paragraph.

    A paragraph is a line; a sentence never crosses from one to the next.

    Args:
      text: a cleaned document.
      language: ISO 639-1 code for sentencex's rules.
      one_per_line: the lines are sentences already.
    """
    for line in text.split("\n"):
        line = line.strip()
        if line:
            if one_per_line:
                yield line
            else:
                yield from sentencex.segment(language, line)
