"""Checkpoints: WORKDIR/checkpoints/STEP written by Orbax, with config.json and tokenizer/ beside.

A checkpoint has two items: `params`, all that inference and conversion read, and `optimizer`, the
step and the moments, which only resuming needs.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bert_jax import files
from bert_jax.cli import Interrupted, UserError
from bert_jax.data import tokenizer as tokenizer_lib
from bert_jax.models import architectures
from bert_jax.models.stacking import is_stacked, stack_layers, unstack_layers
from bert_jax.parallel import distributed, sharding
from bert_jax.runs import integrity
from bert_jax.runs import workdir as workdirs

if TYPE_CHECKING:
    from bert_jax.runs.state import TrainState

BEST_FILE = "best.json"


class CheckpointStore:
    """The checkpoints of one run: the newest in checkpoints/, the best one's parameters in best/.

    Opening it claims the workdir: config.json and the tokenizer are written there, or compared if
    they are there already, and a second process is rejected. Corrupted checkpoints are renamed.

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
        self._lock: IO[bytes] | None = None
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
        # What is being written: directory -> step, and what is to be done before it counts.
        self._writing: dict[epath.Path, tuple[int, Callable[[epath.Path], None]]] = {}
        self._failures = _SaveFailures()
        self._could_not_begin = False
        logging.getLogger("absl").addFilter(self._failures)
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
        for name in (workdirs.CHECKPOINTS, workdirs.BEST):
            integrity.remove_unfinished(self._workdir / name)
        integrity.set_damaged_aside(self._workdir / workdirs.CHECKPOINTS, self._start_from)
        _publish_best(self._workdir / workdirs.BEST)
        length = architectures.make_config(config.model).max_length
        tokenizer_lib.save(tokenizer, self._workdir / workdirs.TOKENIZER, length)
        workdirs.write_config(self._workdir, workdirs.describe(config, identity))

    def _open(self, directory: epath.Path, keep: int) -> ocp.CheckpointManager:
        """A manager that writes checksums into a checkpoint before its name becomes the final."""

        def seal() -> None:
            if distributed.is_first():
                step, finish = self._writing[directory]
                # STEP.orbax-checkpoint-tmp where directories can be renamed, STEP on gs://.
                for written in directory.iterdir():
                    if written.name in (f"{step}", f"{step}{integrity.UNFINISHED}"):
                        finish(written)
                        integrity.write_checksums(written)

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
            item_names=("params", "optimizer", "ema"),
        )

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes, but for an error of this process alone: others may never come where all meet."""
        if kind is None or issubclass(kind, Interrupted) or jax.process_count() == 1:
            self.close()
        elif self._lock:
            self._lock.close()

    def check(self) -> None:
        """Raises what has failed in the background since the last call; waits for nobody.

        Orbax itself says it when the save is waited for, which with several processes is when a
        barrier that the others never come to is given up, after ten minutes.
        """
        if self._failures.found:
            raise self._failures.found.pop(0)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self, step: int, state: "TrainState", before_it_counts: Callable[[], None] = lambda: None
    ) -> None:
        """Starts writing a checkpoint of the state in the background; atomic.

        Args:
          before_it_counts: called, in the first process and another thread, when all but the name
            is written: what must be stored with it.
        """
        if step == self.latest_step:  # saved when the run was interrupted here
            return
        self._wait(self._manager)
        self._writing[self._checkpoints] = step, lambda _: before_it_counts()
        self._begin(self._manager, step, _items(state))

    def _begin(self, manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> None:
        args = {name: ocp.args.StandardSave(value) for name, value in items.items()}
        try:
            manager.save(step, args=ocp.args.Composite(**args))
        except BaseException:
            # Orbax 0.12.8 says for ever after that a save is in progress.
            self._could_not_begin = True
            raise

    def save_if_best(self, step: int, params: Any, loss: float, phase_start: int = 0) -> bool:
        """Keeps the parameters in best/ if `loss` is below that of those there.

        Losses of another phase, on other data, or of later steps, which the run has lost and comes
        to again, are no standard.
        """
        if self._best_manager is None:
            self._best_manager = self._open(self._best, 1)
        self._wait_for_best()
        record = {"step": step, "loss": loss, "phase_start": phase_start}
        best = _best_record(self._best) if distributed.is_first() else None
        is_best = distributed.is_first() and best != record and _is_best(best, record)
        if not distributed.as_in_first(is_best):
            return False
        for lost in self._best_manager.all_steps():
            if lost >= step:  # of what an interrupted run had come to; a later one blocks saving
                self._best_manager.delete(lost)
        text = json.dumps(record) + "\n"
        # With the parameters, so that the two are of one step whenever the run is killed.
        self._writing[self._best] = step, lambda path: files.write_whole(path / BEST_FILE, text)
        self._begin(self._best_manager, step, {"params": params})
        return True

    def _wait_for_best(self) -> None:
        if self._best_manager:
            self._wait(self._best_manager)
            if distributed.is_first():
                _publish_best(self._best)

    def _wait(self, manager: ocp.CheckpointManager) -> None:
        while manager.is_saving_in_progress() and not self._could_not_begin:
            self.check()
            time.sleep(0.01)
        manager.wait_until_finished()
        self.check()

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._wait(self._manager)
        self._wait_for_best()

    def restore(self, state: "TrainState") -> "TrainState":
        """The last checkpoint, laid out as `state` is: on any mesh, layers scanned or not.

        Args:
          state: arrays, or their shapes with shardings, so that the devices hold one state alone.

        Raises:
          UserError: it has no optimizer state, as of an import.
        """
        self._wait(self._manager)
        step = self.latest_step
        directory = self._checkpoints / str(step)
        if not (directory / "optimizer").exists():
            raise UserError(
                f"{self._workdir} holds parameters alone (no optimizer state): start a new run "
                f"from them with --workdir=NEW {self._start_from}={self._workdir}"
            )
        wanted = _items(state)
        if had_none := state.ema is not None and not (directory / "ema").exists():
            del wanted["ema"]
        is_scanned, was_scanned = (
            is_stacked(params) for params in (state.params, _metadata(directory / "params"))
        )
        layout = jax.tree.map(lambda x: x.sharding, wanted)
        saved = sharding.abstract(wanted, layout)
        if is_scanned != was_scanned:
            to_saved = stack_layers if was_scanned else unstack_layers
            shapes = jax.eval_shape(to_saved, wanted)
            mesh = jax.tree.leaves(layout)[0].mesh
            saved = sharding.abstract(shapes, sharding.shardings_of(shapes, mesh))
        items = {name: ocp.args.StandardRestore(value) for name, value in saved.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        fields = {name: restored[name] for name in wanted}
        del restored
        fields, layouts = fields | fields.pop("optimizer"), layout | layout.pop("optimizer")
        names, values = [*fields], [*fields.values()]
        fields.clear()
        if is_scanned != was_scanned:
            ordered = tuple(layouts[name] for name in names)
            values = _converted(values, ordered, stack_layers if is_scanned else unstack_layers)
        state = state.replace(**dict(zip(names, values, strict=True)))
        if had_none:
            logging.warning(f"{directory} has no average of the parameters: it begins here")
            state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
        return state

    def roll_back(self, state: "TrainState") -> "TrainState":
        """`restore`, in place of `state`, whose arrays are freed first."""
        layout = sharding.abstract(state, jax.tree.map(lambda x: x.sharding, state))
        self.wait()  # what is being written may be of these arrays
        for array in jax.tree.leaves(state):
            array.delete()
        return self.restore(layout)

    def close(self) -> None:
        """Waits until everything is on disk, and gives the workdir free."""
        try:
            self.wait()
            for manager in filter(None, (self._manager, self._best_manager)):
                manager.close()
        finally:
            logging.getLogger("absl").removeFilter(self._failures)
            if self._lock:
                self._lock.close()


class _SaveFailures(logging.Filter):
    """Takes what Orbax logs, with a traceback, when a thread of a save fails.

    Not what it says of an old checkpoint that it could not remove, which ends no run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_removing = record.getMessage().startswith("Failed to remove checkpoint")
        is_orbax = "orbax" in record.pathname and record.levelno >= logging.ERROR
        if error is None or not is_orbax or is_removing:
            return True
        self.found.append(error)
        return False


