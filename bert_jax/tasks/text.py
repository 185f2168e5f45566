"""Classes or numbers of a text or of a pair of texts (paper, section 4.1).

B batch, C classes, N examples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks import scores, tables
from bert_jax.tasks.base import Batch, Feature, join
from bert_jax.tasks.classes import class_names, class_weights, is_whole, parse_labels, to_number


@dataclasses.dataclass(frozen=True)
class TextExample:
    """One or two texts and their label's name."""

    place: str
    texts: tuple[str, ...]
    label: str


def read_texts(source: str, config: ml_collections.ConfigDict) -> list[TextExample]:
    """Rows with one or two texts and a label, none of them empty."""
    text_columns = [name for name in (config.text_column, config.text_pair_column) if name]
    examples = []
    for row in tables.read(source, [*text_columns, config.label_column]):
        texts = tuple(row.values[name] for name in text_columns)
        for name, text in zip(text_columns, texts, strict=True):
            if not text.strip():
                raise UserError(f"{row.place} has an empty text (column {name!r})")
        label = row.values[config.label_column].strip()
        if not label:
            raise UserError(f"{row.place} has no label (column {config.label_column!r})")
        examples.append(TextExample(row.place, texts, label))
    return examples


def text_features(
    examples: list[TextExample], targets: Sequence[Any], tokenizer: Tokenizer, max_length: int
) -> list[Feature]:
    """One row an example; its target goes by the name "labels"."""
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
        self._config = config
        self._tokenizer = tokenizer
        self._names = parse_labels(config.labels)
        self._class_weights_C = np.ones(1)

    @property
    def metric(self) -> str:
        return self._config.metric

    def read(self, source: str) -> list[TextExample]:
        return [
            dataclasses.replace(example, label=self._names.get(example.label, example.label))
            for example in read_texts(source, self._config)
        ]

    def set_labels(self, examples: list[TextExample]) -> None:
        if self.metric not in self.METRICS:
            raise UserError(
                f"config.metric={self.metric!r} is not one of {', '.join(self.METRICS)}"
            )
        found = {example.label for example in examples}
        if self._names:
            self.labels = tuple(dict.fromkeys(self._names.values()))
        elif all(is_whole(label) for label in found):
            self.labels = tuple(sorted(found, key=int))
        else:
            self.labels = tuple(sorted(found))
        if len(self.labels) < 2:
            raise UserError(
                f"the training set has the label {self.labels[0]!r} alone: a classifier needs two"
            )
        self._class_weights_C = class_weights(
            self._config.class_weights, self.labels, [example.label for example in examples]
        )

    def features(self, examples: list[TextExample]) -> list[Feature]:
        index = {label: i for i, label in enumerate(self.labels)}
        for example in examples:
            if example.label not in index:
                origin = "config.labels" if self._names else "the training set"
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
        figures = {
            "loss": float(-np.mean(log_probs_NC[np.arange(len(labels_N)), labels_N])),
            "accuracy": scores.accuracy(labels_N, predictions_N),
            "f1": scores.f1(labels_N, predictions_N, len(self.labels)),
            "matthews": scores.matthews(labels_N, predictions_N),
            "majority_share": float(np.bincount(labels_N).max() / len(labels_N)),
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
        return figures, lines


class TextRegression:
    """A number of a text or a pair of texts, fitted by squared error (STS-B in GLUE)."""

    metric = "pearson"
    labels: tuple[str, ...] = ("score",)

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self._config = config
        self._tokenizer = tokenizer

    def read(self, source: str) -> list[TextExample]:
        examples = read_texts(source, self._config)
        for example in examples:
            if to_number(example.label) is None:
                raise UserError(
                    f"{example.place} has the score {example.label!r}, which is not a number"
                )
        return examples

    def set_labels(self, examples: list[TextExample]) -> None:
        """Nothing to settle: the one output is called "score"."""

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
        figures = {
            "loss": float(np.mean((predictions_N - labels_N) ** 2)),
            "pearson": scores.pearson(labels_N, predictions_N),
            "spearman": scores.spearman(labels_N, predictions_N),
        }
        lines = [
            {"texts": list(example.texts), "label": float(label), "prediction": float(prediction)}
            for example, label, prediction in zip(examples, labels_N, predictions_N, strict=True)
        ]
        return figures, lines
