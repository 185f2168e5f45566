"""Several processes as one run: the same losses, one stop, and other counts on resuming."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from small_run import make_data_dir
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


@pytest.mark.slow
def test_two_processes_are_one_run_that_one_signal_stops_and_another_count_resumes(
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


@pytest.mark.slow
def test_a_mistake_of_one_process_ends_all_of_them(config, tmp_path):
    started = time.monotonic()
    with files.lock(tmp_path / files.LOCK_FILE, "held"):  # which the first one alone meets
        for error in finish(start(config, tmp_path, 2), EXIT_USER_ERROR):
            assert "is in use by a run that has not ended" in error
    errors = finish(start(config, tmp_path / "of process {}", 2), EXIT_USER_ERROR)
    assert "error: process 1: " in errors[0]
    for error in errors:
        assert "WORKDIR must be storage that all hosts share" in error
    assert not [path for path in tmp_path.rglob(".shared-*")]
    assert time.monotonic() - started < 60  # none waited for the other until it was given up


def test_processes_that_would_run_different_things_end_with_the_first_difference(config, tmp_path):
    flag = "--config.optimizer.learning_rate=3e-3"
    for error in finish(start(config, tmp_path, 2, flags={1: flag}), EXIT_USER_ERROR):
        assert (
            "process 1 runs something else than process 0: config.optimizer.learning_rate" in error
        )
        assert "learning_rate is 0.003 there, 0.0005 in process 0. Start all processes" in error
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_other_data_in_one_process(config, tmp_path):
    other = make_data_dir(tmp_path / "data", {"train": [150, 100, 71], "validation": [45]})
    processes = start(config, tmp_path / "run", 2, flags={1: f"--config.data_dir={other}"})
    for error in finish(processes, EXIT_USER_ERROR):
        assert "process 1 runs something else" in error and "contents of phases.0.data" in error
    same = shutil.copytree(config.data_dir, tmp_path / "mounted elsewhere")
    config.update(num_steps=4, eval_every=0)
    finish(start(config, tmp_path / "run", 2, flags={1: f"--config.data_dir={same}"}))


def failing(where: str, how: str, after: int, mark: pathlib.Path) -> str:
    """Python that has a function of the program fail when it has been called so often.

    The time at which it does so is that of the file `mark`.

    Args:
      where: "module:name".
      how: a statement.
    """
    module, name = where.split(":")
    *owners, attribute = name.split(".")
    return f"""
import importlib, itertools, os, signal
from bert_jax.cli import UserError
owner = importlib.import_module("{module}")
for name in {owners}:
    owner = getattr(owner, name)
method, calls = getattr(owner, "{attribute}"), itertools.count(1)
def failing(*args, **kwargs):
    if next(calls) > {after}:
        open("{mark}", "a").close()
        {how}
    return method(*args, **kwargs)
setattr(owner, "{attribute}", failing)
"""


STAGES = {
    "loading": ("bert_jax.data.dataset:PretrainingData._read_rows", 12),
    "step": ("bert_jax.training.reporting:Reporter.step", 4),
    "evaluation": ("bert_jax.training.evaluation:evaluate", 1),
    "saving": ("bert_jax.runs.checkpoint:CheckpointStore.save", 1),
    # In another thread, of the first process.
    "writing": ("bert_jax.runs.integrity:write_checksums", 1),
}
# What happens -> how, every process's exit code, what the one says that it happens to. A signal
# reaches the main thread, whatever that is doing by then.
FAILURES = {
    "OSError": ("raise OSError(5, 'no answer')", 1, "OSError: .*no answer"),
    "UserError": ("raise UserError('give up')", 2, "error: give up"),
    "KeyError": ("raise KeyError('loss')", 1, "KeyError: 'loss'"),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT)", 130, "stopped by Ctrl-C"),
}


@pytest.mark.parametrize(
    ("stage", "failure", "number"),
    [
        pytest.param(
            *(stage, failure, 0 if stage == "writing" else (i + j + 1) % 2),
            marks=[pytest.mark.slow] if i or j else [],
        )
        for i, stage in enumerate(STAGES)
        for j, failure in enumerate(FAILURES)
    ],
)
def test_a_failure_of_one_process_ends_all_with_its_message(
    stage, failure, number, config, tmp_path
):
    config.update(num_steps=4000, eval_every=5, checkpoint_every=5)
    (where, after), (how, code, message) = STAGES[stage], FAILURES[failure]
    program = failing(where, how, after, tmp_path / "mark")
    processes = start(config, tmp_path / "run", 2, before={number: program})
    errors = finish(processes, code)
    seconds = time.time() - (tmp_path / "mark").stat().st_mtime
    print(f"{failure} while {stage} in process {number}: codes {code} in {seconds:.0f} s")
    assert re.search(message, errors[number])
    expected = f"error: process {number}: .*{message.removeprefix('error: ')}"
    assert re.search(expected, errors[1 - number]), errors
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_signal_to_one_process_ends_all_within_a_minute(name, number, config, tmp_path):
    config.update(num_steps=100_000, eval_every=0, checkpoint_every=1000)
    processes = start(config, tmp_path, 2)
    deadline = time.monotonic() + 120
    while len(telemetry.read(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[number].send_signal(signal.Signals[name])
    begun = time.monotonic()
    errors = [process.communicate(timeout=240)[1] for process in processes]
    seconds = time.monotonic() - begun
    codes = [process.returncode for process in processes]
    print(f"{name} to process {number}: codes {codes} in {seconds:.0f} s")
    print("\n".join(error.splitlines()[-1] for error in errors if error))
    assert seconds < 60
    if name == "SIGINT":
        assert codes == [130, 130], errors
        assert f"process {number}: stopped by Ctrl-C" in errors[1 - number]
    else:
        # 1 as a launcher expects it, or JAX's own end where the first process has died.
        assert codes[1 - number] in (1, -signal.SIGABRT), errors


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
    beats = {"heartbeat_timeout_seconds": distributed.HEARTBEAT_SECONDS}
    assert seen == [(expected, beats)]
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "2")  # the user's choice
    distributed.initialize()
    assert seen[1] == ("2", beats)
    # Told who is who, JAX does not ask Slurm, which would give a process one GPU.
    distributed.initialize("host:1", "2", "0")
    assert seen[2] == ("2", {"cluster_detection_method": "deactivate", **beats})
