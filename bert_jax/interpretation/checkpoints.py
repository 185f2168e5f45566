"""Where checkpoints part: predictions, attention and states of the same texts, layer by layer.

Similarity of states is linear CKA (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414);
distance of attention the Jensen-Shannon divergence of its distributions, as Clark et al. 2019
compare heads, in bits from 0 to 1. K states, N tokens, D hidden width, H heads, L length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax import screen
from bert_jax.cli import UserError
from bert_jax.inference import encoding, predictions
from bert_jax.inference.forward import Forward
from bert_jax.inference.model import Model, load
from bert_jax.inference.predictions import Record
from bert_jax.interpretation import layers, targets
from bert_jax.runs import workdir as workdirs


def sources(model: str) -> list[tuple[str, str]]:
    """(name, where to load it) of the checkpoints that `--model` names.

    sources("runs/tiny") -> [("step 100", "runs/tiny/checkpoints/100"), …]
    sources("a,b") -> [("a", "a"), ("b", "b")]

    Raises:
      UserError: there are fewer than two.
    """
    given = [x.strip() for x in model.split(",") if x.strip()]
    if len(given) == 1 and workdirs.is_workdir(given[0]):
        _, directory, step = workdirs.path_parts(given[0])
        steps = workdirs.steps_in(directory) if step is None else []
        found = [(f"step {step:,}", str(epath.Path(directory) / str(step))) for step in steps]
        if len(found) < 2:
            raise UserError(
                f"{given[0]} has {len(found)} checkpoint(s) to compare: expected a run that kept "
                "two or more (--config.keep_checkpoints), or models by commas"
            )
        return found
    if len(given) < 2:
        raise UserError(
            f"--model={model} is one model: expected two or more by commas, or the WORKDIR of a run"
        )
    return [(x, x) for x in given]


def report(
    model: str, records: Sequence[Record], name: str, progress: bool = False, **settings: Any
) -> dict[str, Any]:
    """See `bert_jax.explain.checkpoints`."""
    found = sources(model)
    last = _look(*found[-1], None, records, settings)
    previous, points = None, []
    with screen.Stage("comparing", len(found), progress) as stage:
        for number, place in enumerate(found, 1):
            # Three at most are held at once: attention is large.
            this = last if place == found[-1] else _look(*place, last, records, settings)
            before = previous or this
            points.append(
                {
                    "name": this.name,
                    "cka": {"last": _cka(this, last), "previous": _cka(this, before)},
                    "attention": {
                        "last": _distance(this, last),
                        "previous": _distance(this, before),
                    },
                    "texts": this.said,
                    "as_last": _mean(
                        [
                            float(one["prediction"] == other["prediction"])
                            for mine, its in zip(this.said, last.said, strict=True)
                            for one, other in zip(mine, its, strict=True)
                        ]
                    ),
                    "right": _mean([x.get("right") for text in this.said for x in text]),
                }
            )
            previous = this
            stage.update(number, [f"{number} of {len(found)} checkpoints", screen.ETA])
    return {
        "kind": "checkpoints",
        "model": name,
        "task": last.model.task,
        "texts": last.words,
        "checkpoints": points,
    }


@dataclasses.dataclass(frozen=True)
class Look:
    """What one checkpoint makes of the texts.

    Attributes:
      words: of each text.
      said: of each text the predictions: "of" which word, "prediction", "probability", and of
        masked words "right", the probability of what stood there.
      states_KND: of all tokens of all texts, float32.
      attentions: of each text each layer's probabilities, float32[H, L, L].
    """

    name: str
    model: Model
    words: list[list[str]]
    said: list[list[dict[str, Any]]]
    states_KND: np.ndarray
    attentions: list[list[np.ndarray]]


def _look(
    name: str, source: str, last: Look | None, records: Sequence[Record], settings: dict[str, Any]
) -> Look:
    model = load(source, **settings)
    if last is not None:
        compared = [
            (x.tokenizer.fingerprint, x.config.num_hidden_layers, x.task)
            for x in (model, last.model)
        ]
        if compared[0] != compared[1]:
            raise UserError(
                f"{name} cannot be compared with {last.name}: they have another tokenizer, number "
                "of layers or head"
            )
    return Look(name, model, *_predictions(model, records), *_seen(model, records))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else None


def _predictions(
    model: Model, records: Sequence[Record]
) -> tuple[list[list[str]], list[list[dict[str, Any]]]]:
    """The words of each text, and what the model says of it: "of", "prediction", "probability"."""
    if model.task == "pretraining":
        return _fillings(model, [str(record["text"]) for record in records])
    command = targets.COMMANDS.get(model.task)
    if command is None:
        raise UserError(f"checkpoints of a {model.task} model are not compared")
    names, results = [], []
    for record, line in zip(
        records, predictions.COMMANDS[command.replace("-", "_")](model, records), strict=True
    ):
        words = [*record["tokens"]] if "tokens" in record else line.get("tokens")
        if words is not None:  # labels of words
            triples = zip(words, line["labels"], line["scores"], strict=True)
            found = [{"of": w, "prediction": x, "probability": p} for w, x, p in triples]
        else:
            scores = line.get("scores") or {}
            best = line.get("n_best") or [{}]
            value = line["prediction"]
            prob = best[0].get("score") if "n_best" in line else scores.get(str(value))
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            found = [{"of": "", "prediction": shown, "probability": prob}]
            words = [str(record.get("text") or record.get("question") or "")]
        names.append([str(x) for x in words])
        results.append(found)
    return names, results


def _fillings(
    model: Forward, texts: Sequence[str]
) -> tuple[list[list[str]], list[list[dict[str, Any]]]]:
    """What stands at each [MASK], or would at each word: see `layers.masked_words`."""
    read = [layers.masked_words(model, text) for text in texts]
    rows = [asked.input() for _, asks in read for asked in asks]
    found = iter(layers.after(model, model.config.num_hidden_layers, rows))
    results = []
    for names, asks in read:
        lines = []
        for asked in asks:
            line = asked.said(model, next(found))
            lines.append({"of": names[asked.word], "prediction": line.pop("token"), **line})
        results.append(lines)
    return [names for names, _ in read], results


def _seen(model: Model, records: Sequence[Record]) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """States of all tokens float32[K, N, D], and of each text each layer's attention [H, L, L]."""
    states, attentions = [], []
    for record in records:
        text = record.get("text") or record.get("question") or " ".join(record.get("tokens", ()))
        fields = {"text": text, "text_pair": record.get("text_pair") or record.get("context")}
        found = encoding.encode(model, [fields], True, True)
        states.append(np.stack([x[0] for x in found.hidden_states]))
        attentions.append([x[0] for x in found.attentions])
    return np.concatenate(states, 1), attentions


