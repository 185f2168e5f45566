"""Programs of a run: compiled once, and refused before training where they do not fit."""

import types

import jax
import pytest
from small_run import (
    state_bytes,
)

from bert_jax.cli import UserError
from bert_jax.runs import checkpoint, telemetry
from bert_jax.training import compilation, loop


def test_resuming_holds_one_state_and_compiles_no_fresh_one(config, tmp_path, monkeypatch):
    config.update(num_steps=2, eval_every=0)
    config.optimizer.warmup_steps = 1
    loop.train_and_evaluate(config, tmp_path)
    live = lambda: sum(x.nbytes for x in jax.live_arrays())  # noqa: E731
    before, seen, restore = live(), [], checkpoint.ocp.CheckpointManager.restore

    def watched(manager, *arguments, **keywords):
        seen.append(live() - before)
        result = restore(manager, *arguments, **keywords)
        seen.append(live() - before)
        return result

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "restore", watched)
    monkeypatch.setattr(loop, "init_state", None)  # not called
    config.num_steps = 3
    loop.train_and_evaluate(config, tmp_path)
    assert seen[0] < 0.1 * state_bytes(config)
    assert seen[1] == pytest.approx(state_bytes(config), rel=0.1)


def test_a_later_phase_that_does_not_fit_ends_the_run_while_the_first_one_trains(
    config, tmp_path, monkeypatch
):
    config.update(num_steps=300_000, eval_every=0, log_every=1, checkpoint_every=300_000)
    config.phases = ({"num_steps": 200_000}, {"batch_size": 8})
    needed = iter([2**20, 2**40])  # the first phase's, the second's
    monkeypatch.setattr(compilation, "bytes_needed", lambda compiled: next(needed))
    device = types.SimpleNamespace(
        platform="tpu", device_kind="", memory_stats=lambda: {"bytes_limit": 2**34}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with pytest.raises(
        UserError,
        match=r"phase from step 200,000 needs 1024\.0 GiB .*smaller --config\.phases\[1\]\.batch",
    ):
        loop.train_and_evaluate(config, tmp_path)
    assert 0 < telemetry.read(tmp_path)[-1]["step"] < 200_000


def test_step_that_does_not_fit_into_memory_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "bytes_needed", lambda compiled: 2**40)
    small = types.SimpleNamespace(
        platform="tpu", device_kind="", memory_stats=lambda: {"bytes_limit": 2**34}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [small])
    with pytest.raises(UserError, match=r"needs 1024\.0 GiB per device, which has 16\.0.*remat"):
        loop.train_and_evaluate(config, tmp_path)


def test_evaluation_that_does_not_fit_is_refused_before_training(config, tmp_path, monkeypatch):
    needed = iter([2**33, 2**20])  # the evaluation's, the step's
    monkeypatch.setattr(compilation, "bytes_needed", lambda compiled: next(needed))
    monkeypatch.setattr(compilation, "bytes_held", lambda moments: 2**33)
    small = types.SimpleNamespace(
        platform="tpu", device_kind="", memory_stats=lambda: {"bytes_limit": 15 * 2**30}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [small])
    with pytest.raises(UserError, match=r"needs 16\.0 GiB per device, which has 15\.0"):
        loop.train_and_evaluate(config, tmp_path)
    assert not telemetry.read(tmp_path)
