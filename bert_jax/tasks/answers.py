"""Extractive question answering: the answer is a span of the context (paper, sections 4.2, 4.3).

Contexts longer than the model takes are read in overlapping windows. A window without the answer
points to the first token; so does every window of a question that has none.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks import tables
from bert_jax.tasks.base import Batch, Feature, join


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a context; `answers` are alternatives, () if it has none.

    start: of the first answer in the context, in characters; -1 where it is not known.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a context: from its token `start` on, at `first` in the row; its characters."""

    first: int
    start: int
    offsets: tuple[tuple[int, int], ...]


class QuestionAnswering:
    """Spans scored by exact match and F1 as the official SQuAD scripts define them."""

    metric = "f1"
    labels: tuple[str, ...] = ()
    scheme = ""

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer):
        self._config = config
        self._tokenizer = tokenizer
        self.may_have_none = False  # whether "" may be predicted
        room = config.max_seq_length - config.max_question_length - tokenizer.num_special(2)
        if config.doc_stride > room:
            raise UserError(
                f"config.doc_stride={config.doc_stride} is more than the {room} context tokens "
                f"that max_seq_length={config.max_seq_length} leaves beside a question of "
                f"max_question_length={config.max_question_length}: parts would not be read"
            )

    def read(self, source: str, training: bool = False) -> list[Question]:
        questions = read_squad(source, self._config.max_skipped, training)
        if training:
            # Questions may go without an answer if some of the training set do.
            self.may_have_none = any(not question.answers for question in questions)
        return questions

    def features(self, examples: list[Question]) -> list[Feature]:
        config, tokenizer = self._config, self._tokenizer
        contexts = {example.context: None for example in examples}  # several questions share one
        encodings = dict(
            zip(
                contexts,
                tokenizer.encode_with_offsets(contexts),
                strict=True,
            )
        )
        features = []
        for i, example in enumerate(examples):
            question_ids = tokenizer.encode(example.question)[: config.max_question_length]
            context_ids, offsets = encodings[example.context]
            span = _token_span(example, offsets)
            room = config.max_seq_length - len(question_ids) - tokenizer.num_special(2)
            first = len(tokenizer.prefix_ids) + len(question_ids) + len(tokenizer.middle_ids)
            start = 0
            while True:
                end = min(start + room, len(context_ids))
                ids, segments = join(
                    tokenizer, question_ids, context_ids[start:end], config.max_seq_length
                )
                starts = ends = 0
                if span and start <= span[0] and span[1] < end:
                    starts, ends = (token - start + first for token in span)
                arrays = {
                    "input_ids": ids,
                    "token_type_ids": segments,
                    "starts": starts,
                    "ends": ends,
                }
                window = Window(first, start, tuple(offsets[start:end]))
                features.append(Feature(arrays, example=i, origin=window))
                if end == len(context_ids):
                    break
                start += config.doc_stride
        return features

    def loss_sum(self, logits_BL2: jax.Array, batch: Batch) -> jax.Array:
        mask_BL1 = batch["attention_mask"][..., None] > 0
        logits_BL2 = jnp.where(mask_BL1, logits_BL2, -1e30)
        loss_B = sum(
            optax.softmax_cross_entropy_with_integer_labels(logits_BL2[..., i], batch[name])
            for i, name in enumerate(("starts", "ends"))
        )
        return jnp.sum(loss_B * batch["weights"]) / 2

    def loss_weight(self, batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def evaluate(
        self, examples: list[Question], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        lines = self.answers(examples, features, outputs)
        metrics = {
            name: sum(
                best_score(score, line["prediction"], example.answers)
                for line, example in zip(lines, examples, strict=True)
            )
            / len(examples)
            for name, score in (("exact", exact_match), ("f1", token_f1))
        }
        return metrics, lines

    def answers(
        self, examples: list[Question], features: list[Feature], outputs: list[np.ndarray]
    ) -> list[dict[str, Any]]:
        """The prediction and the n-best list of every question.

        A score is a probability among all spans that might be answers, "" included where it might.
        """
        config = self._config
        windows: list[list[tuple[Window, np.ndarray]]] = [[] for _ in examples]
        for feature, logits_L2 in zip(features, outputs, strict=True):
            windows[feature.example].append((feature.origin, logits_L2))
        lines = []
        for example, parts in zip(examples, windows, strict=True):
            scores_NK, offsets = span_scores(parts, config.max_answer_length)
            answers: list[dict[str, Any]] = [
                {"text": example.context[start:end], "start": start, "end": end, "score": score}
                for score, start, end in best_spans(scores_NK, offsets, config.n_best)
            ]
            possible = scores_NK[np.isfinite(scores_NK)].astype(np.float64)
            if self.may_have_none:
                # The window that sees an answer best decides whether there is none.
                null = min(float(logits_L2[0].sum()) for _, logits_L2 in parts)
                possible = np.append(possible, null)
                margin = null - (answers[0]["score"] if answers else -np.inf)
                empty = {"text": "", "start": 0, "end": 0, "score": null}
                first = margin > config.null_threshold
                answers = [empty, *answers] if first else [*answers, empty]
            if answers:
                highest = np.max(possible)
                total = highest + np.log(np.exp(possible - highest).sum())
                for answer in answers:
                    answer["score"] = round(float(np.exp(answer["score"] - total)), 6)
            lines.append(
                {
                    "id": example.id,
                    "question": example.question,
                    "answers": list(example.answers),
                    "prediction": answers[0]["text"] if answers else "",
                    "n_best": answers,
                }
            )
        return lines


def span_scores(
    windows: Sequence[tuple[Window, np.ndarray]], max_answer_length: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Scores of all spans of a context of N tokens, and its tokens' characters.

    Args:
      windows: those of the context, in order, with their logits [L, 2] of starts and ends.
      max_answer_length: in tokens.

    Returns:
      float32[N, K]: of the span of k + 1 tokens from token n on, start logit + end logit, in the
        window that scores it highest; -inf if none has it whole.
    """
    offsets: list[tuple[int, int]] = []
    for window, _ in windows:
        offsets += window.offsets[len(offsets) - window.start :]
    longest = max(1, min(max_answer_length, len(offsets)))
    scores_NK = np.full((len(offsets), longest), -np.inf, np.float32)
    for window, logits_L2 in windows:
        length = len(window.offsets)
        starts, ends = logits_L2[window.first : window.first + length].astype(np.float32).T
        # -inf where the span would run over the window's end.
        ends = np.concatenate([ends, np.full(longest - 1, -np.inf, np.float32)])
        if length:
            here = scores_NK[window.start : window.start + length]
            spans = np.lib.stride_tricks.sliding_window_view(ends, longest)
            np.maximum(here, starts[:, None] + spans, out=here)
    return scores_NK, offsets


def best_spans(
    scores_NK: np.ndarray, offsets: Sequence[tuple[int, int]], n_best: int
) -> list[tuple[float, int, int]]:
    """(score, first character, end character) of the likeliest spans of `span_scores`.

    Of all there are; the originals combine the 20 likeliest starts with the 20 likeliest ends.
    """
    found: dict[tuple[int, int], float] = {}  # a character may have several tokens
    for place in np.argsort(-scores_NK, axis=None, kind="stable"):
        n, k = (int(x) for x in np.unravel_index(place, scores_NK.shape))
        if len(found) == n_best or not np.isfinite(scores_NK[n, k]):
            break
        found.setdefault((offsets[n][0], offsets[n + k][1]), float(scores_NK[n, k]))
    return [(score, start, end) for (start, end), score in found.items()]


def _token_span(example: Question, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and the last token of the first answer; None without one."""
    if not example.answers or example.start < 0:
        return None
    begin, end = example.start, example.start + len(example.answers[0])
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
    return (inside[0], inside[-1]) if inside else None


def normalize(answer: str) -> str:
    """'The  Cat!' -> 'cat': what the official SQuAD scripts compare."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    return float(normalize(prediction) == normalize(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the bags of words; two empty answers are equal."""
    guess, truth = normalize(prediction).split(), normalize(answer).split()
    if not guess or not truth:
        return float(guess == truth)
    common = sum((collections.Counter(guess) & collections.Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth))


def best_score(score: Any, prediction: str, answers: Sequence[str]) -> float:
    """The highest over the alternatives; a question without an answer wants ''."""
    # An answer of articles and punctuation alone would match anything empty: the scripts drop it.
    answers = [answer for answer in answers if normalize(answer)] or [""]
    return max(score(prediction, answer) for answer in answers)


def read_squad(source: str, max_skipped: float, training: bool) -> list[Question]:
    """Reads a SQuAD file (1.1 or 2.0, .json) or a data set (hf:, tfds:) with its columns.

    Args:
      max_skipped: the share of questions that may be skipped, as without a text.
      training: whether an answer must stand in its context where the file says: one alternative
        must, and becomes the first. For scoring the answers' texts are enough.

    Raises:
      UserError: nothing there, another structure, or more questions to skip than that.
    """
    if tables.is_data_set(source):
        data, _ = tables.load(source)
        try:
            rows = [
                (str(row["id"]), row["question"], row["context"], _columns_answers(row["answers"]))
                for row in data
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} has not SQuAD's columns id, question, context and answers (text, "
                f"answer_start, as many of one as of the other); wrong: {error}"
            ) from None
    else:
        try:
            squad = tables.parse_json(tables.read_text(source))
        except ValueError as error:
            raise UserError(f"{source} is not JSON ({error})") from None
        try:
            rows = list(_squad_rows(squad))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} is not a SQuAD file: expected data → paragraphs → context and qas → "
                f"id, question, answers → text, answer_start; wrong or missing: {error}"
            ) from None
    if not rows:
        raise UserError(f"{source} has no questions")
    skipped = tables.Skipped(source, max_skipped)
    questions = []
    for id, question, context, answers in rows:
        place = f"{source}: question {id!r}"
        texts = {"question": question, "context": context}
        empty = [k for k, text in texts.items() if not isinstance(text, str) or not text.strip()]
        if empty:
            skipped.add(f"{place} has an empty {empty[0]}, or none that is text")
            continue
        # "" at -1 is how some data sets write that there is no answer.
        answers = [(text, _index(start)) for text, start in answers]
        answers = [answer for answer in answers if answer != ("", -1)]
        usable = [(text, start) for text, start in answers if isinstance(text, str) and text]
        placed = [pair for pair in usable if _stands(context, *pair)]
        if answers and not (placed if training else usable):
            skipped.add(f"{place}: {_what_is_wrong(context, *answers[0])}")
            continue
        if training and placed:
            usable.remove(placed[0])
            usable.insert(0, placed[0])
        start = usable[0][1] if usable and _stands(context, *usable[0]) else -1
        alternatives = tuple(text for text, _ in usable)
        questions.append(Question(id, question, context, alternatives, start if usable else 0))
    skipped.check(len(questions))
    return questions


