"""Stage 1: documents to an on-disk store of token ids with sentence and document offsets.

Every unit of text becomes one file of ids, written atomically, so that a killed run resumes where
it was. `merge` then lays the units end to end, train and validation apart:

    store/train/tokens.bin      the ids of every document, one after another (uint16 or uint32)
    store/train/sentences.bin   uint64[sentences + 1], offsets into tokens
    store/train/documents.bin   uint64[documents + 1], offsets into sentences
    store/train/hashes.bin      uint64[documents], hash of each document's text

Tokens and sentences are read with `pread`, never mapped: memory stays what a batch needs, however
large the corpus.
"""

import collections
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from data_prep.examples.encoders import Encoder
from data_prep.examples.unknown_words import MOST_WORDS, commonest
from data_prep.sources import corpus, parsing
from data_prep.sources.documents import sentences

SPLITS = ("train", "validation")
# A longer sentence (a table, text without punctuation) is cut, so that no more than this is lost
# when a pair is truncated.
MAX_SENTENCE_TOKENS = 256
_OFFSET = np.dtype("<u8")
_READ_BY_SHARDS = ("tokens", "sentences", "documents")
_FILES = (*_READ_BY_SHARDS, "hashes")


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def content_hash(text: str) -> int:
    """Hash of a document's cleaned text, blind to blanks around lines; decides its split."""
    normal = "\n".join(line for line in map(str.strip, text.split("\n")) if line)
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "little")


def tokenize_unit(
    unit: corpus.Unit,
    encoder: Encoder,
    directory: epath.Path,
    *,
    language: str,
    sentence_per_line: bool,
    max_decode_errors: float,
) -> dict[str, Any]:
    """Writes `directory/NAME.npz` and returns its counts, which are in the file too."""
    documents, parsed = parsing.parse_unit(unit, max_decode_errors)
    found: list[str] = []
    sentence_ends = []
    for document in documents:
        found.extend(encoder.of_document(sentences(document, language, sentence_per_line)))
        sentence_ends.append(len(found))
    ids, lengths, long_words_S = encoder.encode(found)
    unknown_words = encoder.unknown_words.count(found, ids, lengths)
    lengths, pieces_per_sentence = _cut_long(lengths)
    # A sentence of invisible characters has no tokens; a document of such sentences is empty.
    ends = np.concatenate([[0], np.cumsum(pieces_per_sentence)])[np.array(sentence_ends, np.int64)]
    counts_D = np.diff(ends, prepend=0)
    long_words = np.concatenate([[0], np.cumsum(long_words_S)])[np.array(sentence_ends, np.int64)]
    long_words_D = np.diff(long_words, prepend=0)
    characters, stripped = encoder.marks.count(documents)
    hashes = np.array([content_hash(document) for document in documents], np.uint64)[counts_D > 0]
    counts = {
        **dataclasses.asdict(parsed),
        "documents": int((counts_D > 0).sum()),
        "cut_sentences": int((pieces_per_sentence > 1).sum()),
        "characters": characters,
        "stripped_characters": stripped,
        "unknown_words": unknown_words,
    }
    counts["empty_documents"] += int((counts_D == 0).sum())
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=ids,
        sentence_lengths=lengths.astype(np.uint32),
        document_sentences=counts_D[counts_D > 0].astype(np.uint32),
        document_long_words=long_words_D[counts_D > 0].astype(np.uint32),
        hashes=hashes,
        counts=np.frombuffer(json.dumps(counts).encode(), np.uint8),
    )
    files.write_whole(directory / f"{unit.name}.npz", buffer.getvalue())
    return counts


