"""Checks a data set: are the files whole, and are the examples what they were meant to be?

    python -m data_prep.check DATA_DIR --examples=3

Every shard is read and measured; each measure has an expected range, and one outside it makes the
exit code 1. What is drawn by chance (IsNext, replacements) may be off by four standard errors, so
that small data sets pass.
"""

import argparse
import dataclasses
import functools
import html
import itertools
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from bert_jax import cli as command_line
from bert_jax.cli import HelpFormatter, UserError, print_lines
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.masking import MaskingConfig
from bert_jax.data.records import Manifest, Shard
from bert_jax.data.tokenizer import Tokenizer
from data_prep import parallel
from data_prep.checking import report as html_report
from data_prep.checking.tally import Tally, read_examples, tally_examples
from data_prep.examples import writers
from data_prep.progress import Progress
from data_prep.sources import corpus


@dataclasses.dataclass(frozen=True)
class Measure:
    """One line of the report.

    Attributes:
      split: 'train', 'validation' or 'data set'.
      name: what is measured.
      value: what was found.
      low, high: the expected range, ends included; None where it is open.
      advice: what a value outside the range means and what to do; without a range, a remark.
    """

    split: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    advice: str = ""

    @property
    def is_healthy(self) -> bool:
        return (self.low is None or self.value >= self.low) and (
            self.high is None or self.value <= self.high
        )

    @property
    def expected(self) -> str:
        if self.low is None and self.high is None:
            return ""
        if self.low == self.high:
            return f"{self.low:g}"
        if self.high is None:
            return f"at least {self.low:.4g}"
        if self.low is None:
            return f"at most {self.high:.4g}"
        return f"{self.low:.4g} … {self.high:.4g}"

    @property
    def remark(self) -> str:
        """The advice, where it applies."""
        return "" if self.is_healthy and self.expected else self.advice


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What measuring a shard needs; sent to the worker processes."""

    data_dir: str
    manifest: Manifest

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(epath.Path(self.data_dir) / "tokenizer")


def _measure_shard(subject: _Subject, shard: Shard) -> Tally | str:
    """Tallies one shard; a string says what is wrong with its file."""
    path = epath.Path(subject.data_dir) / shard.name
    if not path.exists():
        return f"{shard.name} is missing"
    if writers.sha256(path) != shard.sha256:
        return f"{shard.name} has changed: its SHA-256 is not the manifest's"
    tally = Tally()
    for examples in read_examples(path, subject.manifest.dtype):
        tally += tally_examples(examples, subject.manifest, subject.tokenizer)
    if tally.examples != shard.num_examples:
        return (
            f"{shard.name} holds {tally.examples} examples, the manifest says {shard.num_examples}"
        )
    return tally


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `check`.

    Attributes:
      measures: in the order of printing.
      problems: files that are missing or changed.
      tallies: split -> sums over its examples.
      damaged: names of those files.
    """

    measures: list[Measure]
    problems: list[str]
    tallies: dict[str, Tally]
    damaged: frozenset[str]

    @property
    def is_healthy(self) -> bool:
        return not self.problems and all(measure.is_healthy for measure in self.measures)


def check(data_dir: epath.PathLike, *, workers: int | None = None) -> Report:
    """Reads and measures a whole data set.

    Args:
      data_dir: DATA_DIR of a finished build.
      workers: local processes; all processors by default.

    Raises:
      UserError: not a finished data set, or one that this program does not read.
    """
    workers = parallel.checked_workers(workers)
    manifest = Manifest.read(data_dir)
    subject = _Subject(str(data_dir), manifest)
    problems = _file_problems(subject)
    tallies = {split: Tally() for split in manifest.splits}
    split_of = {shard: split for split, shards in manifest.splits.items() for shard in shards}
    workers = min(workers, len(split_of))
    with Progress("check", len(split_of)) as progress:
        results = parallel.run(_measure_shard, subject, split_of, workers)
        for shard, result in results:
            if isinstance(result, str):
                problems[shard.name] = result
            else:
                tallies[split_of[shard]] += result
            progress.advance(1, examples=shard.num_examples)
    measures: list[Measure] = []
    for split, tally in tallies.items():
        if tally.examples:
            measures += _example_measures(split, tally, manifest)
        measures += _text_measures(split, manifest)
    measures += _document_measures(subject, problems)
    return Report(measures, sorted(problems.values()), tallies, frozenset(problems))


