"""What BPE and Unigram vocabularies have in common: text cut at blanks, and special tokens."""

import collections
from collections.abc import Iterator, Sequence

import tokenizers
from etils import epath
from tokenizers import normalizers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizer_lib
from bert_jax.data.tokenization import layout as layouts
from bert_jax.data.tokenizer import SubwordTokenizer
from data_prep.progress import Progress
from data_prep.vocabulary.options import VocabOptions
from data_prep.vocabulary.result import Vocabulary, measure, warn_if_smaller
from data_prep.vocabulary.spool import Spool


def special_tokens(options: VocabOptions) -> tuple[layouts.Roles, list[str], list[str]]:
    """The special tokens, those with the first ids, and the last: RoBERTa's mask comes last."""
    if options.special_tokens == "bert":
        return layouts.BERT, [*layouts.BERT], []
    roles = layouts.ROBERTA
    return roles, [roles.start, roles.pad, roles.separator, roles.unknown], [roles.mask]


def normalizer_steps(options: VocabOptions) -> list[normalizers.Normalizer]:
    """What is done to text first: nothing for a cased vocabulary that keeps accents."""
    steps: list[normalizers.Normalizer] = []
    if options.is_stripped:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if options.is_lowercase:
        steps.append(normalizers.Lowercase())
    return steps


def lines(spool: Spool, progress: Progress) -> Iterator[str]:
    """The lines of all documents, without blanks around them; empty ones are skipped."""
    for document in spool.read(progress):
        yield from filter(None, map(str.strip, document.split("\n")))


def count_words(spool: Spool, options: VocabOptions) -> collections.Counter[str]:
    """How often each run of characters between blanks occurs.

    Raises:
      UserError: there is none.
    """
    words: collections.Counter[str] = collections.Counter()
    with Progress("count words", spool.megabytes) as progress:
        for line in lines(spool, progress):
            words.update(line.split())
    if not words:
        raise UserError(f"input {','.join(options.input)} holds no text to learn a vocabulary from")
    return words


def finish(
    backend: tokenizers.Tokenizer,
    options: VocabOptions,
    vocab_size: int,
    words: collections.Counter[str],
    output: epath.PathLike | None,
    unigrams: Sequence[tuple[str, float]] = (),
) -> Vocabulary:
    """Gives a trained tokenizer its special tokens and its layout, saves and measures it."""
    roles = special_tokens(options)[0]
    # As in BERT's and RoBERTa's: the mask of the latter takes the blank before it along.
    takes_blank = {roles.mask} if roles == layouts.ROBERTA else set()
    backend.add_special_tokens(
        [tokenizers.AddedToken(x, lstrip=x in takes_blank, normalized=False) for x in roles]
    )
    layout = (layouts.as_bert if roles == layouts.BERT else layouts.as_roberta)(roles)
    backend.post_processor = layouts.post_processor(layout, backend.get_vocab())
    tokenizer = SubwordTokenizer.of(backend, roles, layout, unigrams)
    warn_if_smaller(tokenizer, vocab_size, options)
    if output is not None:
        tokenizer_lib.save(tokenizer, output)
    return measure(tokenizer, words)
