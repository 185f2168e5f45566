"""Command: fine-tunes a pretrained BERT on a task, evaluates it, exports it for transformers.

WORKDIR receives config.json, checkpoints/, metrics.jsonl, results.json, predictions.jsonl and
report.txt (of the validation file), and hf/, the fine-tuned model for transformers. With several
seeds or learning rates each run has a directory of its own in WORKDIR: see bert_jax.sweep.
"""

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from etils import epath

from bert_jax import config as config_lib
from bert_jax.cli import UserError, run

# JAX, and what imports it, is imported inside the functions: --help must answer at once.

USAGE = """\
usage: python -m bert_jax.finetune --config=configs/finetune/text_classification.py \\
         --init=WORKDIR_OR_HF_DIR --workdir=DIR \\
         --config.train_file=FILE --config.validation_file=FILE [--config.FIELD=VALUE …]

Fine-tunes a pretrained BERT and exports it to DIR/hf, which transformers' pipelines load. The same
command again goes on from the last checkpoint. --config.seeds=0,1,2 and
--config.learning_rates=2e-5,3e-5 make all these runs and compare them. Add --config=FILE to this
help to see the config's fields.
"""


def load_init(init: str | epath.PathLike) -> Any:
    """The `checkpoint.Loaded` of a WORKDIR, a checkpoint in one, or a Hugging Face model."""
    from bert_jax import checkpoint, convert

    return checkpoint.load(init) if checkpoint.is_workdir(init) else convert.read_hf(init)


def start_params(fresh: Any, loaded: Any, task: str, labels: Sequence[str], new_head: bool) -> Any:
    """The parameters to start from: the checkpoint's encoder, its head if it is the same task's.

    Args:
      fresh: freshly initialised parameters, on their devices.

    Returns:
      `fresh` with the loaded arrays in place, and the paths of those that stayed fresh.

    Raises:
      UserError: the checkpoint has a fine-tuned head that does not fit, and `new_head` is not set.
    """
    import jax
    from flax import traverse_util

    their_task = loaded.config.get("task", "pretraining")  # pretraining configs have no such field
    their_labels = list(loaded.config.get("labels", []))
    theirs = loaded.params
    if their_task != "pretraining" and not new_head:
        mismatch = ""
        if their_task != task:
            mismatch = f"a {their_task} head, this is {task}"
        elif their_labels != list(labels):
            mismatch = f"a head for the labels {their_labels}, the data has {list(labels)}"
        if mismatch:
            raise UserError(
                f"the checkpoint to start from has {mismatch}: set --config.new_head=True to keep "
                "its encoder and start the head afresh"
            )
    else:
        theirs = {"bert": theirs["bert"]}
    found = traverse_util.flatten_dict(theirs, sep="/")
    flat = traverse_util.flatten_dict(fresh, sep="/")
    started = {
        path: jax.device_put(found[path].astype(x.dtype), x.sharding) if path in found else x
        for path, x in flat.items()
    }
    return traverse_util.unflatten_dict(started, sep="/"), sorted(flat.keys() - found.keys())


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the runs of a sweep share: the model to start from, and the data, read and checked.

    Attributes:
      loaded: the `checkpoint.Loaded` to start from.
      model: its BertConfig, as it is fine-tuned.
    """

    loaded: Any
    model: Any
    task: Any
    train_examples: list[Any]
    validation_examples: list[Any]
    features: list[Any]
    validation_features: list[Any]

    def identity(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """What must not change when a run goes on: with other data it would be another run."""
        return {
            "tokenizer": self.loaded.tokenizer.fingerprint,
            "data": self._fingerprint(self.features),
            "batch_size": config.batch_size,
        }

    def _fingerprint(self, features: list[Any]) -> str:
        """SHA-256 of rows and labels."""
        rows = [list(self.task.labels), [sorted(f.arrays.items()) for f in features]]
        return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()

    def resolved(
        self, config: ml_collections.ConfigDict, init: str | epath.PathLike
    ) -> ml_collections.ConfigDict:
        """`config` with what follows from model and data: WORKDIR/config.json."""
        return ml_collections.ConfigDict(
            config.to_dict()
            | {
                "init": str(init),
                "model": dataclasses.asdict(self.model),
                "labels": list(self.task.labels),
                "validation_data": self._fingerprint(self.validation_features),
                "keep_checkpoints": config.num_epochs if config.select == "best" else 1,
            }
        )


def read_inputs(config: ml_collections.ConfigDict, init: str | epath.PathLike) -> Inputs:
    """Reads the model at `init` and the data of `config`; writes nothing.

    Raises:
      UserError: settings, model and data do not fit each other.
    """
    from bert_jax import tasks
    from bert_jax.models.bert import BertConfig

    loaded = load_init(init)
    model = BertConfig.of(loaded.config.model.to_dict(), config.dtype)
    check_config(config, model)
    task = tasks.make_task(config, loaded.tokenizer)
    train_examples = task.read(config.train_file)
    validation_examples = task.read(config.validation_file)
    task.set_labels(train_examples)
    return Inputs(
        loaded=loaded,
        model=model,
        task=task,
        train_examples=train_examples,
        validation_examples=validation_examples,
        features=task.features(train_examples),
        validation_features=task.features(validation_examples),
    )


def check_config(config: ml_collections.ConfigDict, model: Any) -> None:
    """Raises UserError for settings that cannot work, before anything is read or written."""
    for field in ("train_file", "validation_file"):
        if not config[field]:
            raise UserError(f"config.{field} is empty: give --config.{field}=FILE")
    if config.max_seq_length > model.max_position_embeddings:
        raise UserError(
            f"config.max_seq_length={config.max_seq_length} is more than the model's "
            f"{model.max_position_embeddings} positions: give "
            f"--config.max_seq_length={model.max_position_embeddings} or less"
        )
    if config.select not in ("last", "best"):
        raise UserError(f"config.select={config.select!r} is neither 'last' nor 'best'")
    limits = {"max_seq_length": 8, "batch_size": 1, "num_epochs": 1, "early_stopping": 0}
    for field, least in limits.items():
        if config[field] < least:
            raise UserError(f"config.{field}={config[field]}, expected at least {least}")


def learning_rate_rules(
    config: ml_collections.ConfigDict, num_layers: int
) -> tuple[tuple[str, float], ...]:
    """`optimizer.learning_rate_rules` with those of `freeze_encoder` and `layer_lr_decay` behind.

    The head and the pooler learn at the full rate, the top layer at `layer_lr_decay` times it, each
    layer below at that share of the one above, the embeddings at the least (Clark et al. 2020).

    Raises:
      UserError: settings that exclude each other, or a decay that is none.
    """
    rules = tuple(config.optimizer.learning_rate_rules)
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
        return (*rules, ("^bert/(embeddings|encoder)/", 0.0))
    if decay == 1:
        return rules
    layers = ((f"^bert/encoder/layer_{i}/", decay ** (num_layers - i)) for i in range(num_layers))
    return (*rules, *layers, ("^bert/embeddings/", decay ** (num_layers + 1)))


def evaluations(workdir: epath.PathLike, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation of a run; a value that was not finite counts as lowest."""
    from bert_jax import metrics

    name = f"eval_{metric}"
    lines = [line for line in metrics.read(workdir) if name in line]
    return [(line["step"], -math.inf if line[name] is None else line[name]) for line in lines]


