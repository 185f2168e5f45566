"""Builds a data set: documents -> sentences -> examples -> shards and `dataset.json`.

    python -m data_prep.build --input='wiki/*.jsonl.gz' --tokenizer=DIR --output=DATA_DIR

Two stages. The first turns text into a store of token ids (token_store.py), the second makes
examples from it with random access (shards.py). Both are cut into pieces that do not depend on who
computes them, so the shards are byte-identical for any number of workers, for Beam, and for a run
that was killed and started again. Work in progress lies in DATA_DIR/.build and is removed at the
end; `dataset.json` is written last.
"""

import argparse
import dataclasses
import functools
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax import cli as command_line
from bert_jax import tokenizer as tokenizers
from bert_jax.cli import UserError
from bert_jax.masking import MaskingConfig
from bert_jax.records import MANIFEST, Manifest, Shard, shard_name
from bert_jax.tokenizer import Tokenizer
from data_prep import corpus, parallel, token_store, writers
from data_prep.fast_encoder import FastEncoder
from data_prep.progress import Progress
from data_prep.shards import ShardExamples, ShardOptions, count_shards
from data_prep.tfrecord import write_tfrecord
from data_prep.token_store import SPLITS, Store

TOKEN_COUNTS = "token_counts.npy"
WORK = ".build"
FORMATS = {"array_record": writers.write_array_record, "tfrecord": write_tfrecord}
OBJECTIVES = ("nsp", "sop", "full_sentences", "doc_sentences")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What determines a data set. Flags of the same names say what each one means."""

    input: tuple[str, ...]
    tokenizer: str
    field: str = "text"
    weights: tuple[float, ...] = ()
    language: str = "en"
    sentence_per_line: bool = False
    max_decode_errors: float = corpus.MAX_DECODE_ERRORS
    deduplicate: bool = False
    objective: str = "nsp"
    max_seq_length: int = 128
    short_seq_prob: float = 0.1
    dupe_factor: int = 5
    masking: str = "static"
    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int = 20
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    whole_word_mask: bool = False
    max_ngram: int = 1
    validation_fraction: float = 0.01
    num_shards: int = 16
    format: str = "array_record"
    seed: int = 12345

    def checked(self) -> "BuildOptions":
        """Returns the options with defaults filled in; raises UserError for impossible ones."""
        required = {
            "max_seq_length": (5 <= self.max_seq_length < 2**16, "between 5 and 65535"),
            "short_seq_prob": (0 <= self.short_seq_prob <= 1, "between 0 and 1"),
            "dupe_factor": (self.dupe_factor >= 1, "at least 1"),
            "masked_lm_prob": (0 < self.masked_lm_prob < 1, "between 0 and 1"),
            "max_predictions_per_seq": (
                1 <= self.max_predictions_per_seq <= self.max_seq_length,
                f"between 1 and max_seq_length ({self.max_seq_length})",
            ),
            "mask_fraction": (0 <= self.mask_fraction <= 1, "between 0 and 1"),
            "random_fraction": (
                0 <= self.random_fraction <= 1 - self.mask_fraction + 1e-9,
                f"between 0 and 1 - mask_fraction ({1 - self.mask_fraction:g})",
            ),
            "max_ngram": (1 <= self.max_ngram <= 10, "between 1 and 10"),
            "validation_fraction": (0 <= self.validation_fraction < 1, "from 0 to below 1"),
            "num_shards": (1 <= self.num_shards < 10**5, "between 1 and 99999"),
            "objective": (self.objective in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
            "masking": (self.masking in ("static", "dynamic"), "static or dynamic"),
            "format": (self.format in FORMATS, f"one of {', '.join(FORMATS)}"),
            "max_decode_errors": (0 <= self.max_decode_errors <= 1, "between 0 and 1"),
            "weights": (
                len(self.weights) in (0, len(self.input)) and all(w >= 0 for w in self.weights),
                f"one number, 0 or more, for each of the {len(self.input)} sources",
            ),
        }
        for name, (is_good, expected) in required.items():
            if not is_good:
                raise UserError(f"--{name} is {getattr(self, name)}: expected {expected}")
        if not self.input:
            raise UserError("no input: give --input=SOURCE[,SOURCE…]")
        if self.format == "tfrecord" and self.masking == "dynamic":
            raise UserError("--format=tfrecord holds masked examples: use --masking=static")
        return dataclasses.replace(self, weights=self.weights or (1.0,) * len(self.input))

    @property
    def masking_config(self) -> MaskingConfig:
        return MaskingConfig.from_arguments(dataclasses.asdict(self))

    def shard_options(self, split: str) -> ShardOptions:
        """Validation documents are used once each, whatever the duplicates and weights."""
        is_train = split == "train"
        return ShardOptions(
            objective=self.objective,
            max_seq_length=self.max_seq_length,
            short_seq_prob=self.short_seq_prob,
            dupe_factor=self.dupe_factor if is_train else 1,
            weights=self.weights if is_train else tuple(float(w > 0) for w in self.weights),
            masking=self.masking_config if self.masking == "static" else None,
            seed=self.seed,
        )


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

    @functools.cached_property
    def encoder(self) -> FastEncoder:
        return FastEncoder(self.tokenizer)


def build(
    options: BuildOptions,
    output: epath.PathLike,
    *,
    workers: int | None = None,
) -> Manifest:
    """Builds the data set, or goes on with it, or finds it finished; returns its manifest.

    Args:
      options: what to build.
      output: DATA_DIR; made if missing.
      workers: local processes; all processors by default. Does not change the result.

    Raises:
      UserError: impossible options, unusable input or tokenizer, or a directory that holds a data
        set of other options.
    """
    options = options.checked()
    tokenizer = tokenizers.load(options.tokenizer)
    job = Job(options, tokenizer, str(output))
    if (epath.Path(output) / MANIFEST).exists():
        manifest = Manifest.read(output)
        _require_same(job, manifest.arguments, manifest.tokenizer_fingerprint)
        _log.info(f"{output} is built already")
        return manifest
    workers = workers or parallel.default_workers()
    if workers < 1:
        raise UserError(f"--workers is {workers}: expected at least 1")
    with _WorkDirectory(job):
        if not (job.store / "store.json").exists():
            tokenize_locally(job, workers)
        write_shards_locally(job, workers)
        manifest = finish(job)
    return manifest


class _WorkDirectory:
    """DATA_DIR/.build: refuses another command's, and leaves nothing after a user's mistake."""

    def __init__(self, job: Job):
        self._job = job

    def __enter__(self) -> None:
        job = self._job
        path = job.work / "arguments.json"
        self._is_new = not path.exists()
        self._output_is_new = not epath.Path(job.output).exists()
        if self._is_new:
            for directory in (job.units, job.finished):
                directory.mkdir(parents=True, exist_ok=True)
            started = {
                "arguments": arguments(job.options),
                "tokenizer_fingerprint": job.tokenizer.fingerprint,
            }
            token_store.write_atomically(path, json.dumps(started, indent=1).encode())
        else:
            started = json.loads(path.read_text())
            _require_same(job, started["arguments"], started["tokenizer_fingerprint"])
            for directory in (epath.Path(job.output), job.units, job.work, job.finished):
                for leftover in directory.glob("*.partial-*"):
                    _remove(leftover)

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None or (self._is_new and issubclass(kind, UserError)):
            _remove(self._job.work)
            if kind is not None and self._output_is_new:
                _remove(epath.Path(self._job.output))


def _remove(path: epath.Path) -> None:
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def arguments(options: BuildOptions) -> dict[str, Any]:
    """The options as they stand in JSON."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _require_same(job: Job, theirs: dict[str, Any], fingerprint: str) -> None:
    ours = arguments(job.options)
    differing = [
        f"--{name} was {theirs.get(name)!r} and is now {ours.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    if not differing and fingerprint != job.tokenizer.fingerprint:
        differing = [f"the vocabulary in {job.options.tokenizer} has changed"]
    if differing:
        raise UserError(
            f"{job.output} holds a data set built by another command: {'; '.join(differing)}. "
            "Give another --output, or remove the directory"
        )


def tokenize(job: Job, unit: corpus.Unit) -> dict[str, int]:
    """Stage 1 for one unit; a unit that is there already is only counted."""
    path = job.units / f"{unit.name}.npz"
    if path.exists():
        return token_store.read_counts(path)
    return token_store.tokenize_unit(
        unit,
        job.encoder,
        job.units,
        language=job.options.language,
        sentence_per_line=job.options.sentence_per_line,
        max_decode_errors=job.options.max_decode_errors,
    )


def tokenize_locally(job: Job, workers: int) -> None:
    """Stage 1: all units, then the merged store."""
    parts = corpus.list_parts(job.options.input, job.options.field)
    units = (unit for part in parts for unit in corpus.read_units(part))
    with Progress("tokenise", sum(part.num_bytes for part in parts)) as progress:
        for unit, counts in parallel.run(tokenize, job, units, workers):
            progress.advance(
                unit.disk_bytes,
                documents=counts["documents"],
                MB=counts["source_bytes"] / 1e6,
            )
    merge(job)


def merge(job: Job) -> None:
    """Ends stage 1: joins the units into the store, train and validation apart."""
    options = job.options
    units = token_store.unit_files(job.units)
    summary = token_store.merge(
        units,
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
        raise UserError(
            f"input {','.join(options.input)} holds one document, and the objective nsp takes a "
            "random segment B from another one: add documents, or use --objective=sop or "
            "full_sentences"
        )
    if options.validation_fraction and not counts["validation"]:
        _log.warning(
            f"the corpus is too small to hold documents out ({counts['train']} documents): "
            "there are no validation shards"
        )
    for path in units:
        path.unlink()


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
        write = FORMATS[job.options.format]
        with write(path, examples) as sha256:
            # Statistics first: where both files exist, the shard is finished.
            token_store.write_atomically(
                job.finished / f"{name}.npy", examples.token_counts_V.tobytes()
            )
            summary = {"sha256": sha256, **examples.counts}
            token_store.write_atomically(summary_path, json.dumps(summary).encode())
    finally:
        store.close()
    return summary


def write_shards_locally(job: Job, workers: int) -> None:
    """Stage 2: all shards that are not there yet."""
    tasks = list_shards(job)
    with Progress("write", len(tasks)) as progress:
        for _, summary in parallel.run(write_shard, job, tasks, min(workers, len(tasks))):
            progress.advance(1, examples=summary["examples"])


def finish(job: Job) -> Manifest:
    """Gathers the statistics, writes the tokenizer, the token counts and, last, the manifest."""
    output = epath.Path(job.output)
    store_summary = json.loads((job.store / "store.json").read_text())
    splits: dict[str, list[Shard]] = {}
    statistics: dict[str, Any] = {**store_summary["counts"], "splits": {}}
    token_counts_V = np.zeros(job.tokenizer.vocab_size, np.int64)
    for task in list_shards(job):
        name = task.name(job.options)
        summary = json.loads((job.finished / f"{name}.json").read_text())
        shard = Shard(name, summary["examples"], summary.pop("sha256"))
        splits.setdefault(task.split, []).append(shard)
        counts = statistics["splits"].setdefault(
            task.split, dict(store_summary["splits"][task.split])
        )
        for key, value in summary.items():
            counts[key] = counts.get(key, 0) + value
        if task.split == "train":
            token_counts_V += np.frombuffer((job.finished / f"{name}.npy").read_bytes(), np.int64)
    if not sum(shard.num_examples for shard in splits["train"]):
        raise UserError(
            f"input {','.join(job.options.input)} gives no examples: the documents are too short"
        )
    chance = token_counts_V[token_counts_V > 0] / token_counts_V.sum()
    statistics["unigram_entropy_nats"] = float(-(chance * np.log(chance)).sum())
    statistics["files"] = {TOKEN_COUNTS: writers.save_array(output / TOKEN_COUNTS, token_counts_V)}
    for split in splits:
        hashes = np.fromfile(job.store / split / "hashes.bin", "<u8")
        name = f"document_hashes-{split}.npy"
        statistics["files"][name] = writers.save_array(output / name, hashes)
    tokenizers.save(job.tokenizer, output / "tokenizer")
    manifest = Manifest(
        arguments=arguments(job.options),
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        vocab_size=job.tokenizer.vocab_size,
        splits=splits,
        statistics=statistics,
    )
    manifest.write(output)
    return manifest


def _describe(manifest: Manifest, output: str) -> Iterator[str]:
    for split, shards in manifest.splits.items():
        counts = manifest.statistics["splits"][split]
        examples = counts["examples"]
        yield (
            f"{split}: {counts['documents']:,} documents, {examples:,} examples in {len(shards)} "
            f"shards, {counts['example_tokens'] / max(examples, 1):.1f} tokens an example"
        )
    yield f"check it with: python -m data_prep.check {output}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build",
        description="Builds sharded BERT pretraining examples from text. Killed, the same command "
        "goes on; the result does not depend on workers or runner.",
        epilog="SOURCE is a path or glob (.txt with blank lines between documents, .jsonl, .json, "
        ".parquet; each also .gz or .zst; local or gs://), hf:NAME[/CONFIG][:SPLIT], "
        "tfds:NAME[:SPLIT], or pydocs[:MAX_MB], the English documentation of the installed Python "
        "packages.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(BuildOptions)}

    def add(group: Any, name: str, text: str, **keywords: Any) -> None:
        if "action" not in keywords and "type" not in keywords:
            keywords["type"] = type(defaults[name])
        group.add_argument(f"--{name}", default=defaults.get(name), help=text, **keywords)

    data = parser.add_argument_group("input and output")
    data.add_argument("--input", required=True, metavar="SOURCE[,SOURCE…]", help="where text is")
    data.add_argument(
        "--tokenizer", required=True, help="directory, vocab.txt file or hub name of the tokenizer"
    )
    data.add_argument("--output", required=True, metavar="DATA_DIR", help="directory to fill")
    add(data, "field", "the text field of JSON and Parquet")
    data.add_argument(
        "--weights",
        default="",
        metavar="W[,W…]",
        help="one factor on dupe_factor for each source; all 1 by default",
    )
    add(data, "language", "ISO 639-1 code for sentence splitting")
    add(data, "sentence_per_line", "each line is a sentence", action="store_true")
    add(data, "max_decode_errors", "stop where a larger share of bytes is not UTF-8")
    add(data, "deduplicate", "use documents with equal text once", action="store_true")
    add(data, "validation_fraction", "share of documents held out, chosen by content")
    add(data, "num_shards", "files of the training split; fewer for a tiny corpus")
    add(data, "format", "file format", choices=tuple(FORMATS))
    examples = parser.add_argument_group("examples")
    add(examples, "objective", "what an example is", choices=OBJECTIVES)
    add(examples, "max_seq_length", "positions of an example, special tokens included")
    add(examples, "short_seq_prob", "share of documents with shorter pairs (nsp, sop)")
    add(examples, "dupe_factor", "uses of each document, with new pairs and masks each time")
    add(examples, "seed", "of everything random")
    masks = parser.add_argument_group("masks")
    add(
        masks,
        "masking",
        "dynamic: the loader masks anew in every epoch",
        choices=("static", "dynamic"),
    )
    add(masks, "masked_lm_prob", "share of tokens to predict")
    add(masks, "max_predictions_per_seq", "the most tokens to predict in an example")
    add(masks, "mask_fraction", "of those, the share replaced by [MASK]")
    add(masks, "random_fraction", "and by a random token; the rest is kept")
    add(masks, "whole_word_mask", "choose whole words", action="store_true")
    add(masks, "max_ngram", "choose runs of up to so many tokens or words")
    run = parser.add_argument_group("how to run (does not change the result)")
    run.add_argument(
        "--workers", type=int, default=parallel.default_workers(), help="local processes"
    )
    return parser


def main(argv: Sequence[str]) -> int | None:
    flags = vars(_parser().parse_args(argv))
    output, workers = flags.pop("output"), flags.pop("workers")
    flags["input"] = tuple(source for source in flags["input"].split(",") if source)
    try:
        flags["weights"] = tuple(float(w) for w in flags["weights"].split(",") if w)
    except ValueError:
        raise UserError(f"--weights is {flags['weights']}: expected numbers, as in 1,0.5") from None
    manifest = build(BuildOptions(**flags), output, workers=workers)
    for line in _describe(manifest, output):
        print(line)
    return None


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    cli()
