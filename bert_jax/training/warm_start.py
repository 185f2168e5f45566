"""Where a run with `config.init_from` begins: the parameters of another run, or of a model."""

import logging
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from bert_jax import files, loading
from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models import architectures
from bert_jax.models.architectures import COMPUTE_FIELDS, EncoderConfig
from bert_jax.models.stacking import is_stacked, stack_layers
from bert_jax.parallel import sharding
from bert_jax.runs import workdir as workdirs
from bert_jax.runs.state import TrainState

# Fields of a model's config that may be others than those of the model to start from: how much is
# dropped, and the lengths of tables, whose rows are kept.
_FREE = frozenset(
    {
        *COMPUTE_FIELDS,
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        *("dropout_rng", "initializer_range"),
    }
)
_TABLES = ("vocab_size", "max_position_embeddings", "type_vocab_size")
_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size")  # others with init_partial
LEAST_SHARE = 0.9


def adopt_model(
    config: ml_collections.ConfigDict, given: Collection[str], workdir: str | epath.PathLike
) -> None:
    """Gives `config.model` what `config.init_from` has: architecture, sizes, settings.

    But for what is given, dropout, and how it is computed. The vocabulary's size is the data's. A
    run that is resumed has its own sizes.

    Args:
      given: names of fields of config.model that the command line sets.

    Raises:
      UserError: nothing to start from is there.
    """
    if not config.init_from:
        return
    if (epath.Path(workdir) / workdirs.CONFIG_FILE).exists():
        model = architectures.make_config(workdirs.read_config(workdir).model)
    else:
        model = loading.load_config(config.init_from)
    fields = architectures.fields_of(model)
    dataset = epath.Path(config.data_dir) / "dataset.json"
    if config.data_dir and dataset.exists():
        tokens = files.read_json(dataset).get("vocab_size")
        if isinstance(tokens, int):
            fields["vocab_size"] = tokens
    changed = []
    if fields["architecture"] != config.model.architecture and "architecture" not in given:
        # Another encoder than the recipe's: its fields, but for how it is computed.
        others = set(config.model) - set(fields) - set(COMPUTE_FIELDS)
        with config.unlocked():
            for name in others:
                del config.model[name]
            config.model.update({x: y for x, y in fields.items() if x not in config.model})
        changed.append(f"architecture {fields['architecture']}")
    for name, value in fields.items():
        if name in config.model and name not in _FREE and name not in given:
            if config.model[name] != value:
                changed.append(f"{name} {value}")
            config.model[name] = value
    if changed:
        logging.info(f"the model's sizes are those of {config.init_from}: {', '.join(changed)}")


def warm_start(
    state: TrainState,
    source: str,
    model: EncoderConfig,
    tokenizer: Tokenizer,
    partial: bool = False,
    new_rows: str = "random",
) -> TrainState:
    """Replaces a fresh state's parameters by those of a workdir or a Hugging Face model.

    Of the tables of tokens, positions and types the rows of both are replaced, padding never.
    Parameters without a counterpart keep their random initialisation and are logged.

    Args:
      partial: accept a model of other sizes, of which less than LEAST_SHARE of the parameters fit.
      new_rows: of tokens that the old vocabulary has not: "random", or "mean", the mean of the rows
        of the pieces that the old tokenizer cuts them into.

    Raises:
      UserError: the model is computed otherwise (heads, activation, …), or too little of it fits.
    """
    if new_rows not in ("random", "mean"):
        raise UserError(f"config.init_new_rows={new_rows!r} is neither 'random' nor 'mean'")
    loaded = loading.load_parts(source)
    theirs = architectures.make_config(loaded.config.model)
    _check_settings(source, theirs, model, partial)
    params = loaded.params
    if is_stacked(state.params):
        params = stack_layers(params)
    found = {sharding.path_of(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}
    _report_vocabularies(source, loaded.tokenizer, tokenizer)
    pieces = {}
    if new_rows == "mean":
        pieces = _pieces_of_new_tokens(loaded.tokenizer, tokenizer)
    fresh: list[str] = []
    rows: list[str] = []
    fitted, expected = 0, sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))

    def replace(path: Any, old: jax.Array) -> jax.Array:
        nonlocal fitted, expected
        name = sharding.path_of(path)
        new = found.get(name)
        is_vocabulary = name == "mlm_bias" or name.endswith("word_embeddings/embedding")
        is_table = is_vocabulary or name.endswith("_embeddings/embedding")
        if new is None or (new.shape != old.shape and not is_table):
            fresh.append(f"{name} ({'not there' if new is None else f'{new.shape} there'})")
            return old
        if new.shape[1:] != old.shape[1:]:
            fresh.append(f"{name} ({new.shape} there)")
            return old
        new = new.astype(old.dtype)
        if not is_table:
            fitted += math.prod(old.shape)
            return _placed(new, old)
        ours, before = len(old), len(new)
        if is_vocabulary:  # without the padding
            ours, before = model.vocab_size, theirs.vocab_size
        values, kept = _rows(new, old.shape, min(ours, before), pieces if is_vocabulary else {})
        expected -= math.prod(old.shape[1:]) * (len(old) - min(ours, before))  # new by intention
        fitted += math.prod(old.shape[1:]) * min(ours, before)
        if kept.sum() < ours or before > ours:
            means = f", {len(pieces):,} of them means" if is_vocabulary and pieces else ""
            rows.append(f"{name} {int(kept.sum()):,} of {ours:,} rows (there {before:,}{means})")
        is_kept = np.broadcast_to(kept.reshape(-1, *[1] * (old.ndim - 1)), old.shape)
        choose = jax.jit(jnp.where, out_shardings=old.sharding)
        return choose(_placed(is_kept, old), _placed(values, old), old)

    params = jax.tree_util.tree_map_with_path(replace, state.params)
    share = fitted / expected
    logging.info(f"init_from {source}: {share:.1%} of the parameters loaded")
    if rows:
        logging.info(f"  {'; '.join(rows)}; the others keep their random initialisation")
    if fresh:
        logging.info(f"  with their random initialisation: {', '.join(fresh)}")
    used = {sharding.path_of(k) for k, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    if unused := sorted(found.keys() - used):
        logging.info(f"  skipped, without a place in this model: {', '.join(unused)}")
    if share < LEAST_SHARE and not partial:
        raise UserError(
            f"--config.init_from={source}: only {share:.1%} of the parameters are loaded, not "
            f"{', '.join(fresh[:5])}: --config.init_partial=True begins with them at random"
        )
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema=ema)


