"""Learning-rate schedules, and the optimizers as optax chains.

A chain turns gradients into updates; the step multiplies them by the learning rate, which depends
on the step alone. So moments can be kept or dropped, and a schedule restarted,
without one touching the other.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from bert_jax.cli import UserError
from bert_jax.parallel.sharding import path_of

# No weight decay on biases and LayerNorm (google-research/bert, optimization.py).
NO_DECAY = re.compile(r"(bias|layer_norm/scale)$")
SCHEDULES = ("linear", "polynomial", "cosine", "wsd")
DECAYS_FROM = ("start", "peak")
DECAY_SHAPES = ("linear", "1-sqrt")
OPTIMIZERS = ("adamw", "lamb", "stableadamw", "muon")
# What Muon updates: the encoder's matrices, not embeddings, LayerNorm and heads.
MUON = re.compile(r"/encoder/.*kernel$")
# Muon's updates are as large as AdamW's are found to be, so both bear one learning rate (Liu et al.
# 2025, https://arxiv.org/abs/2502.16982, section 2.2).
MUON_RMS = 0.2


def count_warmup_steps(
    config: ml_collections.ConfigDict, num_steps: int, field: str = "optimizer"
) -> int:
    """`warmup_steps` if they are given, else `warmup_fraction` of `num_steps`.

    Raises:
      UserError: none that leaves a step at the peak.
    """
    steps, fraction = config.warmup_steps, config.warmup_fraction
    if not 0 <= fraction < 1:
        raise UserError(
            f"{field}.warmup_fraction={fraction}, expected at least 0 and less than 1: it is a "
            "share of all steps"
        )
    if steps < 0:
        raise UserError(f"{field}.warmup_steps={steps}, expected at least 0")
    if steps >= num_steps:
        raise UserError(
            f"{field}.warmup_steps={steps} must be less than the {num_steps} steps it is for: "
            f"it would never reach its peak; add '--config.{field}.warmup_steps={num_steps // 10}'"
        )
    return steps or int(fraction * num_steps)


def make_schedule(
    config: ml_collections.ConfigDict, num_steps: int, field: str = "optimizer"
) -> optax.Schedule:
    """Warm-up from 0 to the peak (`count_warmup_steps`), then down to `end_factor` × peak.

    The learning rate of step s (counted from 0) is peak × (s + 1) / warmup_steps while warming up,
    so the first step already moves. After it, by `config.schedule`:

      linear: straight to the end (google-research/bert, optimization.py);
      polynomial: (1 - progress) ** power (LAMB's large batches: 0.5, in NVIDIA's recipe);
      cosine: half a cosine (Loshchilov & Hutter 2017, equation 5, without restarts);
      wsd: the peak until `decay_steps` before the end, then by `decay_shape` (warm-up–stable–
        decay): "linear", or "1-sqrt", 1 - √progress (Hägele et al. 2024,
        https://arxiv.org/abs/2405.18392, section 3).

    The first three make their progress from step 0 with `config.decay_from` "start", as both
    originals do: where the warm-up ends, the rate falls by what has passed of the decay. With
    "peak" they make it from there, as transformers' schedules do.

    Args:
      config: the `optimizer` part of a config.
      num_steps: of the run, or of the phase that it is for.
      field: where `config` stands in the whole config, for messages.

    Raises:
      UserError: an unknown schedule, one that does not fit into `num_steps`, or a negative rate.
    """
    peak, name = config.learning_rate, config.schedule
    warmup = count_warmup_steps(config, num_steps, field)
    if not peak >= 0:
        raise UserError(f"{field}.learning_rate={peak}, expected 0 or more")
    for choice, choices in (
        ("schedule", SCHEDULES),
        ("decay_from", DECAYS_FROM),
        ("decay_shape", DECAY_SHAPES),
    ):
        if config[choice] not in choices:
            raise UserError(
                f"{field}.{choice}={config[choice]!r} is not one of {', '.join(choices)}"
            )
    begin = 0 if config.decay_from == "start" else warmup
    rest, end = num_steps - begin, config.end_factor * peak
    if name == "cosine":
        falling = optax.cosine_decay_schedule(peak, rest, alpha=config.end_factor)
    elif name == "wsd":
        if not 0 < config.decay_steps <= num_steps - warmup:
            raise UserError(
                f"{field}.decay_steps={config.decay_steps} must be from 1 to {num_steps - warmup} "
                "(the steps after the warm-up): it is the length of the decay at the end"
            )
        first = rest - config.decay_steps
        falling = optax.linear_schedule(peak, end, config.decay_steps, transition_begin=first)
        if config.decay_shape == "1-sqrt":

            def falling(step: jax.Array) -> jax.Array:
                progress = jnp.clip((step - first) / config.decay_steps, 0.0, 1.0)
                return peak + (end - peak) * jnp.sqrt(progress)
    else:
        power = config.power if name == "polynomial" else 1.0
        falling = optax.polynomial_schedule(peak, end, power, rest)
    warming = lambda step: peak * (step + 1) / warmup  # noqa: E731
    after = lambda step: falling(step + warmup - begin)  # noqa: E731
    return optax.join_schedules([warming, after], [warmup]) if warmup else after


def decays(path: str) -> bool:
    """Whether weight decay applies to a parameter: to all but biases and LayerNorm's."""
    return NO_DECAY.search(path) is None


def values_of_rules(rules: Sequence[tuple[str, float]], params: Any, default: Any) -> Any:
    """A pytree like `params` with each array's value of a (path regex, value) table.

    Args:
      rules: the first whose regex is found in the path counts, as in sharding.RULES.
      default: of arrays that no rule matches; a value, or a function of the path.

    Raises:
      UserError: a rule is the first match of no array: mistyped, or never reached.
    """
    unused = {pattern for pattern, _ in rules}

    def value(key_path: tuple[Any, ...], _: Any) -> float:
        path = path_of(key_path)
        for pattern, result in rules:
            if re.search(pattern, path):
                unused.discard(pattern)
                return result
        return default(path) if callable(default) else default

    result = jax.tree_util.tree_map_with_path(value, params)
    if unused:
        first = path_of(jax.tree_util.tree_leaves_with_path(params)[0][0])
        raise UserError(
            f"optimizer rule(s) {', '.join(map(repr, sorted(unused)))} apply to no parameter (the "
            f"first match counts); paths look like {first!r}"
        )
    return result


def check_rules(field: str, rules: Any) -> None:
    """Raises UserError unless `rules` are pairs of a regular expression and a number."""
    for rule in rules:
        match rule:
            case [str() as pattern, int() | float()]:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UserError(
                        f"{field}: {pattern!r} is no regular expression: {error}"
                    ) from None
            case _:
                raise UserError(
                    f"{field} has {rule!r} where a pair of a regular expression and a number is "
                    f"""expected: --config.{field}='(("embeddings", 0.5),)'"""
                )


def clip_by_global_norm(clip_norm: float) -> optax.GradientTransformation:
    """Gradients scaled down to this norm, that of all of them together, if theirs is larger.

    By a factor, which XLA merges into what follows. optax's function of this name divides, and the
    quotients are written to memory: a quarter of the update on a CPU.
    """

    def update(grads: Any, state: optax.EmptyState, params: Any = None):
        del params
        factor = clip_norm / jnp.maximum(optax.tree.norm(grads), clip_norm)
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_adam_uncorrected(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction, as BERT was trained (google-research/bert, optimization.py).

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g²;  update = m / (sqrt(v) + eps).
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """LAMB's layer-wise scaling: update × ‖parameter‖ / ‖update‖ (You et al. 2020, algorithm 2).

    Arrays without weight decay are left as they are, as in the authors' code. The layers of a
    scanned encoder lie stacked in one array and each has a ratio of its own, which is why optax's
    function of this name does not do.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any):
        def scaled(key_path: tuple[Any, ...], u: jax.Array, p: jax.Array) -> jax.Array:
            path = path_of(key_path)
            if not decays(path):
                return u
            axes = _axes_of_one(path, u)
            norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))  # noqa: E731
            norm_u, norm_p = norm(u), norm(p)
            return u * jnp.where((norm_u > 0) & (norm_p > 0), norm_p / norm_u, 1.0)

        return jax.tree_util.tree_map_with_path(scaled, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _axes_of_one(path: str, x: jax.Array) -> tuple[int, ...]:
    """The axes of one parameter, of which a scanned encoder has one per layer in an array."""
    return tuple(range(1 if "/layers/" in path else 0, x.ndim))


def _fused(path: str) -> str:
    """The matrix of ModernBERT's code, Wqkv or Wi, that an array is a part of, or the array."""
    path = re.sub(r"(query|key|value)(?=/kernel$)", "Wqkv", path)
    return re.sub(r"(intermediate|gate)(?=/kernel$)", "Wi", path)


def scale_by_stable_adamw(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """StableAdamW, its decay included (Wortsman et al. 2023, https://arxiv.org/abs/2304.13013).

    Algorithm 2: Adam whose step shrinks where the gradient is beyond what its second moment says,
    so no clipping is needed. With b̂ = b (1 - b^(t-1)) / (1 - b^t), or b without bias correction,

      m = b̂1 m + (1-b̂1) g;  v = b̂2 v + (1-b̂2) g²;  r = RMS(g / max(√v, eps)) of each parameter;
      update = (m / (√v + eps) + decay × parameter) / max(1, r).

    Query, key and value count as one parameter, and so do the two halves of a gated feed-forward,
    as they are in ModernBERT's code.
    """
    decay = _add_decayed_weights(config)
    eps = config.eps

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any):
        t = (state.count + 1).astype(jnp.float32)

        def debiased(b: float) -> Any:
            return b * (1 - b ** (t - 1)) / (1 - b**t) if config.bias_correction else b

        b1, b2 = debiased(config.b1), debiased(config.b2)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        updates, _ = decay.update(updates, decay.init(params), params)

        squares: dict[str, list[jax.Array]] = {}  # of each parameter; its arrays have one size
        for (key_path, g), v in zip(
            jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(nu), strict=True
        ):
            path = path_of(key_path)
            square = jnp.mean(g * g / jnp.maximum(v, eps**2), _axes_of_one(path, g), keepdims=True)
            squares.setdefault(_fused(path), []).append(square)

        def stable(key_path: tuple[Any, ...], u: jax.Array) -> jax.Array:
            parts = squares[_fused(path_of(key_path))]
            return u / jnp.maximum(1.0, jnp.sqrt(sum(parts) / len(parts)))

        updates = jax.tree_util.tree_map_with_path(stable, updates)
        return updates, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_muon(
    momentum: float, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Muon on the encoder's matrices, `adam` on all else (Jordan 2024, optax's own).

    An update is the momentum's nearest orthogonal matrix, times MUON_RMS √(the larger dimension),
    which makes MUON_RMS its root mean square. Query, key and value are a matrix each, and so is
    each layer of a scanned encoder.
    """

    def dimensions(updates: Any) -> Any:
        # Of matrices [..., in, out]; leading axes are of several.
        return jax.tree.map(
            lambda x: optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), updates
        )

    def scale(updates: Any, state: optax.EmptyState, params: Any = None):
        del params
        return jax.tree.map(lambda u: u * MUON_RMS * max(u.shape[-2:]) ** 0.5, updates), state

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if MUON.search(path_of(path)) else "adam", params
        )

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions),
        optax.GradientTransformation(lambda _: optax.EmptyState(), scale),
    )
    return optax.partition({"muon": muon, "adam": adam}, labels)


def _add_decayed_weights(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """update + decay × parameter, the decay by the rules, else where it `decays`."""

    def default(path: str) -> float:
        return config.weight_decay if decays(path) else 0.0

    def update(updates: Any, state: optax.EmptyState, params: Any):
        values = values_of_rules(config.weight_decay_rules, params, default)
        return jax.tree.map(lambda u, p, d: u + d * p if d else u, updates, params, values), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _scale_by_rules(rules: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """update × the factor on the learning rate that the rules give an array; 0 freezes it."""

    def update(updates: Any, state: optax.EmptyState, params: Any):
        factors = values_of_rules(rules, params, 1.0)
        return jax.tree.map(
            lambda u, f: u if f == 1 else u * f if f else jnp.zeros_like(u), updates, factors
        ), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def make_optimizer(
    config: ml_collections.ConfigDict, field: str = "optimizer"
) -> optax.GradientTransformation:
    """One of OPTIMIZERS, with decoupled weight decay and clipping at a global norm.

    Args:
      config: the `optimizer` part of a config.
      field: where `config` stands in the whole config, for messages.

    Returns:
      gradients -> updates, to be multiplied by minus the learning rate (see `apply_updates`).

    Raises:
      UserError: an unknown optimizer, a negative norm, or rules that are none.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"{field}.name={config.name!r} is not one of {', '.join(OPTIMIZERS)}")
    if config.clip_norm < 0:
        raise UserError(f"{field}.clip_norm={config.clip_norm}, expected 0 (off) or more")
    for table in ("weight_decay_rules", "learning_rate_rules"):
        check_rules(f"{field}.{table}", config[table])
    if not 0 <= config.momentum < 1:
        raise UserError(f"{field}.momentum={config.momentum}, expected 0 to below 1")
    corrected = optax.scale_by_adam if config.bias_correction else scale_by_adam_uncorrected
    adam = corrected(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name == "muon":
        adam = scale_by_muon(config.momentum, adam)
    if config.name == "stableadamw":
        decayed = scale_by_stable_adamw(config), optax.identity()
    else:
        decayed = adam, _add_decayed_weights(config)
    return optax.chain(
        clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *decayed,
        scale_by_trust_ratio() if config.name == "lamb" else optax.identity(),
        _scale_by_rules(config.learning_rate_rules),
    )


def apply_updates(params: Any, updates: Any, learning_rate: jax.Array) -> Any:
    """Parameters after a step against `updates`."""
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
