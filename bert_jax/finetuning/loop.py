"""The fine-tuning loop: epochs, evaluations, the choice among them, and the files of the result."""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import traverse_util

from bert_jax import convert, files, metrics
from bert_jax.cli import UserError
from bert_jax.data import batching
from bert_jax.finetuning import sweep
from bert_jax.finetuning.inputs import Inputs, read_inputs, start_params
from bert_jax.huggingface import files as hf_files
from bert_jax.parallel import sharding
from bert_jax.runs import checkpoint
from bert_jax.tasks import kinds, reports
from bert_jax.tasks.base import Batch, Task
from bert_jax.training import optimizer
from bert_jax.training import step as train


def finetune(
    config: ml_collections.ConfigDict,
    init: str | epath.PathLike,
    workdir: str | epath.PathLike,
    inputs: Inputs | None = None,
) -> dict[str, float]:
    """Fine-tunes the model at `init` as `config` says; goes on if `workdir` has a checkpoint.

    A finished run is left as it is, and its results are returned.

    Args:
      inputs: those of `config` and `init`, if they have been read already.

    Returns:
      the validation figures of the selected epoch ("accuracy", "f1", "majority_share", … by task),
      "epoch" and "step" of its end, "examples" trained on, "seconds" of this call up to the last
      epoch's evaluation and checkpoint, and "parity" of the export (None without torch).

    Raises:
      UserError: data, model, config and workdir do not fit each other.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as closing:  # an interrupted run must not hold on to its workdir
        run = _Run(config, init, workdir, inputs or read_inputs(config, init), closing)
        begun_at = run.step
        run.to_the_end()
    if run.step == begun_at and checkpoint.is_finished(run.workdir):
        results = run.workdir / checkpoint.RESULTS_FILE
        run.progress.note(f"finished before; to evaluate and export it anew, remove {results}")
        return json.loads(results.read_text())
    return run.write_results(time.monotonic() - started)


class _Run:
    """One fine-tuning; opening it checks, before it writes anything, that all fits together."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        init: str | epath.PathLike,
        workdir: str | epath.PathLike,
        inputs: Inputs,
        closing: contextlib.ExitStack,
    ):
        self.config, self.workdir, self.task = config, epath.Path(workdir), inputs.task
        if (self.workdir / sweep.SUMMARY_FILE).exists():
            raise UserError(
                f"{workdir} holds several seeds or learning rates: give --config.seeds or "
                "--config.learning_rates to go on with them, or another --workdir for a single run"
            )
        hf_files.check_replaceable(self.workdir / "hf")
        # Not `inputs` itself, which holds the parameters on the host.
        self.training, self.validation = inputs.train, inputs.validation
        self.mesh = sharding.make_mesh(**config.mesh)
        sharing = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if config.batch_size % sharing:
            raise UserError(
                f"config.batch_size={config.batch_size} is not a multiple of the {sharing} devices "
                "that share it"
            )
        self.steps_per_epoch = -(-len(self.training.features) // config.batch_size)
        num_steps = self.steps_per_epoch * config.num_epochs
        # Choosing the best epoch needs the ends of all of them: no other checkpoints are kept then.
        self.checkpoint_every = config.checkpoint_every if config.select == "last" else 0

        # State: a checkpoint in workdir > the parameters of `init`.
        settings = ml_collections.ConfigDict(config.optimizer.to_dict())
        settings.warmup_steps = warmup_steps(settings.warmup_fraction, num_steps)
        settings.learning_rate_rules = learning_rate_rules(
            config, inputs.model.num_hidden_layers, inputs.loaded.params
        )
        tx = optimizer.make_optimizer(settings)
        schedule = optimizer.make_schedule(settings, num_steps)
        module = kinds.make_module(config.task, inputs.model, len(self.task.labels))
        # One row, cut short: parameters depend neither on its length nor on its content.
        row_shape = np.shape(self.training.arrays[0]["input_ids"])
        ids = np.zeros((1, *row_shape[:-1], 8), np.int32)
        state = train.init_state(
            lambda key: module.init(key, ids, ids, ids)["params"], tx, self.mesh, config.seed
        )
        params, fresh = start_params(
            state.params, inputs.loaded, config.task, self.task.labels, config.new_head
        )
        factors = optimizer.values_of_rules(settings.learning_rate_rules, params, 1.0)
        self.store = checkpoint.CheckpointStore(
            workdir,
            inputs.resolved(config, init),
            inputs.loaded.tokenizer,
            inputs.identity(config),
        )
        closing.callback(self.store.close)
        self.state = state.replace(params=params)
        if self.store.latest_step is not None:
            self.state = self.store.restore(self.state)
        self.step = int(self.state.step)
        self.writer = metrics.MetricWriter(workdir, self.step)
        closing.callback(self.writer.close)
        self.progress = metrics.Progress(num_steps)
        closing.callback(self.progress.close)

        # Steps.
        def apply(params: Any, batch: Batch, keys_B: jax.Array | None) -> jax.Array:
            arrays = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
            return module.apply({"params": params}, *arrays, keys_B=keys_B)

        self.train_step = train.StepByLength(
            task_objective(self.task, apply, factors),
            tx,
            schedule,
            self.mesh,
            config.seed,
        )
        predict = jax.jit(
            lambda params, batch: apply(params, batch, None),
            compiler_options=train.compiler_options(self.mesh, by_length=True),
        )
        self.predict_step = train.ByShape(train.OnMesh(predict, self.mesh))
        self.evaluation_batches = batching.sorted_batches(
            self.validation.lengths, config.batch_size
        )
        self.last_report = self.step, time.monotonic()
        self.figures: dict[str, float] = {}  # of the last evaluation
        self.predictions: list[dict[str, Any]] = []

        training, validation = self.training, self.validation
        self.progress.note(
            f"{len(training.examples):,} examples to train on, padded to "
            f"{len(training.padded_lengths)} lengths of up to {training.padded_lengths[-1]} "
            f"tokens; {len(validation.examples):,} to evaluate, to "
            f"{len(validation.padded_lengths)} of up to {validation.padded_lengths[-1]}; "
            f"fresh: {', '.join(fresh) or 'nothing'}"
        )
        if self.step:
            self.progress.note(f"going on from step {self.step:,} of {num_steps:,} in {workdir}")

    def to_the_end(self) -> None:
        """The epochs from the present step on, each evaluated and saved at its end."""
        first = self.step // self.steps_per_epoch
        for epoch in range(first, self.config.num_epochs):
            # Read from the file, so that a run that goes on stops where it would have.
            so_far = [value for _, value in evaluations(self.workdir, self.task.metric)]
            if has_stalled(so_far, self.config.early_stopping):
                self.progress.note(
                    f"stopped after epoch {epoch} of {self.config.num_epochs}: no better "
                    f"{self.task.metric} within {self.config.early_stopping} evaluations "
                    "(config.early_stopping)"
                )
                return
            batches = batching.epoch_batches(
                self.training.lengths,
                self.training.padded_lengths,
                self.config.batch_size,
                self.config.seed,
                epoch,
            )
            if epoch == first:
                with self.pause():
                    self.compile(batches)
            self.train_epoch(batches[self.step - epoch * self.steps_per_epoch :])
            with self.pause():
                self.evaluate_and_save(epoch)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is no training: it does not count as time since the last report."""
        before = time.monotonic()
        yield
        step, since = self.last_report
        self.last_report = step, since + time.monotonic() - before

    def compile(self, batches: Sequence[np.ndarray]) -> None:
        """Compiles the gradient for an epoch's batches, the prediction for the evaluation's."""
        before = time.monotonic()
        rows = self.config.batch_size
        calls = []
        for batch in self.training.one_of_each(batches, rows):
            arguments = self.train_step.gradient_arguments(self.state, self.placed(batch))
            calls.append((self.train_step.gradients, arguments))
        for batch in self.validation.one_of_each(self.evaluation_batches, rows):
            calls.append((self.predict_step, (self.state.params, self.placed(batch))))
        train.compile_together(calls)
        self.progress.note(f"compiled in {time.monotonic() - before:.0f} s")

    def train_epoch(self, batches: Sequence[np.ndarray]) -> None:
        """Trains on the batches that are left of an epoch."""
        pending: tuple[int, Any] | None = None  # figures of a step that may still be running
        left_out = 0
        for _, batch in self.training.collated(batches, self.config.batch_size):
            self.state, values = self.train_step(self.state, self.placed(batch))
            self.step += 1
            # One step late: the device works on this step while the host reads the one before.
            if pending:
                left_out += not pending[1]["accepted"]  # waits for the step
                if pending[0] % self.config.log_every == 0:
                    self.report(*pending)
            pending = (self.step, values)
            if (
                self.checkpoint_every
                and self.step % self.checkpoint_every == 0
                and self.step % self.steps_per_epoch
            ):
                self.writer.flush()
                self.store.save(self.step, self.state)
        self.report(*pending)
        if left_out := left_out + (not pending[1]["accepted"]):
            self.progress.note(
                f"{left_out:,} of {len(batches):,} steps changed nothing: their loss or gradient "
                "was not finite (a lower --config.optimizer.learning_rate may help)"
            )

    def report(self, step: int, values: train.Scalars) -> None:
        """Reads a step's figures from the device (waits for it) and writes them."""
        names = ("loss", "gradient_norm", "learning_rate")
        line = {name: float(values[name]) for name in names}
        before, since = self.last_report
        seconds = max(time.monotonic() - since, 1e-9)
        line["epoch"] = step / self.steps_per_epoch
        line["sequences_per_second"] = (step - before) * self.config.batch_size / seconds
        self.last_report = step, time.monotonic()
        self.writer.write(step, line)
        self.progress.update(step, {name: line[name] for name in ("loss", "sequences_per_second")})

    def evaluate_and_save(self, epoch: int) -> None:
        """The end of an epoch."""
        self.figures, self.predictions = self.evaluate(self.state.params)
        self.writer.write(self.step, {f"eval_{k}": value for k, value in self.figures.items()})
        self.progress.note(
            f"epoch {epoch + 1} of {self.config.num_epochs}: "
            + "  ".join(f"{name} {value:.4f}" for name, value in self.figures.items())
        )
        self.writer.flush()
        self.store.save(self.step, self.state)

    def evaluate(self, params: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures of the validation file, and one JSON object an example."""
        outputs: list[Any] = [None] * len(self.validation.features)
        rows = self.config.batch_size
        for indices, batch in self.validation.collated(self.evaluation_batches, rows):
            logits = jax.device_get(self.predict_step(params, self.placed(batch)))
            for i, row in zip(indices, logits, strict=False):  # rows that fill the batch are left
                outputs[i] = row
        return self.task.evaluate(self.validation.examples, self.validation.features, outputs)

    def placed(self, batch: batching.Batch) -> Batch:
        return jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def write_results(self, seconds: float) -> dict[str, float]:
        """Exports the selected epoch and writes down what it predicts; what `finetune` returns."""
        step = self.step
        if self.config.select == "best":
            scores = evaluations(self.workdir, self.task.metric)
            step, _ = max(scores, key=lambda pair: pair[1])
        selected = checkpoint.load(self.workdir / checkpoint.CHECKPOINTS / str(step))
        if step != self.step or not self.figures:
            shardings = sharding.shardings_of(selected.params, self.mesh)
            params = jax.device_put(selected.params, shardings)
            self.figures, self.predictions = self.evaluate(params)
        parity = convert.write_hf(selected, self.workdir, self.workdir / "hf")
        lines = (json.dumps(x, ensure_ascii=False) + "\n" for x in self.predictions)
        files.write_whole(self.workdir / "predictions.jsonl", "".join(lines))
        reports.write(self.workdir, self.config.task, self.task.labels, self.predictions)
        results = self.figures | {
            "epoch": step // self.steps_per_epoch,
            "step": step,
            "examples": len(self.training.examples),
            "seconds": seconds,
            "parity": parity.largest,
        }
        # Last: its presence says that the run is finished.
        finite = {  # JSON has no NaN
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in results.items()
        }
        text = json.dumps(finite, indent=2) + "\n"
        files.write_whole(self.workdir / checkpoint.RESULTS_FILE, text)
        self.progress.note(str(parity))
        return results


def task_objective(task: Task, apply: Callable[..., jax.Array], factors: Any) -> train.Objective:
    """The task's loss.

    Args:
      apply: (params, batch, keys_B) -> logits.
      factors: of the learning rate, by parameter; no gradient is computed where it is 0.
    """

    def sums(params: Any, batch: Batch, keys_B: jax.Array | None) -> train.Scalars:
        params = jax.tree.map(lambda p, x: p if x else jax.lax.stop_gradient(p), params, factors)
        return {"task_loss": task.loss_sum(apply(params, batch, keys_B), batch)}

    return train.Objective(
        losses=("task_loss",),
        sums=sums,
        weights=lambda batch: {"task_loss": task.loss_weight(batch)},
    )


def learning_rate_rules(
    config: ml_collections.ConfigDict, num_layers: int, params: Any
) -> tuple[tuple[str, float], ...]:
    """`optimizer.learning_rate_rules` with those of `freeze_encoder` and `layer_lr_decay` behind.

    The head and the pooler learn at the full rate, the top layer at `layer_lr_decay` times it, each
    layer below at that share of the one above, the embeddings at the least (Clark et al. 2020).
    What the user's rules leave no array of `params` to, since they count first, is left out.

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
    if config.freeze_encoder:
        if decay != 1:
            raise UserError(
                f"config.freeze_encoder=True leaves config.layer_lr_decay={decay} nothing to act "
                "on: set one of them"
            )
        further = [("^bert/(embeddings|encoder)/", 0.0)]
    elif decay < 1:
        further = [
            *((f"^bert/encoder/layer_{i}/", decay ** (num_layers - i)) for i in range(num_layers)),
            ("^bert/embeddings/", decay ** (num_layers + 1)),
        ]
    else:
        further = []
    paths = traverse_util.flatten_dict(params, sep="/")
    left = [path for path in paths if not any(re.search(pattern, path) for pattern, _ in rules)]
    return (*rules, *(r for r in further if any(re.search(r[0], path) for path in left)))


def warmup_steps(fraction: float, num_steps: int) -> int:
    """`optimizer.warmup_fraction` in steps."""
    if not 0 <= fraction < 1:
        raise UserError(
            f"config.optimizer.warmup_fraction={fraction}, expected at least 0 and less than 1: "
            "it is a share of all steps"
        )
    return int(fraction * num_steps)


def evaluations(workdir: epath.PathLike, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation of a run; a value that was not finite counts as lowest."""
    name = f"eval_{metric}"
    lines = [line for line in metrics.read(workdir) if name in line]
    return [(line["step"], -math.inf if line[name] is None else line[name]) for line in lines]


def has_stalled(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought nothing above the best before; 0: never.

    has_stalled([0.5, 0.7, 0.7, 0.6], 2) -> True
    """
    return 0 < patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])