def _check_settings(source: str, theirs: EncoderConfig, ours: EncoderConfig, partial: bool) -> None:
    """Raises UserError where equal arrays would compute another function."""
    before, now = architectures.fields_of(theirs), architectures.fields_of(ours)
    free = _FREE | {*_TABLES, *(_SIZES if partial else ())}
    other = [
        f"{name} is {before.get(name)!r} there, {now.get(name)!r} here"
        for name in sorted((before.keys() | now.keys()) - free)
        if before.get(name) != now.get(name)
    ]
    if other:
        raise UserError(
            f"--config.init_from={source} is another model: {'; '.join(other)}. Without "
            "--config.model.… these are taken from it; --config.init_partial=True accepts other "
            f"{', '.join(_SIZES)}"
        )


def _report_vocabularies(source: str, theirs: Tokenizer, ours: Tokenizer) -> None:
    """Warns where ids of the data stand for other tokens than they did."""
    if theirs.fingerprint == ours.fingerprint:
        return
    both = min(theirs.vocab_size, ours.vocab_size)
    moved = sum(a != b for a, b in zip(theirs.vocab, ours.vocab, strict=False))
    added, cut = ours.vocab_size - both, theirs.vocab_size - both
    changes = [f"{moved:,} of the {both:,} ids of both stand for other tokens"] if moved else []
    changes += [f"{added:,} ids are new"] if added else []
    changes += [f"{cut:,} ids are gone"] if cut else []
    logging.warning(
        f"init_from {source} has another vocabulary than the data: "
        f"{'; '.join(changes) or 'the same tokens, but text is read otherwise (case, accents)'}"
    )


def _pieces_of_new_tokens(theirs: Tokenizer, ours: Tokenizer) -> dict[int, list[int]]:
    """Id of each token that the old vocabulary has not -> ids of the pieces that it was."""
    pieces = {}
    for i, token in enumerate(ours.vocab):
        if token and token not in theirs.ids:
            ids = theirs.encode(ours.surface(i))
            if ids and theirs.unknown_id not in ids:
                pieces[i] = ids
    return pieces


def _rows(
    new: np.ndarray, shape: tuple[int, ...], count: int, pieces: dict[int, list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """A table of `shape` with `count` rows of `new` and means of others; bool[V]: which it has."""
    values, kept = np.zeros(shape, new.dtype), np.zeros(shape[0], bool)
    values[:count], kept[:count] = new[:count], True
    for i, ids in pieces.items():
        values[i], kept[i] = new[ids].mean(0), True
    return values, kept


def _placed(x: np.ndarray, like: jax.Array) -> jax.Array:
    """`x` on the devices of `like`, laid out as it is."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: x[index])
