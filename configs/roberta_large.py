"""RoBERTa-large as published (Liu et al. 2019): 24 layers, 1,024 wide, 355 M parameters.

    python -m bert_jax.pretrain --config=roberta_large --workdir=gs://BUCKET/roberta_large \\
        --config.data_dir=gs://BUCKET/DATA_DIR

Data and objective are those of roberta_base.py; peak and warm-up differ (paper, table 9).
`:laptop` keeps the width and shortens model and run. bert_base.py explains every field.
"""

import ml_collections

from bert_jax.config import recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"roberta_base:{arg}")
    config.model.num_hidden_layers = 2 if arg == "laptop" else 24
    config.model.hidden_size = 1024
    config.model.num_attention_heads = 16
    config.model.intermediate_size = 4096
    if arg != "laptop":
        config.optimizer.learning_rate = 4e-4
        config.optimizer.warmup_steps = 30_000
    return config
