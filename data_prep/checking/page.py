"""The page that `data_prep.check --report` writes: one HTML file that needs no network."""

import html
from collections.abc import Iterator, Mapping, Sequence

from data_prep.examples.unknown_words import MOST_SENTENCES

_BARS = 32
# Of the drawing, in its own units: the browser scales it to the page's width.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 160, 56, 36, 16
_STYLE = """
:root { color-scheme: light dark; --text: #222; --back: #fff; --line: #ddd; --bar: #4a78b5;
        --bad: #b00020; --faint: #767676; --seen: #fde0dc; --true: #dcf5e0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --back: #16181c; --line: #3a3f47; --bar: #7aa7e0; --bad: #ff7b8a;
          --faint: #9aa0a6; --seen: #5c2b29; --true: #1f4d2b; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: var(--text); background: var(--back); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .2em .8em .2em 0; border-bottom: 1px solid var(--line);
         overflow-wrap: normal; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.fail { color: var(--bad); font-weight: bold; }
.example { font-family: ui-monospace, monospace; font-size: 13px; margin: 1em 0; }
.seen { background: var(--seen); } .true { background: var(--true); }
.special { color: var(--faint); }
figure { margin: 1em 0; } svg { width: 100%; height: auto; max-width: 640px; }
rect { fill: var(--bar); } line { stroke: var(--line); }
text { font: 11px system-ui, sans-serif; fill: var(--text); }
.tokens { display: flex; flex-wrap: wrap; gap: .3em .8em; padding: 0; list-style: none; }
.tokens code { background: var(--line); padding: 0 .3em; border-radius: 3px; }
"""

# Bars from left to right: what they stand for, and how many.
Bars = Sequence[tuple[str, int]]


