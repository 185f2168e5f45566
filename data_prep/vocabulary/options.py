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
    """

    input: tuple[str, ...]
    field: str = "text"
    vocab_size: int | None = None
    lowercase: bool = True
    min_frequency: int = 2
    alphabet_size: int = 1000
    max_mb: float = 1000.0
    max_decode_errors: float = parsing.MAX_DECODE_ERRORS


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
