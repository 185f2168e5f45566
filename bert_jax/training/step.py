"""The training step: what is minimised, and how a batch changes the state.

B is the global batch, M the masked positions an example, V the padded vocabulary.
"""

import concurrent.futures
import dataclasses
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bert_jax.models.heads import PretrainingModel
from bert_jax.parallel import sharding
from bert_jax.training.optimizer import apply_updates

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """All that a checkpoint holds, and nothing random.

    Attributes:
      step: int32, batches taken, which is the position in the data.
      params: float32.
      opt_state: moments, laid out as the parameters.
      loss_average: float32, moving average of the loss, 0 before the first step; what a spike is
        measured against.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    loss_average: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, as sums: a metric is Σ numerators / Σ weights over the global batch.

    Dividing sums, instead of averaging each device's or microbatch's own mean, weighs every masked
    token alike however the batch is split.

    Attributes:
      losses: the metrics whose values add up to the loss.
      sums: (params, batch, dropout_keys_B) -> numerators; the keys are None for evaluation.
      weights: batch -> denominators, of the same names; depends on the batch alone.
    """

    losses: tuple[str, ...]
    sums: Callable[[Any, Batch, jax.Array | None], Scalars]
    weights: Callable[[Batch], Scalars]


# Of the loss's moving average: about the last hundred steps.
LOSS_MEMORY = 0.99
# Ends of the bands of tokens, by rank of frequency in the training data, that evaluation tells
# apart: a model that guesses by frequency alone is right in the first and nowhere else.
FREQUENCY_BANDS = (100, 1_000, 10_000)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits) at `labels`, float32[…], of float32[…, V] and int[…].

    The backward pass computes the probabilities anew from the logits, in one pass over them, and
    keeps no array of their size.
    """
    return _cross_entropy(logits, labels)[0]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return normaliser - at_labels(logits, labels), (logits, labels, normaliser)


def _cross_entropy_gradient(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    logits, labels, normaliser = saved
    probabilities = jnp.exp(logits - normaliser[..., None])
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    return (probabilities - is_label) * gradient[..., None], None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


def at_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label."""
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether no logit is above the label's. The maximum is the loss's own: cheaper than argmax."""
    return at_labels(logits, labels) >= logits.max(axis=-1)


def pretraining_objective(
    model: PretrainingModel,
    next_sentence: bool = True,
    mask_id: int | None = None,
    token_ranks_V: np.ndarray | None = None,
) -> Objective:
    """Mean MLM loss over masked tokens + mean NSP loss over pairs (paper, appendix A.2).

    Args:
      next_sentence: whether the examples have next-sentence labels.
      mask_id: given (for evaluation), MLM accuracy is also told apart by what stood at the
        position: [MASK], a random token, or the token itself (mlm_accuracy_mask, _random, _kept).
      token_ranks_V: given (for evaluation), also by how frequent the token is: its rank in the
        training data, from 0 (mlm_accuracy_rank_1_100, …).
    """

    def groups(batch: Batch) -> dict[str, jax.Array]:
        """The masked positions that each further accuracy counts: name -> float[B, M]."""
        labels_BM, weights_BM = batch["masked_lm_ids"], batch["masked_lm_weights"]
        result = {}
        if mask_id is not None:
            read_BM = jnp.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], axis=1)
            kinds = {"mask": read_BM == mask_id, "kept": read_BM == labels_BM}
            kinds["random"] = ~(kinds["mask"] | kinds["kept"])
            result |= {f"mlm_accuracy_{kind}": where * weights_BM for kind, where in kinds.items()}
        if token_ranks_V is not None:
            ranks_BM = jnp.asarray(token_ranks_V)[labels_BM]
            for low, high in zip((0, *FREQUENCY_BANDS), (*FREQUENCY_BANDS, None), strict=True):
                inside = (ranks_BM >= low) & (high is None or ranks_BM < high)
                name = f"mlm_accuracy_rank_{low + 1}_{high or 'up'}"
                result[name] = inside * weights_BM
        return result

    def sums(params: Any, batch: Batch, dropout_keys_B: jax.Array | None) -> Scalars:
        output = model.apply(
            {"params": params},
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            batch["masked_lm_positions"],
            dropout_keys_B,
            batch.get("position_ids"),
            batch.get("first_token_positions"),
        )
        logits_BMV, labels_BM = output.mlm_logits_BMV, batch["masked_lm_ids"]
        weights_BM = batch["masked_lm_weights"]
        loss_BM = cross_entropy(logits_BMV, labels_BM)
        right_BM = is_right(logits_BMV, labels_BM)
        result = {
            "mlm_loss": jnp.sum(loss_BM * weights_BM),
            "mlm_accuracy": jnp.sum(right_BM * weights_BM),
            **{name: jnp.sum(right_BM * where) for name, where in groups(batch).items()},
        }
        if next_sentence:
            # Packed, both have the examples of a row as a second axis.
            logits_B2, labels_B = output.nsp_logits_B2, batch["next_sentence_labels"]
            weights_B = labels_B >= 0
            loss_B = cross_entropy(logits_B2, jnp.maximum(labels_B, 0))
            result["nsp_loss"] = jnp.sum(loss_B * weights_B)
            result["nsp_accuracy"] = jnp.sum(
                is_right(logits_B2, jnp.maximum(labels_B, 0)) * weights_B
            )
        return result

    def weights(batch: Batch) -> Scalars:
        masked = jnp.sum(batch["masked_lm_weights"])
        result = {"mlm_loss": masked, "mlm_accuracy": masked}
        result |= {name: jnp.sum(where) for name, where in groups(batch).items()}
        if next_sentence:
            pairs = jnp.sum(batch["next_sentence_labels"] >= 0).astype(jnp.float32)
            result |= {"nsp_loss": pairs, "nsp_accuracy": pairs}
        return result

    return Objective(("mlm_loss", "nsp_loss") if next_sentence else ("mlm_loss",), sums, weights)


def new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    zero = jnp.zeros([], jnp.float32)
    return TrainState(zero.astype(jnp.int32), params, optimizer.init(params), zero)


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


def reset_moments(
    state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """`state` with the optimizer's moments empty, as before its first step."""
    shardings = sharding.shardings_of(state.opt_state, mesh)
    with jax.set_mesh(mesh):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings)(state.params)
    return state.replace(opt_state=opt_state)


