"""BERT-base, uncased, as published (Devlin et al. 2018): 12 layers, 768 wide, 110 M parameters.

    python -m bert_jax.pretrain --config=configs/bert_base.py --workdir=gs://BUCKET/bert_base \\
        --config.data_dir=gs://BUCKET/data_128 '--config.phases[1].data_dir=gs://BUCKET/data_512'

The published run took four days on 4 Cloud TPUs (16 chips); its MLM loss on held-out text ended
near 1.4 nats per masked token. `:laptop` keeps the model and shortens the run to something that a
laptop can try:

    python -m bert_jax.pretrain --config=configs/bert_base.py:laptop --workdir=runs/base \\
        --config.data_dir=DATA_DIR

The other sizes (bert_tiny.py … bert_large.py) change the sizes alone.
"""

import ml_collections

from bert_jax.config import phase


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; `arg` is "" as published or "laptop"."""
    if arg not in ("", "laptop"):
        raise ValueError(f"unknown preset {arg!r}: the one there is is :laptop")
    config = ml_collections.ConfigDict()

    # Data: a directory made by data_prep.build; its sequence length is the run's.
    config.data_dir = ""
    config.eval_data_dir = ""  # another data set to evaluate on; "" takes data_dir's validation-…
    config.extra_eval_data_dirs = ""  # further ones, with commas; metrics eval_NAME_… by directory
    config.batch_size = 256  # sequences per optimizer step, over all devices
    config.batch_size_warmup = ()  # ((batch size, steps), …): smaller batches before that
    # Pairs packed one behind the other into a sequence, this many at most (8, say); 0: one each.
    config.packing = 0
    config.accumulate_steps = 1  # microbatches of an optimizer step, to save memory
    # Threads that read batches, and batches made ahead; 0: 2 and 8 from a disk, 16 and 32 from gs://.
    config.data_threads = 0
    config.data_prefetch = 0  # never more than 1 GiB of them
    # Version of how order and masks are drawn; 1 resumes runs that were begun before version 0.2.
    config.sampling = 2
    # Share of the tokens to predict in training, of data with dynamic masks; 0: the data set's.
    # Held-out text always has the data set's.
    config.masked_lm_prob = 0.0
    config.seed = 0  # of parameters, dropout, and the order of the data

    # Length, and what happens on the way (all in optimizer steps).
    config.num_steps = 1_000_000
    # 90 % with sequences of 128 tokens, then 512 for the positions (paper, appendix A.2), under one
    # schedule. The second phase needs data of its own; without, it continues with data_dir.
    config.phases = (phase(num_steps=900_000), phase(data_dir=""))
    config.log_every = 100
    config.eval_every = 10_000  # 0 turns evaluation off
    config.eval_batches = 0  # batches an evaluation reads; 0 takes the whole split
    config.checkpoint_every = 5_000
    config.keep_checkpoints = 3  # the newest that are kept
    config.keep_best = True  # parameters of the best evaluation (lowest eval_loss) in WORKDIR/best
    # WORKDIR[/checkpoints/STEP], WORKDIR/best or Hugging Face model. Its sizes are taken where no
    # --config.model.… says others; of longer or shorter tables the rows of both are.
    config.init_from = ""
    config.init_new_rows = "random"  # of new tokens; "mean": that of the pieces that they were
    config.init_partial = False  # accept other layers or widths, most at random

    config.profile_steps = ()  # (first, last): a trace of these steps in WORKDIR/profile
    config.wandb_project = ""  # of Weights & Biases; metrics.jsonl is written always

    # An exponential moving average of the parameters, evaluated beside them (eval_ema_…) and
    # exported by convert to-hf --ema: how much of it stays in a step, 0.999 say; 0: none.
    config.ema_decay = 0.0
    # Adds this times the mean of log²(Σ exp(logits)) to the loss, 1e-4 say; 0: nothing.
    config.z_loss = 0.0

    # A batch whose loss or gradient is not finite, or whose loss is a spike, changes nothing.
    config.guard = ml_collections.ConfigDict()
    config.guard.max_loss_ratio = 0.0  # a spike: this many times the loss's moving average; 0: none
    config.guard.action = "skip"  # or "rollback": back to the last checkpoint's parameters
    config.guard.max_incidents = 10  # batches; one more ends the run

    # Devices: data × fsdp × tensor = number of devices; -1 is inferred.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # copies of the model, each with its part of the batch
    config.mesh.fsdp = 1  # parts that parameters and moments are split into
    config.mesh.tensor = 1  # parts that heads, feed-forward width and vocabulary are split into

    # The encoder: a row of bert_jax.models.architectures, and the fields of its config class.
    config.model = ml_collections.ConfigDict()
    config.model.architecture = "bert"
    config.model.vocab_size = 30_522  # must be the data set's
    config.model.hidden_size = 768
    config.model.num_hidden_layers = 12
    config.model.num_attention_heads = 12
    config.model.intermediate_size = 3072
    config.model.max_position_embeddings = 512
    config.model.type_vocab_size = 2
    config.model.hidden_act = "gelu_pytorch_tanh"  # as google-research/bert; "gelu" is exact
    config.model.hidden_dropout_prob = 0.1
    config.model.attention_probs_dropout_prob = 0.1
    config.model.initializer_range = 0.02
    config.model.layer_norm_eps = 1e-12
    config.model.dtype = "bfloat16"  # of activations; parameters and losses are float32 always
    config.model.dropout_rng = "hash"  # or "threefry", JAX's own: a quarter of the step on TPU
    # "auto", "xla", "splash", "fused" or "cudnn": see "Attention" in docs/performance.md.
    config.model.attention = "auto"
    config.model.scan_layers = False  # one compiled loop over the layers: less to compile, slower
    config.model.remat = "none"  # recompute in the backward pass: "none", "dots" or "full"

    # As google-research/bert has it (optimization.py; paper, appendix A.2).
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # or "lamb", "stableadamw", "muon"
    config.optimizer.learning_rate = 1e-4  # the peak
    config.optimizer.warmup_steps = 10_000  # linear from 0
    config.optimizer.schedule = "linear"  # after it: or "polynomial", "cosine", "wsd"
    config.optimizer.decay_from = "start"  # or "peak": not counting the warm-up's steps
    config.optimizer.end_factor = 0.0  # where the schedule ends, as a share of the peak
    config.optimizer.power = 1.0  # of "polynomial"
    config.optimizer.decay_steps = 0  # of "wsd": length of the decay at the end
    config.optimizer.decay_shape = "linear"  # of "wsd": or "1-sqrt"
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.momentum = 0.95  # of "muon", on the encoder's matrices; AdamW on all else
    config.optimizer.bias_correction = False  # the original has none
    config.optimizer.weight_decay = 0.01  # not on biases and LayerNorm
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0 turns clipping off
    # (regex of parameter paths, value) tables; the first match counts: training/optimizer.py.
    config.optimizer.weight_decay_rules = ()  # in place of weight_decay
    config.optimizer.learning_rate_rules = ()  # factors on the learning rate; 0 freezes

    if arg == "laptop":
        config.num_steps = 10_000
        config.phases = ()
        config.batch_size = 32
        config.log_every = 20
        config.eval_every = 500
        config.eval_batches = 20
        config.checkpoint_every = 500
        config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
        config.optimizer.learning_rate = 5e-4  # short runs bear, and need, larger steps
        config.optimizer.warmup_steps = 500
    return config
