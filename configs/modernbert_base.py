"""ModernBERT-base as published (Warner et al. 2024): 22 layers, 768 wide, 149 M parameters.

    python -m data_prep.build --input=SOURCE --tokenizer=DIR --output=DATA_1024 \\
        --objective=full_sentences --masking=dynamic --max_seq_length=1024
    python -m bert_jax.pretrain --config=modernbert_base --workdir=gs://BUCKET/modernbert_base \\
        --config.data_dir=gs://BUCKET/DATA_1024 \\
        '--config.phases[1].data_dir=gs://BUCKET/DATA_8192' \\
        '--config.phases[2].data_dir=gs://BUCKET/BETTER_8192'

Three phases of one run: 1,719 billion tokens in sequences of 1,024; 250 billion in sequences of
8,192, global layers with another base of RoPE; 50 billion of better text while the rate decays by
1 - sqrt. 30 % of the tokens are predicted, held-out text at the data set's own 15 %. The batch
grows over the first 50 billion tokens, the rate over the first 3 billion. The published run took
194 hours of eight H100s. `:laptop` is a small model and the same phases in 300 steps on one data
set, for a CPU. bert_base.py explains every field.
"""

import ml_collections

from bert_jax.config import phase, recipe

PUBLISHED_DECAY = 1e-5  # of StableAdamW as published: not multiplied with the peak, as it is here


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"bert_base:{arg}")
    config.model = ml_collections.ConfigDict()
    config.model.architecture = "modernbert"
    config.model.vocab_size = 50_368  # must be the data set's
    config.model.hidden_size = 768
    config.model.num_hidden_layers = 22
    config.model.num_attention_heads = 12
    config.model.intermediate_size = 1152
    config.model.max_position_embeddings = 8192  # the longest sequence; no table has that size
    config.model.local_attention = 128  # tokens of the window, half to each side
    config.model.global_attn_every_n_layers = 3  # all others attend to the window
    config.model.global_rope_theta = 160_000.0  # base of RoPE where attention is global
    config.model.local_rope_theta = 10_000.0  # base of RoPE in the window
    config.model.hidden_act = "gelu"
    config.model.embedding_dropout = 0.0  # behind the embeddings
    config.model.attention_dropout = 0.1  # of attention's output; the published file says 0
    config.model.mlp_dropout = 0.0  # in the feed-forward networks
    config.model.initializer_range = 0.02
    config.model.layer_norm_eps = 1e-5
    config.model.classifier_pooling = "mean"  # or "cls": what classifiers read
    config.model.dtype = "float32" if arg == "laptop" else "bfloat16"
    config.model.dropout_rng = "hash"
    config.model.attention = "auto"
    config.model.remat = "none"

    config.masked_lm_prob = 0.3
    config.optimizer.name = "stableadamw"
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    config.optimizer.clip_norm = 0.0
    config.optimizer.end_factor = 1.0  # constant after the warm-up
    if arg == "laptop":
        config.model.hidden_size = 256
        config.model.num_hidden_layers = 4
        config.model.num_attention_heads = 4
        config.model.intermediate_size = 384
        config.num_steps = 300
        config.batch_size_warmup = ((8, 20), (16, 20))
        stages, peaks = (200, 60, 40), (8e-4, 3e-4)
        config.optimizer.warmup_steps = 20
        longer: dict[str, int] = {}
    else:
        config.batch_size = 4_608
        # 10 billion tokens each.
        config.batch_size_warmup = (
            *((768, 12_716), (1_536, 6_358), (2_304, 4_239)),
            *((3_072, 3_179), (3_840, 2_543)),
        )
        stages, peaks = (29_035 + 353_707, 52_982, 10_596), (8e-4, 3e-4)
        config.num_steps = sum(stages)
        config.optimizer.warmup_steps = 3_815  # 3 billion tokens of the first batches
        longer = {"max_seq_length": 8192, "batch_size": 576}
    config.optimizer.learning_rate = peaks[0]
    config.optimizer.weight_decay = PUBLISHED_DECAY / peaks[0]
    constant = {
        "learning_rate": peaks[1],
        "warmup_steps": 0,
        "weight_decay": PUBLISHED_DECAY / peaks[1],
    }
    decay = {"schedule": "wsd", "decay_shape": "1-sqrt", "decay_steps": stages[2]}
    config.phases = (
        phase(
            num_steps=stages[0],
            max_seq_length=0 if arg == "laptop" else 1024,
            model={"global_rope_theta": 10_000.0},
        ),
        phase(num_steps=stages[1], optimizer=constant, **longer),
        phase(optimizer={**constant, **decay, "end_factor": 0.0}, **longer),
    )
    return config
