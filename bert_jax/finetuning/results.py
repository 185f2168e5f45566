"""What comes of a fine-tuning: the epoch that is selected, and the files of the result."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.runs import telemetry
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import reports

PREDICTIONS_FILE = "predictions.jsonl"


def evaluations(workdir: epath.PathLike, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation of a run; a value that was not finite counts as lowest."""
    name = f"eval_{metric}"
    lines = [line for line in telemetry.read(workdir) if name in line]
    return [(line["step"], -math.inf if line[name] is None else line[name]) for line in lines]


def has_stalled(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought nothing above the best before; 0: never.

    has_stalled([0.5, 0.7, 0.7, 0.6], 2) -> True
    """
    return 0 < patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])


def selected_step(workdir: epath.PathLike, metric: str) -> int:
    """The step whose evaluation is the best, the first of equals."""
    step, _ = max(evaluations(workdir, metric), key=lambda pair: pair[1])
    return step


def write_results(
    workdir: epath.PathLike,
    task: str,
    labels: Sequence[str],
    predictions: list[dict[str, Any]],
    results: dict[str, Any],
) -> None:
    """Writes predictions.jsonl, report.txt and confusion.png (of classes), and results.json."""
    workdir = epath.Path(workdir)
    lines = (json.dumps(x, ensure_ascii=False) + "\n" for x in predictions)
    files.write_whole(workdir / PREDICTIONS_FILE, "".join(lines))
    reports.write(workdir, task, labels, predictions)
    finite = {  # JSON has no NaN
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in results.items()
    }
    # Last: its presence says that the run is finished.
    files.write_json(workdir / workdirs.RESULTS_FILE, finite)
