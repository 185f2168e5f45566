"""Trains a WordPiece vocabulary, or extends one with the words of a domain.

    python -m data_prep.vocab --input='wiki/*.jsonl.gz' --output=TOKENIZER_DIR --vocab_size=30522

The result is a function of the text and the options alone: the same on every run and machine.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

import tokenizers
import zstandard
from etils import epath

from bert_jax import cli as command_line
from bert_jax import files
from bert_jax.cli import HelpFormatter, UserError
from bert_jax.data import tokenizer as bert_tokenizer
from bert_jax.data.tokenizer import CONTINUATION_PREFIX, SPECIAL_TOKENS, Tokenizer
from data_prep.examples.fast_encoder import split_pieces
from data_prep.progress import Progress
from data_prep.sources import corpus

DEFAULT_VOCAB_SIZE = 30522
# Files that are read side by side; each holds some 8 MB. More of them are read one after another.
MAX_OPEN_PARTS = 32
# Share of the text's characters that alphabet_size may leave out without a warning.
MAX_DROPPED_LETTERS = 1e-3
_UNUSED = re.compile(r"\[unused\d+\]").fullmatch
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocabOptions:
    """What determines a vocabulary. Flags of the same names say what each one means.

    Attributes:
      vocab_size: None is 30,522 for a new vocabulary, and the size of one that is extended.
    """

    input: tuple[str, ...]
    field: str = "text"
    vocab_size: int | None = None
    lowercase: bool = True
    min_frequency: int = 2
    alphabet_size: int = 1000
    max_mb: float = 1000.0
    max_decode_errors: float = corpus.MAX_DECODE_ERRORS


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
    _require_writable(output)
    vocab_size = DEFAULT_VOCAB_SIZE if options.vocab_size is None else options.vocab_size
    with _Spool(options) as spool:
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


def _require_writable(output: epath.PathLike | None) -> None:
    """Raises UserError for a directory that could not be written to after all the work."""
    if output is None or files.is_remote(output):
        return
    existing = files.absolute(output)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"--output={output} cannot be made: {existing} is no directory")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output={output} cannot be written to: {existing} is read-only")


class _Spool:
    """The documents of the corpus, up to max_mb, in a temporary file to be read a second time.

    Reading the corpus anew instead would double the time of a stream or of pydocs.
    """

    def __init__(self, options: VocabOptions):
        self.character_counts: collections.Counter[str] = collections.Counter()
        self.megabytes = 0.0
        self._options = options

    def __enter__(self) -> "_Spool":
        self._directory = tempfile.TemporaryDirectory()
        self._path = os.path.join(self._directory.name, "documents.jsonl.zst")
        parts = corpus.list_parts(self._options.input, self._options.field)
        compressor = zstandard.ZstdCompressor(level=1)
        try:
            with (
                zstandard.open(self._path, "wt", cctx=compressor) as file,
                Progress("read", sum(part.num_bytes for part in parts)) as progress,
            ):
                many = len(parts) > MAX_OPEN_PARTS
                for unit in self._shares(parts) if many else _in_turn(parts):
                    self._add(unit, file, progress)
                    if self.megabytes >= self._options.max_mb:
                        break
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def _shares(self, parts: Sequence[corpus.Part]) -> Iterator[corpus.Unit]:
        """Units of many parts, one file open at a time, such that max_mb leaves no part out.

        The first round takes a unit of each part; later ones, as a rule one, take its share by size
        of what is left of max_mb. Units that were taken before are read again and passed over,
        except those of streams, which stay open.
        """
        streams = {part: corpus.read_units(part) for part in parts if part.kind == "stream"}
        sizes = _sizes(parts)
        taken = dict.fromkeys(_spread(parts), 0)
        budget_a_byte = 0.0
        while taken:
            for part in list(taken):
                end = self.megabytes + budget_a_byte * sizes[part]
                units = streams.get(part)
                if units is None:
                    units = itertools.islice(corpus.read_units(part), taken[part], None)
                for unit in units:
                    yield unit  # self.megabytes grows by it
                    taken[part] += 1
                    # Several files are one unit: going on finds their end without reading.
                    if self.megabytes >= end and len(part.paths) == 1:
                        break
                else:
                    del taken[part]
            if taken:
                left = self._options.max_mb - self.megabytes
                budget_a_byte = left / sum(sizes[part] for part in taken)

    def _add(self, unit: corpus.Unit, file: TextIO, progress: Progress) -> None:
        documents, counts = corpus.parse_unit(unit, self._options.max_decode_errors)
        for document in documents:
            self.character_counts.update(document)
            file.write(json.dumps(document) + "\n")
        megabytes = counts.source_bytes / 1e6
        self.megabytes += megabytes
        progress.advance(unit.disk_bytes, documents=len(documents), MB=megabytes)

    def __exit__(self, *exception: object) -> None:
        self._directory.cleanup()

    def read(self, progress: Progress) -> Iterator[str]:
        with zstandard.open(self._path, "rt") as file:
            for line in file:
                document = json.loads(line)
                yield document
                progress.advance(len(document) / 1e6, documents=1, MB=len(document) / 1e6)


def _in_turn(parts: Sequence[corpus.Part]) -> Iterator[corpus.Unit]:
    """Units of a few parts: one of each in turn, until all are at their end."""
    streams = [corpus.read_units(part) for part in parts]
    while streams:
        for stream in list(streams):
            unit = next(stream, None)
            if unit is None:
                streams.remove(stream)
            else:
                yield unit


def _spread(parts: Sequence[corpus.Part]) -> list[corpus.Part]:
    """Reorders parts so that the first few, however many, are from all over every source.

    Eight of one source -> its parts 0, 4, 2, 6, 1, 5, 3, 7.
    """
    totals = collections.Counter(part.source for part in parts)
    seen: collections.Counter[int] = collections.Counter()
    places = {}
    for part in sorted(parts, key=lambda part: f"{part.index:032b}"[::-1]):
        places[part] = (seen[part.source] / totals[part.source], part.source)
        seen[part.source] += 1
    return sorted(parts, key=places.__getitem__)


def _sizes(parts: Sequence[corpus.Part]) -> dict[corpus.Part, float]:
    """Bytes on disk; a stream, whose size is not known, counts as much as an average source."""
    total = sum(part.num_bytes for part in parts)
    sources = len({part.source for part in parts if part.num_bytes})
    return {part: part.num_bytes or max(total, 1) / max(sources, 1) for part in parts}


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
    _require_writable(output)
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
    with _Spool(options) as spool, Progress("count words", spool.megabytes) as progress:
        for document in spool.read(progress):
            raw.update(split_pieces(document))
    counts: collections.Counter[str] = collections.Counter()
    for piece, count in raw.items():
        normal = base.backend.normalizer.normalize_str(piece)
        for word, _ in base.backend.pre_tokenizer.pre_tokenize_str(normal):
            counts[word] += count
    return counts


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
    flags["input"] = tuple(source for source in flags["input"].split(",") if source)
    options = VocabOptions(**flags)
    if base is None:
        tokenizer = train(options, output)
        print(f"{output}: {tokenizer.vocab_size:,} tokens, {tokenizer.fingerprint[:12]}")
        return None
    extension = extend(bert_tokenizer.load(base), options, output)
    print(
        f"{output}: {extension.tokenizer.vocab_size:,} tokens, {len(extension.added):,} of them "
        f"new ({', '.join(extension.added[:8])}, …); pieces per word "
        f"{extension.pieces_per_word_before:.4f} -> {extension.pieces_per_word_after:.4f}"
    )
    return None


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.vocab import cli  # worker processes find the classes under this name

    cli()