def _file_problems(subject: _Subject) -> dict[str, str]:
    """What is wrong, by the name of the file; the shards are left out."""
    directory = epath.Path(subject.data_dir)
    problems = {}
    for name, sha256 in subject.manifest.statistics["files"].items():
        if not (directory / name).exists():
            problems[name] = f"{name} is missing"
        elif writers.sha256(directory / name) != sha256:
            problems[name] = f"{name} has changed: its SHA-256 is not the manifest's"
    try:
        if subject.tokenizer.fingerprint != subject.manifest.tokenizer_fingerprint:
            problems["tokenizer"] = "tokenizer/ is not the tokenizer that the ids were made with"
    except UserError as error:
        raise UserError(f"the data set's copy of its tokenizer is unusable: {error}") from None
    return problems


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _near(target: float, tolerance: float, count: int) -> tuple[float, float]:
    """The range around a share, no narrower than four standard errors of `count` draws."""
    slack = max(tolerance, 4 * (target * (1 - target) / max(count, 1)) ** 0.5)
    return max(target - slack, 0.0), min(target + slack, 1.0)


def _example_measures(split: str, tally: Tally, manifest: Manifest) -> Iterator[Measure]:
    arguments = manifest.arguments
    yield Measure(split, "examples", tally.examples, 1)
    yield Measure(
        split,
        "malformed examples",
        tally.malformed,
        0,
        0,
        "wrong special tokens, padding, positions or ids: this is a defect, please report it",
    )
    yield Measure(
        split,
        "fill (share of positions that are not padding)",
        _share(tally.tokens, tally.examples * arguments["max_seq_length"]),
        0.4,
        1,
        "short documents waste computation: lower --max_seq_length, or --objective=full_sentences",
    )
    labelled = int(tally.labels[:2].sum())
    if arguments["objective"] in ("nsp", "sop"):
        what = "IsNext" if arguments["objective"] == "nsp" else "in order"
        yield Measure(
            split,
            f"share of {what} pairs",
            _share(int(tally.labels[0]), labelled),
            *_near(0.5, 0.01, labelled),
            "most chunks have one sentence and cannot be IsNext: are there sentence ends in the "
            "text? (--sentence_per_line, --language), or use --objective=full_sentences",
        )
    if not manifest.is_static:
        return
    config = MaskingConfig.from_arguments(arguments)
    yield _mask_rate(split, tally, config)
    is_token_masking = not config.whole_word and config.max_ngram == 1
    yield Measure(
        split,
        "masked / intended by the rate and the cap",
        _share(tally.masked, tally.wanted),
        0.99 if is_token_masking else 0.85,
        1,
        "too few tokens that can be masked: very short examples, or long words with a low cap",
    )
    for name, count, target in (
        ("masked tokens replaced by [MASK]", tally.became_mask, config.mask_fraction),
        ("masked tokens replaced at random", tally.became_other, config.random_fraction),
    ):
        low, high = _near(target, 0.005, tally.masked)
        yield Measure(split, name, _share(count, tally.masked), low, high, "a defect: report it")
    for name, count in (
        ("special tokens masked", tally.special_masked),
        ("special tokens drawn as replacement", tally.special_drawn),
    ):
        yield Measure(split, name, count, 0, 0, "a defect: report it")


def _mask_rate(split: str, tally: Tally, config: MaskingConfig) -> Measure:
    """Where the cap holds the rate down, which may be intended, a remark says so; no range."""
    rate = _share(tally.masked, tally.tokens)
    length_N = np.arange(len(tally.lengths))
    uncapped_N = np.maximum(np.rint(length_N * config.masked_lm_prob), 1)
    uncapped = float((tally.lengths * uncapped_N).sum())
    if tally.wanted < 0.9 * uncapped:
        low = None
        advice = (
            f"the cap of {config.max_predictions_per_seq} predictions an example keeps it far "
            f"below --masked_lm_prob={config.masked_lm_prob:g}: if that is not intended, build "
            "without --max_predictions_per_seq"
        )
    else:
        low = 0.75 * _share(uncapped, tally.tokens)
        advice = "far below --masked_lm_prob: see the next measure"
    return Measure(split, "mask rate (of all tokens)", rate, low, None, advice)


