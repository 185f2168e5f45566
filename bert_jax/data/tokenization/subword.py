"""Byte-level BPE and SentencePiece's pieces: tokenizers that a tokenizer.json defines wholly."""

import dataclasses
import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from bert_jax.data.tokenization.base import AddedToken, Tokenizer
from bert_jax.data.tokenization.layout import Layout, Roles

METASPACE = "▁"  # stands for a blank in SentencePiece's pieces
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>").fullmatch
# What the ids of a text depend on, in a tokenizer.json.
_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")


@dataclasses.dataclass(frozen=True)
class SubwordTokenizer(Tokenizer):
    """A tokenizer that is what its definition says.

    Attributes:
      definition: the contents of a tokenizer.json, with all added tokens.
    """

    vocab: tuple[str, ...]
    added: tuple[AddedToken, ...]
    roles: Roles
    layout: Layout
    definition: str

    @classmethod
    def of(
        cls,
        backend: tokenizers.Tokenizer,
        roles: Roles,
        layout: Layout,
        unigrams: Sequence[tuple[str, float]] = (),
    ) -> "SubwordTokenizer":
        """The tokenizer that `backend` computes.

        Args:
          unigrams: its pieces and scores as they are written in its file. The Rust library reads
            some of 17 digits one unit in the last place off, and would write those: a copy would
            be another tokenizer, by its fingerprint and where sums of scores are equal.
        """
        backend.no_truncation()
        backend.no_padding()
        pieces = backend.get_vocab(with_added_tokens=False)
        ids = backend.get_vocab(with_added_tokens=True)
        vocab = [""] * (max(ids.values()) + 1)
        for token, i in ids.items():
            vocab[i] = token
        added = [
            AddedToken.of(token, in_vocabulary=token.content in pieces)
            for _, token in sorted(backend.get_added_tokens_decoder().items())
        ]
        kept = [x for x in added if x.content not in roles or x != AddedToken(x.content)]
        definition = json.loads(backend.to_str())
        if unigrams:
            definition["model"]["vocab"] = [[piece, score] for piece, score in unigrams]
        text = json.dumps(definition, ensure_ascii=False)
        return cls(tuple(vocab), tuple(kept), roles, layout, text)

    @functools.cached_property
    def _parts(self) -> dict[str, Any]:
        return json.loads(self.definition)

    @property
    def kind(self) -> str:
        return self._parts["model"]["type"].lower()

    @property
    def is_byte_level(self) -> bool:
        """Whether its pieces are made of bytes, as GPT-2's and RoBERTa's."""
        return "ByteLevel" in json.dumps(self._parts["pre_tokenizer"])

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.definition)

    @functools.cached_property
    def text_backend(self) -> tokenizers.Tokenizer:
        """As SentencePiece treats control pieces: no text comes to the special tokens of `roles`.

        Their ids stay taken, under names with a control character in them.
        """
        parts = json.loads(self.definition)
        model = parts["model"]

        def hidden(token: str) -> str:
            return f"\0{token}" if token in self.roles else token

        added = []
        for fields in parts["added_tokens"]:
            is_role = fields["content"] in self.roles
            if not (is_role and fields["content"] in self._pieces):
                added.append({**fields, "content": hidden(fields["content"])})
        parts["added_tokens"] = added
        if isinstance(model["vocab"], list):
            model["vocab"] = [[hidden(piece), score] for piece, score in model["vocab"]]
        return tokenizers.Tokenizer.from_str(json.dumps(parts))

    @functools.cached_property
    def _pieces(self) -> frozenset[str]:
        """Those of the model, without tokens that are added alone."""
        vocab = self._parts["model"]["vocab"]
        return frozenset(vocab if isinstance(vocab, dict) else (piece for piece, _ in vocab))

    @functools.cached_property
    def fingerprint(self) -> str:
        described = [{name: self._parts[name] for name in _PARTS}, self.roles, self.layout]
        text = json.dumps(described, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def lowercase(self) -> bool:
        normalizer = self.backend.normalizer
        return normalizer is not None and normalizer.normalize_str("A").strip(METASPACE) == "a"

    @functools.cached_property
    def word_prefix(self) -> str:
        return "" if self.encode("a") == self.encode(" a") else " "

    def tokenizer_json(self) -> str:
        return json.dumps(self._parts, indent=2, ensure_ascii=False)

    def vocabulary_files(self) -> dict[str, str]:
        model = self._parts["model"]
        if self.kind != "bpe":
            return {}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False) + "\n",
            "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        }

    def class_config(self) -> dict[str, Any]:
        types = ["token_type_ids"] if self.writes_token_types else []
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", *types, "attention_mask"],
        }
        # transformers 4 overwrites tokenizer.json's by False where the field is missing.
        step = self._parts["pre_tokenizer"] or {}
        if "add_prefix_space" in step:
            config["add_prefix_space"] = step["add_prefix_space"]
        return config

    @functools.cached_property
    def is_continuation_V(self) -> np.ndarray:
        """bool[V]: the pieces without a blank before them, but for punctuation and ideographs.

        ALBERT's and XLNet's rule: those are words of their own, as in BERT. The first piece of a
        text has no blank before it in RoBERTa's vocabulary; special tokens before it part it.
        """
        added = {token.content for token in self.added} | {*self.roles, ""}
        surface = _bytes_as_text if self.is_byte_level else str
        return np.array([t not in added and not _begins_word(surface(t)) for t in self.vocab])


def _begins_word(piece: str) -> bool:
    if byte := _BYTE_PIECE(piece):  # the first of those that spell a character
        return int(byte[1], 16) & 0xC0 != 0x80
    first = piece[0]
    is_ideograph = "CJK" in unicodedata.name(first, "")
    other = unicodedata.category(first)[0] in "PSZC" and first != "\ufffd"
    return first == METASPACE or other or is_ideograph


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of GPT-2's alphabet stands for.

    Printable ones of Latin-1 stand for themselves, the others for the letters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_as_text(piece: str) -> str:
    """'ĠcafÃ©' -> ' café'; incomplete characters as U+FFFD."""
    letters = _byte_of_letter()
    if any(letter not in letters for letter in piece):
        return piece
    return bytes(letters[letter] for letter in piece).decode(errors="replace")