def dropout_keys(seed: int | jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """One key an example of the global batch, a function of (seed, step, row) alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch_size))


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A jitted function that is called, traced or lowered with the mesh set.

    Attributes:
      constants: further arguments of every call. Written into the program, one that differs would
        make another program of it, to be compiled anew.
    """

    function: Callable[..., Any]
    mesh: Mesh
    constants: tuple[Any, ...] = ()

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.function(*args, *self.constants)

    def trace(self, *args: Any) -> jax.stages.Traced:
        with jax.set_mesh(self.mesh):
            return self.function.trace(*args, *self.constants)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self.function.lower(*args, *self.constants)


@dataclasses.dataclass(frozen=True)
class ByShape:
    """A function of a batch, its last argument, of several shapes; see `compile_together`."""

    function: OnMesh
    programs: dict[Any, jax.stages.Compiled] = dataclasses.field(default_factory=dict)

    @staticmethod
    def key(batch: Batch) -> tuple[tuple[int, ...], ...]:
        return tuple(x.shape for x in jax.tree.leaves(batch))

    def __call__(self, *args: Any) -> Any:
        program = self.programs.get(self.key(args[-1]))
        return program(*args, *self.function.constants) if program else self.function(*args)


def compile_together(calls: Sequence[tuple[ByShape, tuple[Any, ...]]]) -> None:
    """Compiles functions for these arguments side by side: one compilation keeps one core busy."""

    one_at_a_time = threading.Lock()  # Flax, when it makes modules, is not made for threads

    def compile_one(call: tuple[ByShape, tuple[Any, ...]]) -> None:
        by_shape, args = call
        with one_at_a_time:
            lowered = by_shape.function.lower(*args)
        by_shape.programs[ByShape.key(args[-1])] = lowered.compile()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, calls))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    seed: int,
    accumulate_steps: int = 1,
    max_loss_ratio: float = 0.0,
) -> OnMesh:
    """The jitted step (state, batch) -> (state, metrics); it takes the state's memory over.

    A batch whose loss or gradient is not finite, or whose loss is a spike, leaves parameters and
    moments as they were; the step is counted, and the metric `accepted` is 0.

    Args:
      optimizer: gradients -> directions (bert_jax.training.optimizer).
      schedule: step -> learning rate.
      accumulate_steps: the batch is worked off in that many parts, one after the other, to the same
        result with less memory.
      max_loss_ratio: a loss above this multiple of its moving average is a spike; 0 for no limit.
    """
    gradients, update = _parts(
        objective, optimizer, schedule, mesh, accumulate_steps, max_loss_ratio
    )

    def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Scalars]:
        return update(state, *gradients(state.params, state.step, batch, seed))

    jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options(mesh))
    return OnMesh(jitted, mesh, (_as_argument(seed),))


