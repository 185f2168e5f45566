"""Labels of words: named entities, parts of speech (paper, section 5.3).

A word's label stands on its first piece; the other pieces are not scored. Sentences longer than the
model takes are worked off in several windows, so every word gets a prediction.
"""

import dataclasses
import re
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
from bert_jax.tasks.base import Batch, Feature
from bert_jax.tasks.classes import class_names, class_weights, parse_labels


@dataclasses.dataclass(frozen=True)
class TaggedSentence:
    """Words and their labels."""

    place: str
    words: tuple[str, ...]
    labels: tuple[str, ...]


class TokenClassification:
    """Labels of words, scored by entities where the labels are B-… and I-…, else by accuracy."""

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self.metric = "f1"
        self.labels: tuple[str, ...] = ()
        self._config = config
        self._tokenizer = tokenizer
        self._names = parse_labels(config.labels)
        self._class_weights_C = np.ones(1)

    def read(self, source: str) -> list[TaggedSentence]:
        sentences = read_sentences(
            source, self._config.words_column, self._config.tags_column, self._config.tag_index
        )
        return [
            dataclasses.replace(
                sentence,
                labels=tuple(to_iob2([self._names.get(tag, tag) for tag in sentence.labels])),
            )
            for sentence in sentences
        ]

    def set_labels(self, examples: list[TaggedSentence]) -> None:
        found = {label for example in examples for label in example.labels}
        if scores.are_entities(found):
            # Both forms of every type: the training set may lack one that the other sets have.
            types = {label[2:] for label in found if label != "O"}
            found |= {f"{prefix}-{kind}" for prefix in "BI" for kind in types}
        else:
            self.metric = "accuracy"
        if self._names:
            self.labels = tuple(dict.fromkeys(self._names.values()))
        else:
            self.labels = tuple(sorted(found, key=lambda x: (x != "O", x[2:], x)))
        if len(self.labels) < 2:
            raise UserError(
                f"the training set has the label {class_names(self.labels)} alone: two are needed"
            )
        self._class_weights_C = class_weights(
            self._config.class_weights,
            self.labels,
            (label for example in examples for label in example.labels),
        )

    def features(self, examples: list[TaggedSentence]) -> list[Feature]:
        index = {label: i for i, label in enumerate(self.labels)}
        for example in examples:
            unknown = sorted(set(example.labels) - index.keys())
            if unknown:
                raise UserError(
                    f"{example.place} has the label {unknown[0]!r}, which is not among "
                    f"{class_names(self.labels)}"
                )
        remaining = [iter(example.labels) for example in examples]
        features = self.windows([example.words for example in examples])
        for feature in features:
            labels = np.full(len(feature.arrays["input_ids"]), -1)
            labels[feature.origin] = [
                index[next(remaining[feature.example])] for _ in feature.origin
            ]
            feature.arrays["token_labels"] = labels.tolist()
        return features

    def windows(self, sentences: Sequence[Sequence[str]]) -> list[Feature]:
        """Rows without labels, as many a sentence as it needs.

        A feature's origin is the places of its words' first pieces.
        """
        pieces: dict[str, list[int]] = {}  # most words come often
        room = self._config.max_seq_length - 2
        features = []
        for i, words in enumerate(sentences):
            start = 0
            while start < len(words):
                ids: list[int] = []
                firsts: list[int] = []
                for word in words[start:]:
                    if word not in pieces:
                        # A word of control characters alone has no pieces.
                        pieces[word] = self._tokenizer.encode(word) or [self._tokenizer.unk_id]
                    word_ids = pieces[word][:room]
                    if len(ids) + len(word_ids) > room:
                        break
                    firsts.append(len(ids) + 1)
                    ids += word_ids
                arrays = {
                    "input_ids": [self._tokenizer.cls_id, *ids, self._tokenizer.sep_id],
                    "token_type_ids": [0] * (len(ids) + 2),
                }
                features.append(Feature(arrays, example=i, origin=firsts))
                start += len(firsts)
        return features

    def loss_sum(self, logits_BLC: jax.Array, batch: Batch) -> jax.Array:
        loss_BL = optax.softmax_cross_entropy_with_integer_labels(
            logits_BLC, jnp.maximum(batch["token_labels"], 0)
        )
        return jnp.sum(loss_BL * self._weights(batch))

    def loss_weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(self._weights(batch))

    def _weights(self, batch: Batch) -> jax.Array:
        """float32[B, L]: the class's weight on words' first pieces, 0 elsewhere and in padding."""
        labels_BL = batch["token_labels"]
        weights_BL = jnp.asarray(self._class_weights_C)[jnp.maximum(labels_BL, 0)]
        return (labels_BL >= 0) * weights_BL * batch["weights"][:, None]

    def evaluate(
        self,
        examples: list[TaggedSentence],
        features: list[Feature],
        outputs: list[np.ndarray],
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        predictions: list[list[str]] = [[] for _ in examples]
        loss, right, words = 0.0, 0, 0
        for feature, logits_LC in zip(features, outputs, strict=True):
            log_probs_NC = scores.log_softmax(logits_LC[feature.origin])
            labels_N = np.array(feature.arrays["token_labels"])[feature.origin]
            guesses_N = log_probs_NC.argmax(-1)
            loss -= float(log_probs_NC[np.arange(len(labels_N)), labels_N].sum())
            right += int((guesses_N == labels_N).sum())
            words += len(labels_N)
            predictions[feature.example] += [self.labels[guess] for guess in guesses_N]
        figures = {"loss": loss / words, "accuracy": right / words}
        if self.metric == "f1":
            truth = [list(example.labels) for example in examples]
            figures |= scores.entity_scores(truth, predictions)
        lines = [
            {
                "words": list(example.words),
                "labels": list(example.labels),
                "predictions": prediction,
            }
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        return figures, lines


def to_iob2(labels: Sequence[str]) -> list[str]:
    """Marks the beginning of every entity with B-; labels of other schemes stay as they are.

    CoNLL-2003 is distributed as IOB1, where B- only parts an entity from another of its type:

        to_iob2(["I-PER", "I-PER", "O", "I-LOC"]) -> ["B-PER", "I-PER", "O", "B-LOC"]
    """
    if any(label != "O" and label[:2] not in ("B-", "I-") for label in labels):
        return list(labels)
    result = []
    before = "O"
    for label in labels:
        if label.startswith("I-") and before[2:] != label[2:]:
            label = f"B-{label[2:]}"
        result.append(label)
        before = label
    return result


def read_sentences(
    source: str, words_column: str, tags_column: str, tag_index: int
) -> list[TaggedSentence]:
    """Reads tagged sentences.

    Args:
      source: a .jsonl file or a data set (hf:, tfds:) with a list of words and a list of labels a
        row (the columns named); any other file is read as CoNLL: a word a line, its columns
        separated by blanks, the word first and its label in column `tag_index`, sentences separated
        by empty lines, -DOCSTART- lines skipped.

    Raises:
      UserError: nothing there, columns missing, a word without a label.
    """
    if tables.is_data_set(source):
        sentences = list(_from_data_set(source, words_column, tags_column))
    elif source.endswith(".jsonl"):
        sentences = list(_from_jsonl(source, words_column, tags_column))
    else:
        sentences = list(_from_conll(source, tag_index))
    if not sentences:
        raise UserError(f"{source} has no sentences")
    return sentences


def _from_conll(source: str, tag_index: int):
    words: list[str] = []
    labels: list[str] = []
    begin, width = 1, 0
    # Only newlines end a line here: a word may hold other separators of Unicode.
    for number, line in enumerate([*tables.read_text(source).split("\n"), ""], 1):
        columns = re.split(r"[ \t]+", line.strip(" \t\r"))
        if columns[0] in ("", "-DOCSTART-"):
            if words:
                yield TaggedSentence(f"{source}:{begin}", tuple(words), tuple(labels))
            words, labels, begin = [], [], number + 1
            continue
        needed = tag_index + 1 if tag_index >= 0 else max(2, -tag_index)
        if len(columns) < needed:
            raise UserError(
                f"{source}:{number} has {len(columns)} column(s) ({line.strip()!r}): expected a "
                f"word and its label in column {tag_index} (config.tag_index)"
            )
        # Counted from the end, the label of a shorter line would be another column.
        width = width or len(columns)
        if tag_index < 0 and len(columns) != width:
            raise UserError(
                f"{source}:{number} has {len(columns)} columns ({line.strip()!r}), the lines above "
                f"have {width}: complete it, or count the label's column from the front "
                "(config.tag_index)"
            )
        words.append(columns[0])
        labels.append(columns[tag_index])


def _from_jsonl(source: str, words_column: str, tags_column: str):
    for number, line in enumerate(tables.read_text(source).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        try:
            row = tables.parse_json(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({error})") from None
        yield _sentence(place, row, words_column, tags_column)


def _from_data_set(source: str, words_column: str, tags_column: str):
    rows, classes = tables.load(source)
    names = classes.get(tags_column)
    for number, row in enumerate(rows):
        row, place = dict(row), f"{source} row {number}"
        if names and row.get(tags_column):
            if min(row[tags_column]) < 0:  # the data sets' mark of what has no label
                raise UserError(f"{place} has words without a label ({tags_column!r} of -1)")
            row[tags_column] = [names[tag] for tag in row[tags_column]]
        yield _sentence(place, row, words_column, tags_column)


def _sentence(place: str, row: Any, words_column: str, tags_column: str) -> TaggedSentence:
    lists = []
    for column in (words_column, tags_column):
        if not isinstance(row, dict) or not isinstance(row.get(column), list):
            found = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{place} has no list {column!r}, it has {found} (name the columns by "
                "config.words_column and config.tags_column)"
            )
        if any(part is None or isinstance(part, list | dict) for part in row[column]):
            raise UserError(f"{place}: the list {column!r} holds null, a list or an object")
        lists.append(tuple(map(str, row[column])))
    words, labels = lists
    if not all(label.strip() for label in labels):
        raise UserError(f"{place} has words without a label (an empty text in {tags_column!r})")
    if len(words) != len(labels) or not words:
        raise UserError(f"{place} has {len(words)} words and {len(labels)} labels")
    return TaggedSentence(place, words, labels)