def _text_measures(split: str, manifest: Manifest) -> Iterator[Measure]:
    counts = manifest.statistics["splits"][split]
    yield Measure(split, "documents", counts["documents"], 1)
    yield Measure(
        split,
        "[UNK] rate",
        _share(counts["unknown_tokens"], counts["tokens"]),
        0,
        0.01,
        "the vocabulary lacks letters of this text: train one (python -m data_prep.vocab, with a "
        "larger --alphabet_size for Chinese, Japanese or many scripts)",
    )
    yield Measure(
        split,
        "pieces per word",
        _share(counts["tokens"], counts["words"]),
        1,
        2,
        "the vocabulary does not suit this text: train or extend one (python -m data_prep.vocab)",
    )
    yield Measure(
        split,
        "share of pair tokens lost to truncation",
        _share(counts["truncated_tokens"], counts["truncated_tokens"] + counts["example_tokens"]),
        0,
        0.25,
        "sentences are long for --max_seq_length: raise it, or are sentence ends not found?",
    )


def _document_measures(subject: _Subject, damaged: Collection[str]) -> Iterator[Measure]:
    manifest = subject.manifest
    hashes = {}
    for split in manifest.splits:
        name = f"document_hashes-{split}.npy"
        if name not in damaged:
            with (epath.Path(subject.data_dir) / name).open("rb") as file:
                hashes[split] = np.load(file)
    distinct = {split: np.unique(hash_D) for split, hash_D in hashes.items()}
    if "train" in hashes:
        yield Measure(
            "train",
            "share of documents that repeat another exactly",
            1 - _share(len(distinct["train"]), len(hashes["train"])),
            0,
            0.05,
            "the corpus has duplicates, which are learnt by heart: build with --deduplicate",
        )
    if {"train", "validation"} <= distinct.keys():
        shared = np.isin(distinct["validation"], distinct["train"])
        yield Measure("data set", "documents both in train and validation", int(shared.sum()), 0, 0)
    source_bytes = manifest.statistics["source_bytes"]
    most = manifest.arguments["max_decode_errors"]
    if most:  # the build lets a few through whatever their share
        most = min(1.0, most + _share(corpus.MAX_STRAY_BYTES, source_bytes))
    yield Measure(
        "data set",
        "share of bytes that are not UTF-8",
        _share(manifest.statistics["decode_errors"], source_bytes),
        0,
        most,
        "the input has another encoding: convert it with iconv",
    )


# How a part of an example is shown: on a terminal, and in the page.
_TERMINAL = {
    "seen": "\033[31m{}\033[0m",
    "true": "\033[32m{}\033[0m",
    "special": "\033[2m{}\033[0m",
}
_PLAIN = dict.fromkeys(_TERMINAL, "{}")
_HTML = {kind: f"<span class='{kind}'>{{}}</span>" for kind in _TERMINAL}


def format_example(
    example: np.void,
    manifest: Manifest,
    tokenizer: Tokenizer,
    styles: Mapping[str, str] = _PLAIN,
    escape: Callable[[str], str] = str,
) -> str:
    """One example as text; a prediction reads 'what the model sees->what it should say'.

    '[CLS] the [MASK]->man went [SEP] he bought milk [SEP]   (IsNext, 9 tokens)'
    """
    n = int(example["num_tokens"])
    words = [escape(tokenizer.vocab[i]) for i in example["input_ids"][:n]]
    if manifest.is_static:
        m = int(example["num_masked"])
        for position, original in zip(
            example["masked_lm_positions"][:m], example["masked_lm_ids"][:m], strict=True
        ):
            seen, true = words[position], escape(tokenizer.vocab[original])
            words[position] = styles["seen"].format(seen) + "->" + styles["true"].format(true)
    words = [styles["special"].format(w) if w in ("[CLS]", "[SEP]") else w for w in words]
    names = {"nsp": ("IsNext", "random"), "sop": ("in order", "swapped")}
    label = names.get(manifest.arguments["objective"], ())
    label = f"{label[example['next_sentence_label']]}, " if label else ""
    return f"{' '.join(words)}   ({label}{n} tokens)"


