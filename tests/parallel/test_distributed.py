"""Several processes as one run: the same losses, one stop, and other counts on going on."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from two_processes import finish, start

from bert_jax import files
from bert_jax.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from bert_jax.parallel import distributed
from bert_jax.runs import checkpoint, telemetry
from bert_jax.training import loop


def losses(workdir) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in telemetry.read(workdir) if "loss" in line}


def evaluations(workdir) -> list[float]:
    return [line["eval_loss"] for line in telemetry.read(workdir) if "eval_loss" in line]


def test_two_processes_are_one_run_that_one_signal_stops_and_another_count_goes_on(
    config, tmp_path
):
    config.update(num_steps=2000, eval_every=1000, checkpoint_every=1000)
    config.optimizer.end_factor = 1.0  # learning rates that do not depend on num_steps
    processes = start(config, tmp_path, 2)
    deadline = time.monotonic() + 120
    while len(telemetry.read(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    first, _ = finish(processes, EXIT_INTERRUPTED)
    step = checkpoint.load(tmp_path).step
    assert f"stopped by SIGTERM: step {step} is saved" in first
    assert list(losses(tmp_path)) == list(range(1, step + 1))
    # 2 processes -> 1 -> 2, against the same steps in one piece.
    config.num_steps = step + 4
    loop.train_and_evaluate(config, tmp_path)
    config.num_steps = step + 8
    first, second = finish(start(config, tmp_path, 2))
    assert f"step {step + 8:,}/" in first
    assert "step" not in second  # only the first speaks
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [line["processes"] for line in starts] == [2, 1, 2]
    loop.train_and_evaluate(config, tmp_path / "whole")
    actual, expected = losses(tmp_path), losses(tmp_path / "whole")
    assert list(actual) == list(expected) == list(range(1, step + 9))
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-5)
    (_, last), (expected_last,) = evaluations(tmp_path), evaluations(tmp_path / "whole")
    assert last == pytest.approx(expected_last, rel=1e-5)


def test_a_mistake_of_one_process_ends_all_of_them(config, tmp_path):
    started = time.monotonic()
    with files.lock(tmp_path / files.LOCK_FILE, "held"):  # which the first one alone meets
        for error in finish(start(config, tmp_path, 2), EXIT_USER_ERROR):
            assert "is in use by a run that has not ended" in error
    for error in finish(start(config, tmp_path / "of process {}", 2), EXIT_USER_ERROR):
        assert "error: process 1: " in error
        assert "WORKDIR must be storage that all hosts share" in error
    assert not [path for path in tmp_path.rglob(".shared-*")]
    assert time.monotonic() - started < 60  # none waited for the other until it was given up


@pytest.mark.slow
def test_eight_devices_in_two_processes_then_four_in_one(config, tmp_path):
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.num_steps = 10
    config.optimizer.end_factor = 1.0
    finish(start(config, tmp_path, 2, devices=4))
    config.mesh.update(data=1, fsdp=2, tensor=2)
    config.num_steps = 20
    finish(start(config, tmp_path, 1, devices=4))
    config.mesh.update(data=1, fsdp=1, tensor=1)
    loop.train_and_evaluate(config, tmp_path / "alone")
    np.testing.assert_allclose(
        list(losses(tmp_path).values()),
        list(losses(tmp_path / "alone").values()),
        rtol=1e-5,
    )


def test_incomplete_coordinates_are_refused():
    for given in (("host:1", "", ""), ("", "2", "0"), ("host", "2", "0"), ("host:1", "2", "2")):
        with pytest.raises(UserError, match="expected all three"):
            distributed.initialize(*given)


@pytest.mark.parametrize(
    ("tasks", "expected"), [("1", "0,1,2,3"), ("1(x2)", "0,1,2,3"), ("4(x2)", None), ("1,4", None)]
)
def test_the_only_process_of_a_slurm_node_takes_all_its_gpus(tasks, expected, monkeypatch):
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "")  # set first, so that it is restored
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    seen = []

    def initialize(*arguments, **options):
        seen.append((os.environ.get("JAX_LOCAL_DEVICE_IDS"), options))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    distributed.initialize()
    assert seen == [(expected, {})]
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "2")  # one's own choice
    distributed.initialize()
    assert seen[1] == ("2", {})
    # Told who is who, JAX does not ask Slurm, which would give a process one GPU.
    distributed.initialize("host:1", "2", "0")
    assert seen[2] == ("2", {"cluster_detection_method": "deactivate"})
