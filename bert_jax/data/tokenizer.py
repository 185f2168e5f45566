"""The WordPiece tokenizer: loading, saving so that Hugging Face reads it back, fingerprint."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"
_MAX_WORD = 100  # a longer word is [UNK]
_SPECIAL = re.compile(r"\[.+\]|<.+>").fullmatch  # also [unused0] and <S>
# What a tokenizer.json has to say, beside the flags of its normalizer, to give the same ids.
_BERT_PARTS = (
    ("model", "type", "WordPiece"),
    ("model", "unk_token", "[UNK]"),
    ("model", "continuing_subword_prefix", CONTINUATION_PREFIX),
    ("model", "max_input_chars_per_word", _MAX_WORD),
    ("normalizer", "type", "BertNormalizer"),
    ("pre_tokenizer", "type", "BertPreTokenizer"),
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A BERT WordPiece tokenizer.

    Attributes:
      vocab: the tokens; the index is the id.
      lowercase: whether text is lowercased first ("uncased").
      strip_accents: whether accents are dropped first; None: as text is lowercased.
    """

    vocab: tuple[str, ...]
    lowercase: bool = True
    strip_accents: bool | None = None

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocab)}

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The Rust tokenizer; adds no special tokens (templates are the caller's business)."""
        backend = tokenizers.Tokenizer(
            tokenizers.models.WordPiece(
                self.ids, unk_token="[UNK]", max_input_chars_per_word=_MAX_WORD
            )
        )
        backend.normalizer = tokenizers.normalizers.BertNormalizer(
            lowercase=self.lowercase, strip_accents=self.strip_accents
        )
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        backend.decoder = tokenizers.decoders.WordPiece(prefix=CONTINUATION_PREFIX)
        backend.add_special_tokens([t for t in SPECIAL_TOKENS if t in self.ids])
        return backend

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and the flags: equal means the same token ids."""
        flags = [self.lowercase]
        if self.strip_accents is not None:
            flags.append(self.strip_accents)
        text = json.dumps([*flags, *self.vocab], ensure_ascii=False)
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
        """bool[V]: true for the special tokens, which are never masked nor drawn at random."""
        return np.isin(np.arange(self.vocab_size), [self.ids[t] for t in SPECIAL_TOKENS])

    @functools.cached_property
    def is_continuation_V(self) -> np.ndarray:
        """bool[V]: true for the '##' pieces, which belong to the word before them."""
        return np.array([t.startswith(CONTINUATION_PREFIX) for t in self.vocab])

    def encode(self, text: str) -> list[int]:
        """'unaffable' -> [id('una'), id('##ffa'), id('##ble')], without [CLS] and [SEP]."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Joins pieces into text, special tokens left visible."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def load(source: str | epath.PathLike) -> Tokenizer:
    """Loads a tokenizer from a directory, a `vocab.txt` file or a Hugging Face hub name.

    A directory holds `vocab.txt` or `tokenizer.json`, and says in `tokenizer_config.json`
    (`do_lower_case`, `strip_accents`) what is done to text first; so does the directory of a
    vocabulary file. A vocabulary that nothing is said of is taken for what its name or its
    directory's has in it, "cased" or "uncased"; else for cased if a whole word in it has a capital.

    Raises:
      UserError: nothing there, no vocabulary in it, one without BERT's special tokens, or a
        tokenizer that would give other ids than this one.
    """
    path = epath.Path(source)
    if path.is_file():
        vocab, config = _read_vocab(path), _read_json(path.parent / "tokenizer_config.json")
        _check_alike(source, vocab, {}, config)
        lowercase = config.get("do_lower_case")
        if lowercase is None:
            lowercase = _looks_uncased(path, vocab)
        return _checked(Tokenizer(vocab, lowercase, config.get("strip_accents")), source)
    if not path.is_dir():
        path = _download(str(source))
    backend = _read_json(path / "tokenizer.json")
    config = _read_json(path / "tokenizer_config.json")
    if backend:
        _check_parts(source, backend)
    normalizer = backend.get("normalizer") or {}
    lowercase = config.get("do_lower_case", normalizer.get("lowercase", True))
    strip_accents = config.get("strip_accents", normalizer.get("strip_accents"))
    if (path / "vocab.txt").exists():
        vocab = _read_vocab(path / "vocab.txt")
    elif backend:
        vocab = tuple(sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get))
    else:
        raise UserError(
            f"{source} has no vocabulary: expected vocab.txt or tokenizer.json in it "
            "(make one with: python -m data_prep.vocab --input=… --output=DIR)"
        )
    if not backend and not config:
        lowercase = _looks_uncased(path / "vocab.txt", vocab)
    _check_alike(source, vocab, backend, config)
    return _checked(Tokenizer(vocab, lowercase, strip_accents), source)