def _cut_long(length_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[3, 0, 300] -> lengths [3, 256, 44] and pieces of each sentence [1, 0, 2]."""
    pieces_S = -(-length_S // MAX_SENTENCE_TOKENS)
    lengths = np.full(int(pieces_S.sum()), MAX_SENTENCE_TOKENS, np.int64)
    last = np.cumsum(pieces_S)[pieces_S > 0] - 1
    lengths[last] = (length_S - (pieces_S - 1) * MAX_SENTENCE_TOKENS)[pieces_S > 0]
    return lengths, pieces_S


def _member(path: epath.Path, *names: str) -> list[np.ndarray]:
    with path.open("rb") as file, np.load(io.BytesIO(file.read())) as arrays:
        return [arrays[name] for name in names]


def read_counts(path: epath.Path) -> dict[str, Any]:
    """What tokenize_unit returned; {} if the file is missing, cut off, as by a power failure, or
    of a version of this program that wrote less.
    """
    try:
        return json.loads(bytes(_member(path, "counts", "document_long_words")[0]))
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return {}


@dataclasses.dataclass(frozen=True)
class Splitter:
    """Which documents are held out: those whose hash is at most `threshold` (-1: none)."""

    threshold: int

    def is_validation(self, hash_D: np.ndarray) -> np.ndarray:
        if self.threshold < 0:
            return np.zeros(len(hash_D), bool)
        return hash_D <= np.uint64(self.threshold)


def choose_split(hashes: Iterable[np.ndarray], fraction: float, smallest: int) -> Splitter:
    """Holds out about `fraction` of the documents, chosen by content and nothing else.

    Exact duplicates have one hash and so fall on one side. Both sides get at least `smallest`
    distinct documents where the fraction is not 0; a corpus too small for that is not split.

    Args:
      hashes: hashes of all documents, in any number of arrays.
      fraction: in [0, 1).
      smallest: 1, or 2 where a pair needs two documents.
    """
    if fraction == 0:
        return Splitter(-1)
    threshold = int(fraction * 2**64)
    lowest = np.zeros(0, np.uint64)  # the smallest + 1 lowest distinct hashes
    highest = np.zeros(0, np.uint64)
    for array in hashes:
        lowest = np.unique(np.concatenate([lowest, array]))[: 2 * smallest]
        highest = np.unique(np.concatenate([highest, array]))[-smallest - 1 :]
    if len(lowest) < 2 * smallest:
        return Splitter(-1)
    # At least the `smallest` lowest are held out; at least the `smallest` highest are not.
    threshold = max(threshold - 1, int(lowest[smallest - 1]))
    return Splitter(min(threshold, int(highest[-smallest - 1])))


def merge(
    units: Sequence[epath.Path],
    directory: epath.Path,
    tokenizer: Tokenizer,
    *,
    validation_fraction: float,
    smallest_split: int,
    deduplicate: bool,
) -> dict[str, dict]:
    """Joins unit files into `directory`; `complete` then makes the store whole.

    Args:
      units: unit files in reading order.
      directory: of the store.
      tokenizer: made the ids.
      validation_fraction, smallest_split: see choose_split.
      deduplicate: keep the first of documents with equal text.

    Returns:
      The summary for `complete`: counts, the commonest unknown_words among them, and for each
      split its documents, sentences, tokens, unknown_tokens, words, long_words (too long for the
      tokenizer), document_lengths (how many have 2**i tokens or more, but not 2**(i + 1)), and
      documents_of_source (see Store).
    """
    splitter = choose_split(
        (_member(path, "hashes")[0] for path in units), validation_fraction, smallest_split
    )
    writers = {split: _SplitWriter(directory / split, tokenizer) for split in SPLITS}
    parsed: dict[str, Any] = {"duplicate_documents": 0}
    unknown_words: collections.Counter[str] = collections.Counter()
    first_places = _first_places(units) if deduplicate else None
    place = 0
    for path in units:
        ids, lengths, per_document, long_words_D, hashes, counts = _member(
            path,
            "ids",
            "sentence_lengths",
            "document_sentences",
            "document_long_words",
            "hashes",
            "counts",
        )
        counts_of_unit = json.loads(bytes(counts))
        unknown_words.update(counts_of_unit.pop("unknown_words", {}))  # absent before 0.2.0
        for name, count in counts_of_unit.items():
            parsed[name] = parsed.get(name, 0) + count
        source = int(path.name.partition("-")[0])
        held_out_D = splitter.is_validation(hashes)
        is_kept_D = np.ones(len(hashes), bool)
        if first_places is not None:
            is_kept_D = first_places[place : place + len(hashes)]
            parsed["duplicate_documents"] += int((~is_kept_D).sum())
        place += len(hashes)
        for split, is_split_D in (("train", ~held_out_D), ("validation", held_out_D)):
            chosen_D = is_split_D & is_kept_D
            chosen_S = np.repeat(chosen_D, per_document)
            writers[split].add(
                source,
                ids[np.repeat(chosen_S, lengths)],
                lengths[chosen_S],
                per_document[chosen_D],
                hashes[chosen_D],
                int(long_words_D[chosen_D].sum()),
            )
    return {
        "counts": parsed | {"unknown_words": commonest(unknown_words, MOST_WORDS)},
        "splits": {split: writer.close() for split, writer in writers.items()},
    }


def complete(directory: epath.Path, summary: dict[str, dict]) -> None:
    """Writes `store.json`, which says that the store is whole."""
    # The id tells the store from an earlier one at this place, of which a copy may be left.
    contents = {"id": uuid.uuid4().hex, **summary}
    files.write_whole(directory / "store.json", json.dumps(contents, indent=1))


def _first_places(units: Sequence[epath.Path]) -> np.ndarray:
    """bool[documents]: whether no earlier document has the same hash; 17 bytes a document."""
    hashes = np.concatenate([np.zeros(0, np.uint64)] + [_member(u, "hashes")[0] for u in units])
    is_first = np.zeros(len(hashes), bool)
    is_first[np.unique(hashes, return_index=True)[1]] = True
    return is_first


class _SplitWriter:
    def __init__(self, directory: epath.Path, tokenizer: Tokenizer):
        directory.mkdir(parents=True, exist_ok=True)
        self._paths = {name: directory / f"{name}.bin" for name in _FILES}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._counts = dict.fromkeys(
            ("documents", "sentences", "tokens", "unknown_tokens", "words", "long_words"), 0
        )
        self._lengths = np.zeros(64, np.int64)
        self._documents_of_source: dict[int, int] = {}
        self._files["sentences"].write(np.zeros(1, _OFFSET).tobytes())
        self._files["documents"].write(np.zeros(1, _OFFSET).tobytes())

    def add(
        self, source, ids, sentence_lengths, document_sentences, hashes, long_words: int
    ) -> None:
        counts = self._counts
        ends_D = np.cumsum(sentence_lengths, dtype=np.int64)[
            np.cumsum(document_sentences, dtype=np.int64) - 1
        ]
        exponents_D = np.frexp(np.diff(ends_D, prepend=0))[1] - 1
        self._lengths += np.bincount(exponents_D, minlength=len(self._lengths))
        counts["long_words"] += long_words
        sentence_ends = counts["tokens"] + np.cumsum(sentence_lengths, dtype=_OFFSET)
        document_ends = counts["sentences"] + np.cumsum(document_sentences, dtype=_OFFSET)
        self._files["tokens"].write(ids.astype(self._dtype).tobytes())
        self._files["sentences"].write(sentence_ends.astype(_OFFSET).tobytes())
        self._files["documents"].write(document_ends.astype(_OFFSET).tobytes())
        self._files["hashes"].write(hashes.astype(_OFFSET).tobytes())
        counts["tokens"] += len(ids)
        counts["sentences"] += len(sentence_lengths)
        counts["documents"] += len(document_sentences)
        counts["unknown_tokens"] += int((ids == self._tokenizer.unknown_id).sum())
        counts["words"] += int((~self._tokenizer.is_continuation_V[ids]).sum())
        so_far = self._documents_of_source.get(source, 0)
        self._documents_of_source[source] = so_far + len(document_sentences)

    def close(self) -> dict:
        for name, file in self._files.items():
            file.close()
            files.sync(self._paths[name])
        # Reading order is source by source, so counts per source say where each one ends.
        return {
            **self._counts,
            "document_lengths": np.trim_zeros(self._lengths, "b").tolist(),
            "documents_of_source": self._documents_of_source,
        }


class Store:
    """One split of a merged store, opened for reading.

    Attributes:
      document_offsets: uint64[documents + 1], mapped: the sentences of document d are
        document_offsets[d] up to document_offsets[d + 1].
      documents_of_source: SOURCE index -> number of its documents; they follow one another.
    """

    def __init__(self, directory: str | os.PathLike, split: str, vocab_size: int):
        local = _local(epath.Path(directory))
        summary = json.loads((local / "store.json").read_text())["splits"][split]
        sources = summary["documents_of_source"]
        self.documents_of_source = {int(source): n for source, n in sources.items()}
        self.dtype = token_dtype(vocab_size)
        self._tokens = os.open(local / split / "tokens.bin", os.O_RDONLY)
        self._sentences = os.open(local / split / "sentences.bin", os.O_RDONLY)
        offsets = np.memmap(local / split / "documents.bin", _OFFSET, "r")
        self.document_offsets = offsets.view(np.ndarray)  # a memmap takes 5 us a slice

    def close(self) -> None:
        os.close(self._tokens)
        os.close(self._sentences)

    def sentence_offsets(self, first: int, last: int) -> np.ndarray:
        """Token offsets of sentences first … last - 1 and the end of the last: uint64[n + 1]."""
        size = (last - first + 1) * _OFFSET.itemsize
        return np.frombuffer(os.pread(self._sentences, size, first * _OFFSET.itemsize), _OFFSET)

    def tokens(self, start_N: Sequence[int], length_N: Sequence[int]) -> np.ndarray:
        """The ids of N runs, one after another: [0, 9], [2, 1] -> the tokens 0, 1 and 9."""
        width = self.dtype.itemsize
        buffer = np.empty(sum(length_N), self.dtype)
        view = buffer.view(np.uint8).data
        at = 0
        for start, length in zip(start_N, length_N, strict=True):
            end = at + length * width
            if os.preadv(self._tokens, [view[at:end]], start * width) < end - at:
                raise UserError("the token store is cut off: remove DATA_DIR and build it again")
            at = end
        return buffer


def _local(directory: epath.Path) -> epath.Path:
    """A remote store's copy on this machine's disk: one process makes it, the others wait."""
    if not files.is_remote(directory):
        return directory
    summary = (directory / "store.json").read_text()
    target = _copy_of(directory, summary)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, or the process ends
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            try:
                for split in SPLITS:
                    (partial / split).mkdir(parents=True)
                    for name in _READ_BY_SHARDS:
                        file = directory / split / f"{name}.bin"
                        file.copy(partial / split / file.name)
                (partial / "store.json").write_text(summary)
                os.rename(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _copy_of(directory: epath.Path, summary: str) -> epath.Path:
    key = hashlib.sha256(f"{directory}{summary}".encode()).hexdigest()[:16]
    return epath.Path(tempfile.gettempdir()) / f"bert_jax-store-{key}"


def remove_copy(directory: epath.Path) -> None:
    """Removes this machine's copy of a remote store, if there is one."""
    summary = directory / "store.json"
    if files.is_remote(directory) and summary.exists():
        target = _copy_of(directory, summary.read_text())
        shutil.rmtree(target, ignore_errors=True)
        epath.Path(f"{target}.lock").unlink(missing_ok=True)


def require_documents(summary: dict, inputs: Sequence[str]) -> None:
    """Raises UserError if the corpus has no text in it."""
    if not sum(split["documents"] for split in summary["splits"].values()):
        raise UserError(
            f"input {','.join(inputs)} holds no text: "
            f"{summary['counts'].get('empty_documents', 0)} documents were found, all empty"
        )
