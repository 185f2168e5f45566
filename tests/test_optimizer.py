"""The optimizer against torch, and against the published formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from bert_jax import optimizer, train
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


def test_decay_leaves_biases_and_layer_norms_out():
    model = train.make_model(bert_tiny.get_config())
    shapes = jax.eval_shape(lambda key: train.init_params(model, key), jax.random.key(0))
    mask = optimizer.decay_mask(shapes)
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
