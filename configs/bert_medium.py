"""BERT-medium, uncased: 8 layers, 512 wide, 41 M parameters.

    python -m bert_jax.pretrain --config=configs/bert_medium.py --workdir=gs://BUCKET/bert_medium \\
        --config.data_dir=gs://BUCKET/data_128 '--config.phases[1].data_dir=gs://BUCKET/data_512'

One TPU chip or GPU; faster on a host of 4 or 8.

A size of Turc et al. 2019 ("Well-Read Students Learn Better"), pretrained like BERT-base;
google-research/bert gives its checkpoint a GLUE score of 73.5. `:laptop` is a short run for a CPU;
see bert_base.py, which explains every field.
"""

import ml_collections

from bert_jax.config import recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"bert_base:{arg}")
    config.model.num_hidden_layers = 8
    config.model.hidden_size = 512
    config.model.num_attention_heads = 8
    config.model.intermediate_size = 2048
    return config