def _stands(context: str, text: str, start: int | None) -> bool:
    """Whether an answer stands in its context where the file says."""
    return start is not None and start >= 0 and context[start : start + len(text)] == text


def _what_is_wrong(context: str, text: Any, start: int | None) -> str:
    """Why an answer cannot be used, for a message."""
    if not isinstance(text, str) or not text or start is None or start < 0:
        return (
            "expected an answer's text and the number of its first character, found "
            f"{text!r} and {start!r}"
        )
    return (
        f"the answer {text!r} does not stand at character {start} of its context, where "
        f"{context[start : start + len(text)]!r} stands"
    )


def _index(value: Any) -> int | None:
    """A whole number that may be written as text or with a point: 21, "21", 21.0; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and not isinstance(value, bool) else None


def _squad_rows(squad: Any) -> Iterator[tuple[str, Any, Any, list[tuple[Any, Any]]]]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = [] if _truth(qa.get("is_impossible", False)) else qa["answers"]
                pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
                yield str(qa["id"]), qa["question"], paragraph["context"], pairs


def _truth(value: Any) -> bool:
    """A truth value, also as text or number: True, "true", 1.

    Raises:
      ValueError: it is none.
    """
    truths = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}
    if str(value).lower() not in truths:
        raise ValueError(f"is_impossible is {value!r}, neither true nor false")
    return truths[str(value).lower()]


def _columns_answers(answers: dict[str, list]) -> list[tuple[Any, Any]]:
    return list(zip(answers["text"], answers["answer_start"], strict=True))
