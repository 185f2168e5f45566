"""The WordPiece tokenizer: loading, saving so that Hugging Face reads it back, fingerprint."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief
from bert_jax.data import tokenizer_files

SPECIAL_TOKENS = tuple(tokenizer_files.NAMED.values())
CONTINUATION_PREFIX = tokenizer_files.CONTINUATION_PREFIX
MAX_WORD_LENGTH = tokenizer_files.MAX_WORD_LENGTH


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before it is cut into words, such as a mark of entities.

    Attributes:
      special: never masked nor drawn at random, as [CLS] is.
      normalized: looked for in the text after lowercasing, not before.
      lstrip, rstrip: takes the blanks before or after it along.
      single_word: not within a word.
      in_vocabulary: it is a piece of the WordPiece model too.
    """

    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    in_vocabulary: bool = True


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A BERT WordPiece tokenizer.

    Attributes:
      vocab: the tokens; the index is the id. "" is an id that no text comes to.
      lowercase: whether text is lowercased first ("uncased").
      strip_accents: whether accents are dropped first; None: as text is lowercased.
      added: tokens beside WordPiece's own, and SPECIAL_TOKENS of other flags than theirs. Those
        that are not `in_vocabulary` come last in `vocab`.
      max_word_length: a longer word is [UNK].
    """

    vocab: tuple[str, ...]
    lowercase: bool = True
    strip_accents: bool | None = None
    added: tuple[AddedToken, ...] = ()
    max_word_length: int = MAX_WORD_LENGTH

    def __post_init__(self):
        alone = {token.content for token in self.added if not token.in_vocabulary}
        if alone and alone != {*self.vocab[-len(alone) :]}:
            raise ValueError(f"{alone} are not the last tokens: they are no pieces of the model")

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocab) if token}

    @functools.cached_property
    def model_size(self) -> int:
        """Ids of the WordPiece model; the others are added tokens alone."""
        return len(self.vocab) - sum(not token.in_vocabulary for token in self.added)

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The Rust tokenizer; adds no special tokens (templates are the caller's business)."""
        backend = self._bare()
        own = {token.content for token in self.added}
        backend.add_special_tokens([t for t in SPECIAL_TOKENS if t in self.ids and t not in own])
        self._add(backend, self.added)
        return backend

    @functools.cached_property
    def text_backend(self) -> tokenizers.Tokenizer:
        """The same for text of others: "[MASK]" written out there is three pieces, no mask."""
        backend = self._bare()
        self._add(backend, [t for t in self.added if t.content not in SPECIAL_TOKENS])
        return backend

    def _bare(self) -> tokenizers.Tokenizer:
        model = {token: i for i, token in enumerate(self.vocab[: self.model_size])}
        return tokenizer_files.wordpiece(
            model, self.lowercase, self.strip_accents, self.max_word_length
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
        """SHA-256 over vocabulary, flags and added tokens: equal means the same token ids."""
        flags = [self.lowercase]
        if self.strip_accents is not None:
            flags.append(self.strip_accents)
        further: list[Any] = [dataclasses.astuple(token) for token in self.added]
        if self.max_word_length != MAX_WORD_LENGTH:
            further.append(self.max_word_length)
        text = json.dumps([*flags, *self.vocab, *further], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    @property
    def pad_id(self) -> int:
        return self.ids["[PAD]"]

    @property
    def unk_id(self) -> int:
        return self.ids["[UNK]"]

    @property
    def cls_id(self) -> int:
        return self.ids["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self.ids["[SEP]"]

    @property
    def mask_id(self) -> int:
        return self.ids["[MASK]"]

    @functools.cached_property
    def is_special_V(self) -> np.ndarray:
        """bool[V]: what is never masked nor drawn at random: special tokens and unused ids."""
        special = {*SPECIAL_TOKENS, "", *(token.content for token in self.added if token.special)}
        return np.array([token in special for token in self.vocab])

    @functools.cached_property
    def is_continuation_V(self) -> np.ndarray:
        """bool[V]: true for the '##' pieces, which belong to the word before them."""
        pieces = self.vocab[: self.model_size]
        is_continuation_V = np.zeros(self.vocab_size, bool)
        is_continuation_V[: len(pieces)] = [t.startswith(CONTINUATION_PREFIX) for t in pieces]
        return is_continuation_V

    def encode(self, text: str) -> list[int]:
        """'unaffable' -> [id('una'), id('##ffa'), id('##ble')], without [CLS] and [SEP]."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Joins pieces into text, special tokens left visible."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def load(source: str | epath.PathLike) -> Tokenizer:
    """Loads a tokenizer from a directory, a `vocab.txt` file or a Hugging Face hub name.

    A directory holds `tokenizer.json` or `vocab.txt`; `tokenizer_config.json` says what is done to
    text first (`do_lower_case`, `strip_accents`); tokens may be added in any of the files that
    Hugging Face writes. A vocabulary file is read with the other files of its directory. Where
    nothing is said of case, a vocabulary is taken for what its name or its directory's has in it,
    "cased" or "uncased"; else for cased if a whole word in it has a capital.

    Raises:
      UserError: nothing there, no vocabulary in it, one without BERT's special tokens, files that
        contradict each other, or a tokenizer that would give other ids than this one.
    """
    path = epath.Path(source)
    vocabulary = None
    if path.is_file():
        if path.name != "tokenizer.json":
            if path.suffix == ".json":
                raise UserError(f"{source} is not a vocabulary file: give its directory")
            vocabulary = path
        path = path.parent
    elif not path.is_dir():
        path = _download(str(source))
    read = tokenizer_files.read(path, vocabulary)
    tokenizer = _make(read)
    if text := tokenizer_files.difference(tokenizer.backend, read.reading):
        raise UserError(
            f"{source} is not a tokenizer that this project computes: {text} (here, and as its "
            "files are read elsewhere)"
        )
    return tokenizer


def _make(read: tokenizer_files.Source) -> Tokenizer:
    """The tokenizer that `read` describes."""
    vocab = [""] * (max([*read.ids.values(), *read.added]) + 1)
    for piece, i in read.ids.items():
        vocab[i] = piece
    added = []
    for i, token in sorted(read.added.items()):
        vocab[i] = token.content
        kept = AddedToken(
            content=token.content,
            special=token.special,
            normalized=token.normalized,
            lstrip=bool(token.lstrip),
            rstrip=bool(token.rstrip),
            single_word=token.single_word,
            in_vocabulary=token.content in read.ids,
        )
        if kept != AddedToken(token.content) or token.content not in SPECIAL_TOKENS:
            added.append(kept)
    return Tokenizer(
        tuple(vocab), read.lowercase, read.strip_accents, tuple(added), read.max_word_length
    )


def _download(name: str) -> epath.Path:
    """Fetches the tokenizer files of a hub repository; returns the local snapshot."""
    explanation = (
        f"{name}: no such tokenizer directory or vocabulary file here, "
        "and it could not be had from the Hugging Face hub"
    )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{explanation} (pip install 'bert_jax[hf]' for hub names)") from None
    try:
        return epath.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*tokenizer_files.FILES, "config.json"]
            )
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(f"{explanation} ({brief(error)})") from None


def save(tokenizer: Tokenizer, directory: str | epath.PathLike, model_max_length: int = 512):
    """Writes `tokenizer.json`, `tokenizer_config.json` and `vocab.txt` (and `added_tokens.json`).

    transformers v5 reads the casing from `tokenizer_config.json` alone, v4 from `tokenizer.json`,
    and other tools from `vocab.txt`, so all three are written.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", tokenizer.sep_id), ("[CLS]", tokenizer.cls_id)
    )
    pieces, others = (
        tokenizer.vocab[: tokenizer.model_size],
        tokenizer.vocab[tokenizer.model_size :],
    )
    files.write_whole(directory / "vocab.txt", "\n".join(pieces) + "\n")
    if others:
        indices = {token: tokenizer.ids[token] for token in others}
        files.write_whole(directory / "added_tokens.json", json.dumps(indices, indent=2) + "\n")
    else:
        (directory / "added_tokens.json").unlink(missing_ok=True)
    files.write_whole(directory / "tokenizer.json", backend.to_str(pretty=True))
    is_bert = tokenizer.max_word_length == MAX_WORD_LENGTH
    config = {
        # A BertTokenizer of transformers has BERT's length of words.
        "tokenizer_class": "BertTokenizer" if is_bert else "PreTrainedTokenizerFast",
        "do_lower_case": tokenizer.lowercase,
        "strip_accents": tokenizer.strip_accents,
        "model_max_length": model_max_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    files.write_whole(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
