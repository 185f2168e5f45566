"""Documents: cleaned, and cut into sentences."""

import dataclasses
import re
from collections.abc import Iterator

import sentencex

NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # with lone surrogates


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: paragraphs separated by newlines; `id` names it where the source does."""

    text: str
    id: str = ""


def clean(text: str) -> str:
    """'a\\r\\n\\x00b  ' -> 'a\\nb': one kind of newline, no control characters, no blank ends."""
    if _UNCLEAN.search(text):
        text = _CONTROLS.sub("", NEWLINES.sub("\n", text))
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
