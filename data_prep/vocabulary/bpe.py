"""Trains a byte-level BPE vocabulary as RoBERTa's, the same on every run and machine."""

import tokenizers
from etils import epath
from tokenizers import pre_tokenizers

from bert_jax.cli import UserError
from data_prep.progress import Progress
from data_prep.vocabulary import subwords
from data_prep.vocabulary.options import VocabOptions, require_writable
from data_prep.vocabulary.result import Vocabulary
from data_prep.vocabulary.spool import Spool

_BYTES = 256


def train(options: VocabOptions, output: epath.PathLike | None = None) -> Vocabulary:
    """Trains a vocabulary and, given `output`, saves the tokenizer there.

    The vocabulary holds the special tokens, the bytes, then the merged pieces in the order in which
    they were found; RoBERTa's mask comes last. Any text can be written with it.

    Args:
      options: which text, and how large a vocabulary.
      output: TOKENIZER_DIR.

    Raises:
      UserError: unusable input or output, or a size that the bytes alone exceed.
    """
    require_writable(output)
    options = options.checked()
    _, first, last = subwords.special_tokens(options)
    least = len(first) + _BYTES + len(last)
    vocab_size = options.size
    if vocab_size < least:
        raise UserError(
            f"--vocab_size is {vocab_size}: expected at least {least}, for the {_BYTES} bytes and "
            "the special tokens alone"
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    if steps := subwords.normalizer_steps(options):
        backend.normalizer = tokenizers.normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    # With all bytes as its alphabet the Rust trainer's result depends on nothing but counts: it
    # breaks ties between merges by the ids of their pieces.
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(last),
        min_frequency=options.min_frequency,
        special_tokens=first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with Spool(options) as spool:
        words = subwords.count_words(spool, options)
        with Progress("train vocabulary", spool.megabytes) as progress:
            # In a text all words but the first have a blank before them: so has each line here.
            texts = (f" {line}" for line in subwords.lines(spool, progress))
            backend.train_from_iterator(texts, trainer)
    return subwords.finish(backend, options, vocab_size, words, output)