def _looks_uncased(path: epath.Path, vocab: Sequence[str]) -> bool:
    """By the names of the file and its directory, else by capitals in whole words."""
    path = files.absolute(path)  # the name of the directory that "vocab.txt" is in
    for name in (path.name.lower(), path.parent.name.lower()):
        if "cased" in name:
            return "uncased" in name
    words = (t for t in vocab if not t.startswith(CONTINUATION_PREFIX) and not _SPECIAL(t))
    return all(word == word.lower() for word in words)


def _check_parts(source: str | epath.PathLike, backend: dict) -> None:
    """Raises UserError if a tokenizer.json has another part than BERT's."""
    for part, name, expected in _BERT_PARTS:
        found = (backend.get(part) or {}).get(name)
        if part == "model" and name == "type" and found is None:
            continue  # not written by tokenizers of 2020; the other lines tell its kind
        if found != expected:
            raise UserError(
                f"{source} is not a tokenizer that this project computes: in its tokenizer.json "
                f"the {part}'s {name} is {found!r}, not {expected!r}"
            )


def _check_alike(
    source: str | epath.PathLike, vocab: Sequence[str], backend: dict, config: dict
) -> None:
    """Raises UserError if a tokenizer.json or tokenizer_config.json asks for more than WordPiece.

    Read without it, text would become other ids than those the model was trained on.
    """
    problems = []
    name = config.get("tokenizer_class", "")
    if "Japanese" in name:
        problems.append(f"it is a {name}, which splits text into words by a dictionary")
    normalizer = backend.get("normalizer") or {}
    if not config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)):
        problems.append("it does not part Chinese characters (tokenize_chinese_chars is false)")
    entries = [*backend.get("added_tokens", ()), *config.get("added_tokens_decoder", {}).values()]
    added = sorted({entry["content"] for entry in entries} - set(vocab))
    if added:
        shown = ", ".join(map(repr, added[:5])) + (", …" if len(added) > 5 else "")
        problems.append(f"it has {len(added)} token(s) beside its vocabulary ({shown})")
    if problems:
        raise UserError(
            f"{source} is not a tokenizer that this project computes: {'; '.join(problems)}"
        )


def _read_json(path: epath.Path) -> dict:
    return files.read_json(path) if path.exists() else {}


def _read_vocab(path: epath.Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text().rstrip("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocabulary: it is not UTF-8 text ({error})") from None


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
                name, allow_patterns=["vocab.txt", "tokenizer.json", "tokenizer_config.json"]
            )
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(f"{explanation} ({brief(error)})") from None


def _checked(tokenizer: Tokenizer, source: str | epath.PathLike) -> Tokenizer:
    missing = [t for t in SPECIAL_TOKENS if t not in tokenizer.ids]
    if missing:
        raise UserError(f"{source} is not a BERT vocabulary: it has no {', '.join(missing)}")
    if len(tokenizer.ids) != len(tokenizer.vocab):
        raise UserError(f"{source} is not a BERT vocabulary: some tokens are listed twice")
    return tokenizer


def save(tokenizer: Tokenizer, directory: str | epath.PathLike, model_max_length: int = 512):
    """Writes `tokenizer.json`, `tokenizer_config.json` and `vocab.txt`.

    transformers v5 reads the casing from `tokenizer_config.json` alone, v4 from `tokenizer.json`,
    and other tools from `vocab.txt`, so all three are written.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", tokenizer.sep_id), ("[CLS]", tokenizer.cls_id)
    )
    files.write_whole(directory / "vocab.txt", "\n".join(tokenizer.vocab) + "\n")
    files.write_whole(directory / "tokenizer.json", backend.to_str(pretty=True))
    config = {
        "tokenizer_class": "BertTokenizer",
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
