"""Classes (one or several) or numbers of a text or of a pair of texts (paper, section 4.1).

B batch, C classes, N examples.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks import classes, scores, tables
from bert_jax.tasks.base import Batch, Feature, join
from bert_jax.tasks.classes import class_names, class_weights, parse_labels, to_number


@dataclasses.dataclass(frozen=True)
class TextExample:
    """One or two texts and their label's name, or number."""

    place: str
    texts: tuple[str, ...]
    label: str
    is_class: bool = True


def read_rows(
    source: str,
    config: ml_collections.ConfigDict,
    label_columns: Sequence[str],
    lists: Sequence[str],
    skipped: tables.Skipped,
) -> Iterator[tuple[tables.Row, tuple[str, ...]]]:
    """The rows with one or two texts, and those texts; the second text may be empty."""
    text_columns = [name for name in (config.text_column, config.text_pair_column) if name]
    for row in tables.read(source, [*text_columns, *label_columns], lists):
        texts = tuple(row.values[name] for name in text_columns)
        if texts[0].strip():
            yield row, texts
        else:
            skipped.add(f"{row.place} has an empty text (column {text_columns[0]!r})")


def read_texts(
    source: str, config: ml_collections.ConfigDict, skipped: tables.Skipped
) -> list[TextExample]:
    """Rows with one or two texts and a label."""
    examples = []
    for row, texts in read_rows(source, config, [config.label_column], (), skipped):
        if label := row.values[config.label_column].strip():
            examples.append(TextExample(row.place, texts, label))
        else:
            skipped.add(f"{row.place} has no label (column {config.label_column!r})")
    return examples


def text_features(
    examples: Sequence[Any], targets: Sequence[Any], tokenizer: Tokenizer, max_length: int
) -> list[Feature]:
    """One row per example, which has `texts`; its target goes by the name "labels"."""
    encoded = [
        tokenizer.backend.encode_batch_fast(
            [example.texts[i] for example in examples], add_special_tokens=False
        )
        for i in range(len(examples[0].texts))
    ]
    features = []
    for i, target in enumerate(targets):
        second = encoded[1][i].ids if len(encoded) == 2 else None
        ids, segments = join(tokenizer, encoded[0][i].ids, second, max_length)
        arrays = {"input_ids": ids, "token_type_ids": segments, "labels": target}
        features.append(Feature(arrays, example=i))
    return features


