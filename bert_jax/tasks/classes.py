"""Names of classes: how a config gives them, and what each counts in the loss. C classes."""

import collections
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bert_jax.cli import UserError


def parse_labels(text: str) -> dict[str, str]:
    """'0=negative,1=positive' -> {'0': 'negative', '1': 'positive'}; 'a,b' -> {'a': 'a', 'b': 'b'}.

    Several labels of the data may be given one name: '1=bad,2=bad,3=good'. Labels with a comma or
    an equals sign are given in JSON, as an object or a list:

        '{"yes, really": "yes", "no": "no"}', '["a=b", "c"]'

    Raises:
      UserError: a label of the data that is there twice, or what begins as JSON and is none.
    """
    pairs: list[tuple[str, str]] = []
    if text.lstrip()[:1] in ("{", "["):
        expected = f"config.labels={text!r}: expected a JSON object or list of texts"
        try:
            parsed = json.loads(text, object_pairs_hook=tuple)
        except ValueError as error:
            raise UserError(f"{expected} ({error})") from None
        pairs = list(parsed) if isinstance(parsed, tuple) else [(x, x) for x in parsed]
        if not all(isinstance(word, str) for pair in pairs for word in pair):
            raise UserError(expected)
    else:
        for part in filter(None, (part.strip() for part in text.split(","))):
            value, _, name = (piece.strip() for piece in part.partition("="))
            pairs.append((value, name or value))
    names: dict[str, str] = {}
    for value, name in pairs:
        if value in names:
            raise UserError(f"config.labels={text!r} has {value!r} twice")
        names[value] = name
    return names


def format_labels(names: Mapping[str, str]) -> str:
    """What `parse_labels` reads as `names`: {'0': 'no', '1': 'yes'} -> '0=no,1=yes'."""
    words = [*names, *names.values()]
    if any(re.search(r"[,=]|^[\[{]|^\s|\s$|^$", word) for word in words):
        return json.dumps(dict(names), ensure_ascii=False)
    return ",".join(value if value == name else f"{value}={name}" for value, name in names.items())


def key(label: str) -> str:
    """What spellings of one label have in common: '1.0' and '1' -> '1'; 'True' -> 'true'.

    pandas writes whole numbers as 1.0 where another row lacks its label, and truth as True.
    """
    if match := re.fullmatch(r"(-?\d+)\.0+", label, re.ASCII):
        return match[1]
    return label.lower() if label.lower() in ("true", "false") else label


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Numbers by their value, false before true, other labels as texts."""
    labels = list(labels)
    if all(re.fullmatch(r"-?\d+(\.\d+)?", label, re.ASCII) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)


def names_of(labels: Iterable[str]) -> dict[str, str]:
    """The classes of a training set that names none: label -> class, the classes in their order.

    Spellings of one label are one class, by its shortest spelling; else labels stay as they are.
    """
    spellings: dict[str, set[str]] = {}
    for label in set(labels):
        spellings.setdefault(key(label), set()).add(label)
    names = {k: min(found) if len(found) == 1 else k for k, found in spellings.items()}
    order = sort_labels(names)
    return {label: names[k] for k in order for label in sorted(spellings[k])}


def renamer(names: Mapping[str, str]) -> Callable[[str], str]:
    """Maps a label of the data, whichever its spelling, to its class; to itself if it has none."""
    by_key = {key(label): name for label, name in names.items()}
    return lambda label: names[label] if label in names else by_key.get(key(label), label)


# What some data sets write for "no label": -1, and SNLI's own files "-".
NO_LABEL = ("-1", "-")


def without_label(counts: Mapping[str, int], known: Iterable[str], most: float) -> set[str]:
    """The labels of a file that stand for none.

    "-1" and "-" do so where the classes are known and have them not. In a training file that names
    its classes alone, -1 does so beside 0, 1, 2, … on at most the share `most` of its rows.

    Args:
      counts: label -> rows that have it.
      known: the labels of the config, or of the training set; empty if neither is there yet.
    """
    known = {key(label) for label in known}
    found = {label for label in counts if key(label) in NO_LABEL}
    if known:
        return {label for label in found if key(label) not in known}
    others = {key(label) for label in counts} - {"-1"}
    is_numbered = len(others) > 2 and others == {str(i) for i in range(len(others))}
    minus_one = {label for label in found if key(label) == "-1"}
    is_rare = sum(counts[label] for label in minus_one) <= most * sum(counts.values())
    return minus_one if is_numbered and is_rare else set()


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
        weights = [to_number(part) or 0.0 for part in text.split(",")]
        if len(weights) != len(labels) or min(weights) <= 0:
            raise UserError(
                f"config.class_weights={text!r}: expected 'balanced', or {len(labels)} numbers "
                f"above 0 separated by commas, one a label ({class_names(labels)})"
            )
    return np.array(weights, np.float32) / min(weights)


def class_names(labels: Sequence[str]) -> str:
    """('a', 'b') -> "'a', 'b'", cut after a dozen."""
    shown = ", ".join(map(repr, labels[:12]))
    return shown if len(labels) <= 12 else f"{shown}, … ({len(labels)} in all)"


def to_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
