"""The text that a vocabulary is learnt from: some of every file, kept to be read a second time."""

import collections
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import TextIO

import zstandard

from data_prep.progress import Progress
from data_prep.sources import corpus, parsing
from data_prep.vocabulary.options import VocabOptions
from data_prep.vocabulary.words import split_pieces

# Files that are read side by side; each holds some 8 MB. More of them are read one after another.
MAX_OPEN_PARTS = 32


class Spool:
    """The documents of the corpus, up to max_mb, in a temporary file to be read a second time.

    Reading the corpus again instead would double the time of a stream or of pydocs.

    Attributes (in the `with` block):
      pieces: how often each run of characters between blanks and punctuation occurs.
      megabytes: of raw text.
    """

    def __init__(self, options: VocabOptions):
        self.pieces: collections.Counter[str] = collections.Counter()
        self.megabytes = 0.0
        self._options = options

    def __enter__(self) -> "Spool":
        parts = corpus.list_parts(self._options.input, self._options.field)
        self._directory = tempfile.TemporaryDirectory()
        self._path = os.path.join(self._directory.name, "documents.jsonl.zst")
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
        of what is left of max_mb. Units that were taken before are read again and skipped,
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
                    # Several files are one unit: the next step finds their end without reading.
                    if self.megabytes >= end and len(part.paths) == 1:
                        break
                else:
                    del taken[part]
            if taken:
                left = self._options.max_mb - self.megabytes
                budget_a_byte = left / sum(sizes[part] for part in taken)

    def _add(self, unit: corpus.Unit, file: TextIO, progress: Progress) -> None:
        documents, counts = parsing.parse_unit(unit, self._options.max_decode_errors)
        for document in documents:
            self.pieces.update(split_pieces(document))
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
