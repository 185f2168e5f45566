"""BERT's WordPiece tokenizer, made from its vocabulary and a few flags."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers

from bert_jax.data.tokenization.base import AddedToken, Tokenizer
from bert_jax.data.tokenization.layout import BERT, BERT_LAYOUT, Layout, Roles, post_processor

CONTINUATION_PREFIX = "##"
MAX_WORD_LENGTH = 100  # BERT's: a longer word is [UNK]


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer(Tokenizer):
    """A BERT WordPiece tokenizer.

    Attributes:
      vocab: the tokens; the index is the id. "" is an id that no text comes to.
      lowercase: whether text is lowercased first ("uncased").
      strip_accents: whether accents are dropped first; None: as text is lowercased.
      added: tokens beside WordPiece's own, and special tokens of other flags than the usual. Those
        that are not `in_vocabulary` come last in `vocab`.
      max_word_length: a longer word is [UNK].
    """

    vocab: tuple[str, ...]
    lowercase: bool = True
    strip_accents: bool | None = None
    added: tuple[AddedToken, ...] = ()
    max_word_length: int = MAX_WORD_LENGTH
    roles: Roles = BERT
    layout: Layout = BERT_LAYOUT

    def __post_init__(self):
        alone = {token.content for token in self.added if not token.in_vocabulary}
        if alone and alone != {*self.vocab[-len(alone) :]}:
            raise ValueError(f"{alone} are not the last tokens: they are no pieces of the model")

    @property
    def kind(self) -> str:
        return "wordpiece"

    @functools.cached_property
    def model_size(self) -> int:
        """Ids of the WordPiece model; the others are added tokens alone."""
        return len(self.vocab) - sum(not token.in_vocabulary for token in self.added)

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        backend = self._bare()
        own = {token.content for token in self.added}
        backend.add_special_tokens([t for t in self.roles if t in self.ids and t not in own])
        self._add(backend, self.added)
        return backend

    @functools.cached_property
    def text_backend(self) -> tokenizers.Tokenizer:
        backend = self._bare()
        self._add(backend, [t for t in self.added if t.content not in self.roles])
        return backend

    def _bare(self) -> tokenizers.Tokenizer:
        model = {token: i for i, token in enumerate(self.vocab[: self.model_size])}
        return bare(
            model, self.lowercase, self.strip_accents, self.max_word_length, self.roles.unknown
        )

    def _add(self, backend: tokenizers.Tokenizer, added: Iterable[AddedToken]) -> None:
        flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
        backend.add_tokens(
            [
                tokenizers.AddedToken(token.content, **{x: getattr(token, x) for x in flags})
                for token in sorted(added, key=lambda token: self.ids[token.content])
            ]
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        flags = [self.lowercase]
        if self.strip_accents is not None:
            flags.append(self.strip_accents)
        further: list[Any] = [dataclasses.astuple(token) for token in self.added]
        if self.max_word_length != MAX_WORD_LENGTH:
            further.append(self.max_word_length)
        if (self.roles, self.layout) != (BERT, BERT_LAYOUT):
            further += [self.roles, self.layout]
        text = json.dumps([*flags, *self.vocab, *further], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def is_continuation_V(self) -> np.ndarray:
        pieces = self.vocab[: self.model_size]
        is_continuation_V = np.zeros(self.vocab_size, bool)
        is_continuation_V[: len(pieces)] = [t.startswith(CONTINUATION_PREFIX) for t in pieces]
        return is_continuation_V

    def surface(self, i: int) -> str:
        return self.vocab[i].removeprefix(CONTINUATION_PREFIX)

    def tokenizer_json(self) -> str:
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.post_processor = post_processor(self.layout, self.ids)
        return backend.to_str(pretty=True)

    def vocabulary_files(self) -> dict[str, str]:
        others = {token: self.ids[token] for token in self.vocab[self.model_size :]}
        return {
            "vocab.txt": "\n".join(self.vocab[: self.model_size]) + "\n",
            "added_tokens.json": json.dumps(others, indent=2) + "\n" if others else "",
        }

    def class_config(self) -> dict[str, Any]:
        # A BertTokenizer of transformers has BERT's length of words, and its layout.
        is_bert = self.max_word_length == MAX_WORD_LENGTH and self.layout == BERT_LAYOUT
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer" if is_bert else "PreTrainedTokenizerFast",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
        }
        if not self.writes_token_types:
            config["model_input_names"] = ["input_ids", "attention_mask"]
        return config


def bare(
    ids: dict[str, int],
    lowercase: bool,
    strip_accents: bool | None,
    max_word_length: int = MAX_WORD_LENGTH,
    unknown: str = BERT.unknown,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer as `tokenizers` computes it, without added tokens and templates."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            dict(ids), unk_token=unknown, max_input_chars_per_word=max_word_length
        )
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix=CONTINUATION_PREFIX)
    return backend
