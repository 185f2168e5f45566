"""Checkpoints: WORKDIR/checkpoints/STEP written by Orbax, with config.json and tokenizer/ beside.

A checkpoint has two items: `params`, all that inference and conversion read, and `optimizer`, the
step and the moments, which only going on needs.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizer_lib
from bert_jax.models.stacking import is_stacked, stack_layers, unstack_layers
from bert_jax.parallel import distributed, sharding
from bert_jax.runs import workdir as workdirs

if TYPE_CHECKING:
    from bert_jax.runs.state import TrainState

BEST_FILE = "best.json"
CHECKSUMS = "checksums.json"
ORBAX_NOTE = "_CHECKPOINT_METADATA"


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files below `directory`."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _write_checksums(directory: epath.Path) -> None:
    """Writes STEP/checksums.json: each file's size and SHA-256."""
    # Orbax writes its own note of the step once more after this.
    covered = [p for p in _files(directory) if p.name not in (CHECKSUMS, ORBAX_NOTE)]
    sums = {
        str(p.relative_to(directory)): {"bytes": files.size_and_time(p)[0], "sha256": _sha256(p)}
        for p in sorted(covered)
    }
    (directory / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")


def _damage(directory: epath.Path, item: str = "") -> str:
    """What is wrong with the checkpoint in `directory`, or with one item of it; "" if nothing.

    Orbax restores a file with flipped bits without an error, hence the checksums.
    """
    if not (directory / CHECKSUMS).exists():
        return f"{CHECKSUMS} is missing, so it was not written to its end"
    for name, written in json.loads((directory / CHECKSUMS).read_text()).items():
        path = directory / name
        if not name.startswith(item):
            continue
        if not path.exists():
            return f"{name} is missing"
        size, _ = files.size_and_time(path)
        if size != written["bytes"]:
            return f"{name} has {size} bytes, {written['bytes']} were written"
        if _sha256(path) != written["sha256"]:
            return f"{name} is not what was written (other SHA-256)"
    return ""


def _set_damaged_aside(directory: epath.Path, start_from: str) -> None:
    """Renames damaged checkpoints to STEP.damaged, from the newest down to the first whole one.

    Raises:
      UserError: there are finished checkpoints, and not one is whole; all are left as they are.
    """
    damaged: dict[int, str] = {}
    instead = "there is no earlier one, starting from the beginning"
    for step in reversed(workdirs.steps_in(directory)):
        if not (reason := _damage(directory / str(step))):
            instead = f"taking that of step {step}"
            break
        damaged[step] = reason
    else:
        # Unfinished ones alone are what an object store keeps of a run killed in its first save.
        if any((directory / str(step) / CHECKSUMS).exists() for step in damaged):
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            best = directory.parent / workdirs.BEST
            perhaps = f", perhaps from the parameters in {start_from}={best}"
            raise UserError(
                f"every checkpoint in {directory} is damaged ({reasons}). Bring back a copy of "
                f"one, or start a new run with --workdir=NEW{perhaps if best.exists() else ''}"
            )
    for step, reason in damaged.items():
        aside = directory / f"{step}.damaged"
        if aside.exists():
            aside.rmtree()
        (directory / str(step)).rename(aside)
        logging.warning(
            f"checkpoint {step} is damaged: {reason}; kept as {directory.name}/{aside.name}; "
            f"{instead}"
        )


class CheckpointStore:
    """The checkpoints of one run: the newest in checkpoints/, the best one's parameters in best/.

    Opening it claims the workdir: config.json and the tokenizer are written there, or compared if
    they are there already, and a second process is rejected. Corrupted checkpoints are set aside.

    Args:
      identity: what else must not change under a run, besides FIXED_FIELDS: fingerprints of
        tokenizer and data, batch sizes. Entries of its "phases" are keyed by the step they start
        at, and count once a checkpoint is past it.

    Raises:
      UserError: the workdir belongs to a run with another model, data set, batch size or seed, or
        to a process that is running.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: ml_collections.ConfigDict,
        tokenizer: tokenizer_lib.Tokenizer,
        identity: dict[str, Any],
    ):
        self._workdir = epath.Path(workdir)
        self._start_from = workdirs.start_from(config)
        self._lock = None
        try:
            # What the files say is for the first process to judge, as others may see older ones.
            with distributed.shared_errors():
                if distributed.is_first():
                    self._claim(config, tokenizer, identity)
            distributed.check_shared(self._workdir)
        except UserError:
            if self._lock:
                self._lock.close()
            raise
        root = files.absolute(self._workdir)
        self._checkpoints, self._best = root / workdirs.CHECKPOINTS, root / workdirs.BEST
        self._writing: dict[epath.Path, int] = {}  # directory -> step that is being written there
        self._manager = self._open(self._checkpoints, config.keep_checkpoints)
        self._best_manager: ocp.CheckpointManager | None = None

    def _claim(
        self,
        config: ml_collections.ConfigDict,
        tokenizer: tokenizer_lib.Tokenizer,
        identity: dict[str, Any],
    ) -> None:
        """Makes the workdir this run's, or makes sure that it is."""
        changes = workdirs.check_same_run(self._workdir, config, identity)
        if changes:
            logging.warning(f"settings changed in {self._workdir}: {'; '.join(changes)}")
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={self._workdir} cannot be made ({error})") from None
        in_use = (
            f"workdir {self._workdir} is in use by a run that has not ended: wait for it, or give "
            "another --workdir"
        )
        self._lock = files.lock(self._workdir / files.LOCK_FILE, in_use)
        _set_damaged_aside(self._workdir / workdirs.CHECKPOINTS, self._start_from)
        length = config.model.max_position_embeddings
        tokenizer_lib.save(tokenizer, self._workdir / workdirs.TOKENIZER, length)
        workdirs.write_config(self._workdir, workdirs.describe(config, identity))

    def _open(self, directory: epath.Path, keep: int) -> ocp.CheckpointManager:
        """A manager that writes checksums into a checkpoint before its name becomes the final."""

        def seal() -> None:
            if distributed.is_first():
                # STEP.orbax-checkpoint-tmp where directories can be renamed, STEP on gs://.
                step = f"{self._writing[directory]}"
                for written in directory.iterdir():
                    if written.name == step or written.name.startswith(f"{step}.orbax"):
                        _write_checksums(written)

        return ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                single_host_load_and_broadcast=True,  # which steps there are, the first one says
                async_options=ocp.AsyncOptions(post_finalization_callback=seal),
                # Both managers may be writing the same step: each has barriers of its own.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=directory.name
                ),
            ),
            item_names=("params", "optimizer"),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: "TrainState") -> None:
        """Starts writing a checkpoint of the state in the background; atomic."""
        if step == self.latest_step:  # saved when the run was interrupted here
            return
        self._manager.wait_until_finished()
        self._writing[self._checkpoints] = step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(_without_params(state)),
            ),
        )

    def save_if_best(self, step: int, params: Any, loss: float, phase_start: int = 0) -> bool:
        """Keeps the parameters in best/ if `loss` is below that of those there.

        Losses of another phase, on other data, or of later steps, which the run has lost and comes
        to again, are no standard.
        """
        if self._best_manager is None:
            self._best_manager = self._open(self._best, 1)
        self._best_manager.wait_until_finished()
        record = self._best / BEST_FILE
        is_best = distributed.is_first() and self._is_best(record, step, loss, phase_start)
        if not distributed.as_in_first(is_best):
            return False
        for lost in self._best_manager.all_steps():
            if lost >= step:  # of what an interrupted run had come to; a later one blocks saving
                self._best_manager.delete(lost)
        self._writing[self._best] = step
        self._best_manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
        if distributed.is_first():
            line = {"step": step, "loss": loss, "phase_start": phase_start}
            files.write_whole(record, json.dumps(line) + "\n")
        return True

    def _is_best(self, record: epath.Path, step: int, loss: float, phase_start: int) -> bool:
        if not record.exists():
            return True
        best = json.loads(record.read_text())
        comparable = best["phase_start"] == phase_start and best["step"] < step
        # Not there: the run was killed while it was written.
        is_there = best["step"] in workdirs.steps_in(self._best)
        return not (comparable and is_there and loss >= best["loss"])

    def restore(self, state: "TrainState") -> "TrainState":
        """The last checkpoint, laid out as `state` is: on any mesh, layers scanned or not."""
        self._manager.wait_until_finished()
        step = self.latest_step
        directory = self._checkpoints / str(step)
        if not (directory / "optimizer").exists():
            raise UserError(
                f"{self._workdir} holds parameters alone (no optimizer state): start a new run "
                f"from them with --workdir=NEW {self._start_from}={self._workdir}"
            )
        wanted = (state.params, _without_params(state))
        is_scanned, was_scanned = (
            is_stacked(params) for params in (state.params, _metadata(directory / "params"))
        )
        layout = jax.tree.map(lambda x: x.sharding, wanted)
        saved = sharding.abstract(wanted, layout)
        if is_scanned != was_scanned:
            to_saved, to_wanted = (
                stack_layers if scanned else unstack_layers for scanned in (was_scanned, is_scanned)
            )
            shapes = jax.eval_shape(to_saved, wanted)
            mesh = jax.tree.leaves(layout)[0].mesh
            saved = sharding.abstract(shapes, sharding.shardings_of(shapes, mesh))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(saved[0]),
                optimizer=ocp.args.StandardRestore(saved[1]),
            ),
        )
        params, others = restored.params, restored.optimizer
        if is_scanned != was_scanned:
            params, others = jax.jit(to_wanted, out_shardings=layout)((params, others))
        return state.replace(params=params, **others)

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            for manager in filter(None, (self._manager, self._best_manager)):
                manager.wait_until_finished()
                manager.close()
        finally:
            if self._lock:
                self._lock.close()


