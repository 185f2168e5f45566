"""Text to the ids of BPE and Unigram tokenizers, equal to the Rust tokenizer and faster.

GPT-2's and SentencePiece's tokenizers cut text at blanks before they look for pieces, so that words
are independent, as in BERT's (wordpiece_encoder.py): each distinct word, with the blank before it,
goes to the Rust tokenizer once. What normalisation does to a letter may reach over a blank all the
same (a character that becomes a blank, a combining mark), so every word that is not plain ASCII is
also encoded among two others: where that gives other ids, its sentences are encoded as a whole, as
are those with a token that is looked for in the text before it is cut into words. A tokenizer of
another construction gets every sentence as a whole.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax.data.tokenization.subword import METASPACE
from bert_jax.data.tokenizer import SubwordTokenizer
from data_prep.examples.marks import MarkCounter
from data_prep.examples.piece_table import Encoded, PieceTable
from data_prep.examples.unknown_words import UnknownWords

# Where GPT-2's pattern certainly cuts ASCII text; a word with another character is left to it.
_ASCII_PIECES = (
    r"'(?:[sdmt]|ll|ve|re)"
    r"| ?[A-Za-z]+| ?[0-9]+| ?[!-/:-@\[-`{-~]+"
)
_of_ascii = re.compile(_ASCII_PIECES).findall
_of_any = re.compile(rf" ?[!-~]*[^!-~\s]\S*|{_ASCII_PIECES}").findall
# Words with their blanks and punctuation marks, of which a text has more than plain ones: 60 MB.
_MAX_CACHED = 300_000
_other_blank = re.compile(r"[^\S ]").search
# Normalisers that look at a character and its neighbours within a word, as far as ASCII goes.
_LOCAL = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Precompiled", "Nmt", "Strip"}


class SubwordEncoder:
    """Encodes sentences with `tokenizer`; the ids are those of its Rust backend, exactly.

    Special tokens written out in the text ("<mask>") are ordinary text here.

    Attributes:
      marks: counts what the tokenizer's normalisation strips.
      unknown_words: counts the words that become [UNK].
    """

    def __init__(self, tokenizer: SubwordTokenizer):
        self._backend = tokenizer.text_backend
        self.marks = MarkCounter(tokenizer)
        self.unknown_words = UnknownWords(tokenizer)
        self._word_prefix = tokenizer.word_prefix
        self._dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        self._table = PieceTable(self._dtype, _MAX_CACHED)
        self._whole: set[int] = set()  # rows of pieces that depend on what is beside them
        parts = json.loads(self._backend.to_str())
        self._split = _splitter(parts)
        self._is_marked_V = np.array([token.startswith(METASPACE) for token in tokenizer.vocab])
        self._newline = tokenizer.ids.get("Ċ", -1)
        # Tokens of several blanks, as GPT-NeoX's, are in no text that is cut at single ones.
        added = [
            fields
            for fields in parts["added_tokens"]
            if not (fields["content"][0] == "\0" or _has_irregular_blanks(fields["content"]))
        ]
        contents = "|".join(re.escape(fields["content"]) for fields in added)
        self._finds_added = re.compile(contents).search if added else None
        normalizer = self._backend.normalizer
        is_normalized = any(fields["normalized"] for fields in added)
        self._normalize = normalizer.normalize_str if normalizer and is_normalized else None

    def of_document(self, sentences: Iterable[str]) -> Iterator[str]:
        """The sentences of a document as they are encoded: as if they were one text, so that all
        but the first begin with a blank where the tokenizer tells words within a text by it.
        """
        for i, sentence in enumerate(sentences):
            yield f"{self._word_prefix if i else ''}{sentence.strip()}"

    def encode(self, sentences: Iterable[str]) -> Encoded:
        """The ids of all sentences, one after another, and how many each has.

        The text is expected without control characters (`documents.clean`).
        """
        table = self._table
        table.clear_if_full()
        if not table.rows:
            self._whole.clear()
        sentences = list(sentences)
        row_of = table.rows.__getitem__
        rows: list[int] = []
        ends: list[int] = []
        for sentence in sentences:
            rows.extend(map(row_of, self._pieces(sentence)))
            ends.append(len(rows))
        self._add_pieces(table.new_pieces)
        if not self._whole.isdisjoint(rows):
            kept: list[int] = []
            for i, (start, end) in enumerate(itertools.pairwise([0, *ends])):
                found = rows[start:end]
                if len(found) > 1 and not self._whole.isdisjoint(found):
                    found = [row_of(sentences[i])]
                kept += found
                ends[i] = len(kept)
            rows = kept
            self._add_pieces(table.new_pieces)
        return table.take(rows, ends)

    def _pieces(self, sentence: str) -> list[str]:
        """What can be encoded by itself; the sentence as a whole where nothing can."""
        if self._split is None or _has_irregular_blanks(sentence):
            return [sentence]
        if self._finds_added is not None:
            normal = self._normalize(sentence) if self._normalize else sentence
            if self._finds_added(sentence) or self._finds_added(normal):
                return [sentence]
        return self._split(sentence)

    def _add_pieces(self, pieces: list[str]) -> None:
        if not pieces:
            return
        plain = [x.isascii() and x.isprintable() and x.strip() and " " not in x[1:] for x in pieces]
        words = [x for x, is_plain in zip(pieces, plain, strict=True) if is_plain]
        others = [x for x, is_plain in zip(pieces, plain, strict=True) if not is_plain]
        word_ids, word_lengths = self._encode_words(words)
        ids = self._ids(others)
        other_lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        other_ids = np.fromiter(itertools.chain.from_iterable(ids), self._dtype)
        is_plain_N = np.array(plain, bool)
        length_N = np.empty(len(pieces), np.int64)
        start_N = np.empty(len(pieces), np.int64)
        for is_kind_N, before, lengths in (
            (is_plain_N, 0, word_lengths),
            (~is_plain_N, len(word_ids), other_lengths),
        ):
            length_N[is_kind_N] = lengths
            start_N[is_kind_N] = before + np.cumsum(lengths) - lengths
        first = len(self._table.rows) - len(pieces)
        flat = np.concatenate([word_ids, other_ids])
        self._table.add(flat, start_N, length_N, np.zeros_like(length_N))
        rows = first + np.flatnonzero(~is_plain_N)
        self._whole.update(rows[self._depending(others, ids)].tolist())

    def _encode_words(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of plain ASCII words, one after another, and how many each has.

        Many are encoded as one text, faster, and separated at what stands between them.
        """
        if self._split is None or not words:
            return self._encode_each(words)
        blank = "\n" if self._split is _gpt2_pieces else " "
        texts = ["".join(x + blank for x in words[i : i + 64]) for i in range(0, len(words), 64)]
        if blank == " ":  # every word begins with the mark of a blank, which no word has within
            texts = [text.rstrip() for text in texts]
        flat = np.fromiter(itertools.chain.from_iterable(self._ids(texts)), self._dtype)
        if blank == " ":
            starts = np.flatnonzero(self._is_marked_V[flat])
            lengths = np.diff(starts, append=len(flat))
        else:
            is_between = flat == self._newline
            lengths = np.diff(np.flatnonzero(is_between), prepend=-1) - 1
            flat = flat[~is_between]
        if len(lengths) != len(words):  # one has no pieces, or a mark of its own
            return self._encode_each(words)
        return flat, lengths

    def _encode_each(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of texts, one after another, and how many each has."""
        ids = self._ids(texts)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(itertools.chain.from_iterable(ids), self._dtype), lengths

    def _depending(self, pieces: list[str], ids: list[list[int]]) -> list[int]:
        """Which pieces have other ids where they stand between two words; sentences do not."""
        if self._split is None:
            return []
        before, after = self._ids(["a", " a"])
        # The first word of a text has no blank before it in GPT-2's pieces: nor has it here.
        lead = "" if self._split is _gpt2_pieces else "a "
        words = [i for i, piece in enumerate(pieces) if " " not in piece[1:]]
        texts = [f"{'a' if pieces[i][:1] == ' ' else lead}{pieces[i]} a" for i in words]
        found = []
        for i, text, between in zip(words, texts, self._ids(texts), strict=True):
            is_first = text.startswith(pieces[i])
            if between != [*([] if is_first else before), *ids[i], *after]:
                found.append(i)
        return found

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _has_irregular_blanks(text: str) -> bool:
    """Whether there are others than single spaces between words."""
    if "  " in text or text.endswith(" "):
        return True
    return not text.isprintable() and _other_blank(text) is not None


def _gpt2_pieces(text: str) -> list[str]:
    """Of " it's the café, 3.5%": " it", "'s", " the", " café,", " 3", ".", "5" and "%"."""
    return _of_ascii(text) if text.isascii() and text.isprintable() else _of_any(text)


def _splitter(parts: dict[str, Any]) -> Callable[[str], list[str]] | None:
    """What splits a text with single blanks into independent pieces; None if nothing is known to.

    Args:
      parts: of tokenizer.json.
    """
    for step in _steps(parts["normalizer"], "normalizers"):
        pattern = step.get("pattern", {})
        is_local = pattern == {"Regex": " {2,}"} or " " not in pattern.get("String", " ")
        if not (is_local if step["type"] == "Replace" else step["type"] in _LOCAL):
            return None
    match _steps(parts["pre_tokenizer"], "pretokenizers"):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return _gpt2_pieces
        case [{"type": "Metaspace", "split": True, "prepend_scheme": "always" | "first"}] | [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "split": True, "prepend_scheme": "always"},
        ]:
            return lambda text: text.split(" ")
    return None


def _steps(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normaliser's or pre-tokenizer's steps, those of sequences one after another."""
    if step is None:
        return []
    return [x for inner in step[name] for x in _steps(inner, name)] if name in step else [step]
