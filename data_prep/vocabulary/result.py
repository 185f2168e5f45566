"""What a vocabulary makes of the text that it was learnt from."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from bert_jax.data.tokenizer import CONTINUATION_PREFIX, Tokenizer


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary that was trained or extended.

    Attributes:
      tokenizer: the tokenizer; of an extended one the ids of the old tokens are unchanged.
      pieces_per_word: on the text that was given, words that are too long not counted.
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
        if self.long_words:
            line += (
                f"; {self.long_words:,} words over {tokenizer.max_word_length} characters are "
                "[UNK] too (--max_word_length)"
            )
        return line


def measure(tokenizer: Tokenizer, words: Mapping[str, int]) -> Vocabulary:
    """Counts the pieces of a text's words."""
    short = [word for word in words if len(word) <= tokenizer.max_word_length]
    count_N = np.fromiter((words[word] for word in short), np.int64, len(short))
    pieces_N = count_pieces(tokenizer, short)
    total = max(int(count_N.sum()), 1)
    ids = (token.removeprefix(CONTINUATION_PREFIX) for token in tokenizer.vocab)
    return Vocabulary(
        tokenizer,
        pieces_per_word=int((count_N * np.abs(pieces_N)).sum()) / total,
        unknown_share=int(count_N[pieces_N < 0].sum()) / total,
        long_words=sum(words.values()) - int(count_N.sum()),
        num_letters=sum(len(token) == 1 for token in ids),
    )


def count_pieces(tokenizer: Tokenizer, words: list[str]) -> np.ndarray:
    """int64[N]: of each word; -1 for one that is [UNK] as a whole."""
    encodings = tokenizer.backend.encode_batch_fast(words, add_special_tokens=False)
    unknown = tokenizer.unk_id
    return np.fromiter(
        (-1 if unknown in e.ids else len(e.ids) for e in encodings), np.int64, len(words)
    )
