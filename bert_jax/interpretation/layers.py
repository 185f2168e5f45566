"""Which layer knows what: a linear probe of each, and what the MLM head would say after each.

Probes with a control task: Hewitt and Liang 2019, https://arxiv.org/abs/1909.03368. Logit lens:
nostalgebraist 2020. K states (the embeddings', then each layer's), N examples, D hidden width, V
vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax import config as config_lib
from bert_jax import screen
from bert_jax.cli import UserError
from bert_jax.finetuning.inputs import hold_out
from bert_jax.inference import inputs, settings
from bert_jax.inference.forward import Forward, Row
from bert_jax.interpretation import targets
from bert_jax.interpretation.flags import TASKS
from bert_jax.models import capture, heads
from bert_jax.objectives import probe
from bert_jax.tasks import kinds
from bert_jax.tasks.base import Task, join

HELD_OUT = 0.2  # of the examples, where there is no file to test on
_TEXTS = 8  # shown through the lens
_WORDS = 32  # of a text that are asked
_CHUNK = 256  # rows whose states are held whole


@dataclasses.dataclass(frozen=True)
class Split:
    """Frozen states with their labels.

    Attributes:
      states_KND: float32; of a word its first piece's, of a text the mean over its tokens.
      labels_N: int.
      words: what the control task goes by: each word, lower-cased; of a text its first.
    """

    states_KND: np.ndarray
    labels_N: np.ndarray
    words: list[str]


def report(
    model: Forward,
    source: str,
    name: str,
    test: str = "",
    task: str = "",
    limit: int = 2000,
    seed: int = 0,
    lens: bool = True,
    progress: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """See `bert_jax.explain.layers`."""
    task_name = task or _guess(model, source)
    reader, examples, tested = _examples(model, source, test, task_name, limit, fields)
    train, held_out = (states(model, reader, x, task_name) for x in (examples, tested))
    num_classes = len(reader.labels)
    controls = control_labels(train, held_out, seed)
    data: dict[str, Any] = {
        "kind": "layers",
        "model": name,
        "file": source,
        "test": test or f"{HELD_OUT:.0%} held out",
        "task": task_name,
        "labels": list(reader.labels),
        "train_examples": len(train.labels_N),
        "test_examples": len(held_out.labels_N),
        "majority": float(np.max(np.bincount(held_out.labels_N)) / len(held_out.labels_N)),
        "layers": [],
    }
    count = len(train.states_KND)
    with screen.Stage("probing", count, progress) as stage:
        for k, (x_ND, test_ND) in enumerate(
            zip(train.states_KND, held_out.states_KND, strict=True), 1
        ):
            accuracy, control = (
                _accuracy(x_ND, labels_N, test_ND, wanted_N, num_classes)
                for labels_N, wanted_N in ((train.labels_N, held_out.labels_N), controls)
            )
            data["layers"].append(
                {"accuracy": accuracy, "control": control, "selectivity": accuracy - control}
            )
            stage.update(k, [f"{k} of {count} layers", screen.ETA])
    if lens and model.task == "pretraining" and "mlm_transform" in model.params:
        texts = [_text(example) for example in tested[:_TEXTS]]
        data["lens"] = logit_lens(model, texts)
    return data


def _accuracy(
    x_ND: np.ndarray, labels_N: np.ndarray, test_ND: np.ndarray, wanted_N: np.ndarray, classes: int
) -> float:
    found_N = probe.fit(x_ND, labels_N, classes).predict(test_ND)
    return float(np.mean(np.asarray(found_N) == wanted_N))


def _guess(model: Forward, source: str) -> str:
    """The kind of labels in a file, by the model's head, else by the file's suffix or lines."""
    if model.task in TASKS:
        return model.task
    if source.endswith((".csv", ".tsv")):
        return "text_classification"
    if not source.startswith(("hf:", "tfds:")) and inputs.is_labelled(source, "tag"):
        return "token_classification"
    raise UserError(
        f"{source}: are its labels of texts or of words? Give --task={' or --task='.join(TASKS)}"
    )


def _examples(
    model: Forward, source: str, test: str, task: str, limit: int, fields: dict[str, Any]
) -> tuple[Task, list[Any], list[Any]]:
    """What reads the files, and the examples to train and to test on."""
    config: ml_collections.ConfigDict = config_lib.recipe(settings.RECIPES[task])
    if unknown := sorted(fields.keys() - config.keys()):
        raise UserError(f"labels of {task} have no setting {', '.join(unknown)}")
    own = kinds.model_settings(model.settings) if model.task == task else {}
    config.update({name: value for name, value in own.items() if name in config})
    config.update({**fields, "task": task, "max_seq_length": model.max_seq_length, "labels": ""})
    reader = kinds.make_task(config, model.tokenizer)
    examples = reader.read(source, training=True)[: limit or None]
    if test:
        return reader, examples, reader.read(test)[: limit or None]
    return reader, *hold_out(examples, HELD_OUT)


def states(model: Forward, task: Task, examples: Sequence[Any], kind: str) -> Split:
    """The states of all examples, computed without gradients, and their labels."""
    features = task.features(list(examples))
    found, labels, words = [], [], []
    remaining = [iter(getattr(example, "words", ())) for example in examples]
    for start in range(0, len(features), _CHUNK):
        chunk = features[start : start + _CHUNK]
        rows = [
            {name: feature.arrays[name] for name in ("input_ids", "token_type_ids")}
            for feature in chunk
        ]
        for feature, row, states_KLD in zip(chunk, rows, _hidden(model, rows), strict=True):
            length = len(row["input_ids"])
            if kind == "token_classification":
                places = list(feature.origin)
                found.append(states_KLD[:, places])
                labels += [feature.arrays["token_labels"][place] for place in places]
                words += [next(remaining[feature.example]).lower() for _ in places]
            else:
                found.append(states_KLD[:, :length].mean(1, keepdims=True))
                labels.append(feature.arrays["labels"])
                words.append((examples[feature.example].texts[0].split() or [""])[0].lower())
    return Split(np.concatenate(found, 1), np.array(labels), words)


def _hidden(model: Forward, rows: Sequence[Row]) -> list[np.ndarray]:
    """float32[K, L, D] of each row."""
    encoder = model.encoder.encoder(model.config)

    def apply(params: Any, *arrays: jax.Array) -> jax.Array:
        _, captured = capture.apply(encoder, params, *arrays, collections=(capture.HIDDEN_STATES,))
        return jnp.stack(captured[capture.HIDDEN_STATES], 1).astype(jnp.float32)

    params = heads.with_zeros(model.encoder_params, encoder)
    return model.outputs(model.compiled("states of layers", apply), params, rows)


def control_labels(train: Split, test: Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random label for every word, the same wherever it stands, as often as the real ones.

    A probe that learns these, too, has learned words by heart: only what it knows beyond that says
    something of the states (Hewitt and Liang 2019, section 2).
    """
    rng = np.random.default_rng(seed)
    words = sorted({*train.words, *test.words})
    drawn = dict(zip(words, rng.choice(train.labels_N, len(words)), strict=True))
    of_train, of_test = (np.array([drawn[x] for x in split.words]) for split in (train, test))
    return of_train, of_test


