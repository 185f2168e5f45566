"""Checkpoints: WORKDIR/checkpoints/STEP written by Orbax, with config.json and tokenizer/ beside.

A checkpoint has two items: `params`, all that inference and conversion read, and `optimizer`, the
step and the moments, which only going on needs.
"""

import dataclasses
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bert_jax import tokenizer as tokenizer_lib
from bert_jax.cli import UserError
from bert_jax.models.bert import BertConfig, stack_layers, unstack_layers

if TYPE_CHECKING:
    from bert_jax.train import TrainState

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"
# Fields that the numbers of a run depend on and that must not change under it: model sizes, what
# a step draws from the data. Lengths, intervals, mesh and learning rate may change.
FIXED_FIELDS = ("model", "batch_size", "seed", "fingerprints")
# Fields of `model` that change how it is computed and not what: free to change on going on.
FREE_MODEL_FIELDS = ("remat", "dtype")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """['model.hidden_size is 128 there, 256 here', …] over the fields that must not change."""
    chosen = [
        _flat({field: config.get(field) for field in FIXED_FIELDS}) for config in (saved, current)
    ]
    free = {f"model.{field}" for field in FREE_MODEL_FIELDS}
    return [
        f"{name} is {chosen[0].get(name)!r} there, {chosen[1].get(name)!r} here"
        for name in sorted((chosen[0].keys() | chosen[1].keys()) - free)
        if chosen[0].get(name) != chosen[1].get(name)
    ]


def write_config(workdir: epath.PathLike, config: dict[str, Any]) -> None:
    """Writes WORKDIR/config.json atomically (on the first host)."""
    if jax.process_index() == 0:
        path = epath.Path(workdir) / CONFIG_FILE
        partial = path.with_name(CONFIG_FILE + ".partial")
        partial.write_text(json.dumps(config, indent=2) + "\n")
        partial.replace(path)


