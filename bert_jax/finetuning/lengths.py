"""Which lengths the rows of a fine-tuning are padded to: each is a program to compile."""

from collections.abc import Sequence

import ml_collections

from bert_jax.data import batching
from bert_jax.models.architectures import EncoderConfig
from bert_jax.models.flops import training_flops

# Two CPU cores, where compiling and training take turns; the same numbers on every machine, since
# the batches follow from the lengths, and a run may be resumed on another one.
FLOPS_PER_SECOND = 1e11
WIDTH = 320  # units from which matmuls are large enough for that speed; below, it falls with them
# Compiling a gradient takes so long, and so much longer per layer (docs/explanation/log.md). A
# prediction takes a third, in compiling as in computing: so the same lengths pay.
PROGRAM_SECONDS, LAYER_SECONDS = 1.2, 0.4


def padded_lengths(
    lengths_N: Sequence[int], config: ml_collections.ConfigDict, model: EncoderConfig
) -> tuple[int, ...]:
    """The lengths that cost the least time, of padding and of compiling together.

    They follow from data, model and the number of passes, and not from the seed: runs that differ
    in it share programs.

    Args:
      lengths_N: tokens of each row.
    """
    passes = float(config.num_epochs)
    if config.max_steps:
        passes = min(passes, config.max_steps * config.batch_size / len(lengths_N))
    token_flops = training_flops(model, config.max_seq_length, 0, 1) / config.max_seq_length
    seconds = PROGRAM_SECONDS + LAYER_SECONDS * model.num_hidden_layers
    speed = FLOPS_PER_SECOND * min(1.0, model.hidden_size / WIDTH)
    least_saving = seconds * speed / token_flops / passes
    return batching.bucket_lengths(
        lengths_N, config.length_buckets, config.max_seq_length, least_saving
    )
