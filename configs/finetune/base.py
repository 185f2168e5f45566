"""What all fine-tuning recipes share; not a recipe itself.

The published settings (Devlin et al. 2018, appendix A.3): learning rate 2e-5 … 5e-5, batch 16 or
32, 2 to 4 epochs, 10 % warm-up then linear decay to 0, dropout 0.1 as in pretraining.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Fields of every recipe; the recipes add `task` and where the data's columns are."""
    config = ml_collections.ConfigDict()
    config.train_file = ""  # .csv, .tsv or .jsonl with a header; hf: or tfds:NAME[/CONFIG]:SPLIT
    config.validation_file = ""  # evaluated after every epoch
    # With validation_file="": the share of the training file that is held out for it instead, of
    # each class alike, the same rows for every seed.
    config.validation_fraction = 0.0

    # Rows without a usable label or text are skipped with a warning; more than this share of a
    # file's rows are an error.
    config.max_skipped = 0.1

    config.max_seq_length = 128  # longer texts are cut; at most the model's positions
    config.length_buckets = 24  # at most so many padded lengths, each compiled once
    config.batch_size = 32  # sequences per optimizer step, over all devices
    config.num_epochs = 3  # passes over the training file
    config.max_steps = 0  # for short trials: end after so many steps at most; 0: after num_epochs
    config.seed = 0  # of the head, dropout, and the order of the data
    # Several runs in one command, one for each of these seeds (and of learning_rates); (): one run.
    config.seeds = ()
    config.learning_rates = ()  # one run for each of these, too; (): optimizer.learning_rate alone
    config.select = "last"  # the epoch that is exported: "last", or "best" on the validation file
    config.early_stopping = 0  # stop after so many evaluations without a better metric; 0: never
    config.freeze_encoder = False  # train the head alone (and the pooler, where it has one)
    # Learning rate of a layer as a share of the one above it, the head being the uppermost; 1: off.
    config.layer_lr_decay = 1.0
    # Initialise the head at random although the checkpoint has a fine-tuned one.
    config.new_head = False
    # Of activations, "float32" or "bfloat16" (mixed precision), which TPUs and GPUs run faster.
    config.dtype = "float32"
    # Steps between checkpoints within an epoch, besides the one at its end; 0: none. With
    # select="best" there are none either: the ends of all epochs are kept instead.
    config.checkpoint_every = 500
    config.log_every = 20  # steps between two lines of metrics.jsonl
    # Project of Weights & Biases to send metrics to, besides metrics.jsonl; "": none.
    config.wandb_project = ""

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1 takes all
    config.mesh.fsdp = 1  # parts that parameters and moments are split into
    config.mesh.tensor = 1  # parts that heads, feed-forward width and vocabulary are split into

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # "adamw", "lamb", "stableadamw" or "muon"
    # The peak of the schedule; models below base width bear 5e-5 to 3e-4.
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_fraction = 0.1  # linear warm-up from 0, as a share of all steps
    config.optimizer.schedule = "linear"  # the decay: "linear", "polynomial", "cosine" or "wsd"
    # Steps that the decay counts: from the "peak", as transformers, or the "start", as
    # google-research/bert.
    config.optimizer.decay_from = "peak"
    config.optimizer.end_factor = 0.0  # where the schedule ends, as a share of the peak
    config.optimizer.power = 1.0  # exponent of the schedule "polynomial"
    config.optimizer.decay_steps = 0  # of the schedule "wsd": length of the decay at the end
    config.optimizer.decay_shape = "linear"  # of the schedule "wsd": "linear" or "1-sqrt"
    config.optimizer.b1 = 0.9  # decay of Adam's first moment
    config.optimizer.b2 = 0.999  # decay of Adam's second moment
    config.optimizer.eps = 1e-6  # added to the root of Adam's second moment
    config.optimizer.momentum = 0.95  # of "muon", on the encoder's matrices; AdamW on all else
    # Adam's: without it the first steps are too large and some seeds fail (Mosbach et al. 2020,
    # section 6).
    config.optimizer.bias_correction = True
    config.optimizer.weight_decay = 0.01  # decoupled, not on biases and LayerNorm
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0 turns clipping off
    # ((regex of parameter paths, value), …) in place of weight_decay; the first match counts.
    config.optimizer.weight_decay_rules = ()
    # ((regex of parameter paths, factor), …) on the learning rate; 0 freezes.
    config.optimizer.learning_rate_rules = ()
    return config
