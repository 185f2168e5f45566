"""A small pretrained model with random weights, and made-up reviews to fine-tune it on."""

import jax
import ml_collections
import numpy as np

from bert_jax.data import tokenizer
from bert_jax.models import heads
from bert_jax.models.bert import BertConfig
from bert_jax.runs import checkpoint
from configs.finetune import text_classification

WORDS = ("good", "fine", "bad", "poor", "film", "plot", "the", "a", "was", "very", "and", "##s")
TOKENIZER = tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *WORDS))
SIZES = {
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,  # so narrow a model learns nothing from the usual 0.02
}


def make_pretrained(workdir):
    """A WORKDIR as pretraining leaves it; the parameters are random."""
    ids = np.zeros((1, 8), np.int32)
    module = heads.PretrainingModel(BertConfig(**SIZES))
    params = jax.device_get(module.init(jax.random.key(0), ids, ids, ids)["params"])
    config = ml_collections.ConfigDict({"model": dict(SIZES)})
    checkpoint.save_params(workdir, params, config, TOKENIZER, 3)
    return workdir


def write_reviews(path, count, seed, pair=False):
    """Rows whose label says whether a good word is in the text (the second one of a pair)."""
    rng = np.random.default_rng(seed)
    lines = ["review,verdict" if not pair else "claim,review,verdict"]
    for _ in range(count):
        label = int(rng.integers(2))
        words = list(rng.choice(WORDS[4:11], rng.integers(3, 18)))
        words.insert(rng.integers(len(words)), rng.choice(WORDS[:2] if label else WORDS[2:4]))
        text = " ".join(words)
        lines.append(f"{'the film,' if pair else ''}{text},{'yes' if label else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def reviews_config(directory):
    """Two epochs on 600 reviews, which is enough to learn them."""
    config = text_classification.get_config()
    config.train_file = write_reviews(directory / "train.csv", 600, 0)
    config.validation_file = write_reviews(directory / "dev.csv", 101, 1)
    config.text_column = "review"
    config.label_column = "verdict"
    config.max_seq_length = 32
    config.length_buckets = 1
    config.num_epochs = 2
    config.optimizer.learning_rate = 1e-2
    return config