def has_stalled(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought nothing above the best before; 0: never.

    has_stalled([0.5, 0.7, 0.7, 0.6], 2) -> True
    """
    return 0 < patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])


def finetune(
    config: ml_collections.ConfigDict,
    init: str | epath.PathLike,
    workdir: str | epath.PathLike,
    inputs: Inputs | None = None,
) -> dict[str, float]:
    """Fine-tunes the model at `init` as `config` says; goes on if `workdir` has a checkpoint.

    Args:
      inputs: those of `config` and `init`, if they have been read already.

    Returns:
      the validation figures of the selected epoch ("accuracy", "f1", "majority_share", … by task),
      "epoch", "examples", "seconds" of this call up to the last epoch's evaluation and checkpoint,
      and "parity" of the export (NaN without torch).

    Raises:
      UserError: data, model, config and workdir do not fit each other.
    """
    import jax
    import numpy as np

    from bert_jax import (
        batching,
        checkpoint,
        convert,
        metrics,
        optimizer,
        reports,
        sharding,
        tasks,
        train,
    )

    started = time.monotonic()
    workdir = epath.Path(workdir)

    # Model and data, checked whole before anything is written.
    inputs = inputs or read_inputs(config, init)
    task, model, tokenizer = inputs.task, inputs.model, inputs.loaded.tokenizer
    features, validation_features = inputs.features, inputs.validation_features
    mesh = sharding.make_mesh(**config.mesh)
    if config.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(
            f"config.batch_size={config.batch_size} is not a multiple of the "
            f"{mesh.shape['data'] * mesh.shape['fsdp']} devices that share it"
        )
    lengths = [np.shape(feature.arrays["input_ids"])[-1] for feature in features]
    validation_lengths = [
        np.shape(feature.arrays["input_ids"])[-1] for feature in validation_features
    ]
    # Of the data alone, not of the seed: runs that differ in it share programs.
    buckets, validation_buckets = (
        batching.bucket_lengths(
            its,
            config.length_buckets,
            config.max_seq_length,
            batching.PROGRAM_TOKENS / config.num_epochs,
        )
        for its in (lengths, validation_lengths)
    )
    steps_per_epoch = -(-len(features) // config.batch_size)
    num_steps = steps_per_epoch * config.num_epochs

    # State: a checkpoint in workdir > the parameters of `init`.
    tx_config = ml_collections.ConfigDict(config.optimizer.to_dict())
    tx_config.warmup_steps = int(config.optimizer.warmup_fraction * num_steps)
    tx_config.learning_rate_rules = learning_rate_rules(config, model.num_hidden_layers)
    tx = optimizer.make_optimizer(tx_config)
    schedule = optimizer.make_schedule(tx_config, num_steps)
    module = tasks.make_module(config.task, model, len(task.labels))
    # One row, cut short: parameters depend neither on its length nor on its content.
    ids = np.zeros((1, *np.shape(features[0].arrays["input_ids"])[:-1], 8), np.int32)
    state = train.init_state(
        lambda key: module.init(key, ids, ids, ids)["params"], tx, mesh, config.seed
    )
    factors = optimizer.values_of_rules(tx_config.learning_rate_rules, state.params, 1.0)
    params, fresh = start_params(
        state.params, inputs.loaded, config.task, task.labels, config.new_head
    )
    state = state.replace(params=params)
    del params
    store = checkpoint.CheckpointStore(
        workdir, inputs.resolved(config, init), tokenizer, inputs.identity(config)
    )
    # The host's copy of the parameters is not needed any more.
    inputs = dataclasses.replace(inputs, loaded=None)
    if store.latest_step is not None:
        state = store.restore(state)
    start_step = int(state.step)
    writer = metrics.MetricWriter(workdir, start_step)
    progress = metrics.Progress(num_steps)
    progress.note(
        f"{len(inputs.train_examples):,} examples to train on, padded to {len(buckets)} lengths of "
        f"up to {buckets[-1]} tokens; {len(inputs.validation_examples):,} to evaluate, to "
        f"{len(validation_buckets)} of up to {validation_buckets[-1]}; "
        f"fresh: {', '.join(fresh) or 'nothing'}"
    )
    if start_step:
        progress.note(f"going on from step {start_step:,} of {num_steps:,} in {workdir}")

    # Steps.
    def trained(params: Any) -> Any:
        """`params`, of which those that stay as they are have no gradient to be computed."""
        return jax.tree.map(lambda p, x: p if x else jax.lax.stop_gradient(p), params, factors)

    def apply(params: Any, batch: tasks.Batch, keys_B: jax.Array | None) -> jax.Array:
        arrays = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        return module.apply({"params": params}, *arrays, keys_B=keys_B)

    objective = train.Objective(
        losses=("task_loss",),
        sums=lambda params, batch, keys_B: {
            "task_loss": task.loss_sum(apply(trained(params), batch, keys_B), batch)
        },
        weights=lambda batch: {"task_loss": task.loss_weight(batch)},
    )
    train_step = train.StepByLength(objective, tx, schedule, mesh, config.seed)
    predict = jax.jit(
        lambda params, batch: apply(params, batch, None),
        compiler_options=train.compiler_options(mesh, by_length=True),
    )
    predict_step = train.ByShape(train.OnMesh(predict, mesh))
    placement = sharding.batch_sharding(mesh)

    evaluation_batches = batching.sorted_batches(validation_lengths, config.batch_size)

    def one_of_each(
        rows: Sequence[Any],
        row_lengths: Sequence[int],
        batches: Sequence[Any],
        padded_lengths: Sequence[int],
    ) -> Iterator[tasks.Batch]:
        """A batch of every one of `padded_lengths` that `batches` come to."""
        shortest = rows[int(np.argmin(row_lengths))].arrays
        for length in batching.used_buckets(row_lengths, batches, padded_lengths):
            batch = batching.collate([shortest], (length,), config.batch_size)
            yield jax.device_put(batch, placement)

    def compile_for(batches: Sequence[Any]) -> None:
        """Compiles the gradient for an epoch's batches, the prediction for the evaluation's."""
        before = time.monotonic()
        calls = [
            (train_step.gradients, train_step.gradient_arguments(state, batch))
            for batch in one_of_each(features, lengths, batches, buckets)
        ]
        calls += [
            (predict_step, (state.params, batch))
            for batch in one_of_each(
                validation_features, validation_lengths, evaluation_batches, validation_buckets
            )
        ]
        train.compile_together(calls)
        progress.note(f"compiled in {time.monotonic() - before:.0f} s")

    def evaluate(params: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        outputs: list[Any] = [None] * len(validation_features)
        for indices, batch in batching.iterate(
            [feature.arrays for feature in validation_features],
            evaluation_batches,
            validation_buckets,
            config.batch_size,
        ):
            logits = predict_step(params, jax.device_put(batch, placement))
            for i, row in zip(indices, jax.device_get(logits), strict=False):
                outputs[i] = row
        return task.evaluate(inputs.validation_examples, validation_features, outputs)

    window = (start_step, time.monotonic())

    def report(step: int, values: dict[str, Any]) -> None:
        """Reads a step's figures from the device (waits for it) and writes them."""
        nonlocal window
        names = ("loss", "gradient_norm", "learning_rate")
        line = {name: float(values[name]) for name in names}
        elapsed = max(time.monotonic() - window[1], 1e-9)
        line["epoch"] = step / steps_per_epoch
        line["sequences_per_second"] = (step - window[0]) * config.batch_size / elapsed
        window = (step, time.monotonic())
        writer.write(step, line)
        progress.update(step, {name: line[name] for name in ("loss", "sequences_per_second")})

    # Choosing the best epoch needs the ends of all of them: no other checkpoints are kept then.
    checkpoint_every = config.checkpoint_every if config.select == "last" else 0
    figures, lines = {}, []
    arrays = [feature.arrays for feature in features]
    try:
        for epoch in range(start_step // steps_per_epoch, config.num_epochs):
            # Read from the file, so that a run that goes on stops where it would have.
            so_far = [value for _, value in evaluations(workdir, task.metric)]
            if has_stalled(so_far, config.early_stopping):
                progress.note(
                    f"stopped after epoch {epoch} of {config.num_epochs}: no better {task.metric} "
                    f"within {config.early_stopping} evaluations (config.early_stopping)"
                )
                break
            batches = batching.epoch_batches(
                lengths, buckets, config.batch_size, config.seed, epoch
            )
            if epoch == start_step // steps_per_epoch:
                compile_for(batches)
                window = (start_step, time.monotonic())  # no training time either
            done = max(0, start_step - epoch * steps_per_epoch)  # of this epoch, before a restart
            pending: tuple[int, Any] | None = None  # figures of a step that may still be running
            stream = batching.iterate(arrays, batches[done:], buckets, config.batch_size)
            for step, (_, batch) in enumerate(stream, epoch * steps_per_epoch + done + 1):
                state, values = train_step(state, jax.device_put(batch, placement))
                # One step late: the device works on this step while the host reads the one before.
                if pending:
                    jax.block_until_ready(pending[1])
                    if pending[0] % config.log_every == 0:
                        report(*pending)
                pending = (step, values)
                if checkpoint_every and step % checkpoint_every == 0 and step % steps_per_epoch:
                    store.save(step, state)
            report(*pending)
            before = time.monotonic()
            figures, lines = evaluate(state.params)
            writer.write(step, {f"eval_{name}": value for name, value in figures.items()})
            progress.note(
                f"epoch {epoch + 1} of {config.num_epochs}: "
                + "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            )
            store.save(step, state)
            # Evaluation is not training time.
            window = (window[0], window[1] + time.monotonic() - before)
    finally:  # an interrupted run must not hold on to its workdir
        store.close()
        writer.close()
        progress.close()

    # Results: the selected epoch, evaluated, exported, and written down.
    last_step = step = int(state.step)
    if config.select == "best":
        step, _ = max(evaluations(workdir, task.metric), key=lambda pair: pair[1])
    seconds = time.monotonic() - started
    selected = checkpoint.load(workdir / checkpoint.CHECKPOINTS / str(step))
    if step != last_step or not figures:
        placed = jax.device_put(selected.params, sharding.shardings_of(selected.params, mesh))
        figures, lines = evaluate(placed)
    parity = convert.write_hf(selected, workdir, workdir / "hf")
    with (workdir / "predictions.jsonl").open("w") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    reports.write(workdir, config.task, task.labels, lines)
    results = figures | {
        "epoch": step // steps_per_epoch,
        "examples": len(inputs.train_examples),
        "seconds": seconds,
        "parity": parity.largest,
    }
    # Last: its presence says that the run is finished.
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    progress.note(str(parity))
    return results


def main(argv: Sequence[str]) -> None:
    config, values = config_lib.parse(
        argv,
        USAGE,
        init="WORKDIR of a pretraining or fine-tuning, Hugging Face directory or hub name",
        workdir="directory of this run, local or gs://",
    )
    from bert_jax import host_memory

    host_memory.keep_freed()
    workdir = epath.Path(values["workdir"])
    if config.seeds or config.learning_rates:
        from bert_jax import sweep

        print(sweep.table(sweep.sweep(config, values["init"], workdir)))
        print(f"wrote {workdir}/summary.json, hf (the best run's, for transformers), and every run")
        return
    results = finetune(config, values["init"], workdir)
    if (workdir / "report.txt").exists():
        print((workdir / "report.txt").read_text())
    for name, value in results.items():
        print(f"{name:16} {value:.4g}")
    print(f"wrote {workdir}/hf (for transformers), predictions.jsonl, metrics.jsonl")


def cli() -> None:
    run(main)


if __name__ == "__main__":
    sys.exit(cli())