def _cka(one: Look, other: Look) -> list[float]:
    pairs = zip(one.states_KND, other.states_KND, strict=True)
    return [round(cka(x_ND, y_ND), 4) for x_ND, y_ND in pairs]


def cka(x_ND: np.ndarray, y_NE: np.ndarray) -> float:
    """Linear CKA of two sets of states of the same tokens, from 0 to 1 (section 3)."""
    x_ND = np.asarray(x_ND, np.float64) - x_ND.mean(0)
    y_NE = np.asarray(y_NE, np.float64) - y_NE.mean(0)
    shared = np.linalg.norm(y_NE.T @ x_ND) ** 2
    own = np.linalg.norm(x_ND.T @ x_ND) * np.linalg.norm(y_NE.T @ y_NE)
    return float(shared / own) if own else 0.0


def _distance(one: Look, other: Look) -> list[float]:
    """Of each layer, the mean divergence over texts, heads and queries."""
    by_text = [
        [jensen_shannon(p_HLL, q_HLL) for p_HLL, q_HLL in zip(mine, its, strict=True)]
        for mine, its in zip(one.attentions, other.attentions, strict=True)
    ]
    return [round(float(x), 4) for x in np.mean(by_text, 0)]


def jensen_shannon(p_HLL: np.ndarray, q_HLL: np.ndarray) -> float:
    """The mean Jensen-Shannon divergence of two sets of distributions, in bits: from 0 to 1."""
    p, q = np.asarray(p_HLL, np.float64), np.asarray(q_HLL, np.float64)
    middle = (p + q) / 2

    def entropy(x: np.ndarray) -> np.ndarray:
        return -(x * np.log2(np.maximum(x, 1e-300))).sum(-1)

    return float(np.mean(entropy(middle) - (entropy(p) + entropy(q)) / 2))
