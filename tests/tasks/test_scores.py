"""Measures of predictions, against scikit-learn and scipy."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from bert_jax.tasks import scores


@pytest.mark.parametrize("num_labels", [2, 5])
def test_scores_against_sklearn(num_labels):
    rng = np.random.default_rng(0)
    for size in (1, 10, 300):
        labels = rng.integers(0, num_labels, size)
        predictions = np.where(rng.random(size) < 0.6, labels, rng.integers(0, num_labels, size))
        assert scores.accuracy(labels, predictions) == pytest.approx(
            sklearn.metrics.accuracy_score(labels, predictions)
        )
        average = "binary" if num_labels == 2 else "macro"
        assert scores.f1(labels, predictions, num_labels) == pytest.approx(
            sklearn.metrics.f1_score(labels, predictions, average=average, zero_division=0.0)
        )
        if size > 1:
            assert scores.matthews(labels, predictions) == pytest.approx(
                sklearn.metrics.matthews_corrcoef(labels, predictions)
            )
    assert scores.matthews([0, 1], [1, 1]) == 0.0


def test_correlations_against_scipy():
    rng = np.random.default_rng(0)
    for digits in (6, 0):  # without and with ties
        x = np.round(rng.normal(0, 2, 50), digits)
        y = np.round(x + rng.normal(0, 1, 50), digits)
        assert scores.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
        assert scores.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert scores.pearson([1, 2, 3], [5, 5, 5]) == 0.0
