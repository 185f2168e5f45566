"""What newer recipes do in a run: batch-size warm-up, mask rates, z-loss, averaged parameters."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from small_run import dying_at, numbers, small_config

from bert_jax import convert
from bert_jax.cli import UserError
from bert_jax.data import input_pipeline
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs
from bert_jax.runs.state import init_state
from bert_jax.training import loop, optimizer, phases, reporting
from bert_jax.training.step import make_train_step


@pytest.fixture
def warming(config) -> ml_collections.ConfigDict:
    """Three batch sizes, and all else of this file."""
    config.update(num_steps=9, eval_every=9, checkpoint_every=2, ema_decay=0.9, z_loss=1e-3)
    config.batch_size_warmup = ((4, 3), (8, 2))
    config.optimizer.update(name="stableadamw", bias_correction=True, clip_norm=0.0)
    return config


def test_batch_size_warm_up_is_phases_of_one_schedule(warming):
    parts = phases.resolve(warming)
    assert [(p.start, p.stop, p.config.batch_size) for p in parts] == [
        (0, 3, 4),
        (3, 5, 8),
        (5, 9, 16),
    ]
    assert {float(part.schedule(6)) for part in parts} == {float(parts[0].schedule(6))}
    warming.phases = ({"num_steps": 6, "reset_moments": True}, {"batch_size": 32})
    parts = phases.resolve(warming)
    assert [(p.stop, p.config.batch_size, p.reset_moments, p.number) for p in parts] == [
        (3, 4, True, 0),
        (5, 8, False, 0),
        (6, 16, False, 0),
        (9, 32, False, 1),
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (((4, 9),), "lasts to step 9, the run to step 9: shorten it"),
        (((4, 3), 8), "has 8 where a batch size and its steps are expected"),
        (((0, 3),), r"has \(0, 3\) where"),
        (((4, 0),), r"has \(4, 0\) where"),
    ],
)
def test_impossible_batch_size_warm_ups_are_refused(warming, stages, message):
    with warming.ignore_type():
        warming.batch_size_warmup = stages
    with pytest.raises(UserError, match=message):
        phases.resolve(warming)


@pytest.mark.slow
@pytest.mark.parametrize("interruption", [2, 4, 8])
def test_a_run_interrupted_in_any_stage_resumes_with_the_same_numbers(
    warming, tmp_path, interruption
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.train_and_evaluate(warming, whole)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reporting.Reporter, "step", dying_at(interruption))
        loop.train_and_evaluate(warming, parts)
    loop.train_and_evaluate(warming, parts)
    assert numbers(parts) == numbers(whole)

    lines = numbers(whole)
    assert all(line["z_loss"] > 0 for line in lines if "loss" in line)
    evaluated = lines[-1]
    assert evaluated["eval_ema_mlm_loss"] != evaluated["eval_mlm_loss"]
    assert evaluated["eval_loss"] == pytest.approx(
        evaluated["eval_mlm_loss"] + evaluated["eval_nsp_loss"], rel=1e-6
    )
    live, average = checkpoint.load(whole), checkpoint.load(parts, ema=True)
    jax.tree.map(lambda x, y: np.testing.assert_(x.shape == y.shape), live.params, average.params)
    assert (live.params["mlm_bias"] != average.params["mlm_bias"]).any()


@pytest.mark.slow
def test_the_average_is_exported(warming, tmp_path):
    loop.train_and_evaluate(warming, tmp_path / "run")
    assert convert.to_hugging_face(tmp_path / "run", tmp_path / "hf", ema=True).verified
    warming.ema_decay = 0.0
    loop.train_and_evaluate(warming, tmp_path / "without")
    with pytest.raises(UserError, match="has no moving average of the parameters"):
        convert.to_hugging_face(tmp_path / "without", tmp_path / "no", ema=True)


def test_the_average_is_numpy_s(config):
    data = input_pipeline.open_data(config.data_dir, "train", config)
    model, mesh = heads.make_model(config), sharding.make_mesh()
    tx = optimizer.make_optimizer(config.optimizer)
    make = lambda key: heads.init_params(model, key)  # noqa: E731
    state = init_state(make, tx, mesh, 0, with_ema=True)
    schedule = optimizer.make_schedule(config.optimizer, config.num_steps)
    step = make_train_step(pretraining_objective(model), tx, schedule, mesh, 0, ema_decay=0.8)
    expected = jax.device_get(state.params)
    for i in range(20):
        state, _ = step(state, data.read(16 * i, 16 * i + 16))
        expected = jax.tree.map(lambda e, p: 0.8 * e + 0.2 * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, expected)


def test_z_loss_has_the_gradient_of_its_formula(config):
    data = input_pipeline.open_data(config.data_dir, "train", config)
    batch, model = data.read(0, 8), heads.make_model(config)
    params = jax.tree.map(lambda x: 3 * x, heads.init_params(model, jax.random.key(0)))
    weights_BM = batch["masked_lm_weights"]

    def with_z_loss(params):
        return pretraining_objective(model, z_loss=0.1).sums(params, batch, None)["z_loss"]

    def formula(params):
        names = ("input_ids", "attention_mask", "token_type_ids", "masked_lm_positions")
        output = model.apply({"params": params}, *(batch[name] for name in names))
        exponentials = jnp.exp(output.mlm_logits_BMV.astype(jnp.float32))
        return 0.1 * jnp.sum(weights_BM * jnp.log(exponentials.sum(-1)) ** 2)

    (found, gradients), (expected, exact) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (with_z_loss, formula)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(exact)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm), gradients, exact)


def test_fixed_masks_have_the_data_set_s_rate(config):
    config.masked_lm_prob = 0.5
    with pytest.raises(
        UserError, match=r"masked_lm_prob=0\.5, but the masks of .* are fixed, 0\.3"
    ):
        input_pipeline.open_data(config.data_dir, "train", config)
    held_out = input_pipeline.open_data(config.data_dir, "validation", config)
    assert held_out.manifest.arguments["masked_lm_prob"] == 0.3


def test_a_phase_may_have_another_base_of_rope(data_dir):
    config = small_config(data_dir, "modernbert")
    config.phases = ({"num_steps": 6, "model": {"global_rope_theta": 10.0}}, {"batch_size": 8})
    first, second = phases.resolve(config)
    assert heads.make_model(first.config).config.global_rope_theta == 10.0
    assert heads.make_model(second.config).config.global_rope_theta == 160_000.0
    thetas = [workdirs.model_at(config, step).global_rope_theta for step in (1, 6, 7, 20)]
    assert thetas == [10.0, 10.0, 160_000.0, 160_000.0]
    config.phases = ({"num_steps": 6, "model": {"hidden_size": 64}}, {})
    with pytest.raises(UserError, match="a phase of this encoder may have global_rope_theta"):
        phases.resolve(config)


@pytest.mark.slow
def test_modernbert_s_stages_are_one_run_interrupted_in_each(data_dir, tmp_path):
    config = small_config(data_dir, "modernbert")
    config.update(num_steps=9, eval_every=9, checkpoint_every=2, keep_checkpoints=9)
    config.batch_size_warmup = ((8, 2),)
    config.optimizer.update(name="stableadamw", bias_correction=True, end_factor=1.0)
    decay = {"schedule": "wsd", "decay_shape": "1-sqrt", "decay_steps": 3, "warmup_steps": 0}
    config.phases = (
        {"num_steps": 4, "model": {"global_rope_theta": 10.0}},
        {"num_steps": 2, "optimizer": {"learning_rate": 3e-4, "warmup_steps": 0}},
        {"optimizer": {"learning_rate": 3e-4, "end_factor": 0.0, **decay}},
    )
    loop.train_and_evaluate(config, tmp_path / "whole")
    for interruption in (1, 3, 5, 8):
        parts = tmp_path / f"{interruption}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(reporting.Reporter, "step", dying_at(interruption))
            loop.train_and_evaluate(config, parts)
        loop.train_and_evaluate(config, parts)
        assert numbers(parts) == numbers(tmp_path / "whole")
    # An export computes as its checkpoint's stage did.
    for step, theta in ((4, 10.0), (9, 160_000.0)):
        report = convert.to_hugging_face(
            tmp_path / "whole" / "checkpoints" / f"{step}", tmp_path / f"hf_{step}"
        )
        assert report.verified
        description = json.loads((tmp_path / f"hf_{step}" / "config.json").read_text())
        assert description["global_rope_theta"] == theta
        assert description["rope_parameters"]["full_attention"]["rope_theta"] == theta
