"""Token classification: named entities, parts of speech (paper, section 5.3).

A word's label stands on its first piece; the other pieces are not scored. Sentences longer than the
model takes are split into several windows, so every word gets a prediction.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks import schemes, scores, tables
from bert_jax.tasks.base import Batch, Feature
from bert_jax.tasks.classes import class_names, class_weights, parse_labels


@dataclasses.dataclass(frozen=True)
class TaggedSentence:
    """Words and their labels."""

    place: str
    words: tuple[str, ...]
    labels: tuple[str, ...]


class TokenClassification:
    """Labels of words, scored by entities where they follow a scheme of entities, else by accuracy.

    Labels are converted to BIO, which the head learns; labels of another scheme that config.labels
    names, or the model has, are learned as they are.
    """

    METRICS = ("", "accuracy", "f1")

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self.labels: tuple[str, ...] = ()
        self.scheme = ""
        self._config = config
        self._tokenizer = tokenizer
        self._names = parse_labels(config.labels)
        self._class_weights_C = np.ones(1)

    @property
    def metric(self) -> str:
        scored_by_words = self._config.metric == "accuracy" or not schemes.are_entities(self.labels)
        return "accuracy" if scored_by_words else "f1"

    def read(self, source: str, training: bool = False) -> list[TaggedSentence]:
        sentences = [
            dataclasses.replace(
                sentence, labels=tuple(self._names.get(tag, tag) for tag in sentence.labels)
            )
            for sentence in read_sentences(source, self._config)
        ]
        if training:
            self._settle(sentences)
        if self.metric != "f1":
            return sentences
        scheme = schemes.scheme_of(self.labels)
        return [
            dataclasses.replace(sentence, labels=tuple(schemes.convert(sentence.labels, scheme)))
            for sentence in sentences
        ]

    def _settle(self, sentences: list[TaggedSentence]) -> None:
        """Settles metric, labels and their weights from the config and the training sentences."""
        wanted = self._config.metric
        if wanted not in self.METRICS:
            raise UserError(
                f"config.metric={wanted!r} is not one of {', '.join(map(repr, self.METRICS))}"
            )
        counts = collections.Counter(label for x in sentences for label in x.labels)
        if wanted != "accuracy":
            check_scheme(sentences, counts, wanted)
        found = set(counts)
        if self._names:
            self.labels = tuple(dict.fromkeys(self._names.values()))
        else:
            # All prefixes of every type: the training set may lack one that the other sets have.
            if wanted != "accuracy" and schemes.are_entities(found):
                found = schemes.all_labels(found)
            self.labels = tuple(sorted(found, key=lambda x: (x != "O", x[2:], x)))
        if len(self.labels) < 2:
            raise UserError(
                f"the training set has the label {class_names(self.labels)} alone: two are needed"
            )
        labels = [list(x.labels) for x in sentences]
        if self.metric == "f1":
            there, here = schemes.scheme_of(counts), schemes.scheme_of(self.labels)
            self.scheme = there if there == here else f"{there}, converted to {here}"
            labels = [schemes.convert(x, here) for x in labels]
        self._class_weights_C = class_weights(
            self._config.class_weights, self.labels, itertools.chain.from_iterable(labels)
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
        room = self._config.max_seq_length - self._tokenizer.num_special(1)
        before = len(self._tokenizer.prefix_ids)
        features = []
        for i, words in enumerate(sentences):
            start = 0
            while start < len(words):
                ids: list[int] = []
                firsts: list[int] = []
                for word in words[start:]:
                    if word not in pieces:
                        # A word of control characters alone has no pieces.
                        found = self._tokenizer.encode_word(word)
                        pieces[word] = found or [self._tokenizer.unknown_id]
                    word_ids = pieces[word][:room]
                    if len(ids) + len(word_ids) > room:
                        break
                    firsts.append(len(ids) + before)
                    ids += word_ids
                laid_out, types = self._tokenizer.lay_out(ids)
                arrays = {"input_ids": laid_out, "token_type_ids": types}
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
        metrics = {"loss": loss / words, "accuracy": right / words}
        if self.metric == "f1":
            truth = [example.labels for example in examples]
            metrics |= scores.entity_scores(
                schemes.find_entities(self.labels, truth),
                schemes.find_entities(self.labels, predictions),
            )
        lines = [
            {
                "words": list(example.words),
                "labels": list(example.labels),
                "predictions": prediction,
            }
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        return metrics, lines


def check_scheme(
    sentences: Sequence[TaggedSentence], counts: Mapping[str, int], wanted: str
) -> None:
    """Raises UserError for labels that break the scheme of entities that most labels follow.

    Left alone, one would decide that a run is scored, and its best epoch chosen, by accuracy.

    Args:
      counts: label -> words that have it.
      wanted: config.metric; "f1" forbids other labels whatever their share.
    """
    parsed = {label for label in counts if label != "O" and schemes.parse(label)}
    plain = set(filter(schemes.is_plain, parsed))
    typed = parsed - plain
    if not plain & {"B", "I"}:
        plain = set()
    inside = max(plain, typed, key=lambda labels: sum(counts[label] for label in labels))
    outside = counts.keys() - inside - {"O"}
    breaking = sum(counts[label] for label in outside)
    if not outside or (wanted != "f1" and breaking >= sum(counts[label] for label in inside)):
        return
    label = min(outside, key=lambda label: (counts[label], label))
    place, word = next(
        (f"{x.place}, word {i}", x.words[i - 1])
        for x in sentences
        for i, found in enumerate(x.labels, 1)
        if found == label
    )
    others = class_names(sorted(inside)) if inside else "none"
    raise UserError(
        f"{place} ({word!r}) has the label {label!r}, which breaks the scheme of entities that the "
        f"others follow ({others}): correct it, give it another name by config.labels, or "
        "set --config.metric=accuracy to score words instead of entities"
    )


def read_sentences(source: str, config: ml_collections.ConfigDict) -> list[TaggedSentence]:
    """Reads tagged sentences; those without a label or a word somewhere are skipped.

    Args:
      source: a .jsonl file or a data set (hf:, tfds:) with a list of words and a list of labels a
        row, in config.words_column and config.tags_column; any other file is read as CoNLL: one
        word per line, its columns separated by tabs, else by blanks, the word in column
        config.word_index and its label in config.tag_index, empty lines between sentences.

    Raises:
      UserError: nothing there, columns missing, too many sentences without a label.
    """
    skipped = tables.Skipped(source, config.max_skipped)
    if tables.is_data_set(source):
        read = _from_data_set(source, config.words_column, config.tags_column, skipped)
    elif source.endswith(".jsonl"):
        read = _from_jsonl(source, config.words_column, config.tags_column, skipped)
    else:
        read = _from_conll(source, config.word_index, config.tag_index, skipped)
    sentences = list(read)
    if not sentences and not skipped.count:
        raise UserError(f"{source} has no sentences")
    skipped.check(len(sentences))
    return sentences


def _from_conll(
    source: str, word_index: int, tag_index: int, skipped: tables.Skipped
) -> Iterator[TaggedSentence]:
    # Only newlines end a line here: a word may hold other separators of Unicode.
    lines = [line.strip(" \t\r") for line in tables.read_text(source).split("\n")]
    rows = conll_rows(lines)
    check_columns(source, lines, rows, word_index, tag_index)
    if word_index and all(re.fullmatch(r"\d+([-.]\d+)?", row[0]) for _, row in rows if row):
        # CoNLL-U: "1-2" stands for what the words 1 and 2 are contracted to, "1.1" is no word.
        rows = [(number, row) for number, row in rows if not row or row[0].isdecimal()]
    sentences = [
        (group[0][0], [row[word_index] for _, row in group], [row[tag_index] for _, row in group])
        for has_words, rows_of in itertools.groupby(rows, key=lambda row: bool(row[1]))
        if has_words and (group := list(rows_of))
    ]
    check_words(source, word_index, [words for _, words, _ in sentences], rows)
    for begin, words, labels in sentences:
        place = f"{source}:{begin}"
        if not all(words) or not all(labels):
            empty = "a label" if all(words) else "text"
            skipped.add(f"{place} begins a sentence that has words without {empty}")
        else:
            yield TaggedSentence(place, tuple(words), tuple(labels))


def conll_rows(lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(line number, columns) of the words of a CoNLL file, and (…, []) where sentences end.

    Columns are separated by tabs where every word's line has one, else by blanks. Comments, as in
    CoNLL-U before a sentence, are skipped.

        conll_rows(["# id = 1", "New York\tB-LOC", ""]) -> [(2, ["New York", "B-LOC"]), (3, [])]
    """
    words = [line for line in lines if line and line[0] != "#"] or [""]
    has_tabs = all("\t" in line for line in words)

    def split(line: str) -> list[str]:
        cells = line.split("\t") if has_tabs else re.split(r"[ \t]+", line)
        return [cell.strip(" ") for cell in cells]

    width = len(split(words[0]))
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, 1):
        row = split(line) if line else []
        begins = not rows or not rows[-1][1]
        is_comment = len(row) != width or (not has_tabs and re.search(r"\w\s*=", line))
        if begins and line[:1] == "#" and is_comment:  # it may be a word too
            continue
        rows.append((number, [] if row[:1] == ["-DOCSTART-"] else row))
    return rows


