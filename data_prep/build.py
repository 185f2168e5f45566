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
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from bert_jax import cli as command_line
from bert_jax import files
from bert_jax.cli import HelpFormatter, UserError
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import MANIFEST, Manifest
from data_prep import parallel
from data_prep.examples import token_store
from data_prep.examples.token_store import SPLITS
from data_prep.options import FORMATS, OBJECTIVES, BuildOptions, arguments
from data_prep.progress import Progress
from data_prep.running.stages import (
    Job,
    finish,
    has_store,
    input_files,
    list_shards,
    merge,
    read_units,
    tokenize,
    write_shard,
)
from data_prep.sources import corpus

ARGUMENTS_FILE = "arguments.json"  # in DATA_DIR/.build
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.({'|'.join(FORMATS)})")
_log = logging.getLogger(__name__)


def build(
    options: BuildOptions,
    output: epath.PathLike,
    *,
    workers: int | None = None,
    runner: str = "local",
    beam_options: str = "",
) -> Manifest:
    """Builds the data set, or goes on with it, or finds it finished; returns its manifest.

    Args:
      options: what to build.
      output: DATA_DIR; made if missing.
      workers: local processes; all processors by default.
      runner: 'local' or 'beam'. Neither workers nor runner changes the result.
      beam_options: Beam's own flags, in one string; for that runner alone.

    Raises:
      UserError: impossible options, unusable input or tokenizer, or a directory that holds a data
        set of other options or, unfinished, of other text, or shards of which nothing is known.
    """
    options = options.checked()
    workers = parallel.checked_workers(workers)
    if beam_options and runner != "beam":
        raise UserError(
            "--beam_options is for Apache Beam: give --runner=beam too, or leave it out"
        )
    tokenizer = tokenizers.load(options.tokenizer)
    job = Job(options, tokenizer, str(output))
    if (epath.Path(output) / MANIFEST).exists() and not job.work.exists():
        return _built_already(job)
    with _WorkDirectory(job) as work:
        if (epath.Path(output) / MANIFEST).exists():  # killed as it tidied up: done now
            return _built_already(job)
        parts = corpus.list_parts(options.input, options.field)
        work.claim(parts)
        if runner == "beam":
            from data_prep.running import beam

            beam.run(job, parts, beam_options)
        else:
            if not has_store(job):
                tokenize_locally(job, workers, parts)
            write_shards_locally(job, workers)
        manifest = finish(job)
    return manifest


class _WorkDirectory:
    """DATA_DIR/.build: refuses another command's, and leaves nothing where nothing is finished.

    Its lock turns a second process away, which would remove what the first is writing.

    After a user's mistake what is finished stays, since the same command goes on once the mistake
    is mended, in an input file too. Old and new text are never mixed: units are found by what their
    files were (`read_units`), so files that have changed are read again. One that is new or gone
    shifts the numbers of those after it, which are then read again too. Once the store is there,
    input that has changed is refused.
    """

    def __init__(self, job: Job):
        self._job = job

    def __enter__(self) -> "_WorkDirectory":
        output = epath.Path(self._job.output)
        self._output_is_new = not output.exists()
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output={output} cannot be made ({error})") from None
        self._lock_path = output / files.LOCK_FILE
        self._lock = files.lock(
            self._lock_path,
            f"another process is building {output}: wait for it, or give another --output",
        )
        self._is_new = not (self._job.work / ARGUMENTS_FILE).exists()
        return self

    def claim(self, parts: Sequence[corpus.Part]) -> None:
        """Makes .build the place of this command, or compares it with the one that made it."""
        job = self._job
        found = input_files(parts)
        if self._is_new:
            _require_no_shards(epath.Path(job.output))
            for directory in (job.units, job.finished):
                directory.mkdir(parents=True, exist_ok=True)
        else:
            started = json.loads((job.work / ARGUMENTS_FILE).read_text())
            _require_same(job, started["arguments"], started["tokenizer_fingerprint"])
            _compare_input(job, started["input_files"], found)
            for directory in (epath.Path(job.output), job.units, job.work, job.finished):
                for leftover in directory.glob("*.partial-*"):
                    _remove(leftover)
        now = {
            "arguments": arguments(job.options),
            "tokenizer_fingerprint": job.tokenizer.fingerprint,
            "input_files": found,
        }
        files.write_whole(job.work / ARGUMENTS_FILE, json.dumps(now, indent=1))
        for directory in (job.units, job.finished, *(job.store / split for split in SPLITS)):
            token_store.forget_listing(directory)

    def __exit__(self, kind: type | None, *exception: object) -> None:
        job = self._job
        try:
            if kind is None:
                token_store.remove_copy(job.store)
                _remove(job.work)
            elif issubclass(kind, UserError):
                if self._is_new and not _is_worth_keeping(job):
                    _remove(job.work)
                    if self._output_is_new:
                        self._unlock()
                        _remove(epath.Path(job.output))
                else:
                    _log.warning(
                        f"{job.work} keeps what is finished: once the mistake is mended, the same "
                        "command goes on from there. For another command, give another --output"
                    )
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock:
            self._lock_path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _require_no_shards(output: epath.Path) -> None:
    """Raises UserError for shards beside no .build, of which nobody knows what they were made of.

    They are another program's, or of a build whose .build was removed, and this one would take them
    for its own or write over them.
    """
    entries = output.iterdir() if output.exists() else ()  # gs:// has no empty directories
    shards = sorted(path.name for path in entries if _SHARD.fullmatch(path.name))
    if shards:
        raise UserError(
            f"{output} holds {len(shards)} shards of an unknown build, such as {shards[0]}: remove "
            "them, or give another --output"
        )


