"""The step and the loop: it learns, it resumes exactly, the mesh does not change the numbers."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_run import ROOT, overrides, run_command

from bert_jax import checkpoint, input_pipeline, metrics, optimizer, sharding, train
from bert_jax.cli import UserError
from bert_jax.models import bert

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"


def numbers(workdir, without=("sequences_per_second", "tokens_per_second")):
    """The figures of metrics.jsonl that do not depend on the clock."""
    return [
        {name: value for name, value in line.items() if name not in without}
        for line in metrics.read(workdir)
    ]


def test_metrics_have_the_names_of_the_contract(config, tmp_path):
    last = train.train_and_evaluate(config, tmp_path)
    lines = metrics.read(tmp_path)
    training = [line for line in lines if "loss" in line]
    evaluation = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 21))
    assert [line["step"] for line in evaluation] == [10, 20]
    names = {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    assert set(training[0]) == names | {
        "step",
        "learning_rate",
        "gradient_norm",
        "sequences_per_second",
        "tokens_per_second",
    }
    assert set(evaluation[0]) == {f"eval_{name}" for name in names} | {"step"}
    assert last == {k: v for k, v in evaluation[-1].items() if k != "step"}
    for line in training:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"])
    assert (tmp_path / "checkpoints" / "20").is_dir()
    assert json.loads((tmp_path / "config.json").read_text())["model"]["hidden_size"] == 32


def test_loss_on_one_batch_falls_to_near_zero(config):
    config.optimizer.update(learning_rate=2e-3, warmup_steps=5, bias_correction=True)
    config.model.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.model.update(hidden_size=128, intermediate_size=512)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    mesh = sharding.make_mesh()
    model = train.make_model(config)
    tx, _ = optimizer.make_optimizer(config.optimizer, 200)
    state = train.init_state(lambda key: train.init_params(model, key), tx, mesh, 0)
    step = train.make_train_step(train.pretraining_objective(model), tx, mesh, 0)
    batch = input_pipeline.to_devices(data.read(0, 16), mesh, 16)
    losses = []
    for _ in range(50):
        state, values = step(state, batch)
        losses.append(float(values["loss"]))
    assert losses[0] == pytest.approx(np.log(100) + np.log(2), abs=0.2)  # guessing
    assert losses[-1] < 0.1


def test_resumed_run_equals_the_uninterrupted_one(config, tmp_path):
    train.train_and_evaluate(config, tmp_path / "whole")
    # The interruption: the loop dies at step 13, after the checkpoint of step 10.
    step = train.make_train_step

    def dying(*args, **kwargs):
        inner = step(*args, **kwargs)

        def run(state, batch):
            if int(state.step) == 13:
                raise KeyboardInterrupt
            return inner(state, batch)

        return run

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "make_train_step", dying)
        train.train_and_evaluate(config, tmp_path / "parts")
    train.train_and_evaluate(config, tmp_path / "parts")
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_process_goes_on_with_the_same_numbers(config, tmp_path):
    config.update(num_steps=200, eval_every=0, checkpoint_every=5)
    flags = ["--config=configs/bert_tiny.py:laptop", *overrides(config)]
    command = ["bert_jax.pretrain", *flags]
    assert run_command(*command, f"--workdir={tmp_path / 'whole'}").returncode == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", *command, f"--workdir={killed}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    saved = lambda: [p for p in (killed / "checkpoints").glob("*") if p.name.isdigit()]  # noqa: E731
    wait_for(saved, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = run_command(*command, f"--workdir={killed}")
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stderr
    assert numbers(killed) == numbers(tmp_path / "whole")
    done = run_command(*command, f"--workdir={killed}")
    assert done.returncode == 0 and "trained to the end already" in done.stderr


@pytest.mark.parametrize("variants", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_mesh_scan_remat_and_accumulation_do_not_change_the_losses(config, variants):
    """Dropout on; the script prints the losses of each variant on 8 virtual devices."""
    script = pathlib.Path(__file__).with_name("mesh_losses.py")
    result = subprocess.run(
        [sys.executable, script, variants, *overrides(config)],
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
    assert len(losses) == {"quick": 3, "all": 9}[variants]
    for variant, values in losses.items():
        np.testing.assert_allclose(values, reference, rtol=1e-5, err_msg=variant)


@pytest.mark.parametrize("rng", ["threefry", "hash"])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rng):
    x = np.ones((64, 33, 40), np.float32)
    keys = train.dropout_keys(0, np.int32(3), 64)
    y = np.asarray(bert.dropout(x, keys, 0.1, site=5, rng=rng))
    dropped = (y == 0).mean()
    assert abs(dropped - 0.1) < 4 * np.sqrt(0.09 / x.size)  # four standard errors
    assert np.unique(y).size == 2 and y.max() == pytest.approx(1 / 0.9, rel=1e-4)
    for other in (
        bert.dropout(x, keys, 0.1, site=6, rng=rng),
        bert.dropout(x, train.dropout_keys(0, np.int32(4), 64), 0.1, site=5, rng=rng),
        bert.dropout(x, train.dropout_keys(1, np.int32(3), 64), 0.1, site=5, rng=rng),
    ):
        agree = (np.asarray(other) == y).mean()
        assert abs(agree - 0.82) < 0.01  # independent draws agree with 0.9² + 0.1²
    np.testing.assert_array_equal(bert.dropout(x, None, 0.1, site=5, rng=rng), x)


@pytest.mark.parametrize("rng", ["threefry", "hash"])
def test_dropout_s_draws_are_independent(rng):
    keys = train.dropout_keys(0, np.int32(3), 64)
    dropped = np.asarray(bert.dropout(np.ones((64, 12, 128, 128)), keys, 0.1, 5, rng)) == 0
    x = (dropped - 0.1) / 0.3  # mean 0, variance 1
    pairs = {f"{lag} along axis 3": x[..., lag:] * x[..., :-lag] for lag in (1, 2, 3, 13, 55)}
    pairs |= {f"1 along axis {axis}": np.diff(x, axis=axis) ** 2 / 2 - 1 for axis in (0, 1, 2)}
    pairs["three in a row"] = x[..., 2:] * x[..., 1:-1] * x[..., :-2]
    for name, products in pairs.items():
        z = products.mean() / products.std() * np.sqrt(products.size)
        assert abs(z) < 4.5, name  # standard errors
    # Sums over rows spread as those of independent draws do.
    assert x.sum(3).var() / 128 == pytest.approx(1, abs=0.03)


def test_bfloat16_stays_near_float32(config):
    model = train.make_model(config)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    batch = data.read(0, 16)
    params = train.init_params(model, jax.random.key(0))
    half = type(model)(dataclasses.replace(model.config, dtype="bfloat16"))
    losses = []
    for m in (model, half):
        objective = train.pretraining_objective(m)
        sums = objective.sums(params, batch, None)
        weights = objective.weights(batch)
        losses.append(sum(float(sums[n] / weights[n]) for n in objective.losses))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_workdir_of_another_model_is_refused_and_left_alone(config, tmp_path):
    config.update(num_steps=3, eval_every=0)
    train.train_and_evaluate(config, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    config.model.hidden_size = 64
    config.seed = 9
    with pytest.raises(UserError, match=r"hidden_size is 32 there, 64 here.*seed is 0 there, 9"):
        train.train_and_evaluate(config, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_warm_start_takes_what_fits_and_names_the_rest(config, tmp_path, caplog):
    caplog.set_level("INFO")
    config.update(num_steps=3, eval_every=0)
    train.train_and_evaluate(config, tmp_path / "first")
    config.init_from = str(tmp_path / "first")
    config.model.max_position_embeddings = 48
    config.model.scan_layers = True
    config.optimizer.learning_rate = 0.0
    train.train_and_evaluate(config, tmp_path / "second")
    assert "position_embeddings/embedding ((32, 32) there, (48, 32) here)" in caplog.text
    first, second = (checkpoint.load(tmp_path / name).params for name in ("first", "second"))
    for params in (first, second):
        params["bert"]["embeddings"].pop("position_embeddings")
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_checkpoint_can_be_chosen_and_a_missing_one_is_named(config, tmp_path):
    config.update(num_steps=4, checkpoint_every=2, eval_every=0)
    train.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path).step == 4
    loaded = checkpoint.load(tmp_path / "checkpoints" / "2")
    assert loaded.step == 2 and loaded.tokenizer.vocab_size == 100
    with pytest.raises(UserError, match="holds the steps 2, 4"):
        checkpoint.load(tmp_path / "checkpoints" / "3")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "nowhere")
