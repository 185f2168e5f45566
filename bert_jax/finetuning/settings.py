"""Settings of a fine-tuning: what is checked of them, and what follows from them."""

import re
from typing import Any

import ml_collections
from flax import traverse_util

from bert_jax.cli import UserError
from bert_jax.models.architectures import EncoderConfig
from bert_jax.runs import telemetry
from bert_jax.training import optimizer


def check_config(config: ml_collections.ConfigDict, model: EncoderConfig) -> None:
    """Raises UserError for settings that cannot work, before anything is read or written."""
    fraction = config.validation_fraction
    if not 0 <= fraction < 1:
        raise UserError(f"config.validation_fraction={fraction}, expected 0 to less than 1")
    if not config.train_file:
        raise UserError("config.train_file is empty: give --config.train_file=FILE")
    if not config.validation_file and not fraction:
        raise UserError(
            "config.validation_file is empty: give --config.validation_file=FILE, or hold out a "
            "share of the training file by --config.validation_fraction=0.1"
        )
    if config.validation_file and fraction:
        raise UserError(
            f"config.validation_fraction={fraction} holds out a share of the training file, but "
            f"there is config.validation_file={config.validation_file!r}: set "
            "--config.validation_file= to have none, or leave out the fraction"
        )
    telemetry.check_wandb(config.wandb_project)
    if config.max_seq_length > model.max_length:
        raise UserError(
            f"config.max_seq_length={config.max_seq_length} is more than the model's "
            f"{model.max_length} positions: give "
            f"--config.max_seq_length={model.max_length} or less"
        )
    if config.select not in ("last", "best"):
        raise UserError(f"config.select={config.select!r} is neither 'last' nor 'best'")
    limits = {
        "max_seq_length": 8,
        "length_buckets": 1,
        "batch_size": 1,
        "num_epochs": 1,
        "max_steps": 0,
        "seed": 0,
        "early_stopping": 0,
        "checkpoint_every": 0,
        "log_every": 1,
        # of question answering
        "max_question_length": 1,
        "doc_stride": 1,
        "max_answer_length": 1,
        "n_best": 1,
    }
    for field, least in limits.items():
        if field in config and config[field] < least:
            raise UserError(f"config.{field}={config[field]}, expected at least {least}")


def optimization(
    config: ml_collections.ConfigDict, prefix: str, params: Any
) -> ml_collections.ConfigDict:
    """`config.optimizer` as `bert_jax.training.optimizer` takes it.

    Args:
      prefix, params: as `learning_rate_rules`'.
    """
    settings = ml_collections.ConfigDict(config.optimizer.to_dict())
    settings.warmup_steps = 0  # the share counts
    settings.learning_rate_rules = learning_rate_rules(config, prefix, params)
    return settings


def count_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The steps of a whole run."""
    num_steps = steps_per_epoch * config.num_epochs
    return min(num_steps, config.max_steps) if config.max_steps else num_steps


def saves_within_epoch(config: ml_collections.ConfigDict, step: int, steps_per_epoch: int) -> bool:
    """Whether a checkpoint is due after a step that does not end an epoch."""
    # Choosing the best epoch needs the ends of all of them: no other checkpoints are kept then.
    every = config.checkpoint_every if config.select == "last" else 0
    return every > 0 and step % every == 0 and step % steps_per_epoch > 0


def learning_rate_rules(
    config: ml_collections.ConfigDict, prefix: str, params: Any
) -> tuple[tuple[str, float], ...]:
    """`optimizer.learning_rate_rules` with those of `freeze_encoder` and `layer_lr_decay` behind.

    The head and the pooler learn at the full rate, the top layer at `layer_lr_decay` times it, each
    layer below at that share of the one above, the embeddings at the least (Clark et al. 2020).
    What the user's rules leave no array of `params` to, since they count first, is skipped.

    Args:
      prefix: the encoder's key in `params`.

    Raises:
      UserError: settings that exclude each other, or a decay that is none.
    """
    rules = tuple(config.optimizer.learning_rate_rules)
    optimizer.check_rules("optimizer.learning_rate_rules", rules)
    decay = config.layer_lr_decay
    if not 0 < decay <= 1:
        raise UserError(
            f"config.layer_lr_decay={decay}, expected more than 0 and at most 1 (1: off); to train "
            "the head alone set --config.freeze_encoder=True"
        )
    paths = traverse_util.flatten_dict(params, sep="/")
    found = {re.match(rf"{prefix}/encoder/(layer_\d+)/", path) for path in paths}
    layers = len({match[1] for match in found if match})
    if config.freeze_encoder:
        if decay != 1:
            raise UserError(
                f"config.freeze_encoder=True leaves config.layer_lr_decay={decay} nothing to act "
                "on: set one of them"
            )
        further = [(f"^{prefix}/(?!pooler/)", 0.0)]
    elif decay < 1:
        further = [
            *((f"^{prefix}/encoder/layer_{i}/", decay ** (layers - i)) for i in range(layers)),
            (f"^{prefix}/embeddings/", decay ** (layers + 1)),
        ]
    else:
        further = []
    left = [path for path in paths if not any(re.search(pattern, path) for pattern, _ in rules)]
    return (*rules, *(r for r in further if any(re.search(r[0], path) for path in left)))
