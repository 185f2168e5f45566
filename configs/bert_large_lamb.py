"""BERT-large with LAMB in large batches: 8,601 steps instead of a million (You et al. 2020).

    python -m bert_jax.pretrain --config=configs/bert_large_lamb.py --workdir=gs://BUCKET/lamb \\
        --config.data_dir=gs://BUCKET/data_128 '--config.phases[1].data_dir=gs://BUCKET/data_512'

The two phases, batches and learning rates are those of NVIDIA's recipe (DeepLearningExamples,
BERT for PyTorch), which trains on 8 to 128 A100 or H100 in hours and ends at a loss of about 1.27
in the second phase. Gradients of a batch of 65,536 are accumulated over microbatches:
`accumulate_steps` for the memory at hand, here for 64 devices of 80 GB. `:laptop` tries optimizer
and phases on a small scale, with BERT-large's width and two layers. bert_base.py explains every
field.
"""

import ml_collections

from bert_jax.config import phase, recipe


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    config = recipe(f"bert_large:{arg}")
    config.num_steps = 7_038 + 1_563
    config.batch_size = 65_536
    config.accumulate_steps = 16
    config.log_every = 10
    config.eval_every = 500
    config.checkpoint_every = 200
    config.optimizer.name = "lamb"
    config.optimizer.bias_correction = True
    config.optimizer.learning_rate = 6e-3
    config.optimizer.warmup_steps = 2_000  # 28.43 % of the phase
    config.optimizer.schedule = "polynomial"
    config.optimizer.power = 0.5
    # Each phase has a schedule of its own, the first with the values above; the moments are kept.
    second = {"learning_rate": 4e-3, "warmup_steps": 200}  # 12.8 % of the phase
    config.phases = (
        phase(num_steps=7_038, optimizer={}),
        phase(data_dir="", batch_size=32_768, accumulate_steps=32, optimizer=second),
    )
    if arg == "laptop":
        config.num_steps = 200
        config.batch_size = 64
        config.accumulate_steps = 4
        config.model.num_hidden_layers = 2
        config.optimizer.warmup_steps = 40
        config.phases = (
            phase(num_steps=150, optimizer={}),
            phase(batch_size=32, optimizer={"learning_rate": 4e-3, "warmup_steps": 10}),
        )
    return config
