"""The fine-tuning loop: the model to start from, epochs, evaluations, and the result."""

import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from bert_jax import screen
from bert_jax.cli import UserError
from bert_jax.data import batching
from bert_jax.finetuning import results as results_lib
from bert_jax.finetuning import settings
from bert_jax.finetuning.inputs import Inputs, Split, read_inputs, start_params
from bert_jax.finetuning.reporting import Reporter
from bert_jax.finetuning.steps import Steps, make_steps
from bert_jax.huggingface import export
from bert_jax.huggingface import files as hf_files
from bert_jax.huggingface.keys import TABLES
from bert_jax.models import architectures
from bert_jax.parallel import sharding
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs
from bert_jax.runs.state import TrainState, init_state
from bert_jax.tasks import classes, kinds, reports
from bert_jax.tasks.base import Task
from bert_jax.training import optimizer
from bert_jax.training.reporting import describe_model


def finetune(
    config: ml_collections.ConfigDict,
    init: str | epath.PathLike,
    workdir: str | epath.PathLike,
    inputs: Inputs | None = None,
    show: bool = False,
) -> dict[str, Any]:
    """Fine-tunes the model at `init` as `config` says; resumes if `workdir` has a checkpoint.

    A finished run is left as it is, and its results are returned.

    Args:
      inputs: those of `config` and `init`, if they have been read already.
      show: whether progress is printed, on standard error.

    Returns:
      the validation metrics of the selected epoch ("accuracy", "f1", "majority_share", … by task),
      "epoch" and "step" of its end, "examples" trained on, "seconds" of this call up to the last
      epoch's evaluation and checkpoint, and "parity" of the export (None without torch).

    Raises:
      UserError: data, model, config and workdir do not fit each other.
    """
    started = time.monotonic()
    workdir = epath.Path(workdir)

    # Inputs: the pretrained model, the task, its examples as rows of batches.
    inputs = inputs or read_inputs(config, init)
    task, training, validation = inputs.task, inputs.train, inputs.validation
    steps_per_epoch = -(-len(training.features) // config.batch_size)
    num_steps = settings.count_steps(config, steps_per_epoch)
    mesh = sharding.make_mesh(**config.mesh)
    check_workdir(workdir)
    check_batch_size(config.batch_size, mesh)

    # Model and optimizer.
    module = kinds.make_module(config.task, inputs.model, len(task.labels))
    architecture = architectures.of(inputs.model)
    prefix = architecture.prefix
    optimization = settings.optimization(config, prefix, inputs.loaded.params)
    tx = optimizer.make_optimizer(optimization)
    schedule = optimizer.make_schedule(optimization, num_steps)

    # State: a checkpoint in workdir > the parameters of `init`, with a fresh head.
    # One row, cut short: parameters depend neither on its length nor on its content.
    ids = np.zeros((1, *np.shape(training.arrays[0]["input_ids"])[:-1], 8), np.int32)

    def init_params(key: jax.Array) -> Any:
        return module.init(key, ids, ids, ids)["params"]

    shapes = jax.eval_shape(init_params, jax.random.key(config.seed))
    names = classes.parse_labels(config.labels) if "labels" in config else {}
    params, fresh = start_params(
        shapes, inputs.loaded, config.task, task.labels, config.new_head, names, prefix
    )
    state = init_state(init_params, tx, mesh, config.seed, given=params)
    factors = optimizer.values_of_rules(optimization.learning_rate_rules, shapes, 1.0)
    steps = make_steps(config, task, module, tx, schedule, factors, mesh)

    with contextlib.ExitStack() as closing:  # an interrupted run must not hold on to its workdir
        store = checkpoint.CheckpointStore(
            workdir,
            inputs.resolved(config, init),
            inputs.loaded.tokenizer,
            inputs.identity(config),
        )
        closing.callback(store.close)
        described = describe(inputs, config, num_steps, fresh)
        del inputs, params  # on the host: memory
        if store.latest_step is not None:
            state = store.restore(state)
        step = first_step = int(state.step)
        report = Reporter(workdir, step, config, steps_per_epoch, num_steps, show)
        closing.callback(report.close)
        found = f"resuming from step {step:,} in" if step else "fine-tuning in"
        report.note(f"{found} {workdir}\n{described}")

        # Epochs: train, evaluate, save.
        metrics: dict[str, float] = {}
        predictions: list[dict[str, Any]] = []
        for epoch in range(step // steps_per_epoch, -(-num_steps // steps_per_epoch)):
            if step == num_steps:  # a run that max_steps ended within this epoch
                break
            # Read from the file, so that a resumed run stops where it would have.
            scores = [value for _, value in results_lib.evaluations(workdir, task.metric)]
            if results_lib.has_stalled(scores, config.early_stopping):
                report.note(
                    f"stopped after epoch {epoch} of {config.num_epochs}: no better {task.metric} "
                    f"within {config.early_stopping} evaluations (config.early_stopping)"
                )
                break
            batches = batching.epoch_batches(
                training.lengths, training.padded_lengths, config.batch_size, config.seed, epoch
            )
            if step == first_step:
                compile_steps(steps, state, training, batches, validation, config, report)
            begun = epoch * steps_per_epoch
            batches = batches[step - begun : num_steps - begun]
            for _, batch in training.collated(batches, config.batch_size):
                state, values = steps.train(state, steps.place(batch))
                step += 1
                report.step(step, values)
                if step < num_steps and settings.saves_within_epoch(config, step, steps_per_epoch):
                    report.flush()
                    store.save(step, state)
            report.epoch_trained(step, len(batches))
            with report.pause("evaluating"):
                metrics, predictions = evaluate(steps, state.params, task, validation, config)
                by_label = reports.label_f1(config.task, task.labels, predictions)
                report.evaluated(step, metrics, by_label)
                store.save(step, state)

        report.trained()

    # The result: the selected epoch's, exported, evaluated and described.
    if step == first_step and workdirs.is_finished(workdir):
        file = workdir / workdirs.RESULTS_FILE
        report.note(f"finished before; to evaluate and export it again, remove {file}")
        return workdirs.read_results(workdir)
    seconds = time.monotonic() - started
    selected_step = step
    if config.select == "best":
        selected_step = results_lib.selected_step(workdir, task.metric)
    selected = checkpoint.load(workdir / workdirs.CHECKPOINTS / str(selected_step))
    if selected_step != step or not metrics:
        params = jax.device_put(selected.params, sharding.shardings_of(selected.params, mesh))
        metrics, predictions = evaluate(steps, params, task, validation, config)
    parity = None
    if architecture.name in TABLES:
        parity = export.write(selected, workdir, workdir / "hf")
    results = metrics | {
        "epoch": -(-selected_step // steps_per_epoch),
        "step": selected_step,
        "examples": len(training.examples),
        "seconds": seconds,
        "parity": parity and parity.largest,
    }
    results_lib.write_results(workdir, config.task, task.labels, predictions, results)
    report.note(str(parity or "not exported: transformers has no such encoder"))
    return results


def check_workdir(workdir: epath.Path) -> None:
    """Raises UserError where a run of one seed and learning rate cannot be written."""
    if (workdir / workdirs.SUMMARY_FILE).exists():
        raise UserError(
            f"{workdir} holds several seeds or learning rates: give --config.seeds or "
            "--config.learning_rates to resume them, or another --workdir for a single run"
        )
    hf_files.check_replaceable(workdir / "hf")


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError if the devices that share a batch do not divide it."""
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % sharing:
        raise UserError(
            f"config.batch_size={batch_size} is not a multiple of the {sharing} devices that share "
            "it"
        )


def describe(
    inputs: Inputs, config: ml_collections.ConfigDict, num_steps: int, fresh: Sequence[str]
) -> str:
    """What a run trains and evaluates on, and with what, in lines."""
    task, training, validation = inputs.task, inputs.train, inputs.validation
    scheme = f" of entities (labels: {task.scheme})" if task.scheme else ""
    steps_per_epoch = -(-len(training.features) // config.batch_size)
    rows = {
        "model": f"{describe_model(architectures.of(inputs.model).name, inputs.model)}; randomly "
        f"initialised: {', '.join(fresh) or 'nothing'}",
        "data": f"{len(training.examples):,} examples to train on, "
        f"{len(validation.examples):,} to evaluate; measured by {task.metric}{scheme}",
        "lengths": f"padded to {_lengths(training)} tokens; in evaluation to "
        f"{_lengths(validation)}",
        "batch": f"{config.batch_size:,} sequences; {steps_per_epoch:,} steps per epoch, "
        f"{num_steps:,} in all",
    }
    return screen.facts(rows)


def _lengths(split: Split) -> str:
    return ", ".join(map(str, split.padded_lengths))


def compile_steps(
    steps: Steps,
    state: TrainState,
    training: Split,
    batches: Sequence[np.ndarray],
    validation: Split,
    config: ml_collections.ConfigDict,
    report: Reporter,
) -> None:
    """Compiles for all lengths of an epoch's batches and of the evaluation."""
    started = time.monotonic()
    size = config.batch_size
    evaluated = batching.sorted_batches(validation.lengths, size)
    train_batches = list(training.one_of_each(batches, size))
    predict_batches = list(validation.one_of_each(evaluated, size))
    total = len(train_batches) + len(predict_batches) + 1  # the update
    done = itertools.count(1)
    with report.pause("compiling", total) as stage:

        def compiled() -> None:
            stage.update(number := next(done), [f"{number} of {total} programs", screen.ETA])

        steps.compile(state, train_batches, predict_batches, compiled)
    report.note(f"compiled {total} programs in {time.monotonic() - started:.0f} s")


def evaluate(
    steps: Steps, params: Any, task: Task, validation: Split, config: ml_collections.ConfigDict
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the validation examples, and one JSON object per example."""
    outputs: list[Any] = [None] * len(validation.features)
    batches = batching.sorted_batches(validation.lengths, config.batch_size)
    for indices, batch in validation.collated(batches, config.batch_size):
        logits = jax.device_get(steps.predict(params, steps.place(batch)))
        for i, row in zip(indices, logits, strict=False):  # not the rows that fill up the batch
            outputs[i] = row
    return task.evaluate(validation.examples, validation.features, outputs)
