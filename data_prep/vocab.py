"""Trains a WordPiece vocabulary, or extends one with the words of a domain.

    python -m data_prep.vocab --input='wiki/*.jsonl.gz' --output=TOKENIZER_DIR --vocab_size=30522

The result is a function of the text and the options alone: the same on every run and machine.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from etils import epath

from bert_jax import cli as command_line
from bert_jax.cli import HelpFormatter
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.tokenizer import Tokenizer
from data_prep.options import split_sources
from data_prep.vocabulary.extension import Extension, extend
from data_prep.vocabulary.options import VocabOptions
from data_prep.vocabulary.wordpiece import DEFAULT_VOCAB_SIZE, train


def run(
    options: VocabOptions,
    output: epath.PathLike | None = None,
    *,
    from_tokenizer: str | epath.PathLike | None = None,
) -> Tokenizer | Extension:
    """Trains a vocabulary, or extends that of `from_tokenizer`; saves the tokenizer to `output`."""
    if from_tokenizer is None:
        return train(options, output)
    return extend(tokenizers.load(from_tokenizer), options, output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.vocab",
        description="Trains a WordPiece vocabulary, the same on every run; or, with "
        "--from_tokenizer, adds the words of a domain to an existing one.",
        epilog="SOURCE is as for python -m data_prep.build.",
        formatter_class=HelpFormatter,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(VocabOptions)}
    parser.add_argument("--input", required=True, metavar="SOURCE[,SOURCE…]", help="where text is")
    parser.add_argument(
        "--output", required=True, metavar="TOKENIZER_DIR", help="directory to write to"
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        help=f"number of tokens; by default {DEFAULT_VOCAB_SIZE}, or that of --from_tokenizer",
    )
    parser.add_argument(
        "--lowercase",
        action=argparse.BooleanOptionalAction,
        default=defaults["lowercase"],
        help="lowercase the text and strip accents; --no-lowercase for a cased vocabulary",
    )
    parser.add_argument(
        "--from_tokenizer",
        default=None,
        metavar="DIR_OR_NAME",
        help="extend this tokenizer: [unused…] slots first, then new ids up to --vocab_size",
    )
    for name, text in (
        ("field", "the text field of JSON and Parquet"),
        ("min_frequency", "a piece occurs so many times at least"),
        ("alphabet_size", "the most letters to keep, rarer ones become [UNK]; Chinese needs more"),
        ("max_mb", "read so many megabytes of text at most, from all files"),
        ("max_decode_errors", "stop where a larger share of bytes is not UTF-8"),
    ):
        parser.add_argument(
            f"--{name}", type=type(defaults[name]), default=defaults[name], help=text
        )
    return parser


def main(argv: Sequence[str]) -> int | None:
    flags = vars(_parser().parse_args(argv))
    output, base = flags.pop("output"), flags.pop("from_tokenizer")
    flags["input"] = split_sources(flags["input"])
    options = VocabOptions(**flags)
    result = run(options, output, from_tokenizer=base)
    if isinstance(result, Extension):
        print(
            f"{output}: {result.tokenizer.vocab_size:,} tokens, {len(result.added):,} of them "
            f"new ({', '.join(result.added[:8])}, …); pieces per word "
            f"{result.pieces_per_word_before:.4f} -> {result.pieces_per_word_after:.4f}"
        )
    else:
        print(f"{output}: {result.vocab_size:,} tokens, {result.fingerprint[:12]}")
    return None


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.vocab import cli  # worker processes find the classes under this name

    cli()
