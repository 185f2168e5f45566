"""Data sets for training and evaluation, opened and checked against the config.

data = input_pipeline.open_data(config.data_dir, "train", config)
with data.batches(mesh, start_step=0, stop_step=1000) as batches:
    for batch in batches: …
"""

import math
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from bert_jax.cli import UserError
from bert_jax.data.dataset import PretrainingData
from bert_jax.data.order import SAMPLING
from bert_jax.data.placing import local_rows
from bert_jax.parallel import hardware, sharding


def open_data(
    data_dir: str, split: str, config: ml_collections.ConfigDict, field: str = "data_dir"
) -> PretrainingData:
    """Opens a split and checks that it fits the model.

    Args:
      field: of the config, that `data_dir` is given in; for messages.

    Raises:
      UserError: no data directory given, its vocabulary is not the model's, or its examples cannot
        be packed as the config asks.
    """
    if config.packing < 0 or config.packing == 1:
        raise UserError(
            f"config.packing={config.packing}: expected 0 for one example a row, or the most "
            "examples in a row, such as 8"
        )
    if not data_dir:
        raise UserError("no data set given: add --config.data_dir=DATA_DIR")
    # Held-out examples are read one a row: what they say does not depend on how one trains.
    packed = config.packing if split == "train" else 0
    for name in ("data_threads", "data_prefetch"):
        if config[name] < 0:
            raise UserError(
                f"config.{name}={config[name]}: expected at least 1, or 0 for what suits the place "
                "where the data lies"
            )
    if config.sampling not in (1, SAMPLING):
        raise UserError(f"config.sampling={config.sampling}: expected 1 or {SAMPLING}")
    data = PretrainingData(
        data_dir,
        split,
        config.batch_size,
        config.seed,
        packed,
        config.data_threads,
        config.data_prefetch,
        config.sampling,
        config.masked_lm_prob if split == "train" else 0.0,
    )
    if data.manifest.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{data_dir} was built with a vocabulary of {data.manifest.vocab_size} tokens, but "
            f"config.model.vocab_size is {config.model.vocab_size}: build the data with the "
            f"model's tokenizer, or train with --config.model.vocab_size={data.manifest.vocab_size}"
        )
    if config.get("max_seq_length") and data.max_seq_length != config.max_seq_length:
        raise UserError(
            f"{data_dir} has sequences of {data.max_seq_length} tokens, but this phase of the "
            f"config wants {config.max_seq_length}: give the phase's own data set, "
            f"--config.phases[N].{field}=DATA_DIR (N counts from 0)"
        )
    _check_ids(data)
    return data


def check_model(data: PretrainingData, model: Any) -> None:
    """Raises UserError if a model cannot read the examples.

    Args:
      model: an encoder's config (models.architectures.EncoderConfig).
    """
    if data.max_seq_length > model.max_length:
        raise UserError(
            f"{data.data_dir} has sequences of {data.max_seq_length} tokens, but the model reads "
            f"{model.max_length} at most: build the data with a smaller --max_seq_length, or raise "
            "config.model.max_position_embeddings"
        )
    pad_id = getattr(model, "pad_token_id", data.tokenizer.pad_id)
    if pad_id != data.tokenizer.pad_id:
        raise UserError(
            f"config.model.pad_token_id={pad_id}, which the model counts positions by, but the pad "
            f"token of {data.data_dir} has the id {data.tokenizer.pad_id}: add "
            f"--config.model.pad_token_id={data.tokenizer.pad_id}"
        )
    segments = model.type_vocab_size
    if data.first_examples(16)["token_type_ids"].max() >= segments:
        raise UserError(
            f"{data.data_dir} has pairs of segments, but config.model.type_vocab_size={segments}: "
            "set it to 2, or build the data with --objective=full_sentences"
        )


