"""The result of a check: printed, as JSON, and as an HTML page."""

import dataclasses
import html
import json
from collections.abc import Iterator

from etils import epath

from bert_jax.data.records import Manifest
from data_prep.checking import examples, page
from data_prep.checking.measures import Measure
from data_prep.checking.tally import Tally


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
    """Writes the report as one HTML file with histograms and examples."""
    manifest = Manifest.read(data_dir)
    histograms = {}
    for split, tally in report.tallies.items():
        if not tally.examples:  # all its shards are corrupted
            continue
        histograms[f"{split}: tokens per example"] = tally.lengths
        if manifest.is_static:
            histograms[f"{split}: predictions per example"] = tally.predictions
    text = page.page(
        title=str(data_dir),
        is_healthy=report.is_healthy,
        rows=[
            (m.is_healthy, (m.split, m.name, _value(m), m.expected or m.remark, m.advice))
            for m in report.measures
        ],
        problems=report.problems,
        histograms=histograms,
        facts={name: str(value) for name, value in manifest.arguments.items()},
        examples=list(
            examples.first_examples(
                data_dir, report.corrupted, num_examples, examples.HTML, html.escape
            )
        ),
    )
    epath.Path(path).write_text(text)


def lines(report: Report) -> Iterator[str]:
    rows = [(m.split, m.name, _value(m)) for m in report.measures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for (split, name, value), measure in zip(rows, report.measures, strict=True):
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


def as_json(report: Report) -> str:
    measures = [
        {**dataclasses.asdict(measure), "healthy": measure.is_healthy}
        for measure in report.measures
    ]
    return json.dumps(
        {"healthy": report.is_healthy, "measures": measures, "problems": report.problems}, indent=1
    )