def page(
    title: str,
    is_healthy: bool,
    rows: Sequence[tuple[bool, Sequence[str]]],
    problems: Sequence[str],
    histograms: Mapping[tuple[str, str], Bars],
    tokens: Sequence[tuple[str, float]],
    unknown_words: Mapping[str, int] | None,
    facts: Mapping[str, str],
    examples: Sequence[str],
) -> str:
    """Lays the report out.

    Args:
      title: the data set's directory.
      is_healthy: the verdict.
      rows: (healthy, (split, measure, value, expected, advice)) in order.
      problems: of files.
      histograms: (caption, what the horizontal axis counts) -> its bars.
      tokens: the commonest, with their shares of all.
      unknown_words: what became [UNK], and how often; None if nobody counted.
      facts: name -> value, what the data set was built with.
      examples: HTML of decoded examples.
    """
    verdict = "healthy" if is_healthy else "unhealthy"
    body = [
        f"<h1>{html.escape(title)}: <span class='{'' if is_healthy else 'fail'}'>{verdict}</span>"
        "</h1>",
        *(f"<p class='fail'>{html.escape(problem)}</p>" for problem in problems),
        "<h2>Measures</h2>",
        "<div class='wide'><table><tr><th>split<th>measure<th>found<th>expected<th></tr>",
        *(_row(is_good, cells) for is_good, cells in rows),
        "</table></div>",
        "<h2>Distributions</h2>",
        *(
            line
            for (caption, unit), bars in histograms.items()
            for line in _histogram(caption, unit, bars)
        ),
        "<h2>Commonest tokens</h2>",
        "<p>With their share of all training tokens, before masking. Words of few letters and "
        "punctuation come first in a natural text.</p>",
        "<ol class='tokens'>",
        *(f"<li><code>{html.escape(name)}</code> {share:.2%}" for name, share in tokens),
        "</ol>",
        *_unknown_words(unknown_words),
        "<h2>Examples</h2>",
        "<p>Predictions are marked: <span class='seen'>what the model reads</span>-&gt;"
        "<span class='true'>what it should say</span>.</p>",
        *(f"<p class='example'>{example}</p>" for example in examples),
        "<h2>Built with</h2><div class='wide'><table>",
        *(
            f"<tr><td>{html.escape(name)}<td>{html.escape(value)}</tr>"
            for name, value in facts.items()
        ),
        "</table></div>",
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _row(is_good: bool, cells: Sequence[str]) -> str:
    split, measure, value, expected, advice = map(html.escape, cells)
    mark = "ok" if is_good else f"<span class='fail'>FAIL</span> {advice}"
    return f"<tr><td>{split}<td>{measure}<td class='number'>{value}<td>{expected}<td>{mark}</tr>"


def _unknown_words(counts: Mapping[str, int] | None) -> Iterator[str]:
    if counts is None:
        return
    yield "<h2>What became [UNK]</h2>"
    if not counts:
        yield "<p>Nothing: the tokenizer has pieces for every word of the text.</p>"
        return
    yield (
        "<p>The commonest words that the tokenizer has no pieces for, and how often each was met. "
        f"Of each part of the text the first {MOST_SENTENCES:,} sentences with such words are "
        "counted. Letters that the vocabulary lacks, or words that are too long, are the usual "
        "reasons.</p>"
    )
    yield "<ol class='tokens'>"
    yield from (f"<li><code>{html.escape(x)}</code> {count:,}" for x, count in counts.items())
    yield "</ol>"


def bars_of_counts(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Bars of equal width over the values from 0 to the last that occurs.

    bars_of_counts([0, 4, 2]) -> [("0", 0), ("1", 4), ("2", 2)]
    """
    size = max((value for value, count in enumerate(counts) if count), default=0) + 1
    width = -(-size // _BARS)
    bars = []
    for low in range(0, size, width):
        high = min(low + width, size) - 1
        bars.append(
            (f"{low}" if low == high else f"{low}–{high}", int(sum(counts[low : high + 1])))
        )
    return bars


def bars_of_powers(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Bars of powers of two: [0, 2] -> [("1", 0), ("2–3", 2)]."""
    return [
        (f"{2**i:,}–{2 ** (i + 1) - 1:,}" if i else "1", int(count))
        for i, count in enumerate(counts)
    ]


def _histogram(caption: str, unit: str, bars: Bars) -> Iterator[str]:
    """Bars with numbers on both axes; what a bar stands for shows when it is pointed at."""
    most = max((count for _, count in bars), default=0)
    width = (_WIDTH - _LEFT) / max(len(bars), 1)
    yield f"<figure><figcaption>{html.escape(caption)}</figcaption>"
    yield f"<svg viewBox='0 0 {_WIDTH} {_TOP + _HEIGHT + _BOTTOM}' role='img'>"
    for share in (0.0, 0.5, 1.0):
        y = _TOP + _HEIGHT * (1 - share)
        yield f"<line x1='{_LEFT}' y1='{y}' x2='{_WIDTH}' y2='{y}'/>"
        yield f"<text x='{_LEFT - 6}' y='{y + 4}' text-anchor='end'>{most * share:,.0f}</text>"
    labelled = -(-len(bars) // 10)  # every how many bars have their value below
    for i, (values, count) in enumerate(bars):
        height = _HEIGHT * count / max(most, 1)
        x, y = _LEFT + i * width, _TOP + _HEIGHT - height
        yield (
            f"<rect x='{x + width * 0.05:.1f}' y='{y:.1f}' width='{width * 0.9:.1f}' "
            f"height='{height:.1f}'><title>{values} {unit}: {count:,}</title></rect>"
        )
        middle = x + width / 2
        if len(bars) <= 16 and count:
            yield f"<text x='{middle:.1f}' y='{y - 3:.1f}' text-anchor='middle'>{count:,}</text>"
        if i % labelled == 0:
            yield (
                f"<text x='{middle:.1f}' y='{_TOP + _HEIGHT + 14}' text-anchor='middle'>"
                f"{values.partition('–')[0]}</text>"
            )
    yield (
        f"<text x='{(_LEFT + _WIDTH) / 2}' y='{_TOP + _HEIGHT + 30}' text-anchor='middle'>"
        f"{html.escape(unit)}</text></svg></figure>"
    )
