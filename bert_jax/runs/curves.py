"""The curves of one or several runs in one picture, of what their metrics.jsonl hold."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from bert_jax.cli import UserError
from bert_jax.runs import telemetry

# Panels of the picture: title, regex of the names in metrics.jsonl.
_PANELS = (
    ("MLM loss (nats a masked token)", r"mlm_loss"),
    ("MLM accuracy", r"mlm_accuracy"),
    ("held-out MLM accuracy by rank of the token's frequency", r"mlm_accuracy_rank_(\w+)"),
    ("NSP loss (nats a pair)", r"nsp_loss"),
    ("NSP accuracy", r"nsp_accuracy"),
    ("held-out MLM accuracy by what was read", r"mlm_accuracy_(mask|random|kept)"),
)
_MARKS = "os^vDP"  # of several held-out curves in a panel


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over the last `window` values, at each point."""
    return [
        sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))
    ]


def lines_of_run(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or a UserError where there is nothing to read."""
    lines = telemetry.read(workdir)
    if not lines:
        raise UserError(f"{workdir} has no {telemetry.METRICS_FILE}: expected the workdir of a run")
    return lines


def _series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _held_out(lines: Sequence[dict[str, Any]], pattern: str) -> dict[str, str]:
    """Names of the evaluation metrics that belong to a panel -> their label in it."""
    labels = {}
    names = {name for line in lines for name in line}
    for name in sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        if match := re.fullmatch(rf"eval_(\w+_)?{pattern}", name):
            data, *part = match.groups()
            if not part:
                labels[name] = f"held-out {data[:-1]}" if data else "held-out"
            elif not data:  # the parts of further data sets would make it illegible
                labels[name] = part[0].replace("_", " to ", 1) if part[0][0].isdigit() else part[0]
    return labels


def plot(workdirs: Sequence[str], target: epath.PathLike, window: int) -> None:
    """Draws the curves of one or several runs together: training smoothed, evaluation marked.

    Raises:
      UserError: matplotlib is not installed, or a run has no metrics.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'bert_jax[plot]'") from None
    suffix = epath.Path(target).suffix.lstrip(".") or "png"
    known = pyplot.gcf().canvas.get_supported_filetypes()
    pyplot.close()
    if suffix not in known:
        raise UserError(
            f"--plot={target}: no picture ends in .{suffix}; expected {', '.join(known)}"
        )
    runs = {workdir: lines_of_run(workdir) for workdir in workdirs}
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7.5), layout="constrained")
    for axis, (title, pattern) in zip(axes.flat, _PANELS, strict=True):
        for number, (workdir, lines) in enumerate(runs.items()):
            run = f"{epath.Path(workdir).name}: " if len(runs) > 1 else ""
            steps, values = _series(lines, pattern)
            if steps:
                smooth = smoothed(values, window)
                axis.plot(steps, smooth, f"C{number}", alpha=0.5, label=f"{run}training")
            curves = _held_out(lines, pattern)
            for mark, (name, label) in zip(itertools.cycle(_MARKS), curves.items()):
                color = f"C{number if len(runs) > 1 else _MARKS.index(mark)}"
                axis.plot(*_series(lines, name), f"{color}{mark}-", ms=3, label=f"{run}{label}")
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    with epath.Path(target).open("wb") as file:
        figure.savefig(file, format=suffix, dpi=110)
    pyplot.close(figure)
