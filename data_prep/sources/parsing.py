"""Units of raw text to documents: decoding, and the text field of JSON."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence

from bert_jax.cli import UserError
from data_prep.sources.corpus import LINES, TEXT, UNIT_BYTES, Block, Unit
from data_prep.sources.documents import NEWLINES, clean

# Share of a unit's bytes that may fail to decode as UTF-8 before the run stops. A file in Latin-1
# or UTF-16 is far above it, a stray byte in a crawl far below.
MAX_DECODE_ERRORS = 1e-3
# So many in a unit are let through whatever their share: one in a short file is still a stray byte.
MAX_STRAY_BYTES = 10
# Share of a block's bytes that may be NUL, which UTF-16 is full of and decodes as UTF-8.
MAX_NUL_BYTES = 0.01

# Fewer lines without a blank one between them are a short document, not many.
_MANY_LINES = 10
# JSONDecodeError is a ValueError; so is that of a number of thousands of digits.
_NOT_JSON = (ValueError, RecursionError)
_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclasses.dataclass
class ParseCounts:
    """What was met while parsing; sums over units make up the manifest's statistics.

    Attributes:
      source_bytes: raw text read.
      decode_errors: bytes of it that are not UTF-8.
      empty_documents: were skipped.
      cut_documents: documents that were too long and became two.
      unparted_files, unparted_lines: text files of many lines and no blank line between them, each
        of which became one document, and their lines.
    """

    source_bytes: int = 0
    decode_errors: int = 0
    empty_documents: int = 0
    cut_documents: int = 0
    unparted_files: int = 0
    unparted_lines: int = 0


def parse_unit(
    unit: Unit, max_decode_errors: float = MAX_DECODE_ERRORS
) -> tuple[list[str], ParseCounts]:
    """Decodes a unit into the cleaned texts of its documents, empty ones skipped.

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
        counts.cut_documents += block.is_cut
        if unit.kind == TEXT:
            text = NEWLINES.sub("\n", text)
            found = _BLANK_LINE.split(text)
            if _is_unparted(block, found):
                counts.unparted_files += 1
                counts.unparted_lines += text.strip().count("\n") + 1
            texts.extend(found)
        elif unit.kind == LINES:
            texts.extend(line for line in NEWLINES.sub("\n", text).split("\n") if line.strip())
        else:
            texts.extend(_json_texts(block, text, unit.field))
    cleaned = [clean(text) for text in texts]
    documents = [text for text in cleaned if text]
    counts.empty_documents = len(cleaned) - len(documents)
    return documents, counts


def _is_unparted(block: Block, texts: Sequence[str]) -> bool:
    """Whether a file's first block shows that nothing parts its many lines into documents."""
    found = [text for text in texts if text.strip()]
    if block.first_line > 1 or len(found) != 1:
        return False
    # A block that is neither the whole file nor cut ends with the blank line after its document.
    is_parted = len(texts) > 1 and not texts[-1].strip() and len(block.data) >= UNIT_BYTES
    return not is_parted and found[0].strip().count("\n") + 1 >= _MANY_LINES


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
