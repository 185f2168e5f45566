"""What determines a vocabulary."""

import dataclasses
import os

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from data_prep.sources import parsing


@dataclasses.dataclass(frozen=True)
class VocabOptions:
    """What determines a vocabulary. Flags of the same names say what each one means.

    Attributes:
      vocab_size: None is 30,522 for a new vocabulary, and the size of one that is extended.
      strip_accents: None is as text is lowercased. A vocabulary that is extended keeps its own, as
        it keeps `lowercase`.
      alphabet_size: None follows from the text and vocab_size (`alphabet.choose`).
      max_word_length: None is 100 for a new vocabulary, and that of one that is extended.
    """

    input: tuple[str, ...]
    field: str = "text"
    vocab_size: int | None = None
    lowercase: bool = True
    strip_accents: bool | None = None
    min_frequency: int = 2
    alphabet_size: int | None = None
    max_word_length: int | None = None
    max_mb: float = 1000.0
    max_decode_errors: float = parsing.MAX_DECODE_ERRORS

    def checked(self) -> "VocabOptions":
        """Returns the options; raises UserError for impossible ones."""
        required = {
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
        for name, (is_good, expected) in required.items():
            if not is_good:
                raise UserError(f"--{name} is {getattr(self, name)}: expected {expected}")
        return self


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
