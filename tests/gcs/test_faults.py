"""A bucket that is lost, forbidden or damaged while a run uses it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from bucket_server import BUCKET, Rule, Server
from small_run import ROOT, SPEEDS, make_data_dir, overrides, run_command, small_config

from bert_jax.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many_records(tmp_path_factory) -> pathlib.Path:
    """A data set with more records than a process keeps, so that a run reads on and on."""
    return make_data_dir(tmp_path_factory.mktemp("data"), {"train": [150 * 64] * 2})


@pytest.fixture
def server(bucket_server, many_records) -> Server:
    """The bucket with a data set in it, and nothing else."""
    bucket_server.delete()
    for path in many_records.rglob("*"):
        if path.is_file():
            bucket_server.write(f"data/{path.relative_to(many_records)}", path.read_bytes())
    return bucket_server


def flags(**changes) -> list[str]:
    config = small_config(pathlib.Path("data"))
    config.data_dir = "gs://bucket/data"
    config.update({"eval_every": 0, "checkpoint_every": 8} | changes)
    config.optimizer.end_factor = 1.0
    workdir = "--workdir=gs://bucket/run"
    return ["--config=configs/bert_tiny.py:laptop", *overrides(config), workdir]


def lose_the_bucket(server: Server) -> None:
    status = 412
    while status == 412:  # not empty: the run writes on
        server.delete()
        status, _ = server.ask("DELETE", f"/storage/v1/b/{BUCKET}")
    assert status in (200, 204)


@pytest.fixture
def process(server) -> Iterator[subprocess.Popen]:
    """A pretraining that has saved its first checkpoint, and would go on for ever."""
    with subprocess.Popen(
        [sys.executable, "-m", "bert_jax.pretrain", *flags(num_steps=10**6)],
        cwd=ROOT,
        env=os.environ | server.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            wait_for_checkpoint(server, 8, started)
            yield started
        finally:
            started.kill()


def wait_for_checkpoint(server: Server, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not server.names(f"run/checkpoints/{step}/commit_success"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


# What is refused from the first checkpoint on.
LOSSES = {
    "forbidden": Rule("", 403),
    "data forbidden": Rule("data/", 403),
    "workdir forbidden": Rule("run/", 403),
    "deleted": None,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_bucket_that_is_lost_in_the_middle_ends_the_run_with_one_line(server, process, loss):
    started = time.monotonic()
    if rule := LOSSES[loss]:
        with server.breaking(rule):
            said = process.communicate(timeout=400)[1]
    else:
        lose_the_bucket(server)
        try:
            said = process.communicate(timeout=400)[1]
        finally:
            server.create(BUCKET)
    print(f"{loss}: code {process.returncode} after {time.monotonic() - started:.0f} s")
    print(said.splitlines()[-1])
    assert process.returncode == EXIT_USER_ERROR, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "gs://bucket" in line and re.search(r"\(--\S+=gs://bucket/", line), line


def test_faults_that_pass_change_no_number(server):
    """Of each client: array_record reads the shards, TensorStore writes arrays, gcsfs the rest."""
    given = flags(num_steps=40)
    result = run_command("bert_jax.pretrain", *given, **server.environment)
    assert result.returncode == 0, result.stderr
    expected = numbers(server)
    server.delete("run/")
    server.latency = 0.05
    try:
        with server.breaking(
            *(Rule("^GET .*data/train", status, times=2) for status in (503, 429, "cut")),
            *(Rule("^(POST|PUT) .*checkpoints/", status, times=3) for status in (503, 429)),
            *(Rule("^GET .*run/.*alt=media", status, times=2) for status in (500, "cut")),
            *(Rule("^(POST|PUT) .*metrics.jsonl", status, times=2) for status in (502, 504)),
        ) as rules:
            result = run_command("bert_jax.pretrain", *given, **server.environment)
            left = [rule for rule in rules if rule.times]
    finally:
        server.latency = 0.0
    assert result.returncode == 0, result.stderr
    assert not left
    assert numbers(server) == expected


def test_an_outage_of_90_seconds_is_sat_out(server, process):
    with server.breaking(Rule("", 503)):
        time.sleep(90)
        assert process.poll() is None, process.communicate()[1]
    last = max(line["step"] for line in numbers(server))
    deadline = time.monotonic() + 120
    while max(line["step"] for line in numbers(server)) <= last:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_INTERRUPTED, said
    assert "trying for 6 minutes" in said
    steps = [line["step"] for line in numbers(server)]
    assert steps == [*range(1, len(steps) + 1)]


def numbers(server: Server) -> list[dict]:
    lines = map(json.loads, server.read("run/metrics.jsonl").splitlines())
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]


COMMANDS = (
    ("data_prep.vocab", "--input={}/text.jsonl", "--output={}/tok"),
    ("data_prep.build", "--input={}/text.jsonl", "--tokenizer={}/tok", "--output={}/data"),
    ("data_prep.check", "{}/data"),
    ("bert_jax.pretrain", *flags()[:-1], "--config.data_dir={}/data", "--workdir={}/run"),
    ("bert_jax.convert", "to-hf", "--checkpoint={}/run", "--output={}/hf"),
    ("bert_jax.convert", "from-hf", "--model={}/hf", "--output={}/run"),
    (
        *("bert_jax.finetune", "--config=configs/finetune/sst2.py", "--init={}/hf"),
        *("--config.train_file={}/a.tsv", "--config.validation_file={}/b.tsv", "--workdir={}/t"),
    ),
    ("bert_jax.predict", "classify", "--model={}/t", "--input={}/a.txt", "--output={}/b.jsonl"),
    ("bert_jax.evaluate", "{}/t", "{}/b.tsv"),
    ("bert_jax.metrics", "{}/run"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_each_command_names_a_bucket_that_it_cannot_use_and_the_flag(server, command):
    for name, rule in (("gs://no-bucket", Rule("nothing", 403)), ("gs://bucket", Rule("", 403))):
        with server.breaking(rule):
            result = run_command(*(x.format(name) for x in command), **server.environment)
        assert result.returncode == EXIT_USER_ERROR, result.stderr
        (line,) = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
        assert "Traceback" not in result.stderr
        why = "there is no bucket" if name == "gs://no-bucket" else "no permission for bucket"
        assert line.startswith(f"error: {why} {name}") and f"{name}/" in line.rpartition("(")[2]


def test_a_damaged_checkpoint_is_skipped_and_one_at_most_is_kept(server):
    def pretrain(num_steps: int) -> str:
        command = ("bert_jax.pretrain", *flags(num_steps=num_steps))
        result = run_command(*command, **server.environment)
        assert result.returncode == 0, result.stderr
        return result.stderr

    pretrain(24)
    for damaged, taken, last in ((24, 16, 32), (32, 24, 40)):
        arrays = server.tree(f"run/checkpoints/{damaged}/params")
        name = max(arrays, key=lambda name: len(arrays[name]))
        flipped = bytearray(arrays[name])
        flipped[len(flipped) // 2] ^= 1
        server.write(f"run/checkpoints/{damaged}/params/{name}", bytes(flipped))
        said = pretrain(last)
        assert f"checkpoint {damaged} is corrupted: params/{name} is not what was written" in said
        assert f"resuming from step {taken} " in said
        steps = {name.split("/")[2] for name in server.names("run/checkpoints/")}
        assert steps == {f"{taken}", f"{damaged}", f"{last}", f"{damaged}.damaged"}
    assert [line["step"] for line in numbers(server)] == [*range(1, 41)]
