"""The optimizer against torch, and against the published formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers

from bert_jax.cli import UserError
from bert_jax.models import heads
from bert_jax.parallel import sharding
from bert_jax.training import optimizer, phases
from configs import bert_base, bert_large_lamb, bert_tiny

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
        updates, state = tx.update(jax.grad(loss_fn)(params, x, y), state, params)
        params = optimizer.apply_updates(params, updates, schedule(step))
    return params


def rate(step: int) -> float:
    # google-research/bert, optimization.py: the decay counts from step 0.
    return 0.01 * ((step + 1) / WARMUP if step < WARMUP else 1 - step / STEPS)


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, expected
    )


def test_with_bias_correction_equals_torch(settings):
    torch = pytest.importorskip("torch")
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


def test_stable_adamw_is_algorithm_2_of_the_paper(settings):
    # Wortsman et al. 2023, algorithm 2, with debiased betas; decoupled decay, of the clipped rate.
    settings.update(name="stableadamw", bias_correction=True, b2=0.98, clip_norm=0.0)
    params, x, y = problem()
    m, v = (jax.tree.map(lambda p: np.zeros(p.shape), params) for _ in range(2))
    expected = jax.tree.map(np.float64, params)
    tx, schedule = optimizer.make_optimizer(settings), optimizer.make_schedule(settings, STEPS)
    state = tx.init(params)
    clipped = 0
    for step in range(STEPS):
        spike = 10 if step in (7, 15) else 1
        grads = jax.tree.map(lambda g: spike * np.asarray(g), jax.grad(loss_fn)(params, x, y))  # noqa: B023
        updates, state = tx.update(grads, state, params)
        params = optimizer.apply_updates(params, updates, schedule(step))
        t = step + 1
        for path in (("dense", "kernel"), ("dense", "bias"), ("layer_norm", "scale")):
            g, p, mean, second = (tree[path[0]][path[1]] for tree in (grads, expected, m, v))
            b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.9, 0.98))
            mean = m[path[0]][path[1]] = b1 * mean + (1 - b1) * g
            second = v[path[0]][path[1]] = b2 * second + (1 - b2) * g**2
            rms = np.sqrt(np.mean(g**2 / np.maximum(second, 1e-12)))
            clipped += rms > 1
            learning_rate = rate(step) / max(1, rms)
            decay = 0.01 if path[1] == "kernel" else 0.0
            p = p - learning_rate * decay * p
            expected[path[0]][path[1]] = p - learning_rate * mean / (np.sqrt(second) + 1e-6)
    assert 6 <= clipped < STEPS  # the spikes, of all three parameters
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)


def test_stable_adamw_takes_the_parts_of_a_fused_matrix_together(settings):
    settings.update(name="stableadamw", bias_correction=True, weight_decay=0.0, clip_norm=0.0)
    rng = np.random.default_rng(0)
    parts = ("query", "key", "value")
    grads = {name: rng.normal(0, i + 1, (4, 3)) for i, name in enumerate(parts)}
    tx = optimizer.make_optimizer(settings)

    def updates(tree):
        state = tx.init(jax.tree.map(np.zeros_like, tree))
        for scale in (1.0, 9.0):  # the second gradient is clipped
            result, state = tx.update(jax.tree.map(lambda g: scale * g, tree), state, tree)  # noqa: B023
        return result

    apart = updates({name: {"kernel": g} for name, g in grads.items()})
    whole = updates({"dense": {"kernel": np.concatenate([*grads.values()], 1)}})
    joined = np.concatenate([apart[name]["kernel"] for name in parts], 1)
    np.testing.assert_allclose(joined, whole["dense"]["kernel"], rtol=1e-6)


def test_muon_orthogonalises_the_encoder_s_matrices_and_leaves_the_rest_to_adamw(settings):
    # Jordan 2024: momentum with Nesterov, five Newton-Schulz steps; Liu et al. 2025: its RMS 0.2.
    settings.update(name="muon", bias_correction=True, weight_decay=0.1, clip_norm=0.0)
    inner, x, y = problem()
    expected = jax.tree.map(np.float64, inner)
    params = {"bert": {"encoder": inner}}
    tx, schedule = optimizer.make_optimizer(settings), optimizer.make_schedule(settings, STEPS)
    state = tx.init(params)
    assert "muon" in str(jax.tree_util.tree_structure(state))
    momentum = np.zeros((4, 3))
    adam = {path: [0.0, 0.0] for path in (("dense", "bias"), ("layer_norm", "scale"))}
    for step in range(20):
        grads = jax.tree.map(np.asarray, jax.grad(loss_fn)(params["bert"]["encoder"], x, y))
        updates, state = tx.update({"bert": {"encoder": grads}}, state, params)
        params = optimizer.apply_updates(params, updates, schedule(step))

        t, learning_rate = step + 1, rate(step)
        momentum = 0.95 * momentum + 0.05 * grads["dense"]["kernel"]
        ahead = 0.95 * momentum / (1 - 0.95 ** (t + 1))
        ahead = ahead + 0.05 * grads["dense"]["kernel"] / (1 - 0.95**t)
        u = ahead.T / (np.linalg.norm(ahead) + 1e-8)  # the shorter side first
        for _ in range(5):
            a = u @ u.T
            u = 3.4445 * u + (-4.775 * a + 2.0315 * a @ a) @ u
        kernel = expected["dense"]["kernel"]
        step_of_kernel = 0.2 * 2 * u.T + 0.1 * kernel  # √4, the larger dimension
        expected["dense"]["kernel"] = kernel - learning_rate * step_of_kernel
        for path, (m, v) in adam.items():
            g = grads[path[0]][path[1]]
            m, v = adam[path] = [0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2]
            update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
            expected[path[0]][path[1]] = expected[path[0]][path[1]] - learning_rate * update
        assert_close(params["bert"]["encoder"], expected)


def test_muon_takes_matrices_of_the_encoder_alone_and_each_scanned_layer_for_itself(settings):
    settings.update(name="muon")
    model = heads.make_model(bert_tiny.get_config())
    shapes = jax.eval_shape(lambda key: heads.init_params(model, key), jax.random.key(0))
    paths = [sharding.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    taken = [path for path in paths if optimizer.MUON.search(path)]
    assert len(taken) == 2 * 6 and all("/encoder/layer_" in path for path in taken)
    rng = np.random.default_rng(0)
    grads = {f"layer_{i}": {"kernel": np.float32(rng.normal(size=(3, 4)))} for i in (0, 1)}
    stacked = {"layers": {"kernel": np.stack([g["kernel"] for g in grads.values()])}}
    alone, together = ({"bert": {"encoder": tree}} for tree in (grads, stacked))
    tx = optimizer.make_optimizer(settings)
    alone, _ = tx.update(alone, tx.init(alone), alone)
    together, _ = tx.update(together, tx.init(together), together)
    for i, layer in enumerate(together["bert"]["encoder"]["layers"]["kernel"]):
        wanted = alone["bert"]["encoder"][f"layer_{i}"]["kernel"]
        np.testing.assert_allclose(layer, wanted, atol=1e-6)


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
    updates, _ = tx.update(grads, tx.init(start), start)
    sign = np.sign(grads["dense"]["bias"])  # Adam's first step
    expected = 0.5 * (sign + 0.1 * start["dense"]["bias"])
    np.testing.assert_allclose(updates["dense"]["bias"], expected, rtol=1e-4)
    assert not np.allclose(ruled["layer_norm"]["scale"], plain["layer_norm"]["scale"])
    for rules in ((("dense/bia$", 0.5),), (("dense", 0.5), ("dense/bias", 0.1))):
        settings.learning_rate_rules = rules  # mistyped; never reached
        with pytest.raises(UserError, match=r"'dense/bia.' apply to no parameter"):
            run(settings)


def test_decay_leaves_biases_and_layer_norms_out():
    model = heads.make_model(bert_tiny.get_config())
    shapes = jax.eval_shape(lambda key: heads.init_params(model, key), jax.random.key(0))
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
        ({"schedule": "wsd", "decay_steps": 10}, None),
        ({"schedule": "wsd", "decay_steps": 10, "decay_shape": "1-sqrt"}, None),
        ({"schedule": "linear"}, lambda left: left),
    ],
)
@pytest.mark.parametrize("end_factor", [0.0, 0.02])
@pytest.mark.parametrize("decay_from", ["start", "peak"])
def test_schedules_follow_their_formulas(settings, fields, formula, end_factor, decay_from):
    settings.update(end_factor=end_factor, decay_from=decay_from, **fields)
    schedule = optimizer.make_schedule(settings, STEPS)
    steps = np.arange(STEPS + 1)
    length = STEPS if decay_from == "start" else STEPS - WARMUP
    left = (STEPS - steps) / length
    # wsd has no formula of the progress: its last 10 steps, whatever went before.
    last_10 = np.minimum(1, (STEPS - steps) / 10)
    if fields.get("decay_shape") == "1-sqrt":
        last_10 = 1 - np.sqrt(1 - last_10)
    share = formula(left) if formula else last_10
    falling = end_factor + (1 - end_factor) * share
    expected = 0.01 * np.where(steps < WARMUP, (steps + 1) / WARMUP, falling)
    np.testing.assert_allclose([float(schedule(s)) for s in steps], expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("linear", transformers.get_linear_schedule_with_warmup),
        ("cosine", transformers.get_cosine_schedule_with_warmup),
    ],
)
def test_decay_from_the_peak_is_that_of_transformers(settings, schedule, theirs):
    torch = pytest.importorskip("torch")
    settings.update(schedule=schedule, decay_from="peak")
    ours = optimizer.make_schedule(settings, STEPS)
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = theirs(sgd, WARMUP, STEPS)
    for step in range(STEPS):
        if step >= WARMUP:  # whose first step is one of rate 0
            assert float(ours(step)) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-4)
        sgd.step()
        scheduler.step()


def test_nvidia_s_phases_have_the_rates_of_its_scheduler():
    # DeepLearningExamples, schedulers.py, PolyWarmUpScheduler: progress counts from step 0 of the
    # phase, warm-up or not.
    first, second = phases.resolve(bert_large_lamb.get_config())
    for phase, peak, warmup in ((first, 6e-3, 2000), (second, 4e-3, 200)):
        length = phase.stop - phase.start
        for step in (warmup, length // 2, length - 1):
            expected = peak * (1 - step / length) ** 0.5
            assert float(phase.schedule(phase.start + step)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup_steps": -1}, "warmup_steps=-1, expected at least 0"),
        ({"learning_rate": -1e-4}, r"optimizer\.learning_rate=-0\.0001, expected 0 or more"),
        ({"schedule": "exponential"}, "is not one of linear, polynomial, cosine, wsd"),
        ({"decay_from": "end"}, "optimizer.decay_from='end' is not one of start, peak"),
        ({"decay_shape": "sqrt"}, "optimizer.decay_shape='sqrt' is not one of linear, 1-sqrt"),
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
    with pytest.raises(UserError, match="'adamax' is not one of adamw, lamb, stableadamw"):
        optimizer.make_optimizer(settings)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clip_norm", -1.0, "clip_norm=-1.0, expected 0 .off. or more"),
        # One pair of parentheses too few.
        ("learning_rate_rules", ("embeddings", 0.0), "has 'embeddings' where a pair"),
        ("weight_decay_rules", ((0.1, "bias"),), r"weight_decay_rules has \(0.1, 'bias'\) where"),
        ("learning_rate_rules", (("layer_(0", 0.5),), "'layer_.0' is no regular expression"),
    ],
)
def test_impossible_settings_are_refused(settings, field, value, message):
    with settings.ignore_type():
        settings[field] = value
    with pytest.raises(UserError, match=message):
        optimizer.make_optimizer(settings)


def test_a_clip_norm_of_0_clips_nothing(settings):
    clipped = run(settings)  # at a norm that nothing reaches
    settings.clip_norm = 0.0
    assert_close(run(settings), clipped)


def test_a_phase_s_own_warmup_is_named():
    config = bert_large_lamb.get_config()
    config.num_steps = 300
    config.phases[0].num_steps = 200
    config.optimizer.warmup_steps = 30
    flag = r"add '--config\.phases\[1\]\.optimizer\.warmup_steps=10'"
    with pytest.raises(UserError, match=flag):
        phases.resolve(config)


@pytest.mark.parametrize("form", ["", "laptop"])
def test_the_first_phase_of_lamb_has_the_run_s_settings(form):
    config = bert_large_lamb.get_config(form)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10
    first, second = phases.resolve(config)
    assert float(first.schedule(9)) == pytest.approx(1e-3)
    last = float(first.schedule(first.stop - 1))
    assert last == pytest.approx(1e-3 / first.stop**0.5, rel=1e-3)  # over the phase, not the run
    peak = second.start + second.config.optimizer.warmup_steps - 1
    assert float(second.schedule(peak)) == pytest.approx(4e-3)


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


def test_warm_up_as_a_share_follows_the_run_s_length(settings):
    settings.update(warmup_steps=0, warmup_fraction=0.1)
    for num_steps, warmup in ((1_000, 100), (40, 4), (9, 0)):
        schedule = optimizer.make_schedule(settings, num_steps)
        peak = max(warmup - 1, 0)
        assert float(schedule(peak)) == pytest.approx(settings.learning_rate, rel=1e-6)
        assert peak == 0 or float(schedule(peak - 1)) < settings.learning_rate
    settings.warmup_steps = 3  # given, it counts
    assert optimizer.count_warmup_steps(settings, 1_000) == 3
    assert optimizer.count_warmup_steps(bert_base.get_config().optimizer, 1_000_000) == 10_000
    settings.update(warmup_steps=0, warmup_fraction=1.5)
    with pytest.raises(
        UserError, match=r"warmup_fraction=1\.5, expected at least 0 and less than 1"
    ):
        optimizer.make_schedule(settings, 10)


def test_a_phase_s_own_share_counts_whatever_the_run_s_steps():
    config = bert_large_lamb.get_config()
    config.phases[1].optimizer = {"warmup_fraction": 0.5}
    _, second = phases.resolve(config)
    peak = second.start + (second.stop - second.start) // 2 - 1
    assert float(second.schedule(peak)) == pytest.approx(6e-3, rel=1e-3)
