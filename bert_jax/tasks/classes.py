"""Names of classes: how a config gives them, and what each counts in the loss. C classes."""

import collections
from collections.abc import Iterable, Sequence

import numpy as np

from bert_jax.cli import UserError


def parse_labels(text: str) -> dict[str, str]:
    """'0=negative,1=positive' -> {'0': 'negative', '1': 'positive'}; 'a,b' -> {'a': 'a', 'b': 'b'}.

    Several labels of the data may be given one name: '1=bad,2=bad,3=good'.

    Raises:
      UserError: a label of the data that is there twice.
    """
    names: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        value, _, name = (piece.strip() for piece in part.partition("="))
        if value in names:
            raise UserError(f"config.labels={text!r} has {value!r} twice")
        names[value] = name or value
    return names


def class_weights(text: str, labels: Sequence[str], examples: Iterable[str]) -> np.ndarray:
    """float32[C]: what an example of each class counts in the loss, the least being 1.

    The loss is a weighted mean, so common factors do not matter; weights of 1 and more add up to
    1 and more in every batch.

    Args:
      text: "" for equal weights; "balanced" for the inverse of the class's frequency; or one number
        a label, in their order: "1,4".
      examples: the labels of the training set.

    Raises:
      UserError: another text, or not as many numbers above 0 as there are labels.
    """
    if not text:
        return np.ones(len(labels), np.float32)
    if text == "balanced":
        counts = collections.Counter(examples)
        # A class that never comes is never weighed.
        weights = [1 / max(counts[label], 1) for label in labels]
    else:
        weights = [to_number(part) for part in text.split(",")]
        if len(weights) != len(labels) or not all(x is not None and x > 0 for x in weights):
            raise UserError(
                f"config.class_weights={text!r}: expected 'balanced', or {len(labels)} numbers "
                f"above 0 separated by commas, one a label ({class_names(labels)})"
            )
    return np.array(weights, np.float32) / min(weights)


def class_names(labels: Sequence[str]) -> str:
    """('a', 'b') -> "'a', 'b'", cut after a dozen."""
    shown = ", ".join(map(repr, labels[:12]))
    return shown if len(labels) <= 12 else f"{shown}, … ({len(labels)} in all)"


def is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def to_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
