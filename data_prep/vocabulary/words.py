"""The words of a text, as BERT's tokenizer sees them before it cuts them into pieces."""

import collections
import re
from collections.abc import Mapping

from bert_jax.data.tokenizer import Tokenizer

# The characters that BERT parts from their neighbours whatever they are: each is a word.
_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_SINGLE = rf"!-/:-@\[-`{{-~{_IDEOGRAPHS}"
# Words never reach over the ends of these, so that each distinct one is normalised once.
split_pieces = re.compile(rf"[^\s{_SINGLE}]+|[{_SINGLE}]").findall


def words_of(pieces: Mapping[str, int], tokenizer: Tokenizer) -> collections.Counter[str]:
    """{'Hello': 2, 'l’été': 1} -> {'hello': 2, 'l': 1, '’': 1, 'ete': 1}, by what it does first."""
    normalize = tokenizer.backend.normalizer.normalize_str
    pre_tokenize = tokenizer.backend.pre_tokenizer.pre_tokenize_str
    words: collections.Counter[str] = collections.Counter()
    for piece, count in pieces.items():
        if piece.isascii() and piece.isalnum():  # most of English, many times faster
            words[piece.lower() if tokenizer.lowercase else piece] += count
            continue
        for word, _ in pre_tokenize(normalize(piece)):
            words[word] += count
    return words


def characters_of(pieces: Mapping[str, int]) -> collections.Counter[str]:
    """How often each character occurs in the pieces."""
    characters: collections.Counter[str] = collections.Counter()
    for piece, count in pieces.items():
        for character in piece:
            characters[character] += count
    return characters


def long_runs(max_length: int) -> re.Pattern[str]:
    """Matches what makes words of more than `max_length` characters, nearly: before normalising."""
    return re.compile(rf"[^\s{_SINGLE}]{{{max_length + 1},}}")