def check_columns(
    source: str,
    lines: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    word_index: int,
    tag_index: int,
) -> None:
    """Raises UserError for a line with too few columns, or with others than the lines above."""
    width = 0
    for number, row in rows:
        if not row:
            continue
        found = f"{source}:{number} has {len(row)} column(s) ({lines[number - 1]!r})"
        if not all(-len(row) <= index < len(row) for index in (word_index, tag_index)) or (
            range(len(row))[word_index] == range(len(row))[tag_index]
        ):
            raise UserError(
                f"{found}: expected a word in column {word_index} (config.word_index) and its "
                f"label in column {tag_index} (config.tag_index)"
            )
        # With a cell missing, another one would be taken for the label.
        width = width or len(row)
        if len(row) != width:
            tabs = {"\t" in lines[n - 1] for n, r in rows if r}
            mixed = " (columns are separated by tabs only if every line has some)"
            raise UserError(
                f"{found}, the lines above have {width}: give every word the same "
                f"columns{mixed if len(tabs) == 2 else ''}"
            )


def check_words(
    source: str,
    word_index: int,
    sentences: Sequence[Sequence[str]],
    rows: Sequence[tuple[int, list[str]]],
) -> None:
    """Raises UserError where the words are their own numbers: their column is another one."""
    numbers = [[word for word in words if word.isdecimal()] for words in sentences]
    in_order = all(
        found == list(map(str, range(1, len(found) + 1)))
        and all(re.fullmatch(r"\d+([-.]\d+)?", word) for word in words)
        for found, words in zip(numbers, sentences, strict=True)
    )
    if in_order and any(len(found) > 1 for found in numbers):
        first = next(row for _, row in rows if row)
        raise UserError(
            f"{source}: column {word_index} holds the words' numbers, not the words; the columns "
            f"of its first word are {class_names(first)}, counted from 0: name those of word and "
            "label (of CoNLL-U --config.word_index=1 --config.tag_index=3)"
        )


