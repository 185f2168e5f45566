"""Extends a vocabulary with the words of a domain."""

import dataclasses
import re

from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as bert_tokenizer
from bert_jax.data.tokenizer import WordPieceTokenizer
from data_prep.vocabulary.options import VocabOptions, require_writable
from data_prep.vocabulary.result import Vocabulary, count_pieces, measure
from data_prep.vocabulary.spool import Spool
from data_prep.vocabulary.words import words_of

_UNUSED = re.compile(r"\[unused\d+\]").fullmatch


def extend(
    base: WordPieceTokenizer, options: VocabOptions, output: epath.PathLike | None = None
) -> Vocabulary:
    """Adds to a vocabulary the words of a text that it cuts into most pieces.

    A word is worth count * (pieces - 1), the tokens that the text gets shorter by. New words take
    the [unused…] slots first, so that a pretrained embedding matrix still fits, and are then
    appended up to vocab_size. A slot that the tokenizer declares as a token of its own (the mark of
    an entity) is none.

    Args:
      base: the vocabulary to extend; also says what is done to text first.
      options: the text of the domain.
      output: TOKENIZER_DIR.

    Raises:
      UserError: unusable input or output, or no room: no [unused…] slots and vocab_size not above
        the base's.
    """
    require_writable(output)
    options = options.checked()
    if options.max_word_length is not None:
        base = dataclasses.replace(base, max_word_length=options.max_word_length)
    vocab = list(base.vocab)
    declared = {token.content for token in base.added}
    slots = [i for i, token in enumerate(vocab) if _UNUSED(token) and token not in declared]
    vocab_size = len(vocab) if options.vocab_size is None else options.vocab_size
    if vocab_size > len(vocab) and any(not token.in_vocabulary for token in base.added):
        raise UserError(
            f"--vocab_size is {vocab_size}: the tokenizer has tokens beside its vocabulary, whose "
            "ids are the last: words can take its [unused…] slots alone, without --vocab_size"
        )
    room = len(slots) + max(0, vocab_size - len(vocab))
    if not room:
        raise UserError(
            f"the vocabulary has {len(vocab)} tokens and no [unused…] slots: give a --vocab_size "
            "above that to append words"
        )
    with Spool(options) as spool:
        words = words_of(spool.pieces, base)
    if not words:
        raise UserError(f"input {','.join(options.input)} holds no text to learn words from")
    names = sorted(word for word in words if len(word) <= base.max_word_length)
    # An unknown word is lost as a whole, which is worth a piece a letter.
    pieces = {
        name: number if number > 0 else len(name)
        for name, number in zip(names, count_pieces(base, names).tolist(), strict=True)
    }
    gains = {name: words[name] * (pieces[name] - 1) for name in names}
    candidates = [
        name
        for name in names
        if gains[name] > 0
        and words[name] >= options.min_frequency
        and name not in base.ids
        and any(map(str.isalpha, name))
    ]
    added = sorted(candidates, key=lambda name: (-gains[name], name))[:room]
    for slot, name in zip(slots, added, strict=False):
        vocab[slot] = name
    vocab += added[len(slots) :]
    extended = dataclasses.replace(base, vocab=tuple(vocab))
    if output is not None:
        bert_tokenizer.save(extended, output)
    return dataclasses.replace(
        measure(extended, words),
        added=tuple(added),
        pieces_per_word_before=measure(base, words).pieces_per_word,
    )
