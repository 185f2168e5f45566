"""What a vocabulary makes of the text that it was learnt from."""

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from bert_jax.data.tokenizer import Tokenizer, WordPieceTokenizer
from data_prep.vocabulary.options import VocabOptions

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary that was trained or extended.

    Attributes:
      tokenizer: the tokenizer; of an extended one the ids of the old tokens are unchanged.
      pieces_per_word: on the text that was given, words that are too long not counted. A word is
        what WordPiece cuts text into first; of the other kinds, what stands between blanks.
      unknown_share: the share of its words that are [UNK] for a letter that the vocabulary lacks.
      long_words: its words that are [UNK] for their length.
      num_letters: tokens that are a single letter or its '##' form.
      added: the new words of an extended vocabulary, the most useful first.
      pieces_per_word_before: of the vocabulary that was extended.
    """

    tokenizer: Tokenizer
    pieces_per_word: float
    unknown_share: float
    long_words: int
    num_letters: int
    added: tuple[str, ...] = ()
    pieces_per_word_before: float | None = None

    def describe(self) -> str:
        """One line about how it suits the text."""
        tokenizer = self.tokenizer
        pieces = f"pieces per word {self.pieces_per_word:.4f}"
        if self.pieces_per_word_before is not None:
            pieces = f"pieces per word {self.pieces_per_word_before:.4f} -> "
            pieces += f"{self.pieces_per_word:.4f}"
        line = (
            f"{pieces}, {self.unknown_share:.3%} of the words [UNK], "
            f"{self.num_letters / tokenizer.vocab_size:.1%} of the tokens single letters"
        )
        if self.long_words and isinstance(tokenizer, WordPieceTokenizer):
            line += (
                f"; {self.long_words:,} words over {tokenizer.max_word_length} characters are "
                "[UNK] too (--max_word_length)"
            )
        return line


def measure(tokenizer: Tokenizer, words: Mapping[str, int]) -> Vocabulary:
    """Counts the pieces of a text's words."""
    longest = tokenizer.max_word_length if isinstance(tokenizer, WordPieceTokenizer) else None
    short = [word for word in words if longest is None or len(word) <= longest]
    count_N = np.fromiter((words[word] for word in short), np.int64, len(short))
    pieces_N = count_pieces(tokenizer, short)
    total = max(int(count_N.sum()), 1)
    return Vocabulary(
        tokenizer,
        pieces_per_word=int((count_N * np.abs(pieces_N)).sum()) / total,
        unknown_share=int(count_N[pieces_N < 0].sum()) / total,
        long_words=sum(words.values()) - int(count_N.sum()),
        num_letters=sum(
            len(tokenizer.surface(i).strip()) == 1 for i in range(len(tokenizer.vocab))
        ),
    )


def count_pieces(tokenizer: Tokenizer, words: list[str]) -> np.ndarray:
    """int64[N]: of each word within a text; negative where a piece is unknown."""
    texts = [tokenizer.word_prefix + word for word in words]
    encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    unknown = tokenizer.unknown_id
    return np.fromiter(
        (-len(e.ids) if unknown in e.ids else len(e.ids) for e in encodings), np.int64, len(words)
    )


def warn_if_smaller(tokenizer: Tokenizer, vocab_size: int, options: VocabOptions) -> None:
    """Warns of a text that has not pieces enough for the size that was asked for."""
    if tokenizer.vocab_size < vocab_size:
        often = "" if options.kind == "unigram" else f" that occur {options.min_frequency} times"
        _log.warning(
            f"the text gives only {tokenizer.vocab_size} pieces{often}, fewer than "
            f"--vocab_size={vocab_size}"
        )
