"""The optimizer against torch, and against the published formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from bert_jax import optimizer, sharding, train
from bert_jax.cli import UserError
from configs import bert_tiny

STEPS, WARMUP = 30, 5


@pytest.fixture
def settings():
    config = bert_tiny.get_config().optimizer
    config.update(learning_rate=0.01, warmup_steps=WARMUP, clip_norm=1e9)
    return config


def problem():
    """Gradients that depend on the parameters: a small least-squares problem."""
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "layer_norm": {"scale": rng.normal(size=3)},
    }
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    return jax.tree.map(np.float32, params), np.float32(x), np.float32(y)


def loss_fn(params, x, y):
    predicted = (x @ params["dense"]["kernel"] + params["dense"]["bias"]) * params["layer_norm"][
        "scale"
    ]
    return ((predicted - y) ** 2).sum()


def run(settings):
    params, x, y = problem()
    tx = optimizer.make_optimizer(settings)
    schedule = optimizer.make_schedule(settings, STEPS)
    state = tx.init(params)
    for step in range(STEPS):
        directions, state = tx.update(jax.grad(loss_fn)(params, x, y), state, params)
        params = optimizer.apply_updates(params, directions, schedule(step))
    return params


def rate(step: int) -> float:
    return 0.01 * min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, expected
    )


def test_with_bias_correction_equals_torch(settings):
    settings.bias_correction = True
    params, x, y = problem()
    leaves = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), params)
    adamw = torch.optim.AdamW(
        [
            {"params": [leaves["dense"]["kernel"]], "weight_decay": 0.01},
            {"params": [leaves["dense"]["bias"], leaves["layer_norm"]["scale"]], "weight_decay": 0},
        ],
        lr=1.0,
        betas=(0.9, 0.999),
        eps=1e-6,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, rate)
    for _ in range(STEPS):
        adamw.zero_grad()
        loss_fn(leaves, torch.tensor(x), torch.tensor(y)).backward()
        adamw.step()
        schedule.step()
    expected = jax.tree.map(lambda t: t.detach().numpy(), leaves)
    assert_close(run(settings), expected)


def test_without_bias_correction_is_the_published_update(settings):
    # google-research/bert, optimization.py: AdamWeightDecayOptimizer.apply_gradients.
    params, x, y = problem()
    m = jax.tree.map(np.zeros_like, params)
    v = jax.tree.map(np.zeros_like, params)
    for step in range(STEPS):
        grads = jax.grad(loss_fn)(params, x, y)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        update = jax.tree.map(lambda m, v: m / (np.sqrt(v) + 1e-6), m, v)
        update["dense"]["kernel"] = update["dense"]["kernel"] + 0.01 * params["dense"]["kernel"]
        update = jax.tree.map(lambda u: rate(step) * u, update)  # noqa: B023  (used at once)
        params = jax.tree.map(np.subtract, params, update)
    assert_close(run(settings), params)


def test_lamb_is_algorithm_2_of_the_paper(settings):
    # You et al. 2020, algorithm 2, with the identity for φ; biases and LayerNorm without ratio, as
    # in the authors' code.
    settings.update(name="lamb", bias_correction=True, clip_norm=0.5)
    params, x, y = problem()
    m = jax.tree.map(np.zeros_like, params)
    v = jax.tree.map(np.zeros_like, params)
    for step in range(STEPS):
        grads = jax.tree.map(np.asarray, jax.grad(loss_fn)(params, x, y))
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * min(1.0, 0.5 / norm), grads)  # noqa: B023
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        t = step + 1
        update = jax.tree.map(
            lambda m, v: (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6),  # noqa: B023
            m,
            v,
        )
        kernel = params["dense"]["kernel"]
        update["dense"]["kernel"] = update["dense"]["kernel"] + 0.01 * kernel
        update["dense"]["kernel"] *= np.linalg.norm(kernel) / np.linalg.norm(
            update["dense"]["kernel"]
        )
        update = jax.tree.map(lambda u: rate(step) * u, update)  # noqa: B023
        params = jax.tree.map(np.subtract, params, update)
    assert_close(run(settings), params)


def test_lamb_gives_each_stacked_layer_a_ratio_of_its_own():
    rng = np.random.default_rng(0)
    params, updates = (
        {f"layer_{i}": {"kernel": np.float32(rng.normal(scale=i + 1, size=(3, 4)))} for i in (0, 1)}
        for _ in range(2)
    )
    stack = lambda tree: {  # noqa: E731
        "encoder": {"layers": {"kernel": np.stack([x["kernel"] for x in tree.values()])}}
    }
    tx = optimizer.scale_by_trust_ratio()
    alone, _ = tx.update(updates, tx.init(params), params)
    stacked, _ = tx.update(stack(updates), tx.init(None), stack(params))
    assert_close(stacked, stack(alone))
    for i, layer in enumerate(alone.values()):
        wanted = np.linalg.norm(params[f"layer_{i}"]["kernel"])
        assert float(jnp.linalg.norm(layer["kernel"])) == pytest.approx(wanted, rel=1e-5)


def test_rules_set_decay_and_learning_rate_of_what_they_match(settings):
    settings.update(bias_correction=True, weight_decay=0.0)
    plain = run(settings)
    settings.weight_decay_rules = (("dense/bias", 0.1),)
    settings.learning_rate_rules = (("dense/kernel", 0.0), ("dense", 0.5))
    ruled = run(settings)
    start, x, y = problem()
    np.testing.assert_array_equal(ruled["dense"]["kernel"], start["dense"]["kernel"])
    # One step, by hand: half the learning rate on the bias (the first match), and its decay.
    tx = optimizer.make_optimizer(settings)
    grads = jax.grad(loss_fn)(start, x, y)
    directions, _ = tx.update(grads, tx.init(start), start)
    sign = np.sign(grads["dense"]["bias"])  # Adam's first step
    expected = 0.5 * (sign + 0.1 * start["dense"]["bias"])
    np.testing.assert_allclose(directions["dense"]["bias"], expected, rtol=1e-4)
    assert not np.allclose(ruled["layer_norm"]["scale"], plain["layer_norm"]["scale"])
    for rules in ((("dense/bia$", 0.5),), (("dense", 0.5), ("dense/bias", 0.1))):
        settings.learning_rate_rules = rules  # mistyped; never reached
        with pytest.raises(UserError, match=r"'dense/bia.' apply to no parameter"):
            run(settings)


def test_decay_leaves_biases_and_layer_norms_out():
    model = train.make_model(bert_tiny.get_config())
    shapes = jax.eval_shape(lambda key: train.init_params(model, key), jax.random.key(0))
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: optimizer.decays(sharding.path_of(path)), shapes
    )
    layer = mask["bert"]["encoder"]["layer_0"]
    assert layer["attention"]["query"] == {"kernel": True, "bias": False}
    assert layer["output_layer_norm"] == {"scale": False, "bias": False}
    assert mask["bert"]["embeddings"]["word_embeddings"]["embedding"]
    assert not mask["mlm_bias"] and not mask["mlm_layer_norm"]["scale"]
    matrices = jax.tree.map(lambda leaf: len(leaf.shape) > 1, shapes)
    assert mask == matrices


def test_schedule_rises_and_falls(settings):
    schedule = optimizer.make_schedule(settings, STEPS)
    steps = np.arange(STEPS)
    np.testing.assert_allclose(
        [float(schedule(s)) for s in steps], [rate(s) for s in steps], rtol=1e-6
    )
    assert float(schedule(jnp.int32(STEPS))) == 0


@pytest.mark.parametrize(
    "fields, formula",
    [
        ({"schedule": "polynomial", "power": 0.5}, lambda left: left**0.5),
        ({"schedule": "cosine"}, lambda left: 0.5 * (1 + np.cos(np.pi * (1 - left)))),
        ({"schedule": "wsd", "decay_steps": 10}, lambda left: np.minimum(1, left * 25 / 10)),
        ({"schedule": "linear"}, lambda left: left),
    ],
)
@pytest.mark.parametrize("end_factor", [0.0, 0.02])
def test_schedules_follow_their_formulas(settings, fields, formula, end_factor):
    settings.update(end_factor=end_factor, **fields)
    schedule = optimizer.make_schedule(settings, STEPS)
    steps = np.arange(STEPS + 1)
    left = (STEPS - steps) / (STEPS - WARMUP)
    falling = end_factor + (1 - end_factor) * formula(left)
    expected = 0.01 * np.where(steps < WARMUP, (steps + 1) / WARMUP, falling)
    np.testing.assert_allclose([float(schedule(s)) for s in steps], expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup_steps": -1}, "warmup_steps=-1, expected at least 0"),
        ({"schedule": "exponential"}, "is not one of linear, polynomial, cosine, wsd"),
        ({"schedule": "wsd"}, "decay_steps=0 must be from 1 to 25"),
        ({"schedule": "wsd", "decay_steps": 26}, "decay_steps=26 must be from 1 to 25"),
    ],
)
def test_impossible_schedules_are_refused(settings, fields, message):
    settings.update(**fields)
    with pytest.raises(UserError, match=message):
        optimizer.make_schedule(settings, STEPS)


def test_unknown_optimizer_is_refused(settings):
    settings.name = "adamax"
    with pytest.raises(UserError, match="'adamax' is not one of adamw, lamb"):
        optimizer.make_optimizer(settings)


def test_clips_at_the_global_norm(settings):
    settings.update(clip_norm=0.5, bias_correction=True, b1=0.0, b2=0.0, eps=1e3, weight_decay=0.0)
    # With b1 = b2 = 0 and a large eps the update is the (clipped) gradient / eps.
    params, x, y = problem()
    tx = optimizer.make_optimizer(settings)
    grads = jax.grad(loss_fn)(params, x, y)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert float(optax.tree.norm(grads)) > 1
    np.testing.assert_allclose(float(optax.tree.norm(updates)) * 1e3, 0.5, rtol=1e-2)


def test_warmup_longer_than_the_run_is_refused(settings):
    with pytest.raises(UserError, match="warmup_steps=5 must be less than the 5 steps"):
        optimizer.make_schedule(settings, WARMUP)
