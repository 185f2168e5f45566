"""The step: it learns, bad batches change nothing, the mesh does not change the numbers."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import ROOT, make_data_dir, overrides, small_config

from bert_jax.data import input_pipeline, placing
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.parallel.programs import compile_together
from bert_jax.runs.state import init_state
from bert_jax.training import optimizer
from bert_jax.training.step import StepByLength, make_train_step

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"


def test_loss_on_one_batch_falls_to_near_zero(config):
    config.optimizer.update(learning_rate=2e-3, warmup_steps=5, bias_correction=True)
    config.model.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.model.update(hidden_size=128, intermediate_size=512)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    mesh = sharding.make_mesh()
    model = heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)
    state = init_state(lambda key: heads.init_params(model, key), tx, mesh, 0)
    schedule = optimizer.make_schedule(config.optimizer, 200)
    step = make_train_step(pretraining_objective(model), tx, schedule, mesh, 0)
    batch = placing.to_devices(data.read(0, 16), mesh, 16)
    losses = []
    for _ in range(50):
        state, values = step(state, batch)
        losses.append(float(values["loss"]))
    assert losses[0] == pytest.approx(np.log(100) + np.log(2), abs=0.2)  # guessing
    assert losses[-1] < 0.1


def make_step(config, max_loss_ratio=0.0):
    """A state, the step, and numpy batches by number."""
    mesh = sharding.make_mesh()
    data = input_pipeline.open_data(config.data_dir, "train", config)
    model = heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)
    state = init_state(lambda key: heads.init_params(model, key), tx, mesh, 0)
    schedule = optimizer.make_schedule(config.optimizer, config.num_steps)
    objective = pretraining_objective(model)
    step = make_train_step(objective, tx, schedule, mesh, 0, max_loss_ratio=max_loss_ratio)
    return state, step, lambda n: data.read(16 * n, 16 * n + 16)


def test_batch_with_an_infinite_loss_changes_nothing_but_the_position(config):
    state, step, batch = make_step(config)
    state, _ = step(state, batch(0))
    before = jax.device_get(state)
    poisoned = batch(1)
    poisoned["masked_lm_weights"][3, 0] = np.inf
    state, values = step(state, poisoned)
    assert not np.isfinite(values["loss"]) and values["accepted"] == 0
    after = jax.device_get(state)
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=0), before.replace(step=0))
    _, values = step(state, batch(2))
    assert np.isfinite(values["loss"]) and values["accepted"] == 1


@pytest.mark.slow
def test_the_step_by_length_is_the_same_step(config):
    mesh, model = sharding.make_mesh(), heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)
    settings = (
        pretraining_objective(model),
        tx,
        optimizer.make_schedule(config.optimizer, 20),
        mesh,
        7,
    )
    data = input_pipeline.open_data(config.data_dir, "train", config)
    batches = [placing.to_devices(data.read(0, size), mesh, size) for size in (16, 8)]
    results = []
    by_length = StepByLength(*settings)
    for step in (make_train_step(*settings), by_length):
        state = init_state(lambda key: heads.init_params(model, key), tx, mesh, 0)
        if step is by_length:  # of the second batch alone: the first is compiled when it comes
            arguments = by_length.gradient_arguments(state, batches[1])
            compile_together([(by_length.gradients, arguments)])
        for batch in (*batches, *batches):
            state, values = step(state, batch)
        results.append((state, values))
    assert len(by_length.gradients.programs) == 1 and float(results[0][1]["loss"]) > 1
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), *results)


def test_seeds_share_a_program_and_draw_differently(config):
    mesh, model = sharding.make_mesh(), heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)
    schedule = optimizer.make_schedule(config.optimizer, 20)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    batch = placing.to_devices(data.read(0, 16), mesh, 16)
    texts, losses = set(), set()
    for seed in (0, 1, 2**40 + 1):  # JAX takes the lower 32 bits of a seed
        state = init_state(lambda key: heads.init_params(model, key), tx, mesh, 0)
        step = make_train_step(pretraining_objective(model), tx, schedule, mesh, seed)
        texts.add(step.lower(state, batch).as_text())
        losses.add(float(step(state, batch)[1]["loss"]))
    assert len(texts) == 1 and len(losses) == 2


def test_spike_is_measured_against_the_moving_average(config):
    state, step, batch = make_step(config, max_loss_ratio=1.5)
    state, values = step(state, batch(0))
    assert values["accepted"] == 1
    average = float(values["loss"])
    assert float(state.loss_average) == pytest.approx(average)
    state, values = step(state, batch(1))
    average = 0.99 * average + 0.01 * float(values["loss"])
    assert float(state.loss_average) == pytest.approx(average, rel=1e-6)
    # An average far below the loss makes the next one a spike, which must not raise the average.
    low = state.replace(loss_average=jnp.float32(1.0))
    low, values = step(low, batch(2))
    assert values["accepted"] == 0 and float(low.loss_average) == 1.0


@pytest.mark.parametrize(
    ("encoder", "variants"),
    [
        ("bert", "quick"),
        *(
            pytest.param(encoder, variants, marks=pytest.mark.slow)
            for encoder in ("bert", "roberta", "modernbert")
            for variants in ("packed", "all")
        ),
    ],
)
def test_mesh_scan_remat_and_accumulation_do_not_change_the_losses(
    encoder, variants, data_dir, tmp_path
):
    """Dropout on; the script prints the losses of each variant on 8 virtual devices."""
    config = small_config(data_dir, encoder)
    if variants == "packed":
        config.data_dir = str(make_data_dir(tmp_path, {"train": [150, 100, 70]}, shortest=8))
        config.packing = 4
    recipe = "bert_tiny" if encoder == "bert" else f"{encoder}_base"
    script = pathlib.Path(__file__).with_name("mesh_losses.py")
    result = subprocess.run(
        [sys.executable, script, recipe, variants, *overrides(config)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT_DEVICES}"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    losses = json.loads(result.stdout)
    reference = losses.pop("1x1x1")
    assert len(set(reference)) == 20
    # ModernBERT has no scanned layers.
    skipped = {"packed": 1, "all": 2}[variants] if encoder == "modernbert" else 0
    assert len(losses) == {"quick": 1, "packed": 1, "all": 17}[variants] - skipped
    for variant, values in losses.items():
        own = variant.split()[-1]
        expected = losses.get(f"1x1x1 {own}", reference)
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=variant)


def test_bfloat16_stays_near_float32(config):
    model = heads.make_model(config)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    batch = data.read(0, 16)
    params = heads.init_params(model, jax.random.key(0))
    half = type(model)(dataclasses.replace(model.config, dtype="bfloat16"))
    losses = []
    for m in (model, half):
        objective = pretraining_objective(m)
        sums = objective.sums(params, batch, None)
        weights = objective.weights(batch)
        losses.append(sum(float(sums[n] / weights[n]) for n in objective.losses))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
