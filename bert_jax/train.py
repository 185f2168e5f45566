"""The training step and the pretraining loop.

B is the global batch, M the masked positions an example, V the padded vocabulary.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from bert_jax import checkpoint, input_pipeline, metrics, optimizer, sharding
from bert_jax.models.bert import BertConfig, stack_layers
from bert_jax.models.heads import BertForPreTraining

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """All that a checkpoint holds: int32 step (optimizer updates made), float32 params, moments."""

    step: jax.Array
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, as sums: a metric is Σ numerators / Σ weights over the global batch.

    Dividing sums, instead of averaging each device's or microbatch's own mean, weighs every masked
    token alike however the batch is split.

    Attributes:
      losses: the metrics whose values add up to the loss.
      sums: (params, batch, keys_B) -> numerators; keys_B are dropout keys, None for evaluation.
      weights: batch -> denominators, of the same names; depends on the batch alone.
    """

    losses: tuple[str, ...]
    sums: Callable[[Any, Batch, jax.Array | None], Scalars]
    weights: Callable[[Batch], Scalars]


def pretraining_objective(model: BertForPreTraining, next_sentence: bool = True) -> Objective:
    """Mean MLM loss over masked tokens + mean NSP loss over pairs (paper, appendix A.2)."""

    def sums(params: Any, batch: Batch, keys_B: jax.Array | None) -> Scalars:
        output = model.apply(
            {"params": params},
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            batch["masked_lm_positions"],
            keys_B,
        )
        logits_BMV, labels_BM = output.mlm_logits_BMV, batch["masked_lm_ids"]
        weights_BM = batch["masked_lm_weights"]
        loss_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, labels_BM)
        right_BM = logits_BMV.argmax(-1) == labels_BM
        result = {
            "mlm_loss": jnp.sum(loss_BM * weights_BM),
            "mlm_accuracy": jnp.sum(right_BM * weights_BM),
        }
        if next_sentence:
            logits_B2, labels_B = output.nsp_logits_B2, batch["next_sentence_labels"]
            weights_B = labels_B >= 0
            loss_B = optax.softmax_cross_entropy_with_integer_labels(
                logits_B2, jnp.maximum(labels_B, 0)
            )
            result["nsp_loss"] = jnp.sum(loss_B * weights_B)
            result["nsp_accuracy"] = jnp.sum((logits_B2.argmax(-1) == labels_B) * weights_B)
        return result

    def weights(batch: Batch) -> Scalars:
        masked = jnp.sum(batch["masked_lm_weights"])
        result = {"mlm_loss": masked, "mlm_accuracy": masked}
        if next_sentence:
            pairs = jnp.sum(batch["next_sentence_labels"] >= 0).astype(jnp.float32)
            result |= {"nsp_loss": pairs, "nsp_accuracy": pairs}
        return result

    return Objective(("mlm_loss", "nsp_loss") if next_sentence else ("mlm_loss",), sums, weights)


