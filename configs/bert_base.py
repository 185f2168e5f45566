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

    # Data.

    # A directory made by data_prep.build; its sequence length is the run's.
    config.data_dir = ""
    config.eval_data_dir = ""  # another data set to evaluate on; "" takes data_dir's validation-…
    # Further data sets to evaluate on, with commas; their metrics are eval_DIRECTORY_….
    config.extra_eval_data_dirs = ""
    config.batch_size = 256  # sequences per optimizer step, over all devices
    config.batch_size_warmup = ()  # ((batch size, steps), …): smaller batches before that
    # Pairs packed one behind the other into a sequence, this many at most (8, say); 0: one each.
    config.packing = 0
    config.accumulate_steps = 1  # microbatches of an optimizer step, to save memory
    config.data_threads = 0  # that read batches; 0: 2 from a disk, 16 from gs://
    # Batches made ahead, never more than 1 GiB of them; 0: 8 from a disk, 32 from gs://.
    config.data_prefetch = 0
    # Version of how order and masks are drawn; 1 resumes runs that were begun before version 0.2.
    config.sampling = 2
    # Share of the tokens to predict in training, of data with dynamic masks; 0: the data set's.
    # Held-out text always has the data set's.
    config.masked_lm_prob = 0.0
    config.seed = 0  # of parameters, dropout, and the order of the data

    # Length, and what happens on the way (all in optimizer steps).

    config.num_steps = 1_000_000  # optimizer steps of the run
    # 90 % with sequences of 128 tokens, then 512 for the positions (paper, appendix A.2), under one
    # schedule. The second phase needs data of its own; without, it continues with data_dir.
    config.phases = (phase(num_steps=900_000), phase(data_dir=""))
    config.log_every = 100  # steps between two lines of metrics.jsonl
    config.eval_every = 10_000  # steps between two evaluations; 0 turns evaluation off
    config.eval_batches = 0  # batches an evaluation reads; 0 takes the whole split
    config.checkpoint_every = 5_000  # steps between two checkpoints
    config.keep_checkpoints = 3  # how many are kept, the newest ones
    config.keep_best = True  # parameters of the best evaluation (lowest eval_loss) in WORKDIR/best
    # Parameters to start from: WORKDIR[/checkpoints/STEP], WORKDIR/best or a Hugging Face model.
    # Its sizes are taken where no --config.model.… says others; of longer or shorter tables the
    # rows that both have.
    config.init_from = ""
    # Embeddings of tokens that init_from has not: "random", or "mean" of the pieces they were.
    config.init_new_rows = "random"
    # Accept an init_from of other layers or widths, of which most keep their random initialisation.
    config.init_partial = False

    config.profile_steps = ()  # (first, last): a trace of these steps in WORKDIR/profile
    # Project of Weights & Biases to send metrics to, besides metrics.jsonl; "": none.
    config.wandb_project = ""

    # An exponential moving average of the parameters, evaluated beside them (eval_ema_…) and
    # exported by convert to-hf --ema: how much of it stays in a step, 0.999 say; 0: none.
    config.ema_decay = 0.0
    # Adds this times the mean of log²(Σ exp(logits)) to the loss, 1e-4 say; 0: nothing.
    config.z_loss = 0.0

    # A batch whose loss or gradient is not finite, or whose loss is a spike, changes nothing.
    config.guard = ml_collections.ConfigDict()
    # A loss of more than this many times its moving average is a spike; 0: none is.
    config.guard.max_loss_ratio = 0.0
    # "skip" the batch, or "rollback": go back to the last checkpoint's parameters, too.
    config.guard.action = "skip"
    config.guard.max_incidents = 10  # skipped batches at most; one more ends the run

    # Devices: data × fsdp × tensor = number of devices; -1 is inferred.
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # copies of the model, each with its part of the batch
    config.mesh.fsdp = 1  # parts that parameters and moments are split into
    config.mesh.tensor = 1  # parts that heads, feed-forward width and vocabulary are split into

    # The encoder: a row of bert_jax.models.architectures, and the fields of its config class.
    config.model = ml_collections.ConfigDict()
    config.model.architecture = "bert"  # the encoder's name in models/architectures.py
    config.model.vocab_size = 30_522  # must be the data set's
    config.model.hidden_size = 768  # width of the encoder
    config.model.num_hidden_layers = 12  # Transformer layers
    config.model.num_attention_heads = 12  # must divide hidden_size
    config.model.intermediate_size = 3072  # width of the feed-forward networks
    config.model.max_position_embeddings = 512  # the longest sequence that the model takes
    config.model.type_vocab_size = 2  # segments
    # "gelu_pytorch_tanh" is the approximation of google-research/bert; "gelu" is exact.
    config.model.hidden_act = "gelu_pytorch_tanh"
    config.model.hidden_dropout_prob = 0.1  # dropout behind embeddings and sublayers
    config.model.attention_probs_dropout_prob = 0.1  # dropout of attention probabilities
    config.model.initializer_range = 0.02  # standard deviation of the initial parameters
    config.model.layer_norm_eps = 1e-12  # added to LayerNorm's variance
    # Of activations, "bfloat16" (mixed precision) or "float32"; parameters and losses are float32
    # always.
    config.model.dtype = "bfloat16"
    # Random bits of dropout: "hash", or "threefry", JAX's own, a quarter of the step on TPU.
    config.model.dropout_rng = "hash"
    # Implementation of attention, "auto", "xla", "splash", "fused" or "cudnn": see "Attention" in
    # docs/explanation/performance.md.
    config.model.attention = "auto"
    # One compiled loop over the layers: less to compile, slower.
    config.model.scan_layers = False
    config.model.remat = "none"  # recompute in the backward pass: "none", "dots" or "full"

    # As google-research/bert has it (optimization.py; paper, appendix A.2).
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # "adamw", "lamb", "stableadamw" or "muon"
    config.optimizer.learning_rate = 1e-4  # the peak of the schedule
    # Linear warm-up from 0, as a share of the schedule's steps: 10,000 of 1,000,000.
    config.optimizer.warmup_fraction = 0.01
    config.optimizer.warmup_steps = 0  # given, the warm-up in steps, whatever the share
    config.optimizer.schedule = "linear"  # the decay: "linear", "polynomial", "cosine" or "wsd"
    # Steps that the decay counts: from the "start", or from the "peak", when warm-up ends.
    config.optimizer.decay_from = "start"
    config.optimizer.end_factor = 0.0  # where the schedule ends, as a share of the peak
    config.optimizer.power = 1.0  # exponent of the schedule "polynomial"
    config.optimizer.decay_steps = 0  # of the schedule "wsd": length of the decay at the end
    config.optimizer.decay_shape = "linear"  # of the schedule "wsd": "linear" or "1-sqrt"
    config.optimizer.b1 = 0.9  # decay of Adam's first moment
    config.optimizer.b2 = 0.999  # decay of Adam's second moment
    config.optimizer.eps = 1e-6  # added to the root of Adam's second moment
    config.optimizer.momentum = 0.95  # of "muon", on the encoder's matrices; AdamW on all else
    config.optimizer.bias_correction = False  # Adam's; the original has none
    config.optimizer.weight_decay = 0.01  # decoupled, not on biases and LayerNorm
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0 turns clipping off
    # ((regex of parameter paths, value), …) in place of weight_decay; the first match counts.
    config.optimizer.weight_decay_rules = ()
    # ((regex of parameter paths, factor), …) on the learning rate; 0 freezes.
    config.optimizer.learning_rate_rules = ()

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
        config.optimizer.warmup_fraction = 0.05
    return config
