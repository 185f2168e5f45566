"""Multiple choice: which ending goes with a beginning (paper, section 4.4)."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Choice:
    """A context, the beginning that every choice continues ("" for none), and the right one."""

    place: str
    context: str
    beginning: str
    choices: tuple[str, ...]
    label: int


class MultipleChoice:
    """Every choice is a pair (context, beginning + choice); the highest score is the answer."""

    metric = "accuracy"
    labels: tuple[str, ...] = ()
    scheme = ""

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self._config = config
        self._tokenizer = tokenizer

    def read(self, source: str, training: bool = False) -> list[Choice]:
        config = self._config
        columns = [name.strip() for name in config.choice_columns.split(",") if name.strip()]
        if len(columns) < 2:
            raise UserError(
                f"config.choice_columns={config.choice_columns!r} names {len(columns)} column(s): "
                "two or more are needed, separated by commas"
            )
        optional = [config.beginning_column] if config.beginning_column else []
        wanted = [config.context_column, *optional, *columns, config.label_column]
        skipped = tables.Skipped(source, config.max_skipped)
        examples = []
        for row in tables.read(source, wanted):
            texts = (config.context_column, *columns)
            if empty := [name for name in texts if not row.values[name].strip()]:
                skipped.add(f"{row.place} has an empty text (column {empty[0]!r})")
                continue
            label = classes.key(row.values[config.label_column].strip())
            if label in ("", *classes.NO_LABEL):
                skipped.add(f"{row.place} has no label (column {config.label_column!r})")
                continue
            if label not in map(str, range(len(columns))):
                raise UserError(
                    f"{row.place} has the label {label!r} (column {config.label_column!r}): "
                    f"expected 0 to {len(columns) - 1}, the number of the right choice"
                )
            examples.append(
                Choice(
                    place=row.place,
                    context=row.values[config.context_column],
                    beginning=row.values[config.beginning_column] if optional else "",
                    choices=tuple(row.values[name] for name in columns),
                    label=int(label),
                )
            )
        skipped.check(len(examples))
        return examples

    def features(self, examples: list[Choice]) -> list[Feature]:
        encode = self._tokenizer.encode
        features = []
        for i, example in enumerate(examples):
            context = encode(example.context)
            pairs = [
                join(
                    self._tokenizer,
                    context,
                    encode(f"{example.beginning} {choice}"),
                    self._config.max_seq_length,
                )
                for choice in example.choices
            ]
            width = max(len(ids) for ids, _ in pairs)
            arrays = {
                "input_ids": [ids + [0] * (width - len(ids)) for ids, _ in pairs],
                "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in pairs],
                "token_type_ids": [types + [0] * (width - len(types)) for _, types in pairs],
                "labels": example.label,
            }
            features.append(Feature(arrays, example=i))
        return features

    def loss_sum(self, logits_BN: jax.Array, batch: Batch) -> jax.Array:
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BN, batch["labels"])
        return jnp.sum(loss_B * batch["weights"])

    def loss_weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def evaluate(
        self, examples: list[Choice], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        log_probs_EN = scores.log_softmax(np.stack(outputs))
        labels_E = np.array([example.label for example in examples])
        predictions_E = log_probs_EN.argmax(-1)
        metrics = {
            "loss": float(-np.mean(log_probs_EN[np.arange(len(labels_E)), labels_E])),
            "accuracy": scores.accuracy(labels_E, predictions_E),
            "majority_share": float(np.max(np.bincount(labels_E)) / len(labels_E)),
        }
        lines = [
            {
                "context": example.context,
                "beginning": example.beginning,
                "choices": list(example.choices),
                "label": example.label,
                "prediction": int(prediction),
                "scores": [round(float(p), 6) for p in np.exp(log_probs_N)],
            }
            for example, prediction, log_probs_N in zip(
                examples, predictions_E, log_probs_EN, strict=True
            )
        ]
        return metrics, lines
