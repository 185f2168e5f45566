"""Tokenizers: loading them, and saving them so that Hugging Face reads them back."""

import json

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief
from bert_jax.data.tokenization import (
    directory,
    layout,
    subword_files,
    wordpiece_files,
)
from bert_jax.data.tokenization.base import AddedToken, Tokenizer
from bert_jax.data.tokenization.subword import SubwordTokenizer
from bert_jax.data.tokenization.wordpiece import (
    CONTINUATION_PREFIX,
    MAX_WORD_LENGTH,
    WordPieceTokenizer,
)

__all__ = [
    "CONTINUATION_PREFIX",
    "FILES",
    "MAX_WORD_LENGTH",
    "SPECIAL_TOKENS",
    "VOCABULARIES",
    "AddedToken",
    "SubwordTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "load",
    "save",
]
SPECIAL_TOKENS = tuple(layout.BERT)
FILES = directory.FILES
VOCABULARIES = directory.VOCABULARIES


def load(source: str | epath.PathLike) -> Tokenizer:
    """Loads a tokenizer from a directory, a `vocab.txt` file or a Hugging Face hub name.

    A directory holds `tokenizer.json`, `vocab.txt` (WordPiece), `vocab.json` with `merges.txt` (BPE
    of bytes) or a `.model` of SentencePiece. `tokenizer_config.json` says what is done to text
    first and which class of transformers reads it; tokens may be added in any of the files that
    Hugging Face writes. A vocabulary file is read with the other files of its directory. Where
    nothing is said of case, a vocab.txt is taken for what its name or its directory's has in it,
    "cased" or "uncased"; else for cased if a whole word in it has a capital.

    Raises:
      UserError: nothing there, no vocabulary in it, one without the five special tokens, files that
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
    described = directory.describe(path, vocabulary)
    bare = vocabulary is None and not described.whole and not (path / "vocab.txt").exists()
    if described.kind in ("bpe", "unigram") or (bare and subword_files.has_vocabulary(path)):
        return subword_files.read(described)
    return wordpiece_files.read(described, vocabulary)


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
            huggingface_hub.snapshot_download(name, allow_patterns=[*FILES, "config.json"])
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(f"{explanation} ({brief(error)})") from None


def save(tokenizer: Tokenizer, path: str | epath.PathLike, model_max_length: int = 512) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and the vocabulary's own files.

    Those are `vocab.txt` (and `added_tokens.json`) or `vocab.json` with `merges.txt`. transformers
    5 reads a BertTokenizer's casing from `tokenizer_config.json` alone, 4 from `tokenizer.json`,
    and other tools from `vocab.txt`, so all three are written.
    """
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.vocabulary_files().items():
        if content:
            files.write_whole(path / name, content)
        else:
            (path / name).unlink(missing_ok=True)
    files.write_whole(path / "tokenizer.json", tokenizer.tokenizer_json())
    config = tokenizer.class_config() | {
        "model_max_length": model_max_length,
        "pad_token": tokenizer.roles.pad,
        "unk_token": tokenizer.roles.unknown,
        "cls_token": tokenizer.roles.start,
        "sep_token": tokenizer.roles.separator,
        "mask_token": tokenizer.roles.mask,
    }
    files.write_whole(path / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