def _text(example: Any) -> str:
    return " ".join(example.words) if hasattr(example, "words") else example.texts[0]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row with one word as [MASK], and what stood there.

    Attributes:
      place: of the word's first piece.
      token: that piece; None where the text had [MASK] itself.
      word: the index of the word in `names` of its text.
    """

    row: Row
    place: int
    token: int | None
    word: int

    def input(self) -> Row:
        """What `after` takes."""
        return {**self.row, "place": self.place, "index": self.token or 0}

    def said(self, model: Forward, found: tuple[Any, Any, Any]) -> dict[str, Any]:
        """What `after` found there: "token", its "probability", and "right", what stood there's."""
        token, prob, right = found
        return {
            "token": model.tokenizer.surface(int(token)).strip(),
            "probability": round(float(prob), 4),
            "right": None if self.token is None else round(float(right), 4),
        }


def masked_words(model: Forward, text: str, most: int = _WORDS) -> tuple[list[str], list[Asked]]:
    """The words of a text, and for each that is asked the row with it as [MASK].

    Those are the [MASK]s of the text, if it has some, else its words, one at a time; of more than
    `most` words some, evenly spread.
    """
    tokenizer = model.tokenizer
    laid_out = join(tokenizer, tokenizer.encode(text), None, model.max_seq_length)
    row: Row = dict(zip(("input_ids", "token_type_ids"), laid_out, strict=True))
    words = targets.words_of(model, row)
    masks = [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.mask_id]
    places = sorted([*words, *((i, i + 1) for i in masks)])
    names = [tokenizer.decode(row["input_ids"][first:end]).strip() for first, end in places]
    asked = []
    for number, (first, end) in enumerate(places):
        if masks and first not in masks:
            continue
        hidden = list(row["input_ids"])
        token = None if masks else hidden[first]
        hidden[first:end] = [tokenizer.mask_id] * (end - first)
        asked.append(Asked({**row, "input_ids": hidden}, first, token, number))
    if len(asked) > most:
        asked = [asked[i] for i in np.linspace(0, len(asked) - 1, most).round().astype(int)]
    return names, asked


