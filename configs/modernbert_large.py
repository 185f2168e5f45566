"""ModernBERT-large as published (Warner et al. 2024): 28 layers, 1,024 wide, 395 M parameters.

    python -m bert_jax.pretrain --config=modernbert_large --workdir=gs://BUCKET/modernbert_large \\
        --config.data_dir=gs://BUCKET/DATA_1024 \\
        '--config.phases[2].data_dir=gs://BUCKET/DATA_8192' \\
        '--config.phases[3].data_dir=gs://BUCKET/BETTER_8192'

As modernbert_base.py, with other sizes, batches and rates, and the first stage's rate lowered
after 900 billion tokens. `:laptop` is modernbert_base's with half as many layers again.
"""

import ml_collections

from bert_jax.config import phase, recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"modernbert_base:{arg}")
    if arg == "laptop":
        config.model.num_hidden_layers = 6
        return config
    config.model.hidden_size = 1024
    config.model.num_hidden_layers = 28
    config.model.num_attention_heads = 16
    config.model.intermediate_size = 2624
    config.batch_size = 4_928
    # Two billion tokens each, ten in all.
    config.batch_size_warmup = (
        *((448, 4_360), (1_344, 1_453), (2_240, 872)),
        *((3_136, 623), (4_032, 484)),
    )
    # Tokens of each stage over those of a batch: 900, 800, 250 and 50 billion.
    stages = (7_792 + 176_368, 158_533, 48_906, 9_781)
    config.num_steps = sum(stages)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 4_360  # 2 billion tokens of the first batches
    config.optimizer.weight_decay = 1e-5 / 5e-4  # of its rate: see modernbert_base.py
    constant = {"learning_rate": 5e-5, "warmup_steps": 0, "weight_decay": 1e-6 / 5e-5}
    decay = {"schedule": "wsd", "decay_shape": "1-sqrt", "decay_steps": stages[3]}
    short = {"max_seq_length": 1024, "model": {"global_rope_theta": 10_000.0}}
    longer = {"max_seq_length": 8192, "batch_size": 624}
    config.phases = (
        phase(num_steps=stages[0], **short),
        phase(num_steps=stages[1], optimizer=constant, **short),
        phase(num_steps=stages[2], optimizer=constant, **longer),
        phase(optimizer={**constant, **decay, "end_factor": 0.0}, **longer),
    )
    return config
