"""Whether a classifier's probabilities are to be believed: calibration, before and after scaling.

N examples (texts, or words of a tagger), C classes. Temperature scaling: Guo et al. 2017,
https://arxiv.org/abs/1706.04599, section 4.2; expected calibration error: section 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize

from bert_jax.cli import UserError
from bert_jax.inference import settings
from bert_jax.inference.forward import Forward
from bert_jax.tasks import scores

TASKS = ("text_classification", "token_classification")
_MISTAKES = 20  # listed


def report(model: Forward, source: str, name: str, fit: str = "", bins: int = 10) -> dict[str, Any]:
    """See `bert_jax.explain.probabilities`."""
    if model.task not in TASKS:
        raise UserError(f"a {model.task} model gives no classes: expected {' or '.join(TASKS)}")
    logits_NC, labels_N, shown = labelled(model, source)
    data: dict[str, Any] = {
        "kind": "probabilities",
        "model": name,
        "file": source,
        "labels": list(model.labels),
        "before": calibration(logits_NC, labels_N, bins),
    }
    if fit:
        fit_logits, fit_labels, _ = labelled(model, fit)
        temperature = fit_temperature(fit_logits, fit_labels)
        data |= {"fit": fit, "temperature": temperature}
        data["after"] = calibration(logits_NC / temperature, labels_N, bins)
    probs_NC = np.exp(scores.log_softmax(logits_NC))
    wrong = np.flatnonzero(probs_NC.argmax(1) != labels_N)
    worst = wrong[np.argsort(-probs_NC[wrong].max(1), kind="stable")][:_MISTAKES]
    data["mistakes"] = [
        {
            "text": shown[i],
            "label": model.labels[labels_N[i]],
            "prediction": model.labels[int(probs_NC[i].argmax())],
            "probability": round(float(probs_NC[i].max()), 4),
        }
        for i in worst
    ]
    return data


def labelled(model: Forward, source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits float64[N, C], labels int[N] and texts (or words) of a labelled file."""
    task = settings.task_of(model)
    features = task.features(task.read(source))
    outputs = model.logits([feature.arrays for feature in features])
    decode, logits, labels, shown = model.tokenizer.decode, [], [], []
    for feature, found in zip(features, outputs, strict=True):
        ids = feature.arrays["input_ids"]
        if model.task == "text_classification":
            logits.append(found)
            labels.append(feature.arrays["labels"])
            shown.append(decode(ids[1:-1]))
            continue
        for place, label in enumerate(feature.arrays["token_labels"]):
            if label >= 0:
                logits.append(found[place])
                labels.append(label)
                around = decode(ids[max(1, place - 5) : place + 6])
                shown.append(f"{model.tokenizer.vocab[ids[place]]} in: {around}")
    return np.array(logits, np.float64), np.array(labels), shown


def calibration(logits_NC: np.ndarray, labels_N: np.ndarray, bins: int) -> dict[str, Any]:
    """Accuracy, log loss, expected calibration error, and the bins of the reliability diagram.

    Bins are of equal width, (low, high], as those of scikit-learn's `calibration_curve`; a bin
    without examples is not listed.
    """
    log_probs_NC = scores.log_softmax(logits_NC)
    confidence_N = np.exp(log_probs_NC.max(1))
    correct_N = log_probs_NC.argmax(1) == labels_N
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.searchsorted(edges[1:-1], confidence_N)
    rows = [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "count": int(inside.sum()),
            "confidence": float(confidence_N[inside].mean()),
            "accuracy": float(correct_N[inside].mean()),
        }
        for i in range(bins)
        if (inside := bin_N == i).any()
    ]
    count = len(labels_N)
    return {
        "examples": count,
        "accuracy": float(correct_N.mean()),
        "log_loss": float(-log_probs_NC[np.arange(count), labels_N].mean()),
        "ece": sum(x["count"] * abs(x["accuracy"] - x["confidence"]) for x in rows) / count,
        "bins": rows,
    }


def fit_temperature(logits_NC: np.ndarray, labels_N: Sequence[int] | np.ndarray) -> float:
    """The temperature, from 0.01 to 100, with the lowest log loss of logits / temperature."""
    rows = np.arange(len(labels_N))

    def loss(log_temperature: float) -> float:
        log_probs_NC = scores.log_softmax(logits_NC / np.exp(log_temperature))
        return float(-log_probs_NC[rows, labels_N].mean())

    bounds = (np.log(0.01), np.log(100))
    found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))
