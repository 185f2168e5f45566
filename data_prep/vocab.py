"""Trains a vocabulary, or extends one with the words of a domain.

    python -m data_prep.vocab --input='wiki/*.jsonl.gz' --output=TOKENIZER_DIR --vocab_size=30522

The result is a function of the text and the options alone: the same on every run and machine.
"""

import argparse
from collections.abc import Sequence

from etils import epath

from bert_jax import cli as command_line
from bert_jax.cli import HelpFormatter, UserError
from bert_jax.data import tokenizer as tokenizers
from data_prep.options import split_sources
from data_prep.vocabulary import bpe, unigram, wordpiece
from data_prep.vocabulary.extension import extend
from data_prep.vocabulary.options import VocabOptions, add_vocab_flags
from data_prep.vocabulary.result import Vocabulary

TRAINERS = {"wordpiece": wordpiece.train, "bpe": bpe.train, "unigram": unigram.train}


def run(
    options: VocabOptions,
    output: epath.PathLike | None = None,
    *,
    from_tokenizer: str | epath.PathLike | None = None,
) -> Vocabulary:
    """Trains a vocabulary, or extends an existing one; returns it with what it does to the text.

    Args:
      options: which text, and how large a vocabulary.
      output: TOKENIZER_DIR; nothing is written without it.
      from_tokenizer: directory, vocab.txt file or hub name of the tokenizer to extend.

    Raises:
      UserError: unusable input, output or tokenizer, or a size with no room.
    """
    if from_tokenizer is None:
        return TRAINERS[options.checked().kind](options, output)
    if options.strip_accents is not None:
        raise UserError(
            "--strip_accents is for new vocabularies: that of --from_tokenizer says itself what is "
            "done to text"
        )
    base = tokenizers.load(from_tokenizer)
    if not isinstance(base, tokenizers.WordPieceTokenizer):
        raise UserError(
            f"--from_tokenizer={from_tokenizer} is a {base.kind} tokenizer: expected a WordPiece "
            "one, whose words can be extended (pieces of the other kinds depend on one another)"
        )
    return extend(base, options, output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.vocab",
        description="Trains a vocabulary, the same on every run; or, with "
        "--from_tokenizer, adds the words of a domain to an existing one.",
        epilog="SOURCE is as for python -m data_prep.build.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="SOURCE[,SOURCE…]",
        help=r"where text is; a comma in a name is written as \,",
    )
    parser.add_argument(
        "--output", required=True, metavar="TOKENIZER_DIR", help="directory to write to"
    )
    parser.add_argument(
        "--from_tokenizer",
        default=None,
        metavar="DIR_OR_NAME",
        help="extend this tokenizer: [unused…] slots first, then new ids up to --vocab_size",
    )
    add_vocab_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int | None:
    flags = vars(_parser().parse_args(argv))
    output, base = flags.pop("output"), flags.pop("from_tokenizer")
    flags["input"] = split_sources(flags["input"])
    interrupted = "interrupted: nothing was written; the same command starts from scratch"
    with command_line.saying_when_interrupted(interrupted):
        result = run(VocabOptions(**flags), output, from_tokenizer=base)
    tokenizer = result.tokenizer
    if base is None:
        print(f"{output}: {tokenizer.vocab_size:,} tokens, {tokenizer.fingerprint[:12]}")
    else:
        print(
            f"{output}: {tokenizer.vocab_size:,} tokens, {len(result.added):,} of them new "
            f"({', '.join(result.added[:8])}, …)"
        )
    print(result.describe())
    return None


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.vocab import cli  # worker processes find the classes under this name

    cli()
