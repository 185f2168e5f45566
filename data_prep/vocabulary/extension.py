"""Extends a vocabulary with the words of a domain."""

import collections
import dataclasses
import re

from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as bert_tokenizer
from bert_jax.data.tokenizer import Tokenizer
from data_prep.examples.fast_encoder import split_pieces
from data_prep.progress import Progress
from data_prep.vocabulary.options import VocabOptions, require_writable
from data_prep.vocabulary.spool import Spool

_UNUSED = re.compile(r"\[unused\d+\]").fullmatch


@dataclasses.dataclass(frozen=True)
class Extension:
    """An extended vocabulary.

    Attributes:
      tokenizer: the new tokenizer; the ids of the old tokens are unchanged.
      added: the new words, the most useful first.
      pieces_per_word_before, pieces_per_word_after: fertility on the text that was given.
    """

    tokenizer: Tokenizer
    added: tuple[str, ...]
    pieces_per_word_before: float
    pieces_per_word_after: float


def extend(
    base: Tokenizer, options: VocabOptions, output: epath.PathLike | None = None
) -> Extension:
    """Adds to a vocabulary the words of a text that it cuts into most pieces.

    A word is worth count * (pieces - 1), the tokens that the text gets shorter by. New words take
    the [unused…] slots first, so that a pretrained embedding matrix still fits, and are then
    appended up to vocab_size.

    Args:
      base: the vocabulary to extend; also says whether text is lowercased.
      options: the text of the domain.
      output: TOKENIZER_DIR.

    Raises:
      UserError: unusable input or output, or no room: no [unused…] slots and vocab_size not above
        the base's.
    """
    require_writable(output)
    vocab = list(base.vocab)
    slots = [i for i, token in enumerate(vocab) if _UNUSED(token)]
    vocab_size = len(vocab) if options.vocab_size is None else options.vocab_size
    room = len(slots) + max(0, vocab_size - len(vocab))
    if not room:
        raise UserError(
            f"the vocabulary has {len(vocab)} tokens and no [unused…] slots: give a --vocab_size "
            "above that to append words"
        )
    words = _word_counts(options, base)
    if not words:
        raise UserError(f"input {','.join(options.input)} holds no text to learn words from")
    names = sorted(words)
    encodings = base.backend.encode_batch_fast(names, add_special_tokens=False)
    pieces = {name: len(e.ids) for name, e in zip(names, encodings, strict=True)}
    is_unknown = {n for n, e in zip(names, encodings, strict=True) if base.unk_id in e.ids}
    # An unknown word is lost as a whole, which is worth a piece a letter.
    gains = {n: words[n] * ((len(n) if n in is_unknown else pieces[n]) - 1) for n in names}
    candidates = [
        name
        for name in names
        if gains[name] > 0
        and words[name] >= options.min_frequency
        and len(name) <= 100
        and any(map(str.isalpha, name))
    ]
    added = sorted(candidates, key=lambda name: (-gains[name], name))[:room]
    for slot, name in zip(slots, added, strict=False):
        vocab[slot] = name
    vocab += added[len(slots) :]
    extended = dataclasses.replace(base, vocab=tuple(vocab))
    after = extended.backend.encode_batch_fast(names, add_special_tokens=False)
    total = sum(words.values())
    if output is not None:
        bert_tokenizer.save(extended, output)
    return Extension(
        extended,
        tuple(added),
        sum(words[name] * pieces[name] for name in names) / total,
        sum(words[n] * len(e.ids) for n, e in zip(names, after, strict=True)) / total,
    )


def _word_counts(options: VocabOptions, base: Tokenizer) -> dict[str, int]:
    """How often each word occurs, as the tokenizer sees words before it cuts them."""
    raw: collections.Counter[str] = collections.Counter()
    with Spool(options) as spool, Progress("count words", spool.megabytes) as progress:
        for document in spool.read(progress):
            raw.update(split_pieces(document))
    counts: collections.Counter[str] = collections.Counter()
    for piece, count in raw.items():
        normal = base.backend.normalizer.normalize_str(piece)
        for word, _ in base.backend.pre_tokenizer.pre_tokenize_str(normal):
            counts[word] += count
    return counts
