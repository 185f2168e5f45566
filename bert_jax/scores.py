"""Measures of predictions, in numpy. Tested against scikit-learn."""

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


def log_softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, in float64."""
    logits_NC = np.asarray(logits_NC, np.float64)
    shifted_NC = logits_NC - logits_NC.max(-1, keepdims=True)
    return shifted_NC - np.log(np.exp(shifted_NC).sum(-1, keepdims=True))