def _from_jsonl(
    source: str, words_column: str, tags_column: str, skipped: tables.Skipped
) -> Iterator[TaggedSentence]:
    for number, line in enumerate(tables.read_text(source).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        try:
            row = tables.parse_json(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({error})") from None
        yield from _sentence(place, row, words_column, tags_column, skipped)


def _from_data_set(
    source: str, words_column: str, tags_column: str, skipped: tables.Skipped
) -> Iterator[TaggedSentence]:
    rows, classes = tables.load(source)
    names = classes.get(tags_column)
    for number, row in enumerate(rows):
        row, place = dict(row), f"{source} row {number}"
        if names and row.get(tags_column):
            # -1 is the data sets' mark of what has no label.
            row[tags_column] = [names[tag] if tag >= 0 else "" for tag in row[tags_column]]
        yield from _sentence(place, row, words_column, tags_column, skipped)


def _sentence(
    place: str, row: Any, words_column: str, tags_column: str, skipped: tables.Skipped
) -> Iterator[TaggedSentence]:
    """The sentence of a row with two lists; none, and a reason in `skipped`, if it has no label."""
    lists = []
    for column in (words_column, tags_column):
        if isinstance(row, dict) and column in row and tables.is_missing(row[column]):
            skipped.add(f"{place} has nothing in {column!r}")
            return
        if not isinstance(row, dict) or not isinstance(row.get(column), list):
            found = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{place} has no list {column!r}, it has {found} (name the columns by "
                "config.words_column and config.tags_column)"
            )
        if any(isinstance(part, list | dict) for part in row[column]):
            raise UserError(f"{place}: the list {column!r} holds a list or an object")
        lists.append(row[column])
    words, labels = lists
    if len(words) != len(labels):
        raise UserError(f"{place} has {len(words)} words and {len(labels)} labels")
    for column, parts in zip((words_column, tags_column), lists, strict=True):
        if any(map(tables.is_missing, parts)):
            skipped.add(f"{place}: the list {column!r} holds null")
            return
    if not words:
        skipped.add(f"{place} has no words")
    elif not all(str(label).strip() for label in labels):
        skipped.add(f"{place} has words without a label (an empty text in {tags_column!r}, or -1)")
    else:
        yield TaggedSentence(place, tuple(map(str, words)), tuple(map(str, labels)))
