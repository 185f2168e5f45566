"""Builds a data set: documents -> sentences -> examples -> shards and `dataset.json`.

    python -m data_prep.build --input='wiki/*.jsonl.gz' --tokenizer=DIR --output=DATA_DIR

Two stages. The first turns text into a store of token ids (token_store.py), the second makes
examples from it with random access (shards.py). Both are cut into pieces that do not depend on who
computes them, so the shards are byte-identical for any number of workers, for Beam, and for a run
that was killed and started again. Work in progress lies in DATA_DIR/.build and is removed at the
end; `dataset.json` is written last.
"""

import argparse
from collections.abc import Iterator, Sequence

from etils import epath

from bert_jax import cli as command_line
from bert_jax.cli import HelpFormatter, UserError, at_least
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import MANIFEST, Manifest
from data_prep import parallel
from data_prep.options import BuildOptions, add_build_flags, split_numbers, split_sources
from data_prep.running import beam, local
from data_prep.running.stages import Job, finish
from data_prep.running.work_directory import WorkDirectory, built_already
from data_prep.sources import corpus, languages


def run(
    options: BuildOptions,
    output: epath.PathLike,
    *,
    workers: int | None = None,
    runner: str = "local",
    beam_options: str = "",
) -> Manifest:
    """Builds the data set, or resumes building it, or finds it finished; returns its manifest.

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
    languages.warn_without_rules(options.language)
    if beam_options and runner != "beam":
        raise UserError(
            "--beam_options is for Apache Beam: give --runner=beam too, or leave it out"
        )
    tokenizer = tokenizers.load(options.tokenizer)
    segments = 2 if options.objective in ("nsp", "sop") else 1
    if options.max_seq_length < (least := tokenizer.num_special(segments) + segments):
        raise UserError(
            f"--max_seq_length is {options.max_seq_length}: expected at least {least}, for the "
            f"tokenizer's special tokens around {segments} segments"
        )
    job = Job(options, tokenizer, str(output))
    if (epath.Path(output) / MANIFEST).exists() and not job.work.exists():
        return built_already(job)
    with WorkDirectory(job) as work:
        if (epath.Path(output) / MANIFEST).exists():  # killed as it tidied up: done now
            return built_already(job)
        parts = corpus.list_parts(options.input, options.field, options.document_per_line)
        work.claim(parts)
        if runner == "beam":
            beam.run(job, parts, beam_options)
        else:
            local.run(job, parts, workers)
        return finish(job)


def _describe(manifest: Manifest, output: str) -> Iterator[str]:
    for split, shards in manifest.splits.items():
        counts = manifest.statistics["splits"][split]
        examples = counts["examples"]
        yield (
            f"{split}: {counts['documents']:,} documents, {examples:,} examples in {len(shards)} "
            f"shards, {counts['example_tokens'] / max(examples, 1):.1f} tokens per example"
        )
    yield f"check it with: python -m data_prep.check {output}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build",
        description="Builds sharded BERT pretraining examples from text. Killed, the same command "
        "resumes; the result does not depend on workers or runner.",
        epilog="SOURCE is a path or glob (.txt with blank lines between documents or with "
        "--document_per_line, .jsonl, .json, .parquet; each also .gz or .zst; local or gs://), "
        "hf:NAME[/CONFIG][:SPLIT], tfds:NAME[/CONFIG][:VERSION][:SPLIT], or pydocs[:MAX_MB], the "
        "English documentation of the installed Python packages.",
        formatter_class=HelpFormatter,
    )
    add_build_flags(parser)
    group = parser.add_argument_group("how to run (does not change the result)")
    group.add_argument(
        "--workers", type=at_least(1), default=parallel.default_workers(), help="local processes"
    )
    group.add_argument(
        "--runner", default="local", choices=("local", "beam"), help="beam: an Apache Beam pipeline"
    )
    group.add_argument(
        "--beam_options",
        default="",
        help="Beam's flags in one string, as in '--runner=DataflowRunner --project=P --region=R'",
    )
    return parser


def main(argv: Sequence[str]) -> int | None:
    flags = vars(_parser().parse_args(argv))
    output = flags.pop("output")
    how = {name: flags.pop(name) for name in ("workers", "runner", "beam_options")}
    flags["input"] = split_sources(flags["input"])
    flags["weights"] = split_numbers("weights", flags["weights"])
    manifest = run(BuildOptions(**flags), output, **how)
    for line in _describe(manifest, output):
        print(line)
    return None


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.build import cli  # worker processes find the classes under this name

    cli()