def logit_lens(model: Forward, texts: Sequence[str]) -> dict[str, Any]:
    """What the MLM head says at masked words after each layer.

    Computed by the model cut behind that layer, with all that follows the last layer (ModernBERT's
    final LayerNorm, the head) on it.

    Returns:
      "texts": of each its "words" and "asked": the index of the "word" and, of every layer from 1,
      the likeliest "token", its "probability" and that of what stood there, "right" (None where
      the text had [MASK]); "layers": of all that is known what stood there the share of "hits" and
      the mean "log_prob".
    """
    read = [masked_words(model, text) for text in texts]
    asked = [ask for _, asks in read for ask in asks]
    if not asked:
        return {"texts": [], "layers": []}
    tokens = [ask.token for ask in asked]
    wanted = np.array([token is not None for token in tokens], bool)
    rows = [ask.input() for ask in asked]
    layers = [after(model, n, rows) for n in range(1, model.config.num_hidden_layers + 1)]
    results = iter([ask.said(model, found[i]) for found in layers] for i, ask in enumerate(asked))
    shown = [
        {
            "words": names,
            "asked": [{"word": ask.word, "layers": next(results)} for ask in asks],
        }
        for names, asks in read
    ]
    summary = []
    for found in layers:
        hits = [int(x[0]) == token for x, token in zip(found, tokens, strict=True)]
        log_probs = np.log(np.maximum([float(x[2]) for x in found], 1e-30))
        if wanted.any():
            summary.append(
                {
                    "hits": float(np.mean(np.array(hits)[wanted])),
                    "log_prob": float(log_probs[wanted].mean()),
                }
            )
    return {"texts": shown, "layers": summary}


def after(model: Forward, layers: int, rows: Sequence[Row]) -> list[tuple[Any, Any, Any]]:
    """(likeliest token, its probability, that of row["index"]) at row["place"], per row."""
    config: Any = dataclasses.replace(model.config, num_hidden_layers=layers)
    module = heads.PretrainingModel(config)
    is_token_V = np.array([bool(token) for token in model.tokenizer.vocab])

    def apply(params: Any, *arrays: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        *batch, place_B, index_B = arrays
        output: Any = module.apply({"params": params}, *batch, place_B[:, None])
        scores_BV = output.mlm_logits_BMV[:, 0, : len(is_token_V)]
        probs_BV = jax.nn.softmax(jnp.where(is_token_V, scores_BV, -jnp.inf))
        of_truth_B = jnp.take_along_axis(probs_BV, index_B[:, None], 1)[:, 0]
        return jnp.argmax(probs_BV, 1), probs_BV.max(1), of_truth_B

    program = model.compiled(("lens", layers), apply)
    return model.outputs(program, targets.params_of(model), rows, ("place", "index"))