def new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def init_state(
    init_params: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> TrainState:
    """A fresh state, born sharded: no device ever holds more than its part."""

    def init(key: jax.Array) -> TrainState:
        return new_state(init_params(key), optimizer)

    key = jax.random.key(seed)
    shardings = sharding.shardings_of(jax.eval_shape(init, key), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=shardings)(key)


def dropout_keys(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """One key an example of the global batch, a function of (seed, step, row) alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch_size))


def jit_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    accumulate_steps: int = 1,
) -> jax.stages.Wrapped:
    """The jitted step (state, batch) -> (state, metrics), to be used where `mesh` is set.

    It takes the state's memory over.

    With `accumulate_steps` > 1 the batch is worked off in that many parts, one after the other, to
    the same result with less memory.
    """

    def loss_and_metrics(params: Any, batch: Batch, keys_B: jax.Array, weights: Scalars):
        sums = objective.sums(params, batch, keys_B)
        means = {name: sums[name] / jnp.maximum(weights[name], 1.0) for name in sums}
        return sum(means[name] for name in objective.losses), means

    grad_fn = jax.grad(loss_and_metrics, has_aux=True)

    def accumulated(params: Any, batch: Batch, keys_B: jax.Array, weights: Scalars):
        # Strided parts, so that each part is spread over all devices as the batch is.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate_steps, *x.shape[1:]), 0, 1),
            (batch, keys_B),
        )

        def add(total: Any, part: tuple[Batch, jax.Array]):
            return jax.tree.map(jnp.add, total, grad_fn(params, *part, weights)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(grad_fn, params, *first, weights)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        keys_B = dropout_keys(seed, state.step, jax.tree.leaves(batch)[0].shape[0])
        weights = objective.weights(batch)
        gradients = grad_fn if accumulate_steps == 1 else accumulated
        grads, means = gradients(state.params, batch, keys_B, weights)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            state.step + 1, optax.apply_updates(state.params, updates), opt_state
        )
        new_state = jax.lax.with_sharding_constraint(
            new_state, sharding.shardings_of(new_state, mesh)
        )
        loss = sum(means[name] for name in objective.losses)
        return new_state, {"loss": loss, **means, "gradient_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    accumulate_steps: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """`jit_train_step` that sets the mesh by itself."""
    jitted = jit_train_step(objective, optimizer, mesh, seed, accumulate_steps)

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        with jax.set_mesh(mesh):
            return jitted(state, batch)

    return run


def make_eval_step(
    objective: Objective, mesh: Mesh
) -> Callable[[Any, Batch], tuple[Scalars, Scalars]]:
    """The jitted (params, batch) -> (sums, weights), to be added up over batches."""
    jitted = jax.jit(
        lambda params, batch: (objective.sums(params, batch, None), objective.weights(batch))
    )

    def run(params: Any, batch: Batch) -> tuple[Scalars, Scalars]:
        with jax.set_mesh(mesh):
            return jitted(params, batch)

    return run


def evaluate(eval_step: Callable, params: Any, batches: Any, losses: tuple[str, ...]) -> dict:
    """Metrics over all of `batches` as Python floats, `loss` included."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for batch in batches:
        for total, part in zip((sums, weights), eval_step(params, batch), strict=True):
            for name, value in jax.device_get(part).items():
                total[name] = total.get(name, 0.0) + float(value)
    means = {name: sums[name] / max(weights[name], 1.0) for name in sums}
    return {"loss": sum(means[name] for name in losses), **means}


def make_model(config: ml_collections.ConfigDict) -> BertForPreTraining:
    """The pretraining model that `config.model` describes."""
    return BertForPreTraining(BertConfig(**config.model))


def init_params(model: BertForPreTraining, key: jax.Array) -> Any:
    """Fresh parameters; the same numbers whether the layers are scanned or not."""
    unrolled = BertForPreTraining(dataclasses.replace(model.config, scan_layers=False))
    ids = jnp.zeros((1, 8), jnp.int32)
    params = unrolled.init(key, ids, ids, ids)["params"]
    return stack_layers(params) if model.config.scan_layers else params


def lower_train_step(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    max_seq_length: int,
    max_predictions_per_seq: int,
    next_sentence: bool = True,
) -> tuple[jax.stages.Lowered, TrainState, Batch]:
    """The step that `train_and_evaluate` runs, ready to compile for devices that need not exist.

    Returns:
      The lowered step, and its arguments as shapes with their shardings.
    """
    model = make_model(config)
    tx, _ = optimizer.make_optimizer(config.optimizer, config.num_steps)
    # The key is made inside: outside, it would be an array on a device.
    state = jax.eval_shape(lambda: new_state(init_params(model, jax.random.key(config.seed)), tx))
    state = sharding.abstract(state, sharding.shardings_of(state, mesh))
    batch = input_pipeline.batch_shapes(config.batch_size, max_seq_length, max_predictions_per_seq)
    batch = sharding.abstract(batch, {name: sharding.batch_sharding(mesh) for name in batch})
    objective = pretraining_objective(model, next_sentence)
    step = jit_train_step(objective, tx, mesh, config.seed, config.accumulate_steps)
    with jax.set_mesh(mesh):
        return step.lower(state, batch), state, batch


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> dict:
    """Pretrains as `config` says, going on from the last checkpoint in `workdir` if there is one.

    Returns:
      The last evaluation's figures (or the last training step's, with evaluation turned off).

    Raises:
      UserError: data, model, mesh and workdir do not fit each other.
    """
    # Data: the manifest says what the model must cope with.
    mesh = sharding.make_mesh(**config.mesh)
    model = make_model(config)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    eval_data = None
    if config.eval_every:
        eval_data = input_pipeline.open_data(
            config.eval_data_dir or config.data_dir, "validation", config
        )
    input_pipeline.check_batch(config, mesh)

    # State: a checkpoint in workdir > config.init_from > fresh parameters.
    tx, schedule = optimizer.make_optimizer(config.optimizer, config.num_steps)
    store = checkpoint.CheckpointStore(workdir, config, data.tokenizer, data.fingerprint)
    state = init_state(lambda key: init_params(model, key), tx, mesh, config.seed)
    if store.latest_step is not None:
        state = store.restore(state)
    elif config.init_from:
        state = checkpoint.warm_start(state, config.init_from, model.config, data.tokenizer)
    start = int(state.step)

    # Steps.
    objective = pretraining_objective(model, next_sentence=data.has_next_sentence_labels)
    train_step = make_train_step(objective, tx, mesh, config.seed, config.accumulate_steps)
    eval_step = make_eval_step(objective, mesh)
    writer = metrics.MetricWriter(workdir, start)
    progress = metrics.Progress(config.num_steps)
    progress.note(
        f"{data.num_examples:,} examples of {data.max_seq_length} tokens, batch "
        f"{config.batch_size}: an epoch is {data.num_examples / config.batch_size:,.0f} steps; "
        f"mesh {dict(mesh.shape)} on {jax.devices()[0].device_kind}; compiling the first step"
    )
    if start == config.num_steps:
        progress.note(f"{workdir} is trained to the end already ({start:,} steps)")
    elif start:
        progress.note(f"going on from step {start:,} in {workdir}")

    last: dict[str, float] = {}
    pending: tuple[int, Scalars] | None = None  # metrics of a step that may still be running
    window = (start, time.monotonic())

    def report(step: int, values: Scalars) -> None:
        """Reads a step's metrics from the device (waits for it) and writes them."""
        nonlocal window, last
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        elapsed = max(time.monotonic() - window[1], 1e-9)
        sequences = (step - window[0]) * config.batch_size / elapsed
        window = (step, time.monotonic())
        last = values | {
            "learning_rate": float(schedule(np.int32(step - 1))),
            "sequences_per_second": sequences,
            "tokens_per_second": sequences * data.max_seq_length,
        }
        writer.write(step, last)
        shown = {name: last[name] for name in ("loss", *objective.losses)}
        progress.update(step, shown | {"sequences/s": sequences})

    with data.batches(mesh, start, config.num_steps) as batches:
        for step, batch in enumerate(batches, start + 1):
            state, step_metrics = train_step(state, batch)
            # One step late: the device is busy with this step while the host reads the one before.
            if pending:
                report(*pending)
                pending = None
            is_last = step == config.num_steps
            if step % config.log_every == 0 or is_last or step == 1:
                pending = (step, step_metrics)
            if config.eval_every and (step % config.eval_every == 0 or is_last):
                if pending:
                    report(*pending)
                    pending = None
                before = time.monotonic()
                results = evaluate(
                    eval_step,
                    state.params,
                    eval_data.eval_batches(mesh, config.eval_batches),
                    objective.losses,
                )
                last = {f"eval_{name}": value for name, value in results.items()}
                writer.write(step, last)
                shown = {f"eval_{name}": results[name] for name in ("mlm_loss", "mlm_accuracy")}
                progress.update(step, shown)
                # Evaluation is not training time.
                window = (window[0], window[1] + time.monotonic() - before)
            if step % config.checkpoint_every == 0 or is_last:
                store.save(state)
    if pending:
        report(*pending)
    store.close()
    writer.close()
    progress.close()
    return last
