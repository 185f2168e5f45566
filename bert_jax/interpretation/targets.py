"""What is explained: the words that a model reads, and the numbers that it gives for them.

B batch, L length, C scores among which one is chosen: classes, labels, tokens or positions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.cli import UserError
from bert_jax.inference import predictions, settings
from bert_jax.inference.forward import Forward, Row
from bert_jax.inference.predictions import Record
from bert_jax.models import capture, heads
from bert_jax.tasks import answers
from bert_jax.tasks.base import Feature

# Of each task the command of `predict` that reads its inputs.
COMMANDS = {
    "multi_label_classification": "classify",
    "pretraining": "fill-mask",
    "question_answering": "answer",
    "text_classification": "classify",
    "text_regression": "classify",
    "token_classification": "tag",
}


@dataclasses.dataclass(frozen=True)
class Output:
    """One number of the model's output for a text: a logit.

    Attributes:
      name: for the reader, "positive" or "B-PER of Ada".
      place: of the token that the head reads, for labels of words and masked words; of answers 0
        for the start and 1 for the end.
      index: of the class, label or token; of answers the position in the row.
    """

    name: str
    place: int
    index: int


@dataclasses.dataclass(frozen=True)
class Text:
    """What the model reads, once.

    Attributes:
      row: its arrays.
      words: (first position, end) of each; special tokens are in none.
      names: the words as they are shown.
      outputs: what is explained of it.
    """

    row: Row
    words: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    outputs: tuple[Output, ...]


def check(model: Forward) -> None:
    """Raises UserError for a head whose outputs are not explained, or that is not there."""
    if model.task not in COMMANDS:
        raise UserError(f"a {model.task} model is not explained: expected {', '.join(COMMANDS)}")
    if model.task == "pretraining" and "mlm_transform" not in model.params:
        raise UserError("the model has no head: expected a pretraining or a fine-tuned model")


def texts(model: Forward, records: Sequence[Record], target: str = "") -> list[Text]:
    """The texts of `records`, as `predict` reads them, and the outputs that are explained.

    Args:
      target: the class or label whose logit is explained, or the token at each [MASK]; by default
        the predicted one. Of labels of words those other than "O" are explained, or all where
        there is no "O"; of answers start and end of the best span.

    Raises:
      UserError: the model has no such class, label or token, or its head is not explained.
    """
    check(model)
    wanted = _index(model, target) if target else None
    finders: dict[str, Callable[..., list[Text]]] = {
        "pretraining": _masked,
        "question_answering": _answers,
        "token_classification": _labels,
    }
    return finders.get(model.task, _classes)(model, records, wanted)


def _index(model: Forward, target: str) -> int:
    known: Sequence[str] = model.labels
    if model.task == "pretraining":
        ids = model.tokenizer.encode_word(target)
        if len(ids) == 1:
            return ids[0]
        raise UserError(f"target={target!r} is {len(ids)} tokens: expected one")
    if target not in known:
        some = ", ".join(map(repr, known[:20])) or "none to choose"
        raise UserError(f"target={target!r} is not one of the model's outputs: it has {some}")
    return known.index(target)


def _classes(model: Forward, records: Sequence[Record], wanted: int | None) -> list[Text]:
    rows = predictions.text_rows(model, records)
    names = model.labels or ("value",)
    found = []
    for row, logits_C in zip(rows, model.logits(rows), strict=True):
        index = int(np.argmax(logits_C)) if wanted is None else wanted
        found.append(_text(model, row, words_of(model, row), [Output(names[index], 0, index)]))
    return found


def _masked(model: Forward, records: Sequence[Record], wanted: int | None) -> list[Text]:
    rows, places = predictions.mask_rows(model, records)
    inputs = [{name: row[name] for name in ("input_ids", "token_type_ids")} for row in rows]
    best = iter(
        _likeliest(
            model,
            [
                row | {"place": place}
                for row, its in zip(inputs, places, strict=True)
                for place in its
            ],
        )
    )
    found = []
    for row, its in zip(inputs, places, strict=True):
        outputs = []
        for place in its:
            likeliest = next(best)
            index = likeliest if wanted is None else wanted
            name = f"{model.tokenizer.surface(index).strip()} at token {place}"
            outputs.append(Output(name, place, index))
        found.append(_text(model, row, words_of(model, row), outputs))
    return found


def _likeliest(model: Forward, rows: Sequence[Row]) -> list[int]:
    """The token with the highest logit at each row's "place"; rows of no token do not count."""
    is_token_V = np.array([bool(token) for token in model.tokenizer.vocab])

    def apply(params: Any, *arrays: Any) -> jax.Array:
        *inputs, place_B = arrays
        scores_BV = scores(model, params, None, inputs, place_B)[:, : len(is_token_V)]
        return jnp.argmax(jnp.where(is_token_V, scores_BV, -jnp.inf), 1)

    program = model.compiled("likeliest", apply)
    return [int(x) for x in model.outputs(program, params_of(model), rows, ("place",))]


