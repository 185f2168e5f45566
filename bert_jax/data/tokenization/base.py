"""What every tokenizer is to the rest of the program."""

import abc
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers

from bert_jax.data.tokenization.layout import Layout, Roles


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before it is cut into words, such as a mark of entities.

    Attributes:
      special: never masked nor drawn at random, as [CLS] is.
      normalized: looked for in the text after lowercasing, not before.
      lstrip, rstrip: takes the blanks before or after it along.
      single_word: not within a word.
      in_vocabulary: it is a piece of the model too.
    """

    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    in_vocabulary: bool = True

    @classmethod
    def of(cls, token: tokenizers.AddedToken, in_vocabulary: bool) -> "AddedToken":
        flags = (token.special, token.normalized, bool(token.lstrip), bool(token.rstrip))
        return cls(token.content, *flags, token.single_word, in_vocabulary)


class Tokenizer(abc.ABC):
    """Text to ids of pieces, and the special tokens around them.

    Attributes:
      vocab: the tokens; the index is the id. "" is an id that no text comes to.
      added: tokens beside the model's own, and special ones of other flags than the usual.
      roles: the special tokens by what they are for.
      layout: where they stand around one and two segments.
    """

    vocab: tuple[str, ...]
    added: tuple[AddedToken, ...]
    roles: Roles
    layout: Layout

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """'wordpiece', 'bpe' or 'unigram'."""

    @property
    @abc.abstractmethod
    def backend(self) -> tokenizers.Tokenizer:
        """The Rust tokenizer, which finds special tokens in the text."""

    @property
    @abc.abstractmethod
    def text_backend(self) -> tokenizers.Tokenizer:
        """The same for text of others: "[MASK]" written out there is ordinary text, no mask."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over all that token ids depend on: equal means the same ids of any text."""

    @property
    @abc.abstractmethod
    def is_continuation_V(self) -> np.ndarray:
        """bool[V]: true for the pieces that belong to the word before them."""

    @property
    @abc.abstractmethod
    def lowercase(self) -> bool:
        """Whether text is lowercased first ("uncased")."""

    @abc.abstractmethod
    def tokenizer_json(self) -> str:
        """What `tokenizer.json` holds, with the layout."""

    @abc.abstractmethod
    def vocabulary_files(self) -> dict[str, str]:
        """What its directory holds beside tokenizer.json, by name; "" is for no file."""

    @abc.abstractmethod
    def class_config(self) -> dict[str, Any]:
        """The fields of tokenizer_config.json that name its class and what it does to text."""

    @property
    def word_prefix(self) -> str:
        """What a word within a text is preceded by to be cut into pieces alone: " " or ""."""
        return ""

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocab) if token}

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    @property
    def pad_id(self) -> int:
        return self.ids[self.roles.pad]

    @property
    def unknown_id(self) -> int:
        return self.ids[self.roles.unknown]

    @property
    def start_id(self) -> int:
        return self.ids[self.roles.start]

    @property
    def separator_id(self) -> int:
        return self.ids[self.roles.separator]

    @property
    def end_id(self) -> int:
        """The separator, at the end of a sequence."""
        return self.separator_id

    @property
    def mask_id(self) -> int:
        return self.ids[self.roles.mask]

    @functools.cached_property
    def prefix_ids(self) -> list[int]:
        return [self.ids[token] for token in self.layout.prefix]

    @functools.cached_property
    def middle_ids(self) -> list[int]:
        return [self.ids[token] for token in self.layout.middle]

    @functools.cached_property
    def suffix_ids(self) -> list[int]:
        return [self.ids[token] for token in self.layout.suffix]

    @property
    def writes_token_types(self) -> bool:
        """Whether the segments of a pair differ in their token type ids."""
        return any(self.layout.pair_types)

    def num_special(self, segments: int) -> int:
        """The special tokens around one or two segments."""
        middle = len(self.middle_ids) if segments == 2 else 0
        return len(self.prefix_ids) + middle + len(self.suffix_ids)

    def lay_out(
        self, first: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """The ids of one or two segments with their special tokens, and their token type ids.

        BERT's: lay_out([7, 8], [9]) -> [CLS] 7 8 [SEP] 9 [SEP], [0 0 0 0 1 1].
        """
        before, after = ([[i] for i in ids] for ids in (self.prefix_ids, self.suffix_ids))
        if second is None:
            parts, types = [*before, first, *after], self.layout.single_types
        else:
            between = [[i] for i in self.middle_ids]
            parts = [*before, first, *between, second, *after]
            types = self.layout.pair_types
        ids = [i for part in parts for i in part]
        return ids, [x for part, x in zip(parts, types, strict=True) for _ in part]

    @functools.cached_property
    def is_special_V(self) -> np.ndarray:
        """bool[V]: what is never masked nor drawn at random: special tokens and unused ids."""
        special = {*self.roles, "", *(token.content for token in self.added if token.special)}
        return np.array([token in special for token in self.vocab])

    def encode(self, text: str) -> list[int]:
        """'unaffable' -> [id('una'), id('##ffa'), id('##ble')], without special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_word(self, word: str) -> list[int]:
        """The pieces of a word as it stands within a text."""
        return self.encode(self.word_prefix + word)

    def encode_with_offsets(
        self, texts: Iterable[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, (first character, end) of each) per text; blanks belong to no token."""
        texts = list(texts)
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        return [
            (encoding.ids, [_without_blanks(text, *place) for place in encoding.offsets])
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def surface(self, i: int) -> str:
        """The text that a piece stands for: '##ing' -> 'ing', 'Ġriver' -> ' river'."""
        return self.decode([i])

    def decode(self, ids: Sequence[int]) -> str:
        """Joins pieces into text, special tokens left visible."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end - 1 and text[start].isspace():
        start += 1
    return start, end
