"""LIME: a linear model of which words are there (Ribeiro et al. 2016).

The algorithm of https://arxiv.org/abs/1602.04938, section 3.4, with the settings of the authors'
package: an exponential kernel of the cosine distance, and ridge regression of the probability.
S samples, W words.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bert_jax.cli import UserError
from bert_jax.inference.forward import Forward
from bert_jax.interpretation import faithfulness, targets
from bert_jax.interpretation.targets import Output, Text

_KERNEL_WIDTH, _RIDGE = 0.25, 1.0  # of the package: 25 for distances in percent, and alpha 1


@dataclasses.dataclass(frozen=True)
class Fit:
    """The linear model of one output.

    Attributes:
      words_W: float64, how much a word's presence adds to the probability.
      r2: the share of the variance of the sampled probabilities that it accounts for.
    """

    words_W: np.ndarray
    r2: float


def explain(
    model: Forward, chosen: Sequence[tuple[Text, Output]], samples: int, seed: int
) -> list[Fit]:
    """A fit for each text and output, from `samples` texts with words left as [MASK].

    Raises:
      UserError: fewer than two samples.
    """
    if samples < 2:
        raise UserError(f"samples={samples}: expected at least 2")
    fits = []
    for number, (text, output) in enumerate(chosen):
        there_SW = sample(len(text.words), samples, np.random.default_rng((seed, number)))
        rows = [faithfulness.without(model, text, np.flatnonzero(~there_W)) for there_W in there_SW]
        probs_S = targets.probabilities(model, rows, [output] * samples)
        fits.append(fit(there_SW, probs_S))
    return fits


def sample(words: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """bool[S, W], which words are there: all of them first, then 1 to W at random are hidden."""
    there_SW = np.ones((samples, words), bool)
    for row_W in there_SW[1:] if words else ():
        row_W[rng.permutation(words)[: rng.integers(1, words + 1)]] = False
    return there_SW


def fit(there_SW: np.ndarray, probs_S: np.ndarray) -> Fit:
    """Ridge regression with an intercept, each sample weighted by how near it is to the text."""
    x_SW, y_S = there_SW.astype(np.float64), probs_S.astype(np.float64)
    words = x_SW.shape[1]
    cosine_S = np.sqrt(x_SW.sum(1) / max(words, 1))  # between a row of 0 and 1 and the row of ones
    weights_S = np.sqrt(np.exp(-((1 - cosine_S) ** 2) / _KERNEL_WIDTH**2))
    x_SW = x_SW - np.average(x_SW, axis=0, weights=weights_S)
    y_S = y_S - np.average(y_S, weights=weights_S)
    weighted_WS = x_SW.T * weights_S
    words_W = np.linalg.solve(weighted_WS @ x_SW + _RIDGE * np.eye(words), weighted_WS @ y_S)
    rest = float(np.sum(weights_S * (y_S - x_SW @ words_W) ** 2))
    total = float(np.sum(weights_S * y_S**2))
    return Fit(words_W, 1 - rest / total if total > 0 else 0.0)