def read_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """Reads WORKDIR/config.json.

    Raises:
      UserError: there is none.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        found = "has no config.json" if path.parent.exists() else "does not exist"
        raise UserError(f"{workdir} {found}: expected the workdir of a pretraining or fine-tuning")
    return ml_collections.ConfigDict(json.loads(path.read_text()))


def _manager(workdir: epath.PathLike, keep: int | None, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        (epath.Path(workdir) / CHECKPOINTS).resolve(),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, **options),
        item_names=("params", "optimizer"),
    )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class CheckpointStore:
    """The checkpoints of one run.

    Opening it claims the workdir: config.json and the tokenizer are written there, or compared if
    they are there already.

    Raises:
      UserError: the workdir belongs to a run with another model, data set, batch size or seed.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: ml_collections.ConfigDict,
        tokenizer: tokenizer_lib.Tokenizer,
        data_fingerprint: str,
    ):
        self._workdir = epath.Path(workdir)
        fingerprints = {"tokenizer": tokenizer.fingerprint, "data": data_fingerprint}
        description = json.loads(config.to_json()) | {"fingerprints": fingerprints}
        if (self._workdir / CONFIG_FILE).exists():
            saved = json.loads((self._workdir / CONFIG_FILE).read_text())
            if differences := _differences(saved, description):
                raise UserError(
                    f"workdir {workdir} holds another run: {'; '.join(differences)}. Give a new "
                    "--workdir, or the same settings to go on; to start a new run from that "
                    f"one's parameters use --config.init_from={workdir}"
                )
        self._workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            length = config.model.max_position_embeddings
            tokenizer_lib.save(tokenizer, self._workdir / TOKENIZER, length)
        write_config(workdir, description)
        self._manager = _manager(workdir, config.keep_checkpoints)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: "TrainState") -> None:
        """Starts writing a checkpoint of the state in the background; atomic."""
        step = int(state.step)
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(optimizer),
            ),
        )

    def restore(self, state: "TrainState") -> "TrainState":
        """The last checkpoint, laid out as `state` is (on any mesh)."""
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        step = self.latest_step
        if not (self._workdir / CHECKPOINTS / str(step) / "optimizer").exists():
            raise UserError(
                f"{self._workdir} holds parameters alone (no optimizer state): start a new run "
                f"from them with --workdir=NEW --config.init_from={self._workdir}"
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(state.params)),
                optimizer=ocp.args.StandardRestore(_abstract(optimizer)),
            ),
        )
        return state.replace(params=restored.params, **restored.optimizer)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters on the host, and what is needed to use them.

    Attributes:
      params: numpy float32 arrays, layers unrolled, vocabulary padded as the model pads it.
      config: the run's config; `config.model` are BertConfig's fields.
    """

    params: Any
    config: ml_collections.ConfigDict
    step: int
    tokenizer: tokenizer_lib.Tokenizer


def load(path: epath.PathLike) -> Loaded:
    """Loads the parameters of WORKDIR (its last checkpoint) or WORKDIR/checkpoints/STEP.

    Raises:
      UserError: no such workdir, or no such checkpoint in it.
    """
    path = epath.Path(path)
    workdir, wanted = path, None
    if path.parent.name == CHECKPOINTS and re.fullmatch(r"\d+", path.name):
        workdir, wanted = path.parent.parent, int(path.name)
    config = read_config(workdir)
    directory = workdir / CHECKPOINTS
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    steps = sorted(int(name) for name in names if name.isdigit())
    if not steps or (wanted is not None and wanted not in steps):
        raise UserError(
            f"{path} is not a checkpoint: {directory} holds "
            f"{'the steps ' + ', '.join(map(str, steps)) if steps else 'none (yet)'}"
        )
    step = steps[-1] if wanted is None else wanted
    # The handler itself, since a manager opened to read wants the run's state as a template.
    handler = ocp.PyTreeCheckpointHandler()
    directory = (directory / str(step) / "params").resolve()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(directory).tree
    )
    params = handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    handler.close()
    return Loaded(
        params=jax.tree.map(np.asarray, unstack_layers(params)),
        config=config,
        step=step,
        tokenizer=tokenizer_lib.load(workdir / TOKENIZER),
    )


def save_params(
    workdir: epath.PathLike,
    params: Any,
    config: ml_collections.ConfigDict,
    tokenizer: tokenizer_lib.Tokenizer,
    step: int,
) -> None:
    """Writes a workdir of parameters alone (an import), for `load` and `--config.init_from`.

    Raises:
      UserError: the workdir holds a run already.
    """
    workdir = epath.Path(workdir)
    if (workdir / CONFIG_FILE).exists():
        raise UserError(f"{workdir} holds a run already: give another directory")
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer_lib.save(tokenizer, workdir / TOKENIZER, config.model.max_position_embeddings)
    manager = _manager(workdir, None, enable_async_checkpointing=False)
    manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    manager.close()
    write_config(workdir, json.loads(config.to_json()))  # last: its presence says it is whole


def is_workdir(path: epath.PathLike) -> bool:
    """Whether `path` is a WORKDIR or a checkpoint in one (otherwise: a Hugging Face model)."""
    path = epath.Path(path)
    return (path / CHECKPOINTS).exists() or path.parent.name == CHECKPOINTS


def warm_start(
    state: "TrainState", source: str, model: BertConfig, tokenizer: tokenizer_lib.Tokenizer
) -> "TrainState":
    """Replaces a fresh state's parameters by those of a workdir or a Hugging Face model.

    Parameters whose path or shape has no counterpart stay fresh, and are named; so is a vocabulary
    other than the data's `tokenizer`, whose token embeddings would mean other tokens.

    Raises:
      UserError: not one parameter matches.
    """
    if is_workdir(source):
        loaded = load(source)
    else:
        from bert_jax import convert

        loaded = convert.read_hf(source)
    params = loaded.params
    if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
        moved = sum(a != b for a, b in zip(loaded.tokenizer.vocab, tokenizer.vocab, strict=False))
        logging.warning(
            f"init_from {source} has another vocabulary than the data: {moved:,} of "
            f"{tokenizer.vocab_size:,} ids stand for other tokens"
        )
    if model.scan_layers:
        params = stack_layers(params)
    found = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}
    fresh: list[str] = []

    def replace(path: Any, old: jax.Array) -> jax.Array:
        new = found.get(jax.tree_util.keystr(path))
        if new is None or new.shape != old.shape:
            why = "not there" if new is None else f"{new.shape} there, {old.shape} here"
            fresh.append(f"{'/'.join(p.key for p in path)} ({why})")
            return old
        return jax.device_put(new.astype(old.dtype), old.sharding)

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
    return state.replace(params=params)