def _labels(model: Forward, records: Sequence[Record], wanted: int | None) -> list[Text]:
    task: Any = settings.task_of(model)
    sentences = [
        tuple(map(str, record["tokens"]))
        if "tokens" in record
        else tuple(
            record["text"][start:end]
            for start, end in predictions.word_offsets(model, record["text"])
        )
        for record in records
    ]
    features: list[Feature] = task.windows(sentences)
    found = []
    rows = [_inputs(feature) for feature in features]
    for feature, row, logits_LC in zip(features, rows, model.logits(rows), strict=True):
        starts = [int(place) for place in feature.origin]
        ends = [*starts[1:], len(row["input_ids"]) - len(model.tokenizer.suffix_ids)]
        words = tuple(zip(starts, ends, strict=True))
        names = _names(model, row, words)
        outputs = []
        for place, name in zip(starts, names, strict=True):
            best = int(np.argmax(logits_LC[place]))
            if "O" not in model.labels or model.labels[best] != "O":
                index = best if wanted is None else wanted
                outputs.append(Output(f"{model.labels[index]} of {name}", place, index))
        found.append(_text(model, row, words, outputs))
    return found


def _answers(model: Forward, records: Sequence[Record], wanted: int | None) -> list[Text]:
    del wanted
    task: Any = settings.task_of(model)
    questions = [
        answers.Question(str(i), record["question"], record["context"], (), 0)
        for i, record in enumerate(records)
    ]
    features = task.features(questions)
    rows = [_inputs(feature) for feature in features]
    logits = model.logits(rows)
    longest = settings.task_config(model).max_answer_length
    found = []
    for i, question in enumerate(questions):
        its = [j for j, feature in enumerate(features) if feature.example == i]
        windows = [(features[j].origin, logits[j]) for j in its]
        scores_NK, offsets = answers.span_scores(windows, longest)
        if not scores_NK.size:
            raise UserError(f"the context of {question.question[:80]!r} has no tokens")
        n, k = (int(x) for x in np.unravel_index(np.argmax(scores_NK), scores_NK.shape))

        def score(j: int, n: int = n, k: int = k) -> float:
            window, start = features[j].origin, features[j].origin.first + n
            start -= window.start
            inside = window.start <= n and n + k < window.start + len(window.offsets)
            return float(logits[j][start, 0] + logits[j][start + k, 1]) if inside else -np.inf

        best = max(its, key=score)
        first = features[best].origin.first + n - features[best].origin.start
        answer = question.context[offsets[n][0] : offsets[n + k][1]]
        outputs = [Output(f"start of {answer}", 0, first), Output(f"end of {answer}", 1, first + k)]
        found.append(_text(model, rows[best], words_of(model, rows[best]), outputs))
    return found


def _inputs(feature: Feature) -> Row:
    return {
        name: [int(x) for x in feature.arrays[name]] for name in ("input_ids", "token_type_ids")
    }


