"""BERT-large, uncased: 24 layers, 1024 wide, 335 M parameters.

    python -m bert_jax.pretrain --config=configs/bert_large.py --workdir=gs://BUCKET/bert_large \\
        --config.data_dir=gs://BUCKET/data_128 '--config.phases[1].data_dir=gs://BUCKET/data_512'

The published run took four days on 16 Cloud TPUs (64 chips); fine-tuned, it scores 90.9 F1 on
SQuAD 1.1, BERT-base 88.5. `python -m bert_jax.plan --config=configs/bert_large.py --topology=…`
says what a slice makes of it. `:laptop` shortens the run; see bert_base.py, which explains every
field.
"""

import ml_collections

from bert_jax.config import recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"bert_base:{arg}")
    config.model.num_hidden_layers = 24
    config.model.hidden_size = 1024
    config.model.num_attention_heads = 16
    config.model.intermediate_size = 4096
    return config
