"""Measures of predictions, in numpy. Tested against scikit-learn."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt


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

    Classes that are neither labelled nor predicted do not count in the mean.
    """
    by_class_C = f1_by_class(labels_N, predictions_N, num_labels)
    if num_labels == 2:
        return float(np.nan_to_num(by_class_C[1]))
    return float(np.nanmean(by_class_C))


def multi_label_f1(labels_NC: np.ndarray, predictions_NC: np.ndarray) -> dict[str, float]:
    """F1 over all decisions (micro), and the mean over the labels' own (macro); 0 for no hits."""
    hits_C = (labels_NC & predictions_NC).sum(0)
    total_C = labels_NC.sum(0) + predictions_NC.sum(0)
    return {
        "f1_micro": float(2 * hits_C.sum() / max(total_C.sum(), 1)),
        "f1_macro": float((2 * hits_C / np.maximum(total_C, 1)).mean()),
    }


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


def pearson(x_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float:
    """Linear correlation; 0 if either is constant."""
    x_N, y_N = np.asarray(x_N), np.asarray(y_N)
    dx_N, dy_N = (values.astype(np.float64) - float(values.mean()) for values in (x_N, y_N))
    scale = np.sqrt((dx_N**2).sum() * (dy_N**2).sum())
    return float((dx_N * dy_N).sum() / scale) if scale > 0 else 0.0


def spearman(x_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float:
    """Correlation of the ranks; equal values share their mean rank."""

    def ranks(values_N: npt.ArrayLike) -> np.ndarray:
        _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]

    return pearson(ranks(x_N), ranks(y_N))


def entity_scores(
    labels: Iterable[Sequence[Hashable]], predictions: Iterable[Sequence[Hashable]]
) -> dict[str, float]:
    """Precision, recall and F1 of exact entities over all sentences (micro-averaged).

    Args:
      labels, predictions: the entities of each sentence.
    """
    expected, found = (
        {(i, entity) for i, entities in enumerate(side) for entity in entities}
        for side in (labels, predictions)
    )
    hits = len(expected & found)
    return {
        "precision": hits / max(len(found), 1),
        "recall": hits / max(len(expected), 1),
        "f1": 2 * hits / max(len(expected) + len(found), 1),
    }