class TextClassification:
    """Classes of a sentence or of a pair of sentences (paper, section 4.1)."""

    METRICS = ("accuracy", "f1", "matthews")

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self.labels: tuple[str, ...] = ()
        self.scheme = ""
        self._config = config
        self._tokenizer = tokenizer
        self._names = parse_labels(config.labels)
        self._class_weights_C = np.ones(1)

    @property
    def metric(self) -> str:
        return self._config.metric

    def read(self, source: str, training: bool = False) -> list[TextExample]:
        skipped = tables.Skipped(source, self._config.max_skipped)
        examples = read_texts(source, self._config, skipped)
        counts = collections.Counter(example.label for example in examples)
        known = self._names or dict(zip(self.labels, self.labels, strict=True))
        unlabelled = classes.without_label(counts, known, self._config.max_skipped)
        for example in examples:
            if example.label in unlabelled:
                skipped.add(
                    f"{example.place} has the label {example.label!r}, which stands for none (to "
                    "keep it name all labels in config.labels)"
                )
        examples = [example for example in examples if example.label not in unlabelled]
        skipped.check(len(examples))
        if training:
            known = self._names = known or classes.names_of(counts.keys() - unlabelled)
        rename = classes.renamer(known)
        examples = [dataclasses.replace(x, label=rename(x.label)) for x in examples]
        if training:
            self._settle([example.label for example in examples])
        return examples

    def _settle(self, labels: list[str]) -> None:
        """Settles classes and their weights from the config and the training set's labels."""
        if self.metric not in self.METRICS:
            raise UserError(
                f"config.metric={self.metric!r} is not one of {', '.join(self.METRICS)}"
            )
        self.labels = tuple(dict.fromkeys(self._names.values()))
        if len(self.labels) < 2:
            raise UserError(
                f"the training set has the label {self.labels[0]!r} alone: a classifier needs two"
            )
        self._class_weights_C = class_weights(self._config.class_weights, self.labels, labels)

    def features(self, examples: list[TextExample]) -> list[Feature]:
        index = {label: i for i, label in enumerate(self.labels)}
        for example in examples:
            if example.label not in index:
                origin = "config.labels" if self._config.labels else "the training set"
                raise UserError(
                    f"{example.place} has the label {example.label!r}, which {origin} does not "
                    f"have ({class_names(self.labels)})"
                )
        return text_features(
            examples,
            [index[example.label] for example in examples],
            self._tokenizer,
            self._config.max_seq_length,
        )

    def loss_sum(self, logits_BC: jax.Array, batch: Batch) -> jax.Array:
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, batch["labels"])
        return jnp.sum(loss_B * self._weights(batch))

    def loss_weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(self._weights(batch))

    def _weights(self, batch: Batch) -> jax.Array:
        """float32[B]: the weight of each row's class, 0 for padding."""
        return batch["weights"] * jnp.asarray(self._class_weights_C)[batch["labels"]]

    def evaluate(
        self, examples: list[TextExample], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        log_probs_NC = scores.log_softmax(np.stack(outputs))
        labels_N = np.array([feature.arrays["labels"] for feature in features])
        predictions_N = log_probs_NC.argmax(-1)
        metrics = {
            "loss": float(-np.mean(log_probs_NC[np.arange(len(labels_N)), labels_N])),
            "accuracy": scores.accuracy(labels_N, predictions_N),
            "f1": scores.f1(labels_N, predictions_N, len(self.labels)),
            "matthews": scores.matthews(labels_N, predictions_N),
            "majority_share": float(np.max(np.bincount(labels_N)) / len(labels_N)),
        }
        lines = [
            {
                "texts": list(example.texts),
                "label": example.label,
                "prediction": self.labels[prediction],
                "scores": {
                    name: round(float(p), 6)
                    for name, p in zip(self.labels, np.exp(log_probs_C), strict=True)
                },
            }
            for example, prediction, log_probs_C in zip(
                examples, predictions_N, log_probs_NC, strict=True
            )
        ]
        return metrics, lines


@dataclasses.dataclass(frozen=True)
class MultiLabelExample:
    """One or two texts and the names of all their labels, of which there may be none."""

    place: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]


