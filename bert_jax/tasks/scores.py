"""Measures of predictions, in numpy. Tested against scikit-learn."""

from collections.abc import Iterable, Sequence

import numpy as np


def accuracy(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Share of predictions that equal their label."""
    return float(np.mean(np.asarray(labels_N) == np.asarray(predictions_N)))


def f1_by_class(labels_N: np.ndarray, predictions_N: np.ndarray, num_labels: int) -> np.ndarray:
    """2 × true positives / (labels + predictions) of every class; NaN for one in neither."""
    labels_N, predictions_N = np.asarray(labels_N), np.asarray(predictions_N)
    hits_C = np.bincount(labels_N[labels_N == predictions_N], minlength=num_labels)
    total_C = np.bincount(labels_N, minlength=num_labels)
    total_C = total_C + np.bincount(predictions_N, minlength=num_labels)
    return np.where(total_C > 0, 2 * hits_C / np.maximum(total_C, 1), np.nan)


def f1(labels_N: np.ndarray, predictions_N: np.ndarray, num_labels: int) -> float:
    """F1 of class 1 where there are two classes, else the unweighted mean over classes (macro).

    Classes that are neither labelled nor predicted are left out of the mean.
    """
    by_class_C = f1_by_class(labels_N, predictions_N, num_labels)
    if num_labels == 2:
        return float(np.nan_to_num(by_class_C[1]))
    return float(np.nanmean(by_class_C))


def matthews(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Matthews' correlation coefficient (for several classes Gorodkin's); 0 if one is constant."""
    classes = np.union1d(labels_N, predictions_N)
    one_hot = [np.equal.outer(np.asarray(x), classes) for x in (labels_N, predictions_N)]
    x_NC, y_NC = (z.astype(np.float64) - z.mean(0) for z in one_hot)
    scale = np.sqrt((x_NC**2).sum() * (y_NC**2).sum())
    return float((x_NC * y_NC).sum() / scale) if scale > 0 else 0.0


def log_softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, in float64."""
    logits_NC = np.asarray(logits_NC, np.float64)
    shifted_NC = logits_NC - logits_NC.max(-1, keepdims=True)
    return shifted_NC - np.log(np.exp(shifted_NC).sum(-1, keepdims=True))


def pearson(x_N: Sequence[float], y_N: Sequence[float]) -> float:
    """Linear correlation; 0 if either is constant."""
    x_N, y_N = (np.asarray(values, np.float64) - np.mean(values) for values in (x_N, y_N))
    scale = np.sqrt((x_N**2).sum() * (y_N**2).sum())
    return float((x_N * y_N).sum() / scale) if scale > 0 else 0.0


def spearman(x_N: Sequence[float], y_N: Sequence[float]) -> float:
    """Correlation of the ranks; equal values share their mean rank."""

    def ranks(values_N: Sequence[float]) -> np.ndarray:
        _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]

    return pearson(ranks(x_N), ranks(y_N))


def are_entities(labels: Iterable[str]) -> bool:
    """Whether all labels are O, B-type or I-type."""
    return all(label == "O" or label[:2] in ("B-", "I-") for label in labels)


def entities(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """['B-PER', 'I-PER', 'O', 'I-LOC'] -> [('PER', 0, 2), ('LOC', 3, 4)]: type, start, end.

    As conlleval and seqeval count: an I- after another type, or after O, begins an entity too.
    """
    found = []
    start, kind = 0, ""
    for i, label in enumerate([*labels, "O"]):
        here = "" if label == "O" else label[2:]
        if kind and (label.startswith("B-") or here != kind):
            found.append((kind, start, i))
            kind = ""
        if here and not kind:
            start, kind = i, here
    return found


def entity_scores(
    labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of exact entities over all sentences (micro-averaged)."""
    hits = expected = found = 0
    for truth, guess in zip(labels, predictions, strict=True):
        truth_entities, guess_entities = entities(truth), entities(guess)
        hits += len(set(truth_entities) & set(guess_entities))
        expected += len(truth_entities)
        found += len(guess_entities)
    return {
        "precision": hits / max(found, 1),
        "recall": hits / max(expected, 1),
        "f1": 2 * hits / max(expected + found, 1),
    }
