"""The page that `data_prep.check --report` writes: one HTML file that needs no network."""

import html
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_BARS = 64
_WIDTH, _HEIGHT = 640, 160
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .2em .8em .2em 0; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.fail { color: #b00020; font-weight: bold; }
.example { font-family: ui-monospace, monospace; font-size: 13px; margin: 1em 0; }
.seen { background: #fde0dc; } .true { background: #dcf5e0; } .special { color: #999; }
rect { fill: #4a78b5; } text { font-size: 12px; fill: #555; }
"""


def page(
    title: str,
    is_healthy: bool,
    rows: Sequence[tuple[bool, Sequence[str]]],
    problems: Sequence[str],
    histograms: Mapping[str, np.ndarray],
    facts: Mapping[str, str],
    examples: Sequence[str],
) -> str:
    """Lays the report out.

    Args:
      title: the data set's directory.
      is_healthy: the verdict.
      rows: (healthy, (split, measure, value, expected, advice)) in order.
      problems: of files.
      histograms: caption -> counts, the index being the value.
      facts: name -> value, what the data set was built with.
      examples: HTML of decoded examples.
    """
    verdict = "healthy" if is_healthy else "unhealthy"
    body = [
        f"<h1>{html.escape(title)}: <span class='{'' if is_healthy else 'fail'}'>{verdict}</span>"
        "</h1>",
        *(f"<p class='fail'>{html.escape(problem)}</p>" for problem in problems),
        "<h2>Measures</h2>",
        "<table><tr><th>split<th>measure<th>found<th>expected<th></tr>",
        *(_row(is_good, cells) for is_good, cells in rows),
        "</table>",
        "<h2>Distributions</h2>",
        *(line for caption, counts in histograms.items() for line in _histogram(caption, counts)),
        "<h2>Examples</h2>",
        *(f"<p class='example'>{example}</p>" for example in examples),
        "<h2>Built with</h2><table>",
        *(
            f"<tr><td>{html.escape(name)}<td>{html.escape(value)}</tr>"
            for name, value in facts.items()
        ),
        "</table>",
    ]
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><body>" + "\n".join(body) + "</body></html>\n"
    )


def _row(is_good: bool, cells: Sequence[str]) -> str:
    split, measure, value, expected, advice = map(html.escape, cells)
    mark = "ok" if is_good else f"<span class='fail'>FAIL</span> {advice}"
    return f"<tr><td>{split}<td>{measure}<td class='number'>{value}<td>{expected}<td>{mark}</tr>"


def _histogram(caption: str, counts: np.ndarray) -> Iterator[str]:
    """Bars of equal width over the values from 0 to the last that occurs."""
    last = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    per_bar = -(-(last + 1) // _BARS)
    padded = np.pad(counts[: last + 1], (0, -(last + 1) % per_bar))
    bars = padded.reshape(-1, per_bar).sum(1)
    width = _WIDTH / len(bars)
    yield f"<h3>{html.escape(caption)}</h3>"
    yield f"<svg width='{_WIDTH}' height='{_HEIGHT + 20}' role='img'>"
    for i, count in enumerate(bars.tolist()):
        height = _HEIGHT * count / max(int(bars.max()), 1)
        low, high = i * per_bar, min((i + 1) * per_bar - 1, last)
        values = f"{low}" if low == high else f"{low}–{high}"
        yield (
            f"<rect x='{i * width:.1f}' y='{_HEIGHT - height:.1f}' width='{width * 0.9:.1f}' "
            f"height='{height:.1f}'><title>{values}: {count:,}</title></rect>"
        )
    yield f"<text x='0' y='{_HEIGHT + 15}'>0</text>"
    yield f"<text x='{_WIDTH}' y='{_HEIGHT + 15}' text-anchor='end'>{last}</text></svg>"
