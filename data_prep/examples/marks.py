"""Marks that are letters, and that normalisation strips as if they were accents.

Lowercasing strips nonspacing marks unless the tokenizer says otherwise. Of 'é' that leaves 'e'; of
Hindi it takes vowel signs, of Japanese voicing, of Thai tones, so that different words become one.
"""

import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np
from tokenizers import normalizers

from bert_jax.data.tokenizer import Tokenizer, WordPieceTokenizer

_CODE_POINTS = 0x110000
_BLANKS = [ord(blank) for blank in " \t\n\r\u00a0\u3000"]


class MarkCounter:
    """Counts characters, and those of them that a tokenizer strips of marks."""

    def __init__(self, tokenizer: Tokenizer):
        normalizer = tokenizer.backend.normalizer
        self._stripped = normalizer.normalize_str if normalizer else str
        self._kept = None
        if isinstance(tokenizer, WordPieceTokenizer):
            kept = normalizers.BertNormalizer(strip_accents=False, lowercase=tokenizer.lowercase)
            self._kept = kept.normalize_str
        self._is_changed: dict[str, bool] = {}

    def is_changed(self, character: str) -> bool:
        """Whether a mark is removed ('\\u0941') or taken from its letter ('が' -> 'か')."""
        if (known := self._is_changed.get(character)) is None:
            stripped = self._stripped(character)
            if self._kept is None:
                known = _count_marks(stripped) < _count_marks(character)
            else:
                known = stripped != self._kept(character)
            self._is_changed[character] = known
        return known

    def count(self, texts: Iterable[str]) -> tuple[int, int]:
        """Characters of texts without surrogates, blanks not counted; how many are changed."""
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        counts = np.bincount(codes, minlength=_CODE_POINTS)
        counts[_BLANKS] = 0
        return int(counts.sum()), sum(
            int(counts[code])
            for code in np.flatnonzero(counts[128:]) + 128
            if self.is_changed(chr(code))
        )

    def examples(self, counts: Mapping[str, int], number: int = 3) -> str:
        """The most frequent changes, for a message: 'が -> か, ู removed'."""
        changed = [character for character in counts if self.is_changed(character)]
        changed.sort(key=lambda character: (-counts[character], character))
        shown = []
        for character in changed[:number]:
            letters = self._stripped(character)
            # A mark alone would be drawn over the blank before it.
            name = character if letters else f"\u25cc{character}"
            shown.append(f"{name} -> {letters}" if letters else f"{name} removed")
        return ", ".join(shown)


def _count_marks(text: str) -> int:
    decomposed = unicodedata.normalize("NFKD", text)
    return sum(unicodedata.category(character) == "Mn" for character in decomposed)
