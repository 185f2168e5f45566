"""Where a run with `config.init_from` begins: the parameters of another run, or of a model."""

import logging
from typing import Any

import jax

from bert_jax import loading
from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.architectures import EncoderConfig
from bert_jax.models.stacking import is_stacked, stack_layers
from bert_jax.parallel import sharding
from bert_jax.runs.state import TrainState


def warm_start(
    state: TrainState, source: str, model: EncoderConfig, tokenizer: Tokenizer
) -> TrainState:
    """Replaces a fresh state's parameters by those of a workdir or a Hugging Face model.

    Parameters whose path or shape has no counterpart stay fresh, and are named; so is a vocabulary
    other than the data's `tokenizer`, whose token embeddings would mean other tokens.

    Raises:
      UserError: not one parameter matches.
    """
    loaded = loading.load_parts(source)
    params = loaded.params
    if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
        moved = sum(a != b for a, b in zip(loaded.tokenizer.vocab, tokenizer.vocab, strict=False))
        logging.warning(
            f"init_from {source} has another vocabulary than the data: {moved:,} of "
            f"{tokenizer.vocab_size:,} ids stand for other tokens"
        )
    if is_stacked(state.params):
        params = stack_layers(params)
    found = {sharding.path_of(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}
    fresh: list[str] = []

    def replace(path: Any, old: jax.Array) -> jax.Array:
        new = found.get(sharding.path_of(path))
        if new is None or new.shape != old.shape:
            why = "not there" if new is None else f"{new.shape} there, {old.shape} here"
            fresh.append(f"{sharding.path_of(path)} ({why})")
            return old
        new = new.astype(old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    params = jax.tree_util.tree_map_with_path(replace, state.params)
    total = len(jax.tree.leaves(params))
    if len(fresh) == total:
        raise UserError(
            f"--config.init_from={source}: no parameter fits this model ({fresh[0]}, …): "
            "are the model sizes the same?"
        )
    logging.info(f"init_from {source}: {total - len(fresh)} of {total} arrays loaded")
    if fresh:
        logging.info(f"  fresh: {', '.join(fresh)}")
    used = {sharding.path_of(k) for k, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    if unused := sorted(found.keys() - used):
        logging.info(f"  left out, without a place in this model: {', '.join(unused)}")
    return state.replace(params=params)