def words_of(model: Forward, row: Row) -> tuple[tuple[int, int], ...]:
    """(first position, end) of every word; a piece that continues a word belongs to it."""
    tokenizer = model.tokenizer
    words: list[tuple[int, int]] = []
    kept = kept_ids(model)
    for i, token in enumerate(row["input_ids"]):
        if token in kept:
            continue
        if words and words[-1][1] == i and tokenizer.is_continuation_V[token]:
            words[-1] = (words[-1][0], i + 1)
        else:
            words.append((i, i + 1))
    return tuple(words)


def kept_ids(model: Forward) -> tuple[int, ...]:
    """The special tokens that are no words, and that no baseline replaces."""
    tokenizer = model.tokenizer
    around = {*tokenizer.prefix_ids, *tokenizer.middle_ids, *tokenizer.suffix_ids}
    return tuple(sorted({tokenizer.pad_id, tokenizer.mask_id, *around}))


def _names(model: Forward, row: Row, words: Sequence[tuple[int, int]]) -> list[str]:
    ids = row["input_ids"]
    return [model.tokenizer.decode(ids[first:end]).strip() for first, end in words]


def _text(
    model: Forward, row: Row, words: Sequence[tuple[int, int]], outputs: Sequence[Output]
) -> Text:
    row = {name: [int(x) for x in row[name]] for name in ("input_ids", "token_type_ids")}
    return Text(row, tuple(words), tuple(_names(model, row, words)), tuple(outputs))


def scores(
    model: Forward, params: Any, x_BLD: jax.Array | None, inputs: Sequence[Any], place_B: Any
) -> jax.Array:
    """The logits among which an output is chosen by its `index`, float32[B, C].

    Args:
      x_BLD: given, it replaces the embeddings of the inputs.
      inputs: the encoder's batch fields, int32[B, L].
      place_B: of `Output`.
    """
    further = [place_B[:, None]] if model.task == "pretraining" else []
    output: Any
    if x_BLD is None:
        output = model.module.apply({"params": params}, *inputs, *further)
    else:
        output = capture.apply_to_embeddings(model.module, params, x_BLD, *inputs, *further)
    if model.task == "pretraining":
        return output.mlm_logits_BMV[:, 0]
    if model.task == "token_classification":
        return jnp.take_along_axis(output, place_B[:, None, None], 1)[:, 0]
    if model.task == "question_answering":
        logits_BL = jnp.take_along_axis(output, place_B[:, None, None], 2)[..., 0]
        mask_BL = dict(zip(model.encoder.batch_fields, inputs, strict=True))["attention_mask"]
        return jnp.where(mask_BL > 0, logits_BL, -jnp.inf)
    return output


def probabilities(model: Forward, rows: Sequence[Row], outputs: Sequence[Output]) -> np.ndarray:
    """The probability of each row's output, float32[N]; of a regression its value."""

    def apply(params: Any, *arrays: Any) -> jax.Array:
        *inputs, place_B, index_B = arrays
        logits_BC = scores(model, params, None, inputs, place_B)
        if model.task == "multi_label_classification":
            logits_BC = jax.nn.sigmoid(logits_BC)
        elif model.task != "text_regression":
            logits_BC = jax.nn.softmax(logits_BC)
        return jnp.take_along_axis(logits_BC, index_B[:, None], 1)[:, 0]

    program = model.compiled("probabilities", apply)
    chosen = [with_output(row, output) for row, output in zip(rows, outputs, strict=True)]
    found = model.outputs(program, params_of(model), chosen, ("place", "index"))
    return np.array(found, np.float32)


def params_of(model: Forward) -> Any:
    """The parameters that `model.module` computes with; of a pretraining those it lacks are 0."""
    return (
        heads.with_zeros(model.params, model.module)
        if model.task == "pretraining"
        else (model.params)
    )


def with_output(row: Row, output: Output) -> Row:
    """A row with the place and the index of its output, for the `extra` of `Forward.outputs`."""
    return {**row, "place": output.place, "index": output.index}
