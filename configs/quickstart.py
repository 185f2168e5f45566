"""The BERT of `make quickstart`: BERT-tiny, made to learn within minutes on two CPU cores.

    python -m bert_jax.pretrain --config=configs/quickstart.py --workdir=quickstart/model \\
        --config.data_dir=quickstart/data

Where it departs from the published recipe (bert_base.py explains every field), and why: each of so
few steps must count. Larger initial weights and learning rate, and Adam with bias correction and a
shorter memory, leave the plateau of predicting by frequency alone, near the unigram entropy,
hundreds of steps earlier. Dropout has nothing to prevent in about one epoch.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; it has no other forms."""
    config = recipe("bert_tiny:laptop")
    config.batch_size = 32
    config.num_steps = 3000
    config.log_every = 25
    config.eval_every = 500
    config.eval_batches = 0
    config.checkpoint_every = 250
    config.model.vocab_size = 2048
    config.model.max_position_embeddings = 128
    config.model.hidden_dropout_prob = 0.0
    config.model.attention_probs_dropout_prob = 0.0
    config.model.initializer_range = 0.05
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_fraction = 100 / 3000
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    return config
