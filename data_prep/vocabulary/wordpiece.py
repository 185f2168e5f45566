"""Trains a WordPiece vocabulary, the same on every run and machine."""

import logging

import tokenizers
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as bert_tokenizer
from bert_jax.data.tokenizer import (
    CONTINUATION_PREFIX,
    MAX_WORD_LENGTH,
    SPECIAL_TOKENS,
    WordPieceTokenizer,
)
from data_prep.examples.marks import MarkCounter
from data_prep.progress import Progress
from data_prep.vocabulary import alphabet
from data_prep.vocabulary.options import VocabOptions, require_writable
from data_prep.vocabulary.result import Vocabulary, measure, warn_if_smaller
from data_prep.vocabulary.spool import Spool
from data_prep.vocabulary.words import characters_of, long_runs, words_of

# Share of the text's characters that may lose a mark without a warning.
MAX_STRIPPED = 0.005
_log = logging.getLogger(__name__)


def train(options: VocabOptions, output: epath.PathLike | None = None) -> Vocabulary:
    """Trains a vocabulary and, given `output`, saves the tokenizer there.

    The vocabulary holds the special tokens, the letters, the '##' forms of those that continue
    words, then the merged pieces in the order in which they were found.

    Args:
      options: which text, and how large a vocabulary.
      output: TOKENIZER_DIR.

    Raises:
      UserError: unusable input or output, or a size that the alphabet alone exceeds.
    """
    require_writable(output)
    options = options.checked()
    vocab_size = options.size
    longest = MAX_WORD_LENGTH if options.max_word_length is None else options.max_word_length
    # What it does to text before it cuts words is settled already.
    empty = WordPieceTokenizer(
        SPECIAL_TOKENS,
        options.is_lowercase,
        options.strip_accents,
        max_word_length=longest,
    )
    with Spool(options) as spool:
        words = words_of(spool.pieces, empty)
        short = {w: n for w, n in words.items() if len(w) <= longest}
        if not short:
            raise UserError(
                f"input {','.join(options.input)} holds no text to learn a vocabulary from"
                + (
                    f": all its words have over {longest} letters (--max_word_length)"
                    if words
                    else ""
                )
            )
        _warn_of_stripped_marks(spool.pieces, empty)
        found = alphabet.choose(short, vocab_size, options.alphabet_size)
        if found.dropped > alphabet.MAX_DROPPED:
            _log.warning(
                f"{found.dropped:.2%} of the text's characters are none of its "
                f"{len(found.letters)} most frequent ones: words with them become [UNK]. A larger "
                "--alphabet_size keeps them"
            )
        # Two things make the Rust trainer's result vary from run to run: which rare letters survive
        # a limit, and the ids of the '##' letters, by which ties between merges are broken. So the
        # letters are counted here, and all of them are given ids in advance as special tokens.
        if vocab_size < len(found.tokens):
            raise UserError(
                f"--vocab_size is {vocab_size}: expected at least {len(found.tokens)}, for the "
                f"{len(found.letters)} letters of this text alone (--alphabet_size limits them)"
            )
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=options.min_frequency,
            special_tokens=found.tokens,
            initial_alphabet=found.letters,
            limit_alphabet=len(found.letters),
            continuing_subword_prefix=CONTINUATION_PREFIX,
            show_progress=False,
        )
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = empty.backend.normalizer
        backend.pre_tokenizer = empty.backend.pre_tokenizer
        skipped = long_runs(longest)
        with Progress("train vocabulary", spool.megabytes) as progress:
            texts = (skipped.sub(" ", document) for document in spool.read(progress))
            backend.train_from_iterator(texts, trainer)
    ids = backend.get_vocab(with_added_tokens=True)
    # Rebuilt from the list, so that the letters are ordinary tokens again.
    tokenizer = WordPieceTokenizer(
        tuple(sorted(ids, key=ids.__getitem__)),
        options.is_lowercase,
        options.strip_accents,
        max_word_length=longest,
    )
    warn_if_smaller(tokenizer, vocab_size, options)
    if output is not None:
        bert_tokenizer.save(tokenizer, output)
    return measure(tokenizer, words)


def _warn_of_stripped_marks(pieces: dict[str, int], tokenizer: WordPieceTokenizer) -> None:
    marks = MarkCounter(tokenizer)
    characters = characters_of(pieces)
    stripped = sum(n for character, n in characters.items() if marks.is_changed(character))
    share = stripped / max(characters.total(), 1)
    if share > MAX_STRIPPED:
        _log.warning(
            f"{share:.1%} of the text's characters lose a mark ({marks.examples(characters)}), so "
            "that different words become one. --no-strip_accents keeps them"
        )
