"""What a model says of inputs: the results of `predict` and of the methods of `Model`.

Every function takes a model and a chunk of records, and yields a result per record, in their order.
L length, C classes, V vocabulary, M masks per row, D hidden width, K tokens listed.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.cli import UserError
from bert_jax.inference import settings
from bert_jax.inference.forward import Forward, Row
from bert_jax.models import heads
from bert_jax.tasks import schemes, scores
from bert_jax.tasks.answers import Question
from bert_jax.tasks.base import join
from bert_jax.tasks.choices import Choice

Record = dict[str, Any]
TEMPLATE = "This example is {}."  # of zero-shot classification


def text_rows(model: Forward, records: Sequence[Record]) -> list[Row]:
    """The arrays of "text", or of the pair of it and "text_pair", of each record."""
    encode = model.tokenizer.encode
    rows = []
    for record in records:
        second = encode(record["text_pair"]) if record.get("text_pair") is not None else None
        ids, segments = join(model.tokenizer, encode(record["text"]), second, model.max_seq_length)
        rows.append({"input_ids": ids, "token_type_ids": segments})
    return rows


def classify(
    model: Forward, records: Sequence[Record], temperature: float = 1.0
) -> Iterator[Record]:
    """{"prediction": label, "scores": {label: probability}}; of a regression {"prediction": x}.

    Of a model of several labels per text the prediction is the list of those above its threshold.

    Args:
      temperature: of classes: the softmax is of logits / temperature (Guo et al. 2017).
    """
    for logits_C in model.logits(text_rows(model, records)):
        if model.task == "text_regression":
            yield {"prediction": float(logits_C[0])}
        elif model.task == "multi_label_classification":
            probs_C = 1 / (1 + np.exp(-logits_C.astype(np.float64)))
            by_label = dict(zip(model.labels, map(float, probs_C), strict=True))
            least = model.settings.get("threshold", 0.5)
            found = [label for label, prob in by_label.items() if prob > least]
            yield {"prediction": found, "scores": by_label}
        else:
            yield _best(model.labels, logits_C / temperature)


def zero_shot(
    model: Forward,
    records: Sequence[Record],
    labels: Sequence[str],
    template: str = TEMPLATE,
) -> Iterator[Record]:
    """{"prediction": label, "scores": {label: probability}}: softmax of the entailment logits."""
    pairs = [
        {"text": record["text"], "text_pair": template.replace("{}", label)}
        for record in records
        for label in labels
    ]
    logits = np.array(model.logits(text_rows(model, pairs)))[:, entailment(model.labels)]
    for logits_C in logits.reshape(len(records), len(labels)):
        yield _best(labels, logits_C)


def _best(labels: Sequence[str], logits_C: np.ndarray) -> Record:
    probs_C = np.exp(scores.log_softmax(logits_C))
    by_label = dict(zip(labels, map(float, probs_C), strict=True))
    return {"prediction": labels[int(np.argmax(probs_C))], "scores": by_label}


def entailment(labels: Sequence[str]) -> int:
    """The label that says that the first text entails the second.

    Raises:
      UserError: there is not one.
    """
    found = [i for i, name in enumerate(labels) if name.lower().startswith("entail")]
    if len(found) != 1:
        raise UserError(
            f"zero-shot needs a model of textual entailment, with a label 'entailment': this one "
            f"has {', '.join(map(repr, labels))} (fine-tune one with configs/finetune/glue.py:mnli)"
        )
    return found[0]


def tag(model: Forward, records: Sequence[Record]) -> Iterator[Record]:
    """{"labels", "scores", "entities"} of words; of texts also {"tokens", "offsets"}."""
    task: Any = settings.task_of(model)
    offsets = [word_offsets(model, x["text"]) if "text" in x else None for x in records]
    sentences = [
        tuple(map(str, record["tokens"]))
        if places is None
        else tuple(record["text"][start:end] for start, end in places)
        for record, places in zip(records, offsets, strict=True)
    ]
    features = task.windows(sentences)
    results: list[list[tuple[str, float]]] = [[] for _ in records]
    logits = model.logits([feature.arrays for feature in features])
    for feature, logits_LC in zip(features, logits, strict=True):
        for probs_C in np.exp(scores.log_softmax(logits_LC[feature.origin])):
            best = int(probs_C.argmax())
            results[feature.example].append((model.labels[best], float(probs_C[best])))
    for record, words, places, found in zip(records, sentences, offsets, results, strict=True):
        labels, shares = [label for label, _ in found], [share for _, share in found]
        line: Record = {"labels": labels, "scores": [round(share, 6) for share in shares]}
        if places is not None:
            line = {"tokens": list(words), "offsets": [list(place) for place in places]} | line
        if schemes.are_entities(model.labels):
            line["entities"] = [
                _entity(kind, start, end, words, shares, record.get("text"), places)
                for kind, start, end in schemes.entities(labels)
            ]
        yield line


def _entity(
    kind: str,
    first: int,
    end: int,
    words: Sequence[str],
    shares: Sequence[float],
    text: str | None,
    places: Sequence[tuple[int, int]] | None,
) -> Record:
    """An entity of the words from `first` to `end`; its score is their mean."""
    score = round(float(np.mean(shares[first:end])), 6)
    if text is None or places is None:
        found, start = " ".join(words[first:end]), first
    else:
        start, end = places[first][0], places[end - 1][1]
        found = text[start:end]
    return {"type": kind, "start": start, "end": end, "text": found, "score": score}


def word_offsets(model: Forward, text: str) -> list[tuple[int, int]]:
    """(first character, end) of every word as the tokenizer splits them.

    word_offsets(model, "I can't.") -> [(0, 1), (2, 5), (5, 6), (6, 7), (7, 8)]
    """
    ((ids, offsets),) = model.tokenizer.encode_with_offsets([text])
    places: list[tuple[int, int]] = []
    for i, (start, end) in zip(ids, offsets, strict=True):
        if places and model.tokenizer.is_continuation_V[i]:
            places[-1] = (places[-1][0], end)
        else:
            places.append((start, end))
    return places


def answer(
    model: Forward,
    records: Sequence[Record],
    top_k: int = 5,
    max_answer_length: int | None = None,
    null_threshold: float | None = None,
) -> Iterator[Record]:
    """{"prediction": text, "n_best": [{"text", "start", "end", "score"}, …]}."""
    fields = {"max_answer_length": max_answer_length, "null_threshold": null_threshold}
    given = {name: value for name, value in fields.items() if value is not None}
    task: Any = settings.task_of(model, n_best=top_k, **given)
    questions = [
        Question(str(i), record["question"], record["context"], (), 0)
        for i, record in enumerate(records)
    ]
    features = task.features(questions)
    outputs = model.logits([feature.arrays for feature in features])
    for line in task.answers(questions, features, outputs):
        yield {"prediction": line["prediction"], "n_best": line["n_best"]}


def choose(model: Forward, records: Sequence[Record]) -> Iterator[Record]:
    """{"prediction": the choice's index, "scores": a probability per choice}."""
    task = settings.task_of(model)
    examples = [
        Choice("", x["context"], x.get("beginning") or "", tuple(x["choices"]), 0) for x in records
    ]
    rows = [feature.arrays for feature in task.features(examples)]
    results: dict[int, np.ndarray] = {}
    by_count = collections.defaultdict(list)
    for i, example in enumerate(examples):
        by_count[len(example.choices)].append(i)
    for indices in by_count.values():
        results |= zip(indices, model.logits([rows[i] for i in indices]), strict=True)
    for i in range(len(examples)):
        probs = np.exp(scores.log_softmax(results[i]))
        yield {"prediction": int(np.argmax(probs)), "scores": [round(float(p), 6) for p in probs]}


def fill_mask(model: Forward, records: Sequence[Record], top_k: int = 5) -> Iterator[Record]:
    """{"masks": [[{"token", "score"}, … the likeliest first] per mask]}."""
    tokenizer = model.tokenizer
    rows, places = mask_rows(model, records)
    # The model may have rows that stand for no token: none are named, and none count.
    is_token_V = np.array([bool(token) for token in tokenizer.vocab])
    top_k = min(top_k, int(is_token_V.sum()))
    module = heads.PretrainingModel(model.config)
    params = heads.with_zeros(model.params, module)

    def apply(params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array]:
        output: Any = module.apply({"params": params}, *inputs)
        logits_BMV = output.mlm_logits_BMV
        logits_BMV = jnp.where(is_token_V, logits_BMV[..., : tokenizer.vocab_size], -jnp.inf)
        return jax.lax.top_k(jax.nn.softmax(logits_BMV), top_k)

    program = model.compiled(("fill_mask", top_k), apply)
    # By the number of masks, to a power of two: few shapes, and no text pays for another's masks.
    by_slots = collections.defaultdict(list)
    for i, found in enumerate(places):
        by_slots[1 << (len(found) - 1).bit_length()].append(i)
    results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for slots, indices in by_slots.items():
        for i in indices:
            rows[i]["positions"] = places[i] + [0] * (slots - len(places[i]))
        chosen = [rows[i] for i in indices]
        results |= zip(indices, model.outputs(program, params, chosen, ("positions",)), strict=True)
    for i, found in enumerate(places):
        probs_MK, tokens_MK = results[i]
        yield {
            "masks": [
                [
                    {"token": tokenizer.decode([token]), "score": float(prob)}
                    for prob, token in zip(probs_MK[m], tokens_MK[m], strict=True)
                ]
                for m in range(len(found))
            ]
        }


def mask_rows(model: Forward, records: Sequence[Record]) -> tuple[list[Row], list[list[int]]]:
    """`text_rows`, and the places of the masks in each.

    Raises:
      UserError: a text without one, or with one behind the tokens that are read.
    """
    tokenizer = model.tokenizer
    mask = tokenizer.vocab[tokenizer.mask_id]
    rows = text_rows(model, records)
    places = [
        [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.mask_id]
        for row in rows
    ]
    for record, found in zip(records, places, strict=True):
        count = (record["text"] + (record.get("text_pair") or "")).count(mask)
        if not count:
            raise UserError(f"no {mask} in {record['text'][:80]!r}")
        if len(found) < count:
            raise UserError(
                f"a {mask} stands behind the {model.max_seq_length} tokens that are read of "
                f"{record['text'][:80]!r}: shorten the text"
            )
    return rows, places


def embed(
    model: Forward,
    records: Sequence[Record],
    pooling: str | None = None,
    normalize: bool | None = None,
) -> Iterator[np.ndarray]:
    """float32[D] per text."""
    pooling = pooling or model.settings.get("pooling", "mean")
    if normalize is None:
        normalize = model.settings.get("normalize", False)
    module = model.encoder.encoder(model.config)

    def apply(params: Any, *inputs: Any) -> jax.Array:
        hidden_BLD: Any = module.apply({"params": params}, *inputs, method="encode")
        mask_BL = dict(zip(model.encoder.batch_fields, inputs, strict=True))["attention_mask"]
        x_BD = heads.pool(hidden_BLD, mask_BL, pooling)
        norm_B1 = jnp.linalg.norm(x_BD, axis=-1, keepdims=True)
        return x_BD / jnp.maximum(norm_B1, 1e-12) if normalize else x_BD

    program = model.compiled(("embed", pooling, normalize), apply)
    yield from model.outputs(program, model.encoder_params, text_rows(model, records))


# By the names of the methods.
COMMANDS: dict[str, Callable[..., Iterator[Any]]] = {
    "answer": answer,
    "choose": choose,
    "classify": classify,
    "embed": embed,
    "fill_mask": fill_mask,
    "tag": tag,
    "zero_shot": zero_shot,
}
