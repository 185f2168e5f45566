"""The curves of one or several runs in one picture, of what their metrics.jsonl hold."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from bert_jax.cli import UserError
from bert_jax.runs import telemetry

# Panels of the picture, drawn where a run has logged one of them: title, regex of the names in
# metrics.jsonl, which in evaluation begin with eval_ (and the name of a further data set).
_PANELS = (
    ("MLM loss (nats per masked token)", r"mlm_loss"),
    ("MLM accuracy", r"mlm_accuracy"),
    ("held-out MLM accuracy by rank of the token's frequency", r"mlm_accuracy_rank_(\w+)"),
    ("NSP loss (nats per pair)", r"nsp_loss"),
    ("NSP accuracy", r"nsp_accuracy"),
    ("held-out MLM accuracy by what was read", r"mlm_accuracy_(mask|random|kept)"),
)
# Of fine-tunings, and of objectives without panels of their own.
_LOSS = ("training loss", r"loss")
_BY_LABEL = ("F1 by label, on the validation file", rf"{telemetry.LABEL_F1}(.+)")
_OTHERS = "metrics of the validation file"
_LEARNING_RATE = ("learning rate", r"learning_rate")
_MARKS = "os^vDP"  # of several held-out curves in a panel
_COLUMNS = 3


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


def _by_number(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def held_out(names: Iterable[str], pattern: str) -> dict[str, str]:
    """Names of the evaluation metrics that belong to a panel -> their label in it."""
    labels = {}
    for name in sorted(names, key=lambda name: (_by_number(name), name)):
        if match := re.fullmatch(rf"eval_(\w+_)??{pattern}", name):
            data, *part = match.groups()
            if not part:
                labels[name] = f"held-out {data[:-1]}" if data else "held-out"
            elif not data:  # the parts of further data sets would make it illegible
                labels[name] = part[0].replace("_", " to ", 1) if part[0][0].isdigit() else part[0]
    return labels


def panels(names: set[str]) -> dict[str, tuple[str, dict[str, str]]]:
    """The panels of runs that have logged metrics of these names.

        panels({"loss", "eval_accuracy"}) -> {"training loss": ("loss", {}),
            "metrics of the validation file": ("", {"eval_accuracy": "accuracy"})}

    Returns:
      title -> (the training metric, or "", and the evaluation metrics with their labels).
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    drawn: set[str] = set()

    def add(title: str, training: str, curves: dict[str, str]) -> None:
        drawn.update(curves, [training])
        if training or curves:
            found[title] = training, curves

    for title, pattern in _PANELS:
        add(title, pattern if pattern in names else "", held_out(names, pattern))
    if not found and "loss" in names:
        add(_LOSS[0], "loss", held_out(names, "loss"))
    by_label = held_out(names, _BY_LABEL[1])
    drawn.update(by_label)
    is_pretraining = any("mlm_" in name for name in drawn)
    rest = [] if is_pretraining else sorted(n for n in names - drawn if n.startswith("eval_"))
    add(_OTHERS, "", {name: name.removeprefix("eval_") for name in rest})
    add(_BY_LABEL[0], "", by_label)
    if not is_pretraining and found and "learning_rate" in names:
        add(_LEARNING_RATE[0], "learning_rate", {})
    return found


def plot(workdirs: Sequence[str], target: epath.PathLike, window: int) -> list[str]:
    """Draws the curves of one or several runs together: training smoothed, evaluation marked.

    Returns:
      the titles of the panels.

    Raises:
      UserError: matplotlib is not installed, or a run has no metrics, or none that are drawn.
    """
    try:
        # Not pyplot, which is the caller's: a notebook's pictures stay in the notebook.
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'bert_jax[plot]'") from None
    suffix = epath.Path(target).suffix.lstrip(".") or "png"
    known = Figure().canvas.get_supported_filetypes()
    if suffix not in known:
        raise UserError(
            f"--plot={target}: no picture ends in .{suffix}; expected {', '.join(known)}"
        )
    runs = {workdir: lines_of_run(workdir) for workdir in workdirs}
    # Run by run: one that is fine-tuned stays whole beside one that is pretrained.
    shown: dict[str, dict[str, tuple[str, dict[str, str]]]] = {}
    for workdir, lines in runs.items():
        own = panels({name for line in lines for name in line if line[name] is not None})
        if not own:
            raise UserError(
                f"{workdir} has no metrics to draw: expected losses or evaluations in its "
                f"{telemetry.METRICS_FILE}"
            )
        for title, curves in own.items():
            shown.setdefault(title, {})[workdir] = curves
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (5 * columns, 3.75 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, (title, of_runs) in zip(axes.flat, shown.items(), strict=False):
        for number, (workdir, lines) in enumerate(runs.items()):
            if workdir in of_runs:
                run = f"{epath.Path(workdir).name}: " if len(runs) > 1 else ""
                color = f"C{number}" if len(runs) > 1 else ""
                _draw(axis, lines, of_runs[workdir], run, color, window)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    with epath.Path(target).open("wb") as file:
        figure.savefig(file, format=suffix, dpi=110)
    return list(shown)


def _draw(
    axis: Any,
    lines: Sequence[dict[str, Any]],
    curves: tuple[str, Mapping[str, str]],
    run: str,
    color: str,
    window: int,
) -> None:
    """One run's curves in a panel, of one colour, or each of its own if `color` is ""."""
    training, evaluated = curves
    if training:
        steps, values = _series(lines, training)
        style = {"alpha": 0.5, "label": f"{run}training"}
        axis.plot(steps, smoothed(values, window), color or "C0", **style)
    for number, (name, label) in enumerate(evaluated.items()):
        mark = _MARKS[number % len(_MARKS)]
        own = color or f"C{number % 10}"
        axis.plot(*_series(lines, name), f"{own}{mark}-", ms=3, label=f"{run}{label}")