def _built_already(job: Job) -> Manifest:
    manifest = Manifest.read(job.output)
    _require_same(job, manifest.arguments, manifest.tokenizer_fingerprint)
    _log.info(f"{job.output} is built already")
    return manifest


def _is_worth_keeping(job: Job) -> bool:
    """Whether there is the store, or more than one document: with less, other text is needed."""
    if has_store(job):
        return True
    paths = job.units.iterdir() if job.units.exists() else ()
    documents = (token_store.read_counts(p)["documents"] for p in paths if p.suffix == ".npz")
    return any(total > 1 for total in itertools.accumulate(documents))


def _compare_input(job: Job, before: dict[str, list[int]], now: dict[str, list[int]]) -> None:
    changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    if not changed:
        return
    names = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
    found = f"{len(changed)} of the input's files changed since {job.output} was begun: {names}"
    if has_store(job):
        raise UserError(
            f"{found}. Their old text is in it: remove {job.output} to begin again, or "
            "give another --output"
        )
    _log.warning(f"{found}. They are read again")


def _remove(path: epath.Path) -> None:
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def _require_same(job: Job, theirs: dict[str, Any], fingerprint: str) -> None:
    ours = arguments(job.options)
    differing = [
        f"--{name} was {theirs.get(name)!r} and is now {ours.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name != "tokenizer"
    ]
    if fingerprint != job.tokenizer.fingerprint:  # one tokenizer may go by several paths
        before, now = theirs["tokenizer"], ours["tokenizer"]
        differing.append(f"--tokenizer={now} is not what --tokenizer={before} was")
    if differing:
        raise UserError(
            f"{job.output} holds a data set built by another command: {'; '.join(differing)}. "
            "Give another --output, or remove the directory"
        )


def tokenize_locally(job: Job, workers: int, parts: Sequence[corpus.Part]) -> None:
    """Stage 1: all units of the input's parts, then the merged store."""
    units = (unit for part in parts for unit in read_units(part))
    names = []
    with Progress("tokenise", sum(part.num_bytes for part in parts)) as progress:
        for unit, counts in parallel.run(tokenize, job, units, workers):
            names.append(unit.name)
            progress.advance(
                unit.disk_bytes,
                documents=counts["documents"],
                MB=counts["source_bytes"] / 1e6,
            )
    merge(job, names)
    _remove(job.units)  # nothing reads them again, and they are as large as the store


def write_shards_locally(job: Job, workers: int) -> None:
    """Stage 2: all shards that are not there yet."""
    tasks = list_shards(job)
    with Progress("write", len(tasks)) as progress:
        for _, summary in parallel.run(write_shard, job, tasks, min(workers, len(tasks))):
            progress.advance(1, examples=summary["examples"])


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
        "tfds:NAME[/CONFIG][:VERSION][:SPLIT], or pydocs[:MAX_MB], the English documentation of "
        "the installed Python packages.",
        formatter_class=HelpFormatter,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(BuildOptions)}

    def add(group: Any, name: str, text: str, **keywords: Any) -> None:
        if "action" not in keywords and "type" not in keywords:
            keywords["type"] = type(defaults[name])
        default = defaults.get(name)
        if default is None:  # the text says what it follows from
            default = argparse.SUPPRESS
        group.add_argument(f"--{name}", default=default, help=text, **keywords)

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
    add(
        masks,
        "max_predictions_per_seq",
        "the most tokens to predict in an example; by default max_seq_length * masked_lm_prob, "
        "rounded up",
        type=int,
    )
    add(masks, "mask_fraction", "of those, the share replaced by [MASK]")
    add(masks, "random_fraction", "and by a random token; the rest is kept")
    add(masks, "whole_word_mask", "choose whole words", action="store_true")
    add(masks, "max_ngram", "choose runs of up to so many tokens or words")
    run = parser.add_argument_group("how to run (does not change the result)")
    run.add_argument(
        "--workers", type=int, default=parallel.default_workers(), help="local processes"
    )
    run.add_argument(
        "--runner", default="local", choices=("local", "beam"), help="beam: an Apache Beam pipeline"
    )
    run.add_argument(
        "--beam_options",
        default="",
        help="Beam's flags in one string, as in '--runner=DataflowRunner --project=P --region=R'",
    )
    return parser


def main(argv: Sequence[str]) -> int | None:
    flags = vars(_parser().parse_args(argv))
    output = flags.pop("output")
    how = {name: flags.pop(name) for name in ("workers", "runner", "beam_options")}
    flags["input"] = tuple(source for source in flags["input"].split(",") if source)
    try:
        flags["weights"] = tuple(float(w) for w in flags["weights"].split(",") if w)
    except ValueError:
        raise UserError(f"--weights is {flags['weights']}: expected numbers, as in 1,0.5") from None
    manifest = build(BuildOptions(**flags), output, **how)
    for line in _describe(manifest, output):
        print(line)
    return None


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.build import cli  # worker processes find the classes under this name

    cli()