def _converted(
    values: list[Any], layouts: tuple[Any, ...], convert: Callable[[Any], Any]
) -> list[Any]:
    """Parts of a state with their layers stacked, or side by side again.

    One tree of parameters or moments at a time, each freed when its converted form is there; so
    that the devices hold little more than one state.
    """
    is_tree = lambda x: isinstance(x, dict)  # noqa: E731
    trees, structure = jax.tree.flatten(values, is_leaf=is_tree)
    shardings = jax.tree.leaves(list(layouts), is_leaf=is_tree)
    values.clear()
    for number, layout in enumerate(shardings):
        if isinstance(trees[number], dict):
            trees[number] = jax.jit(convert, out_shardings=layout)(trees[number])
            jax.block_until_ready(trees[number])
    return jax.tree.unflatten(structure, trees)


def _best_record(directory: epath.Path) -> dict[str, Any] | None:
    """Step, loss and phase_start of the parameters in best/; None if there are none.

    None, too, if the record is corrupted: the next evaluation is the best then.
    """
    steps = workdirs.steps_in(directory)
    if not steps:
        return None
    # Older runs have it beside the parameters alone.
    for path in (directory / f"{steps[-1]}" / BEST_FILE, directory / BEST_FILE):
        try:
            record = files.read_json(path) if path.exists() else {}
            best = {"step": int(record["step"]), "loss": float(record["loss"])}
            best["phase_start"] = int(record["phase_start"])
        except (files.DamagedError, LookupError, TypeError, ValueError):
            continue
        if best["step"] == steps[-1]:
            return best
    return None


