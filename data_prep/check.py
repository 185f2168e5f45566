"""Checks a data set: are the files whole, and are the examples what they were meant to be?

    python -m data_prep.check DATA_DIR --examples=3

Every shard is read and measured; each measure has an expected range, and one outside it makes the
exit code 1.
"""

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence

from etils import epath

from bert_jax import cli as command_line
from bert_jax.cli import HelpFormatter, UserError, at_least, print_lines
from bert_jax.data.records import TOKENIZER, Manifest
from data_prep import parallel
from data_prep.checking import examples, measures
from data_prep.checking.measures import Measure
from data_prep.checking.report import Report, as_json, lines, write_page
from data_prep.checking.shards import Subject, file_problems, measure_shard
from data_prep.checking.tally import Tally
from data_prep.progress import Progress


def run(data_dir: epath.PathLike, *, workers: int | None = None) -> Report:
    """Reads and measures a whole data set.

    Args:
      data_dir: DATA_DIR of a finished build.
      workers: local processes; all processors by default.

    Raises:
      UserError: not a finished data set, or one that this program does not read.
    """
    workers = parallel.checked_workers(workers)
    manifest = Manifest.read(data_dir)
    subject = Subject(str(data_dir), manifest)
    problems = file_problems(subject)
    tallies = {split: Tally() for split in manifest.splits}
    split_of = {shard: split for split, shards in manifest.splits.items() for shard in shards}
    if TOKENIZER in problems:  # its ids are needed to read examples
        split_of = {}
    workers = min(workers, max(len(split_of), 1))
    with Progress("check", len(split_of)) as progress:
        results = parallel.run(measure_shard, subject, split_of, workers)
        for shard, result in results:
            if isinstance(result, str):
                problems[shard.name] = result
            else:
                tallies[split_of[shard]] += result
            progress.advance(1, examples=shard.num_examples)
    found: list[Measure] = []
    for split, tally in tallies.items():
        if tally.examples:
            found += measures.of_examples(split, tally, manifest)
        found += measures.of_text(split, manifest)
    found += measures.of_documents(str(data_dir), manifest, problems)
    return Report(found, sorted(problems.values()), tallies, frozenset(problems))


def main(argv: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.check",
        description="Verifies a data set's files and measures its examples; exit code 1 when "
        "something is outside its expected range.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("data_dir", metavar="DATA_DIR", help="output of data_prep.build")
    parser.add_argument(
        "--examples", type=at_least(0), default=0, help="how many examples to print"
    )
    parser.add_argument("--report", metavar="FILE.html", help="write a page with histograms too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--workers", type=at_least(1), default=parallel.default_workers(), help="local processes"
    )
    flags = parser.parse_args(argv)
    if flags.json and flags.examples and not flags.report:
        raise UserError("--json prints no examples: leave out --json or --examples")
    with command_line.saying_when_interrupted("interrupted: nothing was written"):
        report = run(flags.data_dir, workers=flags.workers)
    if flags.json:
        print_lines([as_json(report)])
    else:
        styles = examples.TERMINAL if sys.stdout.isatty() else examples.PLAIN
        shown = examples.first_examples(flags.data_dir, report.corrupted, flags.examples, styles)
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print_lines(itertools.chain(lines(report, columns), (f"\n{text}" for text in shown)))
    if flags.report:
        write_page(report, flags.data_dir, flags.report, max(flags.examples, 5))
    return 0 if report.is_healthy else 1


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.check import cli  # worker processes find the classes under this name

    cli()
