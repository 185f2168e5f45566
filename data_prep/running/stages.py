"""The two stages of a build, piece by piece; build.py and beam.py decide who runs the pieces.

Every piece is idempotent: what is finished already is left alone, and files appear atomically.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import (
    NUM_TOKENS,
    TOKEN_COUNTS,
    TOKENIZER,
    Manifest,
    Shard,
    sha256,
    shard_name,
)
from bert_jax.data.tokenizer import Tokenizer
from data_prep.examples import token_store, writers
from data_prep.examples.encoders import Encoder, make_encoder
from data_prep.examples.shards import ShardExamples, count_shards
from data_prep.examples.tfrecord import write_tfrecord
from data_prep.examples.token_store import SPLITS, Store
from data_prep.options import BuildOptions, arguments
from data_prep.sources import corpus

WORK = ".build"
_WRITERS = {"array_record": writers.write_array_record, "tfrecord": write_tfrecord}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """A build under way: what every worker of either stage needs to know."""

    options: BuildOptions
    tokenizer: Tokenizer
    output: str

    @property
    def work(self) -> epath.Path:
        return epath.Path(self.output) / WORK

    @property
    def units(self) -> epath.Path:
        return self.work / "units"

    @property
    def store(self) -> epath.Path:
        return self.work / "store"

    @property
    def finished(self) -> epath.Path:
        return self.work / "shards"

    def unit(self, name: str) -> epath.Path:
        return self.units / f"{name}.npz"

    @functools.cached_property
    def encoder(self) -> Encoder:
        return make_encoder(self.tokenizer)


def input_files(parts: Iterable[corpus.Part]) -> dict[str, list[int]]:
    """Size and time of modification (seconds) of every file; streams have none."""
    return {path: _state(path) for part in parts if part.kind != "stream" for path in part.paths}


def _state(path: str) -> list[int]:
    try:
        return list(files.size_and_time(path))
    except OSError as error:
        raise UserError(f"input {path} cannot be read: {error}") from None


def read_units(part: corpus.Part) -> Iterator[corpus.Unit]:
    """Reads the units of a part, with names that also say what its files were.

    So a build that resumes finds the units of files that are as they were, and of no others.
    """
    key = hashlib.sha256(json.dumps(input_files([part])).encode()).hexdigest()[:12]
    for unit in corpus.read_units(part):
        yield dataclasses.replace(unit, name=f"{unit.name}-{key}")


def tokenize(job: Job, unit: corpus.Unit) -> dict[str, int]:
    """Stage 1 for one unit; a unit that is there already is only counted."""
    if counts := token_store.read_counts(job.unit(unit.name)):
        return counts
    return token_store.tokenize_unit(
        unit,
        job.encoder,
        job.units,
        language=job.options.language,
        sentence_per_line=job.options.sentence_per_line,
        max_decode_errors=job.options.max_decode_errors,
    )


def has_store(job: Job) -> bool:
    """Whether stage 1 is complete."""
    return (job.store / "store.json").exists()


def merge(job: Job, names: Iterable[str]) -> None:
    """Ends stage 1: joins the units of these names into the store, train and validation apart.

    They are not looked for in the directory: a remote one may be remembered as it was before other
    processes wrote there, and units of files that have changed since lie there too. The units stay,
    since Beam may do this twice, even at once.
    """
    if has_store(job):
        return
    options = job.options
    summary = token_store.merge(
        [job.unit(name) for name in sorted(set(names))],
        job.store,
        job.tokenizer,
        validation_fraction=options.validation_fraction,
        # A pair with a random B needs a second document of the same split.
        smallest_split=2 if options.objective == "nsp" else 1,
        deduplicate=options.deduplicate,
    )
    token_store.require_documents(summary, options.input)
    counts = {split: summary["splits"][split]["documents"] for split in SPLITS}
    if options.objective == "nsp" and counts["train"] < 2:
        cause = ""
        if summary["counts"]["unparted_files"]:
            cause = (
                f" (a text file of {summary['counts']['unparted_lines']} lines without a blank one "
                "between them, which would part documents: --document_per_line takes each line as "
                "one)"
            )
        raise UserError(
            f"input {','.join(options.input)} holds one document{cause}, and the objective nsp "
            "takes a random segment B from another one: add documents, or use --objective=sop or "
            "full_sentences"
        )
    if options.validation_fraction and not counts["validation"]:
        _log.warning(
            f"the corpus is too small to hold documents out ({counts['train']} documents): "
            "there are no validation shards"
        )
    token_store.complete(job.store, summary)


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to write."""

    split: str
    index: int
    count: int

    def name(self, options: BuildOptions) -> str:
        return shard_name(self.split, self.index, self.count, options.format)


