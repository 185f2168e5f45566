"""Trains a WordPiece vocabulary, the same on every run and machine."""

import collections
import logging
from collections.abc import Mapping

import tokenizers
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as bert_tokenizer
from bert_jax.data.tokenizer import CONTINUATION_PREFIX, SPECIAL_TOKENS, Tokenizer
from data_prep.progress import Progress
from data_prep.vocabulary.options import VocabOptions, require_writable
from data_prep.vocabulary.spool import Spool

DEFAULT_VOCAB_SIZE = 30522
# Share of the text's characters that alphabet_size may leave out without a warning.
MAX_DROPPED_LETTERS = 1e-3
_log = logging.getLogger(__name__)


def train(options: VocabOptions, output: epath.PathLike | None = None) -> Tokenizer:
    """Trains a vocabulary and, given `output`, saves the tokenizer there.

    The vocabulary holds the special tokens, the letters, their '##' forms, then the merged pieces
    in the order in which they were found.

    Args:
      options: which text, and how large a vocabulary.
      output: TOKENIZER_DIR.

    Raises:
      UserError: unusable input or output, or a size that the alphabet alone exceeds.
    """
    require_writable(output)
    vocab_size = DEFAULT_VOCAB_SIZE if options.vocab_size is None else options.vocab_size
    with Spool(options) as spool:
        letters, dropped = _alphabet(spool.character_counts, options)
        if dropped > MAX_DROPPED_LETTERS:
            _log.warning(
                f"{dropped:.2%} of the text's characters are none of its {len(letters)} most "
                "frequent ones: words with them become [UNK]. A larger --alphabet_size keeps them"
            )
        # Two things make the Rust trainer's result vary from run to run: which rare letters survive
        # a limit, and the ids of the '##' letters, by which ties between merges are broken. So the
        # letters are counted here, and all of them are given ids in advance as special tokens.
        fixed = [*SPECIAL_TOKENS, *letters, *(CONTINUATION_PREFIX + letter for letter in letters)]
        if vocab_size < len(fixed):
            raise UserError(
                f"--vocab_size is {vocab_size}: expected at least {len(fixed)}, for the "
                f"{len(letters)} letters of this text alone (--alphabet_size limits them)"
            )
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=options.lowercase)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=options.min_frequency,
            special_tokens=fixed,
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            continuing_subword_prefix=CONTINUATION_PREFIX,
            show_progress=False,
        )
        with Progress("train vocabulary", spool.megabytes) as progress:
            backend.train_from_iterator(spool.read(progress), trainer)
    ids = backend.get_vocab(with_added_tokens=True)
    # Built anew from the list, so that the letters are ordinary tokens again.
    tokenizer = Tokenizer(tuple(sorted(ids, key=ids.get)), options.lowercase)
    if tokenizer.vocab_size < vocab_size:
        _log.warning(
            f"the text gives only {tokenizer.vocab_size} pieces that occur "
            f"{options.min_frequency} times, fewer than --vocab_size={vocab_size}"
        )
    if output is not None:
        bert_tokenizer.save(tokenizer, output)
    return tokenizer


def _alphabet(
    character_counts: Mapping[str, int], options: VocabOptions
) -> tuple[list[str], float]:
    """The most frequent characters, in code point order, and the share of the text that others are.

    Characters are counted after normalisation, blanks left out.
    """
    # Normalisation treats every character on its own, so the distinct ones are enough.
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=options.lowercase)
    counts: collections.Counter[str] = collections.Counter()
    for character, count in character_counts.items():
        for letter in normalizer.normalize_str(character):
            if not letter.isspace():
                counts[letter] += count
    if not counts:
        raise UserError(f"input {','.join(options.input)} holds no text to learn a vocabulary from")
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))
    dropped = sum(counts[letter] for letter in frequent[options.alphabet_size :])
    return sorted(frequent[: options.alphabet_size]), dropped / counts.total()
