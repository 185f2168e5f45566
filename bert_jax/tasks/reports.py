"""What a classifier gets right, label by label: WORKDIR/report.txt and confusion.png.

N examples, C classes.
"""

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.runs import telemetry
from bert_jax.tasks import schemes

REPORT_FILE, FIGURE_FILE = "report.txt", "confusion.png"
# Labels that a matrix of text has room for; of more, the most frequent confusions are listed.
MOST_COLUMNS = 16
MOST_CONFUSIONS = 30
# Of the picture: longer names are cut, and smaller cells (inches) have no number in them.
MOST_CHARACTERS, LEAST_CELL = 28, 0.3
# Labels whose F1 is logged after each epoch, when there are no more of them.
MOST_CURVES = 12


class Score(NamedTuple):
    """One line of a report; `support` is how many there are of the label."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def score(label: str, hits: int, expected: int, found: int) -> Score:
    """Precision, recall and F1 of counts; 0 where nothing is found or expected."""
    return Score(
        label,
        hits / max(found, 1),
        hits / max(expected, 1),
        2 * hits / max(expected + found, 1),
        expected,
    )


def confusion_matrix(truth: Sequence[str], guesses: Sequence[str], labels: Sequence[str]):
    """int[C, C]: how often label i (row) was predicted as label j (column)."""
    index = {label: i for i, label in enumerate(labels)}
    matrix_CC = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix_CC, ([index[x] for x in truth], [index[x] for x in guesses]), 1)
    return matrix_CC


def scores_by_label(matrix_CC: np.ndarray, labels: Sequence[str]) -> list[Score]:
    """The score of every label of a confusion matrix that is labelled or predicted somewhere."""
    expected_C, found_C = matrix_CC.sum(1), matrix_CC.sum(0)
    return [
        score(label, int(matrix_CC[i, i]), int(expected_C[i]), int(found_C[i]))
        for i, label in enumerate(labels)
        if expected_C[i] or found_C[i]
    ]


def scores_by_type(
    labels: Sequence[str], truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]
) -> list[Score]:
    """The score of every type of entity, exact spans alone being right, and of all together."""
    expected, found = (
        {
            (i, *entity)
            for i, entities in enumerate(schemes.find_entities(labels, side))
            for entity in entities
        }
        for side in (truth, guesses)
    )
    hits = expected & found

    def count(entities: set, kind: str) -> int:
        return sum(entity[1] == kind for entity in entities)

    kinds = sorted({entity[1] for entity in expected | found})
    lines = [score(x, count(hits, x), count(expected, x), count(found, x)) for x in kinds]
    return [*lines, score("all (micro)", len(hits), len(expected), len(found))]


def scores_by_presence(labels: Sequence[str], predictions: list[dict[str, Any]]) -> list[Score]:
    """The score of every label of texts that have any number of them, of all, and their means."""
    lines = []
    for label in labels:
        expected, found = (
            {i for i, line in enumerate(predictions) if label in line[side]}
            for side in ("labels", "predictions")
        )
        lines.append(score(label, len(expected & found), len(expected), len(found)))
    hits, expected_count, found_count = (
        sum(len({*line["labels"]} & {*line["predictions"]}) for line in predictions),
        sum(len(line["labels"]) for line in predictions),
        sum(len(line["predictions"]) for line in predictions),
    )
    return [*lines, score("all (micro)", hits, expected_count, found_count), *means(lines)]


def means(lines: Sequence[Score]) -> list[Score]:
    """The mean over labels (macro), and the one that weighs them by their support."""
    values = np.array([line[1:4] for line in lines])
    support = np.array([line.support for line in lines])
    total = int(support.sum())
    weighted = (values * support[:, None]).sum(0) / max(total, 1)

    def mean(name: str, of: np.ndarray) -> Score:
        return Score(name, float(of[0]), float(of[1]), float(of[2]), total)

    return [
        mean("mean (macro)", values.mean(0)),
        mean("mean (weighted)", weighted),
    ]


def report_text(lines: Sequence[Score]) -> str:
    """A table, one line a label."""
    width = max(len(line.label) for line in lines)
    table = [f"{'':{width}}  precision  recall      f1  support"]
    table += [
        f"{line.label:{width}}  {line.precision:9.4f}  {line.recall:6.4f}  {line.f1:6.4f}"
        f"  {line.support:7,}"
        for line in lines
    ]
    return "\n".join(table)


def confusion_text(matrix_CC: np.ndarray, labels: Sequence[str]) -> str:
    """The matrix, labels down and predictions across; of many labels, what was mistaken most."""
    if len(labels) > MOST_COLUMNS:
        wrong_CC = matrix_CC - np.diag(np.diag(matrix_CC))
        order = np.argsort(-wrong_CC, axis=None, kind="stable")[:MOST_CONFUSIONS]
        pairs = [divmod(int(place), len(labels)) for place in order]
        lines = [
            f"{wrong_CC[i, j]:7,}  {labels[i]} -> {labels[j]}" for i, j in pairs if wrong_CC[i, j]
        ]
        return "\n".join(["most frequent confusions (label -> prediction):", *lines])
    width = max(len(label) for label in labels)
    widths = [max(len(label), len(f"{matrix_CC.max():,}")) for label in labels]
    rows = ["confusion matrix (labels down, predictions across):"]
    rows.append(
        "  ".join([" " * width, *(f"{x:>{w}}" for x, w in zip(labels, widths, strict=True))])
    )
    for label, row in zip(labels, matrix_CC, strict=True):
        cells = (f"{count:{w},}" for count, w in zip(row, widths, strict=True))
        rows.append("  ".join([f"{label:{width}}", *cells]))
    return "\n".join(rows)


def draw_confusion(matrix_CC: np.ndarray, labels: Sequence[str], target: epath.Path) -> Any:
    """Draws the matrix, each row's colours as shares of its label, with the counts in the cells.

    Returns:
      the matplotlib Figure that was written.
    """
    # Not pyplot, which is the caller's: a notebook's pictures stay in the notebook.
    from matplotlib.figure import Figure

    names = [x if len(x) <= MOST_CHARACTERS else f"{x[: MOST_CHARACTERS - 1]}…" for x in labels]
    # Inches: a cell holds its count, a character of a name is a twelfth of one wide.
    cell = min(max(0.55, len(f"{matrix_CC.max():,}") / 11), 36 / len(labels))
    longest = max(map(len, names)) / 12
    is_turned = longest > cell  # else neighbours would run into each other
    width = cell * len(labels) + longest + 1.2
    height = cell * len(labels) + (longest if is_turned else 0.2) + 0.8
    figure = Figure(figsize=(max(width, 3.5), max(height, 2.5)), layout="constrained")
    axis = figure.subplots()
    shares_CC = matrix_CC / np.maximum(matrix_CC.sum(1, keepdims=True), 1)
    image = axis.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the label", shrink=0.8)
    axis.set(xlabel="prediction", ylabel="label")
    shown = [name.replace("$", r"\$") for name in names]  # between two of them is mathematics
    axis.set_xticks(range(len(labels)), shown, rotation=90 if is_turned else 0)
    axis.set_yticks(range(len(labels)), shown)
    if cell >= LEAST_CELL:
        for (i, j), count in np.ndenumerate(matrix_CC):
            if count or len(labels) <= MOST_COLUMNS:  # zeros of many labels are noise
                color = "white" if shares_CC[i, j] > 0.5 else "black"
                axis.text(
                    *(j, i, f"{count:,}"), ha="center", va="center", color=color, fontsize="small"
                )
    with target.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return figure


def score_labels(
    task: str, labels: Sequence[str], predictions: list[dict[str, Any]]
) -> list[Score]:
    """The score of each label, or type of entity; empty for tasks without labels.

    Args:
      predictions: the objects of predictions.jsonl.
    """
    if task == "multi_label_classification":
        return scores_by_presence(labels, predictions)[: len(labels)]
    sides = _sides(task, predictions)
    if not sides:
        return []
    if task == "token_classification" and schemes.are_entities(labels):
        return scores_by_type(labels, *sides)[:-1]
    truth, guesses = ([*itertools.chain.from_iterable(side)] for side in sides)
    return scores_by_label(confusion_matrix(truth, guesses, labels), labels)


def label_f1(
    task: str, labels: Sequence[str], predictions: list[dict[str, Any]]
) -> dict[str, float]:
    """{"f1_of_LABEL": F1, …} of tasks with a few labels, for metrics.jsonl; else {}."""
    lines = score_labels(task, labels, predictions) if predictions else []
    few = len(lines) <= MOST_CURVES
    return {f"{telemetry.LABEL_F1}{line.label}": line.f1 for line in lines} if few else {}


def _sides(task: str, predictions: list[dict[str, Any]]) -> list[list[Any]]:
    """Labels and predictions as lists of lists; [] of other tasks."""
    if task == "text_classification":
        return [[[line[name]] for line in predictions] for name in ("label", "prediction")]
    if task == "token_classification":
        return [[line[name] for line in predictions] for name in ("labels", "predictions")]
    return []


def write(
    workdir: epath.PathLike, task: str, labels: Sequence[str], predictions: list[dict[str, Any]]
) -> None:
    """Writes report.txt, and confusion.png if matplotlib is there, of texts' or words' classes.

    Entities are scored as a whole; their confusion matrix counts words. Of texts with any number
    of labels there is no such matrix.

    Args:
      predictions: the objects of predictions.jsonl.
    """
    workdir = epath.Path(workdir)
    if task == "multi_label_classification":
        text = report_text(scores_by_presence(labels, predictions))
        (workdir / REPORT_FILE).write_text(f"{text}\n")
        return
    sides = _sides(task, predictions)
    if not sides:
        return
    truth, guesses = ([*itertools.chain.from_iterable(side)] for side in sides)
    matrix_CC = confusion_matrix(truth, guesses, labels)
    if task == "token_classification" and schemes.are_entities(labels):
        lines = scores_by_type(labels, *sides)
    else:
        lines = scores_by_label(matrix_CC, labels)
        lines += means(lines)
    text = f"{report_text(lines)}\n\n{confusion_text(matrix_CC, labels)}\n"
    (workdir / REPORT_FILE).write_text(text)
    if importlib.util.find_spec("matplotlib"):
        draw_confusion(matrix_CC, labels, workdir / FIGURE_FILE)