def list_shards(job: Job) -> list[ShardTask]:
    """Every shard of the data set; known only once the store is."""
    splits = json.loads((job.store / "store.json").read_text())["splits"]
    tasks = []
    for split in SPLITS:
        if not splits[split]["documents"]:
            continue
        shard_options = job.options.shard_options(split)
        copies = sum(
            number * shard_options.weights[int(source)] * shard_options.dupe_factor
            for source, number in splits[split]["documents_of_source"].items()
        )
        wanted = job.options.num_shards
        if split == "validation":
            wanted = max(1, round(wanted * job.options.validation_fraction))
        count = count_shards(wanted, copies)
        tasks += [ShardTask(split, index, count) for index in range(count)]
    return tasks


def write_shard(job: Job, task: ShardTask) -> dict[str, Any]:
    """Stage 2 for one shard: writes it and then its statistics; returns them.

    A shard that is there already, with its statistics, is left alone.
    """
    name = task.name(job.options)
    path = epath.Path(job.output) / name
    summary_path = job.finished / f"{name}.json"
    if path.exists() and summary_path.exists():
        with contextlib.suppress(ValueError):  # cut off, as by a power failure
            return json.loads(summary_path.read_text())
    store = Store(job.store, task.split, job.tokenizer.vocab_size)
    try:
        examples = ShardExamples(
            store,
            job.options.shard_options(task.split),
            job.tokenizer,
            task.index,
            task.count,
            SPLITS.index(task.split),
        )
        write = _WRITERS[job.options.format]
        with write(path, examples) as written:
            # Statistics first: where both files exist, the shard is finished.
            for suffix, array in (
                ("token_counts", examples.token_counts_V),
                ("num_tokens", examples.num_tokens_E),
            ):
                statistics_path = job.finished / f"{name}.{suffix}"
                files.write_whole(statistics_path, array.tobytes())
            summary = {**written._asdict(), **examples.counts}
            files.write_whole(summary_path, json.dumps(summary))
    finally:
        store.close()
    return summary


def finish(job: Job) -> Manifest:
    """Gathers the statistics, writes the tokenizer, counts, lengths and, last, the manifest."""
    output = epath.Path(job.output)
    store_summary = json.loads((job.store / "store.json").read_text())
    splits: dict[str, list[Shard]] = {}
    statistics: dict[str, Any] = {**store_summary["counts"], "splits": {}}
    if unparted := statistics.get("unparted_files"):
        _log.warning(
            f"{unparted} text files have no blank line, so that each is one document, of "
            f"{statistics['unparted_lines'] / unparted:,.0f} lines on average: where each line is "
            "a document, give --document_per_line"
        )
    token_counts_V = np.zeros(job.tokenizer.vocab_size, np.int64)
    num_tokens: dict[str, list[np.ndarray]] = {}
    for task in list_shards(job):
        name = task.name(job.options)
        summary = json.loads((job.finished / f"{name}.json").read_text())
        shard = Shard(
            name, summary["examples"], summary.pop("sha256"), summary.pop("num_bytes", None)
        )
        splits.setdefault(task.split, []).append(shard)
        counts = statistics["splits"].setdefault(
            task.split, dict(store_summary["splits"][task.split])
        )
        for key, value in summary.items():
            counts[key] = counts.get(key, 0) + value
        if task.split == "train":
            counts_V = (job.finished / f"{name}.token_counts").read_bytes()
            token_counts_V += np.frombuffer(counts_V, np.int64)
        lengths_E = (job.finished / f"{name}.num_tokens").read_bytes()
        num_tokens.setdefault(task.split, []).append(np.frombuffer(lengths_E, np.uint16))
    if not sum(shard.num_examples for shard in splits["train"]):
        raise UserError(
            f"input {','.join(job.options.input)} gives no examples: the documents are too short"
        )
    chance = token_counts_V[token_counts_V > 0] / token_counts_V.sum()
    statistics["unigram_entropy_nats"] = float(-(chance * np.log(chance)).sum())
    statistics["files"] = {TOKEN_COUNTS: writers.save_array(output / TOKEN_COUNTS, token_counts_V)}
    for split in splits:
        hashes = np.frombuffer((job.store / split / "hashes.bin").read_bytes(), "<u8")
        name = f"document_hashes-{split}.npy"
        statistics["files"][name] = writers.save_array(output / name, hashes)
        name = NUM_TOKENS.format(split=split)
        lengths_E = np.concatenate(num_tokens[split])
        statistics["files"][name] = writers.save_array(output / name, lengths_E)
    longest = max(512, job.options.max_seq_length)  # of BERT as published, or of these examples
    tokenizers.save(job.tokenizer, output / TOKENIZER, longest)
    for name in sorted(files.sizes(output / TOKENIZER)):
        path = f"{TOKENIZER}/{name}"
        statistics["files"][path] = sha256(output / path)
    manifest = Manifest(
        arguments=arguments(job.options),
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        vocab_size=job.tokenizer.vocab_size,
        splits=splits,
        statistics=statistics,
    )
    manifest.write(output)
    return manifest