def _examples(
    report: Report,
    data_dir: str,
    count: int,
    styles: Mapping[str, str],
    escape: Callable[[str], str] = str,
) -> Iterator[str]:
    """The first `count` training examples, those of damaged shards left out."""
    manifest = Manifest.read(data_dir)
    tokenizer = tokenizers.load(epath.Path(data_dir) / "tokenizer")
    for shard in manifest.splits["train"]:
        if shard.name in report.damaged:
            continue
        for examples in read_examples(epath.Path(data_dir) / shard.name, manifest.dtype):
            for example in examples[:count]:
                yield format_example(example, manifest, tokenizer, styles, escape)
            count -= len(examples)
            if count <= 0:
                return


def _value(measure: Measure) -> str:
    return f"{measure.value:,.4g}" if measure.value % 1 else f"{measure.value:,.0f}"


def write_report(report: Report, data_dir: str, path: epath.PathLike, num_examples: int) -> None:
    """Writes the report as one HTML file with histograms and examples."""
    manifest = Manifest.read(data_dir)
    histograms = {}
    for split, tally in report.tallies.items():
        if not tally.examples:  # all its shards are damaged
            continue
        histograms[f"{split}: tokens an example"] = tally.lengths
        if manifest.is_static:
            histograms[f"{split}: predictions an example"] = tally.predictions
    text = html_report.page(
        title=str(data_dir),
        is_healthy=report.is_healthy,
        rows=[
            (m.is_healthy, (m.split, m.name, _value(m), m.expected or m.remark, m.advice))
            for m in report.measures
        ],
        problems=report.problems,
        histograms=histograms,
        facts={name: str(value) for name, value in manifest.arguments.items()},
        examples=list(_examples(report, data_dir, num_examples, _HTML, html.escape)),
    )
    epath.Path(path).write_text(text)


def _lines(report: Report) -> Iterator[str]:
    rows = [(m.split, m.name, _value(m), m) for m in report.measures]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for split, name, value, measure in rows:
        mark = "ok  " if measure.is_healthy else "FAIL"
        expected = f"expected {measure.expected}" if measure.expected else ""
        yield (
            f"{mark} {split:{widths[0]}}  {name:{widths[1]}}  {value:>{widths[2]}}  {expected}"
        ).rstrip()
        if measure.remark:
            yield f"     -> {measure.remark}"
    for problem in report.problems:
        yield f"FAIL {problem}"
    yield "healthy" if report.is_healthy else "UNHEALTHY"


def _json(report: Report) -> str:
    measures = [
        {**dataclasses.asdict(measure), "healthy": measure.is_healthy}
        for measure in report.measures
    ]
    return json.dumps(
        {"healthy": report.is_healthy, "measures": measures, "problems": report.problems}, indent=1
    )


def main(argv: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.check",
        description="Verifies a data set's files and measures its examples; exit code 1 when "
        "something is outside its expected range.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("data_dir", metavar="DATA_DIR", help="output of data_prep.build")
    parser.add_argument("--examples", type=int, default=0, help="how many examples to print")
    parser.add_argument("--report", metavar="FILE.html", help="write a page with histograms too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--workers", type=int, default=parallel.default_workers(), help="local processes"
    )
    flags = parser.parse_args(argv)
    if flags.json and flags.examples and not flags.report:
        raise UserError("--json prints no examples: leave out --json or --examples")
    report = check(flags.data_dir, workers=flags.workers)
    if flags.json:
        print_lines([_json(report)])
    else:
        styles = _TERMINAL if sys.stdout.isatty() else _PLAIN
        examples = _examples(report, flags.data_dir, flags.examples, styles)
        print_lines(itertools.chain(_lines(report), (f"\n{text}" for text in examples)))
    if flags.report:
        write_report(report, flags.data_dir, flags.report, max(flags.examples, 5))
    return 0 if report.is_healthy else 1


def cli() -> None:
    command_line.run(main)


if __name__ == "__main__":
    from data_prep.check import cli  # worker processes find the classes under this name

    cli()