def _without_params(state: "TrainState") -> dict[str, Any]:
    return {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.name != "params"
    }


def _metadata(directory: epath.Path) -> Any:
    """The tree of arrays that a checkpoint's item holds, as Orbax describes it."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(files.absolute(directory)).tree
    handler.close()
    return tree


def load(path: epath.PathLike) -> workdirs.Loaded:
    """Loads the parameters of WORKDIR, WORKDIR/checkpoints/STEP or WORKDIR/best[/STEP].

    Of WORKDIR it is the checkpoint that a finished fine-tuning selected, else the last one; a
    damaged last checkpoint is passed over for the one before, with a warning.

    Raises:
      UserError: no such workdir, no such checkpoint in it, or none that is whole.
    """
    path = epath.Path(path)
    workdir, directory, wanted = workdirs.path_parts(path)
    config = workdirs.read_config(workdir)
    saved = workdirs.steps_in(directory)
    if not saved or (wanted is not None and wanted not in saved):
        raise UserError(
            f"{path} is not a checkpoint: {directory} holds "
            f"{'the steps ' + ', '.join(map(str, saved)) if saved else 'none (yet)'}"
        )
    selected = workdirs.selected_step(workdir) if path == workdir else None
    if selected in saved:
        wanted = selected
    for step in reversed(saved) if wanted is None else [wanted]:
        reason = _damage(directory / str(step), item="params")
        if not reason:
            break
        logging.warning(f"checkpoint {directory / str(step)} is damaged: {reason}")
    else:
        raise UserError(f"{path}: every checkpoint there is damaged")
    # The handler itself, since a manager opened to read wants the run's state as a template.
    handler = ocp.PyTreeCheckpointHandler()
    directory = files.absolute(directory / str(step) / "params")
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(directory).tree
    )
    params = handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    handler.close()
    return workdirs.Loaded(
        params=jax.tree.map(np.asarray, unstack_layers(params)),
        config=config,
        step=step,
        tokenizer=tokenizer_lib.load(workdir / workdirs.TOKENIZER),
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
    if (workdir / workdirs.CONFIG_FILE).exists():
        raise UserError(f"{workdir} holds a run already: give another directory")
    if (workdir / workdirs.CHECKPOINTS).exists():
        raise UserError(
            f"{workdir} holds checkpoints and no {workdirs.CONFIG_FILE}, as an import that was cut "
            "off leaves it: remove it, or give another directory"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer_lib.save(
        tokenizer, workdir / workdirs.TOKENIZER, config.model.max_position_embeddings
    )
    directory = files.absolute(workdir / workdirs.CHECKPOINTS)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory, options=options, item_names=("params",)) as manager:
        manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    _write_checksums(directory / str(step))
    workdirs.write_config(
        workdir, json.loads(config.to_json())
    )  # last: its presence says it is whole
