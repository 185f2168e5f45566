"""Fine-tuning tasks as data: how texts become inputs, which head scores them, and how well.

A task reads examples, turns each into features (rows of a batch), names the module and its loss,
and makes figures and predictions of the module's outputs. B batch, L length, C classes.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models import heads
from bert_jax.models.bert import BertConfig
from bert_jax.tasks import scores, tables

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Feature:
    """One row of a batch, made of an example or of a part of one.

    Attributes:
      arrays: "input_ids" and "token_type_ids" int[…, L], and the task's targets; "attention_mask"
        where it is not all ones.
      example: index of its example.
      origin: what the task needs to lead the row's outputs back to the example.
    """

    arrays: dict[str, Any]
    example: int
    origin: Any = None


class Task(Protocol):
    """What `finetune` asks of a task.

    Attributes:
      metric: the figure that the best epoch is chosen by.
      labels: names of the head's outputs; () where it has none to name.
    """

    metric: str
    labels: tuple[str, ...]

    def read(self, source: str) -> list[Any]:
        """Labelled examples of a file, each checked."""

    def set_labels(self, examples: list[Any]) -> None:
        """Settles `labels` from the config or the training examples."""

    def features(self, examples: list[Any]) -> list[Feature]:
        """The batch rows of the examples, in their order."""

    def loss_sum(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The loss added up over the batch; rows with batch["weights"] 0 are padding."""

    def loss_weight(self, batch: Batch) -> jax.Array:
        """What `loss_sum` is divided by."""

    def evaluate(
        self, examples: list[Any], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures, and one JSON object an example; `outputs` are each feature's logits."""


def make_task(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> Task:
    """The task that `config.task` names.

    Raises:
      UserError: an unknown name.
    """
    # They import this module.
    from bert_jax.tasks.answers import QuestionAnswering
    from bert_jax.tasks.choices import MultipleChoice
    from bert_jax.tasks.tokens import TokenClassification

    tasks = {
        "multiple_choice": MultipleChoice,
        "question_answering": QuestionAnswering,
        "text_classification": TextClassification,
        "text_regression": TextRegression,
        "token_classification": TokenClassification,
    }
    if config.task not in tasks:
        raise UserError(f"config.task={config.task!r} is not one of {', '.join(tasks)}")
    return tasks[config.task](config, tokenizer)


def make_module(task: str, model: BertConfig, num_labels: int) -> nn.Module:
    """The model with the head of a task; called with input ids, mask, segments and keys_B."""
    match task:
        case "text_classification" | "text_regression" | "multi_label_classification":
            return heads.BertForSequenceClassification(model, num_labels)
        case "token_classification":
            return heads.BertForTokenClassification(model, num_labels)
        case "question_answering":
            return heads.BertForQuestionAnswering(model)
        case "multiple_choice":
            return heads.BertForMultipleChoice(model)
    raise ValueError(task)


def join(
    tokenizer: Tokenizer, first: list[int], second: list[int] | None, max_length: int
) -> tuple[list[int], list[int]]:
    """[CLS] first [SEP] (second [SEP]), cut to `max_length`, and the segment of every token.

    Cuts as transformers' `truncation=True` does: from the end of the longer text, down to half the
    room each if both are longer than that.

        join(tokenizer, [7, 8], [9], 6) -> [CLS 7 8 SEP 9 SEP], [0 0 0 0 1 1]
    """
    if second is None:
        ids = [tokenizer.cls_id, *first[: max_length - 2], tokenizer.sep_id]
        return ids, [0] * len(ids)
    room = max_length - 3
    shorter, longer = sorted((len(first), len(second)))
    if shorter + longer > room:
        # The half that is rounded up goes to the longer text.
        shorter = min(shorter, room // 2)
        longer = room - shorter
    of_first, of_second = (longer, shorter) if len(first) > len(second) else (shorter, longer)
    segment_a = [tokenizer.cls_id, *first[:of_first], tokenizer.sep_id]
    segment_b = [*second[:of_second], tokenizer.sep_id]
    return segment_a + segment_b, [0] * len(segment_a) + [1] * len(segment_b)


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
        elif all(_is_int(label) for label in found):
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
            if _number(example.label) is None:
                raise UserError(
                    f"{example.place} has the score {example.label!r}, which is not a number"
                )
        return examples

    def set_labels(self, examples: list[TextExample]) -> None:
        """Nothing to settle: the one output is called "score"."""

    def features(self, examples: list[TextExample]) -> list[Feature]:
        return text_features(
            examples,
            [_number(example.label) for example in examples],
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
        weights = [_number(part) for part in text.split(",")]
        if len(weights) != len(labels) or not all(x is not None and x > 0 for x in weights):
            raise UserError(
                f"config.class_weights={text!r}: expected 'balanced', or {len(labels)} numbers "
                f"above 0 separated by commas, one a label ({class_names(labels)})"
            )
    return np.array(weights, np.float32) / min(weights)


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def class_names(labels: Sequence[str]) -> str:
    """('a', 'b') -> "'a', 'b'", cut after a dozen."""
    shown = ", ".join(map(repr, labels[:12]))
    return shown if len(labels) <= 12 else f"{shown}, … ({len(labels)} in all)"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
