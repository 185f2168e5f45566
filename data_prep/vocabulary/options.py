"""What determines a vocabulary."""

import argparse
import dataclasses
import os

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from data_prep.sources import parsing

# Of BERT, RoBERTa and XLNet.
VOCAB_SIZES = {"wordpiece": 30522, "bpe": 50265, "unigram": 32000}
KINDS = tuple(VOCAB_SIZES)


@dataclasses.dataclass(frozen=True)
class VocabOptions:
    """What determines a vocabulary. Flags of the same names say what each one means.

    Attributes:
      kind: 'wordpiece' (BERT's), 'bpe' (of bytes, RoBERTa's) or 'unigram' (SentencePiece's).
      vocab_size: None is 30,522, 50,265 or 32,000 for a new vocabulary, and the size of one that is
        extended.
      lowercase: None is True for WordPiece alone.
      special_tokens: 'bert' or 'roberta': their names, and the layout of pairs. None is as the
        kind's first model.
      strip_accents: None is as text is lowercased. A vocabulary that is extended keeps its own, as
        it keeps `lowercase`.
      alphabet_size: None follows from the text and vocab_size (`alphabet.choose`).
      max_word_length: None is 100 for a new vocabulary, and that of one that is extended.
    """

    input: tuple[str, ...]
    field: str = "text"
    kind: str = "wordpiece"
    vocab_size: int | None = None
    lowercase: bool | None = None
    special_tokens: str | None = None
    strip_accents: bool | None = None
    min_frequency: int = 2
    alphabet_size: int | None = None
    max_word_length: int | None = None
    max_mb: float = 1000.0
    max_decode_errors: float = parsing.MAX_DECODE_ERRORS

    @property
    def size(self) -> int:
        """Of a new vocabulary."""
        return VOCAB_SIZES[self.kind] if self.vocab_size is None else self.vocab_size

    @property
    def is_lowercase(self) -> bool:
        return self.kind == "wordpiece" if self.lowercase is None else self.lowercase

    @property
    def is_stripped(self) -> bool:
        """Whether accents are dropped."""
        return self.is_lowercase if self.strip_accents is None else self.strip_accents

    def checked(self) -> "VocabOptions":
        """Returns the options; raises UserError for impossible ones."""
        required = {
            "kind": (self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            "special_tokens": (
                self.special_tokens in (None, "bert", "roberta"),
                "bert or roberta",
            ),
            "vocab_size": (self.vocab_size is None or self.vocab_size >= 1, "at least 1"),
            "min_frequency": (self.min_frequency >= 1, "at least 1"),
            "alphabet_size": (self.alphabet_size is None or self.alphabet_size >= 1, "at least 1"),
            "max_word_length": (
                self.max_word_length is None or 1 <= self.max_word_length <= 10**6,
                "between 1 and 1000000",
            ),
            "max_mb": (self.max_mb > 0, "above 0"),
            "max_decode_errors": (0 <= self.max_decode_errors <= 1, "between 0 and 1"),
        }
        if self.kind == "wordpiece":
            required["special_tokens"] = (
                self.special_tokens in (None, "bert"),
                "bert, for --kind=wordpiece",
            )
        else:
            for name in ("alphabet_size", "max_word_length"):
                is_absent = getattr(self, name) is None
                required[name] = (is_absent, f"none: --kind={self.kind} has no such limit")
        for name, (is_good, expected) in required.items():
            if not is_good:
                raise UserError(f"--{name} is {getattr(self, name)}: expected {expected}")
        return self


def add_vocab_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each option of a vocabulary but the input."""
    sizes = ", ".join(f"{size} ({kind})" for kind, size in VOCAB_SIZES.items())
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="wordpiece",
        help="wordpiece: BERT's; bpe: RoBERTa's pieces of bytes; unigram: SentencePiece's",
    )
    parser.add_argument(
        "--special_tokens",
        choices=("bert", "roberta"),
        help="[CLS] A [SEP] B [SEP] with token types, or <s> A </s></s> B </s> without; by default "
        "bert for --kind=wordpiece, else roberta",
    )
    defaults = {field.name: field.default for field in dataclasses.fields(VocabOptions)}
    for name, text in (
        (
            "lowercase",
            "lowercase the text; by default for --kind=wordpiece alone, as BERT's and RoBERTa's "
            "first models",
        ),
        (
            "strip_accents",
            "strip accents and other marks; by default as text is lowercased. Hindi, Thai, "
            "Japanese and others lose letters by it: --no-strip_accents",
        ),
    ):
        parser.add_argument(
            f"--{name}",
            action=argparse.BooleanOptionalAction,
            default=defaults[name],
            help=text,
        )
    for name, text in (
        (
            "vocab_size",
            f"number of tokens; by default {sizes}, or that of --from_tokenizer",
        ),
        (
            "alphabet_size",
            "the most letters to keep, rarer ones become [UNK]; by default as many as suit the "
            "text and --vocab_size",
        ),
        (
            "max_word_length",
            "a longer word is [UNK]; by default 100 as in BERT, or that of --from_tokenizer",
        ),
    ):
        parser.add_argument(f"--{name}", type=int, help=text)
    for name, text in (
        ("field", "the text field of JSON and Parquet"),
        ("min_frequency", "a piece occurs so many times at least (not for --kind=unigram)"),
        ("max_mb", "read so many megabytes of text at most, from all files"),
        ("max_decode_errors", "stop where a larger share of bytes is not UTF-8"),
    ):
        parser.add_argument(
            f"--{name}", type=type(defaults[name]), default=defaults[name], help=text
        )


def require_writable(output: epath.PathLike | None) -> None:
    """Raises UserError for a directory that could not be written to after all the work."""
    if output is None or files.is_remote(output):
        return
    existing = files.absolute(output)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"--output={output} cannot be made: {existing} is no directory")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output={output} cannot be written to: {existing} is read-only")