def _is_best(best: dict[str, Any] | None, record: dict[str, Any]) -> bool:
    """Whether an evaluation is better than the best so far."""
    if best is None or best["phase_start"] != record["phase_start"]:
        return True
    return best["step"] >= record["step"] or record["loss"] < best["loss"]


def _publish_best(directory: epath.Path) -> None:
    """Writes best/best.json, for scripts, once the parameters that it speaks of are stored."""
    path = directory / BEST_FILE
    if (best := _best_record(directory)) is None:
        return
    text = json.dumps(best) + "\n"
    if not path.exists() or path.read_bytes() != text.encode():
        files.write_whole(path, text)


def _items(state: "TrainState") -> dict[str, Any]:
    """What a checkpoint's folders hold; parameters and their average each apart, to be loaded."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    items = {name: fields.pop(name) for name in ("params", "ema")}
    return {name: x for name, x in items.items() if x is not None} | {"optimizer": fields}


def _metadata(directory: epath.Path) -> Any:
    """The tree of arrays that a checkpoint's item holds, as Orbax describes it."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(files.absolute(directory)).tree
    handler.close()
    return tree


def load(path: epath.PathLike, ema: bool = False) -> workdirs.Loaded:
    """Loads the parameters of WORKDIR, WORKDIR/checkpoints/STEP or WORKDIR/best[/STEP].

    Of WORKDIR it is the checkpoint that a finished fine-tuning selected, else the last one; a
    corrupted last checkpoint is skipped for the one before, with a warning.

    Args:
      ema: load their moving average instead (`config.ema_decay`).

    Raises:
      UserError: no such workdir, no such checkpoint in it, none that is whole, or no average.
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
    item = "ema" if ema else "params"
    if ema and not (directory / str(saved[-1]) / item).exists():
        raise UserError(
            f"{path} has no moving average of the parameters: it is kept in checkpoints/ of runs "
            "with --config.ema_decay above 0"
        )
    selected = workdirs.read_results(workdir).get("step") if path == workdir else None
    if selected in saved:
        wanted = selected
    for step in reversed(saved) if wanted is None else [wanted]:
        reason = integrity.damage(directory / str(step), item=item)
        if not reason:
            break
        logging.warning(f"checkpoint {directory / str(step)} is corrupted: {reason}")
    else:
        raise UserError(
            f"{path}: every checkpoint there is corrupted: restore a copy, or name another one"
        )
    # The handler itself, since a manager opened to read wants the run's state as a template.
    handler = ocp.PyTreeCheckpointHandler()
    directory = files.absolute(directory / str(step) / item)
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(directory).tree
    )
    params = handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    handler.close()
    tokenizer = tokenizer_lib.load(workdir / workdirs.TOKENIZER)
    trained_with = config.get("identity", {}).get("tokenizer", tokenizer.fingerprint)
    if tokenizer.fingerprint != trained_with:
        raise UserError(
            f"{workdir / workdirs.TOKENIZER} is not the tokenizer that the run has trained with, "
            "or is corrupted: copy that of its data set there (DATA_DIR/tokenizer)"
        )
    config.model = workdirs.model_at(config, step)
    return workdirs.Loaded(
        params=jax.tree.map(np.asarray, unstack_layers(params)),
        config=config,
        step=step,
        tokenizer=tokenizer,
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
    length = architectures.make_config(config.model).max_length
    tokenizer_lib.save(tokenizer, workdir / workdirs.TOKENIZER, length)
    directory = files.absolute(workdir / workdirs.CHECKPOINTS)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory, options=options, item_names=("params",)) as manager:
        manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    integrity.write_checksums(directory / str(step))
    workdirs.write_config(
        workdir, json.loads(config.to_json())
    )  # last: its presence says it is whole