class StepByLength:
    """The training step for batches of several lengths, as two programs.

    The gradient is compiled for each length and the update once, which is half of the compilation.

    Attributes:
      gradients: (params, step, batch) -> (gradients, means), to be compiled together.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        schedule: optax.Schedule,
        mesh: Mesh,
        seed: int,
    ):
        gradients, update = _parts(objective, optimizer, schedule, mesh)

        def placed(*args: Any) -> tuple[Any, Scalars]:
            grads, means = gradients(*args)
            shardings = sharding.shardings_of(grads, mesh)
            return jax.lax.with_sharding_constraint(grads, shardings), means

        options = compiler_options(mesh, by_length=True)
        jitted = jax.jit(placed, compiler_options=options)
        self.gradients = ByShape(OnMesh(jitted, mesh, (_as_argument(seed),)))
        options = compiler_options(mesh)
        self._update = OnMesh(jax.jit(update, donate_argnums=0, compiler_options=options), mesh)

    def gradient_arguments(self, state: TrainState, batch: Batch) -> tuple[Any, ...]:
        return state.params, state.step, batch

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        return self._update(state, *self.gradients(*self.gradient_arguments(state, batch)))


def _as_argument(seed: int) -> np.int32:
    """A seed to be passed to a program: its lower 32 bits, which are those that JAX uses."""
    return np.int64(seed).astype(np.int32)


def _parts(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    accumulate_steps: int = 1,
    max_loss_ratio: float = 0.0,
) -> tuple[Callable[..., tuple[Any, Scalars]], Callable[..., tuple[TrainState, Scalars]]]:
    """What a step consists of: gradients, and the update of the state by them."""

    def loss_and_metrics(params: Any, batch: Batch, dropout_keys_B: jax.Array, weights: Scalars):
        sums = objective.sums(params, batch, dropout_keys_B)
        means = {name: sums[name] / jnp.maximum(weights[name], 1.0) for name in sums}
        return sum(means[name] for name in objective.losses), means

    grad_fn = jax.grad(loss_and_metrics, has_aux=True)

    def accumulated(params: Any, batch: Batch, dropout_keys_B: jax.Array, weights: Scalars):
        # Strided parts, so that each part is spread over all devices as the batch is.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate_steps, *x.shape[1:]), 0, 1),
            (batch, dropout_keys_B),
        )

        def add(total: Any, part: tuple[Batch, jax.Array]):
            return jax.tree.map(jnp.add, total, grad_fn(params, *part, weights)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(grad_fn, params, *first, weights)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    def gradients(
        params: Any, step: jax.Array, batch: Batch, seed: jax.Array
    ) -> tuple[Any, Scalars]:
        dropout_keys_B = dropout_keys(seed, step, jax.tree.leaves(batch)[0].shape[0])
        weights = objective.weights(batch)
        fn = grad_fn if accumulate_steps == 1 else accumulated
        return fn(params, batch, dropout_keys_B, weights)

    def update(state: TrainState, grads: Any, means: Scalars) -> tuple[TrainState, Scalars]:
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        learning_rate = schedule(state.step)
        params = apply_updates(state.params, directions, learning_rate)

        loss = sum(means[name] for name in objective.losses)
        norm = optax.tree.norm(grads)
        average, is_first = state.loss_average, state.loss_average == 0
        accepted = jnp.isfinite(loss) & jnp.isfinite(norm)
        if max_loss_ratio:
            accepted &= is_first | (loss <= max_loss_ratio * average)
        average = jnp.where(is_first, loss, LOSS_MEMORY * average + (1 - LOSS_MEMORY) * loss)
        params, opt_state, average = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.loss_average),
        )
        new_state = TrainState(state.step + 1, params, opt_state, average)
        new_state = jax.lax.with_sharding_constraint(
            new_state, sharding.shardings_of(new_state, mesh)
        )
        return new_state, {
            "loss": loss,
            **means,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(learning_rate, jnp.float32),
            "accepted": accepted.astype(jnp.float32),
        }

    return gradients, update


def compiler_options(mesh: Mesh, by_length: bool = False) -> dict[str, Any]:
    """What XLA is asked for beyond its defaults.

    Args:
      by_length: the program is compiled for each of several lengths; else it is the training step.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        # Moments are updated where they lie, without copies: 1.6 times as fast an update.
        options: dict[str, Any] = {"xla_cpu_copy_insertion_use_region_analysis": True}
        if by_length:
            # A third less work, and programs as fast (docs/performance.md).
            options["xla_cpu_parallel_codegen_split_count"] = 1
            options["xla_backend_optimization_level"] = 1
        return options
    if platform == "tpu" and mesh.shape["fsdp"] > 1:
        # No windowed einsums, which gather parameters piece by piece between small products: whole,
        # they arrive while the layer before computes (docs/performance.md).
        return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}
    return {}


def make_eval_step(objective: Objective, mesh: Mesh) -> OnMesh:
    """The jitted (params, batch) -> (sums, weights), to be added up over batches."""
    return OnMesh(
        jax.jit(
            lambda params, batch: (objective.sums(params, batch, None), objective.weights(batch))
        ),
        mesh,
    )


def evaluate(eval_step: Callable, params: Any, batches: Any, losses: tuple[str, ...]) -> dict:
    """Metrics over all of `batches` as Python floats, `loss` included.

    A metric without anything to count, such as that of pairs in text without them, is left out.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for batch in batches:
        for total, part in zip((sums, weights), eval_step(params, batch), strict=True):
            for name, value in jax.device_get(part).items():
                total[name] = total.get(name, 0.0) + float(value)
    means = {name: sums[name] / weights[name] for name in sums if weights[name]}
    result = {"loss": sum(means[name] for name in losses if name in means), **means}
    if "mlm_loss" in means:
        result["mlm_perplexity"] = math.exp(min(means["mlm_loss"], 100.0))
    return result