class MultiLabelClassification:
    """Any number of labels of a text or of a pair of texts; each is decided by itself."""

    METRICS = ("f1_micro", "f1_macro", "accuracy")

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self.labels: tuple[str, ...] = ()
        self.scheme = ""
        self._config = config
        self._tokenizer = tokenizer
        self._names = parse_labels(config.labels)

    @property
    def metric(self) -> str:
        return self._config.metric

    def read(self, source: str, training: bool = False) -> list[MultiLabelExample]:
        config = self._config
        columns = [name.strip() for name in config.label_columns.split(",") if name.strip()]
        lists = [] if columns else [config.label_column]
        if lists and source.endswith((".csv", ".tsv")):
            raise UserError(
                f"{source}: a table has a column of 0 and 1 for each label: name them by "
                "--config.label_columns=A,B,… (lists of labels come in a .jsonl file)"
            )
        skipped = tables.Skipped(source, config.max_skipped)
        examples = []
        for row, texts in read_rows(source, config, columns or lists, lists, skipped):
            found = self._row_labels(row, columns)
            if found is None:
                named = ", ".join(map(repr, columns or lists))
                skipped.add(f"{row.place} has no labels (column {named}; none of them is [] or 0)")
            else:
                labels = tuple(dict.fromkeys(self._names.get(label, label) for label in found))
                examples.append(MultiLabelExample(row.place, texts, labels))
        skipped.check(len(examples))
        if training:
            self._settle(columns, examples)
        return examples

    def _row_labels(self, row: tables.Row, columns: Sequence[str]) -> list[str] | None:
        """The labels of a row as the data calls them; None if they are missing."""
        if not columns:
            labels = row.values[self._config.label_column]
            if labels is None or any(map(tables.is_missing, labels)):
                return None
            return [str(label) for label in labels]
        truths = {"1": True, "true": True, "0": False, "false": False}
        cells = {name: classes.key(row.values[name].strip()) for name in columns}
        if "" in cells.values():
            return None
        if other := next((name for name, cell in cells.items() if cell not in truths), None):
            raise UserError(
                f"{row.place} has {row.values[other]!r} in column {other!r}, expected 0 or 1"
            )
        return [name for name, cell in cells.items() if truths[cell]]

    def _settle(self, columns: Sequence[str], examples: Sequence[MultiLabelExample]) -> None:
        """Settles the labels from the config, the columns or the training set."""
        config = self._config
        if self.metric not in self.METRICS:
            raise UserError(
                f"config.metric={self.metric!r} is not one of {', '.join(self.METRICS)}"
            )
        if not 0 < config.threshold < 1:
            raise UserError(f"config.threshold={config.threshold}, expected between 0 and 1")
        found = {label for example in examples for label in example.labels}
        named = [*self._names.values()] or [self._names.get(name, name) for name in columns]
        self.labels = tuple(dict.fromkeys(named or classes.sort_labels(found)))
        if not self.labels:
            raise UserError("the training set has no labels")

    def features(self, examples: list[MultiLabelExample]) -> list[Feature]:
        for example in examples:
            if unknown := [label for label in example.labels if label not in self.labels]:
                origin = "config.labels" if self._config.labels else "the training set"
                raise UserError(
                    f"{example.place} has the label {unknown[0]!r}, which {origin} does not have "
                    f"({class_names(self.labels)})"
                )
        targets = [[float(name in x.labels) for name in self.labels] for x in examples]
        return text_features(examples, targets, self._tokenizer, self._config.max_seq_length)

    def loss_sum(self, logits_BC: jax.Array, batch: Batch) -> jax.Array:
        # The mean over labels, as transformers' BCEWithLogitsLoss.
        loss_B = optax.sigmoid_binary_cross_entropy(logits_BC, batch["labels"]).mean(-1)
        return jnp.sum(loss_B * batch["weights"])

    def loss_weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def evaluate(
        self, examples: list[MultiLabelExample], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        logits_NC = np.stack(outputs).astype(np.float64)
        labels_NC = np.array([feature.arrays["labels"] for feature in features]) > 0
        probs_NC = np.exp(-np.logaddexp(0, -logits_NC))
        guesses_NC = probs_NC > self._config.threshold
        # -log p of a label that is there, -log (1 - p) of one that is not.
        signs_NC = np.where(labels_NC, -1, 1)
        metrics = {
            "loss": float(np.logaddexp(0, signs_NC * logits_NC).mean()),
            "accuracy": float((labels_NC == guesses_NC).all(1).mean()),
            **scores.multi_label_f1(labels_NC, guesses_NC),
        }
        lines = [
            {
                "texts": list(example.texts),
                "labels": list(example.labels),
                "predictions": [x for x, g in zip(self.labels, guesses_C, strict=True) if g],
                "scores": {
                    name: round(float(p), 6) for name, p in zip(self.labels, probs_C, strict=True)
                },
            }
            for example, guesses_C, probs_C in zip(examples, guesses_NC, probs_NC, strict=True)
        ]
        return metrics, lines


class TextRegression:
    """A number of a text or a pair of texts, fitted by squared error (STS-B in GLUE)."""

    metric = "pearson"
    labels: tuple[str, ...] = ("score",)
    scheme = ""

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self._config = config
        self._tokenizer = tokenizer

    def read(self, source: str, training: bool = False) -> list[TextExample]:
        skipped = tables.Skipped(source, self._config.max_skipped)
        examples = []
        for example in read_texts(source, self._config, skipped):
            if to_number(example.label) is None:
                place = example.place
                skipped.add(f"{place} has the score {example.label!r}, which is not a number")
            else:
                examples.append(dataclasses.replace(example, is_class=False))
        skipped.check(len(examples))
        return examples

    def features(self, examples: list[TextExample]) -> list[Feature]:
        return text_features(
            examples,
            [to_number(example.label) for example in examples],
            self._tokenizer,
            self._config.max_seq_length,
        )

    def loss_sum(self, logits_B1: jax.Array, batch: Batch) -> jax.Array:
        return jnp.sum(jnp.square(logits_B1[:, 0] - batch["labels"]) * batch["weights"])

    def loss_weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def evaluate(
        self, examples: list[TextExample], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        predictions_N = np.stack(outputs)[:, 0]
        labels_N = np.array([feature.arrays["labels"] for feature in features])
        metrics = {
            "loss": float(np.mean((predictions_N - labels_N) ** 2)),
            "pearson": scores.pearson(labels_N, predictions_N),
            "spearman": scores.spearman(labels_N, predictions_N),
        }
        lines = [
            {"texts": list(example.texts), "label": float(label), "prediction": float(prediction)}
            for example, label, prediction in zip(examples, labels_N, predictions_N, strict=True)
        ]
        return metrics, lines
