"""The result of a check: printed, as JSON, and as an HTML page."""

import dataclasses
import html
import json
from collections.abc import Iterator

import numpy as np
from etils import epath

from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import TOKEN_COUNTS, TOKENIZER, Manifest
from data_prep.checking import examples, page
from data_prep.checking.measures import Measure
from data_prep.checking.tally import Tally

MOST_TOKENS = 60  # of the commonest, on the page


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `check`.

    Attributes:
      measures: in the order of printing.
      problems: files that are missing or changed.
      tallies: split -> sums over its examples.
      corrupted: names of those files.
    """

    measures: list[Measure]
    problems: list[str]
    tallies: dict[str, Tally]
    corrupted: frozenset[str]

    @property
    def is_healthy(self) -> bool:
        return not self.problems and all(measure.is_healthy for measure in self.measures)


def _value(measure: Measure) -> str:
    return f"{measure.value:,.4g}" if measure.value % 1 else f"{measure.value:,.0f}"


def write_page(report: Report, data_dir: str, path: epath.PathLike, num_examples: int) -> None:
    """Writes the report as one HTML file with histograms, commonest tokens and examples."""
    manifest = Manifest.read(data_dir)
    histograms = {}
    for split, tally in report.tallies.items():
        if not tally.examples:  # all its shards are corrupted
            continue
        lengths = page.bars_of_counts(tally.lengths.tolist())
        histograms[f"{split}: examples by length", "tokens per example"] = lengths
        if manifest.is_static:
            predictions = page.bars_of_counts(tally.predictions.tolist())
            histograms[f"{split}: examples by predictions", "predictions per example"] = predictions
        # Since format version 2.
        if documents := manifest.statistics["splits"][split].get("document_lengths"):
            name = f"{split}: documents by length", "tokens per document, from"
            histograms[name] = page.bars_of_powers(documents)
    text = page.page(
        title=str(data_dir),
        is_healthy=report.is_healthy,
        rows=[
            (m.is_healthy, (m.split, m.name, _value(m), m.expected or m.remark, m.advice))
            for m in report.measures
        ],
        problems=report.problems,
        histograms=histograms,
        tokens=_commonest_tokens(report, data_dir),
        # Absent before 0.2.0.
        unknown_words=manifest.statistics.get("unknown_words"),
        facts={name: str(value) for name, value in manifest.arguments.items()},
        examples=list(
            examples.first_examples(
                data_dir, report.corrupted, num_examples, examples.HTML, html.escape
            )
        ),
    )
    epath.Path(path).write_text(text)


def _commonest_tokens(report: Report, data_dir: str) -> list[tuple[str, float]]:
    """Tokens with their shares of all; none where the files that say so are corrupted."""
    if report.corrupted & {TOKEN_COUNTS, TOKENIZER}:
        return []
    vocab = tokenizers.load(epath.Path(data_dir) / TOKENIZER).vocab
    with (epath.Path(data_dir) / TOKEN_COUNTS).open("rb") as file:
        counts_V = np.load(file)
    order = np.argsort(-counts_V, kind="stable")[:MOST_TOKENS]
    return [(vocab[i], counts_V[i] / max(counts_V.sum(), 1)) for i in order if counts_V[i]]


def lines(report: Report, columns: int | None = None) -> Iterator[str]:
    """A line per measure, and one for each problem.

    Args:
      columns: of the screen. Where lines would be longer, the expected range stands only beside
        what is outside it.
    """
    rows = [(m.split, m.name, _value(m)) for m in report.measures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    longest = max((len(measure.expected) for measure in report.measures), default=0)
    is_wide = columns is None or sum(widths) + len("FAIL       expected ") + longest <= columns
    for (split, name, value), measure in zip(rows, report.measures, strict=True):
        mark = "ok  " if measure.is_healthy else "FAIL"
        is_shown = measure.expected and (is_wide or not measure.is_healthy)
        expected = f"expected {measure.expected}" if is_shown else ""
        yield (
            f"{mark} {split:{widths[0]}}  {name:{widths[1]}}  {value:>{widths[2]}}  {expected}"
        ).rstrip()
        if measure.remark:
            yield f"     -> {measure.remark}"
    for problem in report.problems:
        yield f"FAIL {problem}"
    yield "healthy" if report.is_healthy else "UNHEALTHY"


def as_json(report: Report) -> str:
    measures = [
        {**dataclasses.asdict(measure), "healthy": measure.is_healthy}
        for measure in report.measures
    ]
    return json.dumps(
        {"healthy": report.is_healthy, "measures": measures, "problems": report.problems}, indent=1
    )
