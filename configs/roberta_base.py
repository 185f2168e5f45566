"""RoBERTa-base as published (Liu et al. 2019): 12 layers, 768 wide, 125 M parameters.

    python -m data_prep.build --input=SOURCE --tokenizer=DIR --output=DATA_DIR \\
        --objective=full_sentences --masking=dynamic --max_seq_length=512
    python -m bert_jax.pretrain --config=roberta_base --workdir=gs://BUCKET/roberta_base \\
        --config.data_dir=gs://BUCKET/DATA_DIR

Full sentences of 512 tokens without next-sentence prediction, masks re-sampled each time, batches
of 8,192 (paper, section 4 and table 9). The published run took about a day on 1,024 V100s.
`:laptop` keeps the model and shortens the run. bert_base.py explains every field.
"""

import ml_collections

from bert_jax.config import recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"bert_base:{arg}")
    config.model.architecture = "roberta"
    config.model.vocab_size = 50_265  # must be the data set's
    config.model.max_position_embeddings = 514  # 512 tokens behind the padding's row
    config.model.pad_token_id = 1  # must be the tokenizer's
    config.model.type_vocab_size = 1
    config.model.hidden_act = "gelu"
    config.model.layer_norm_eps = 1e-5
    config.phases = ()
    config.optimizer.b2 = 0.98
    config.optimizer.bias_correction = True
    config.optimizer.clip_norm = 0.0
    config.optimizer.decay_from = "peak"
    if arg != "laptop":
        config.num_steps = 500_000
        config.batch_size = 8_192
        config.optimizer.learning_rate = 6e-4
        config.optimizer.warmup_steps = 24_000
    return config
