"""Models with random weights, one per task, as WORKDIR and as export for transformers."""

import jax
import ml_collections
import numpy as np
from small_finetune import TOKENIZER, WORDS

from bert_jax import convert
from bert_jax.models import architectures, heads
from bert_jax.runs import checkpoint
from bert_jax.tasks import kinds

SIZES = {
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
TASKS = (
    ("pretraining", []),
    ("text_classification", ["contradiction", "neutral", "entailment"]),
    ("token_classification", ["O", "B-PER", "I-PER"]),
    ("question_answering", []),
    ("multiple_choice", []),
)


def random_model(
    directory, task, labels, scale=0.3, seed=0, tokenizer=TOKENIZER, fields=(), **settings
):
    """(WORKDIR, its export), with random weights of that standard deviation.

    `settings`: further fields of the run's config, or of its model, as num_hidden_layers; `fields`
    are other fields of its model.
    """
    sizes = SIZES | {"vocab_size": tokenizer.vocab_size} | dict(fields)
    sizes |= {name: settings.pop(name) for name in SIZES if name in settings}
    model = architectures.make_config(sizes)
    module = heads.PretrainingModel(model)
    if task != "pretraining":
        module = kinds.make_module(task, model, len(labels))
    ids = np.zeros((1, 2, 8) if task == "multiple_choice" else (1, 8), np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype("f4"), shapes)
    config = {"model": sizes, "task": task, "labels": labels, **settings}
    workdir = directory / "workdir"
    checkpoint.save_params(workdir, params, ml_collections.ConfigDict(config), tokenizer, 0)
    convert.to_hugging_face(workdir, directory / "export")
    return workdir, directory / "export"


def generated_texts(count, seed):
    """Different texts of up to 14 words, some of two pieces."""
    rng = np.random.default_rng(seed)
    texts = {}
    while len(texts) < count:
        words = rng.choice(WORDS[:11], rng.integers(1, 15))
        ends = np.where(rng.random(len(words)) < 0.3, "s", "")
        texts[" ".join(word + end for word, end in zip(words, ends, strict=True))] = None
    return list(texts)