def _check_ids(data: PretrainingData) -> None:
    """Raises UserError if an example among the first thousand has impossible contents.

    XLA clamps or poisons what is out of range silently, so it must be seen here.
    """
    sample = data.first_examples(16)
    largest = max(sample["input_ids"].max(), sample["masked_lm_ids"].max())
    if largest >= data.manifest.vocab_size:
        raise UserError(
            f"{data.data_dir} holds token id {largest}, but its vocabulary has "
            f"{data.manifest.vocab_size} tokens: python -m data_prep.check tells which shards are "
            "corrupted; build it again"
        )
    lengths_B1 = sample["attention_mask"].sum(1, keepdims=True)
    if (sample["masked_lm_positions"] >= lengths_B1).any():
        raise UserError(
            f"{data.data_dir} predicts tokens behind an example's end: python -m data_prep.check "
            "tells which shards are corrupted; build it again"
        )


def open_eval_data(config: ml_collections.ConfigDict) -> dict[str, PretrainingData]:
    """The validation splits to evaluate on: prefix of their metrics -> data.

    "eval_" is that of `eval_data_dir` or, without one, `data_dir`; "eval_NAME_" those of
    `extra_eval_data_dirs`, NAME being the directory's.

    Raises:
      UserError: a directory has no validation split or does not fit the model, or two have one
        name.
    """
    field = "eval_data_dir" if config.eval_data_dir else "data_dir"
    sources = {"eval_": (config[field], field)}
    for directory in filter(None, config.extra_eval_data_dirs.split(",")):
        prefix = f"eval_{epath.Path(directory).name}_"
        if prefix in sources:
            raise UserError(
                f"config.extra_eval_data_dirs={config.extra_eval_data_dirs}: the metrics of two "
                f"directories would be called {prefix}…; rename one, or link to it by another name"
            )
        sources[prefix] = directory, "extra_eval_data_dirs"
    return {
        prefix: open_data(directory, "validation", config, field)
        for prefix, (directory, field) in sources.items()
    }


def check_has_pairs(data: PretrainingData) -> None:
    """Raises UserError if held-out data, by which the best parameters are chosen, has no pairs."""
    if not data.has_next_sentence_labels:
        raise UserError(
            f"{data.data_dir} has no sentence pairs to evaluate the next-sentence loss with, which "
            "the training data has: give --config.eval_data_dir=DATA_DIR of pairs; text without "
            "them may go to --config.extra_eval_data_dirs"
        )


def check_sizes(config: ml_collections.ConfigDict, mesh: Mesh, state: Any, batch: Any) -> None:
    """Raises UserError if state and batch alone are beyond memory, before anything is compiled.

    Args:
      state, batch: shapes laid out on the mesh.
    """
    sizes = f"config.model.vocab_size={config.model.vocab_size}, .hidden_size="
    sizes += f"{config.model.hidden_size}, config.batch_size={config.batch_size}"
    of_state, of_batch = sharding.memory_of(state).per_device, sharding.memory_of(batch).per_device
    device = jax.local_devices()[0]
    sharing = jax.local_device_count() if device.platform == "cpu" else 1
    limit = hardware.memory_of_device(device)
    if limit and (of_state + of_batch) * sharing > limit:
        raise UserError(
            f"parameters, moments and a batch take {(of_state + of_batch) / 2**30:,.1f} GiB per "
            f"device ({of_state / 2**30:,.1f} and {of_batch / 2**30:,.1f}), "
            f"{'which has' if sharing == 1 else f'on {sharing} devices that share'} "
            f"{limit / 2**30:,.1f} ({sizes}): take smaller ones, or split them with "
            "config.mesh.fsdp"
        )
    rows = sum(r.stop - r.start for r in local_rows(mesh, config.batch_size))
    of_host = sum(math.prod(x.shape) * x.dtype.itemsize for x in batch.values())
    of_host = of_host * rows // config.batch_size
    if of_host > hardware.memory_of_host():
        raise UserError(
            f"this host's part of a batch takes {of_host / 2**30:,.1f} GiB, and it has "
            f"{hardware.memory_of_host() / 2**30:,.1f} ({sizes}): take a smaller config.batch_size"
        )


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError unless the batch divides over devices and accumulation."""
    if config.accumulate_steps < 1:
        raise UserError(f"config.accumulate_steps={config.accumulate_steps}, expected at least 1")
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = rows * config.accumulate_steps
    if config.batch_size < 1 or config.batch_size % parts:
        raise UserError(
            f"config.batch_size={config.batch_size} must be a positive multiple of {parts} "
            f"(data × fsdp = {rows} device groups, × accumulate_steps={config.accumulate_steps})"
        )
