"""From text to predictions on gs://, every command with its real clients, as on a local disk.

The stages follow each other in one bucket; `local` is the same path on a disk.
"""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from bucket_server import Server
from corpora import make_documents, write_jsonl
from small_finetune import write_reviews
from small_run import ROOT, SPEEDS
from two_processes import free_port

from bert_jax.cli import EXIT_INTERRUPTED

pytestmark = pytest.mark.slow
STEPS = 64
BUILD = ("--max_seq_length=32", "--num_shards=3", "--workers=2", "--dupe_factor=2")
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
PRETRAIN = (
    "--config=configs/bert_tiny.py:laptop",
    *(f"--config.model.{name}={value}" for name, value in MODEL.items()),
    *("--config.model.vocab_size=300", "--config.batch_size=16", "--config.log_every=1"),
    *(f"--config.num_steps={STEPS}", "--config.eval_every=16", "--config.checkpoint_every=8"),
    *("--config.optimizer.warmup_steps=2", "--config.optimizer.end_factor=1"),
)
FINETUNE = (
    *("--config=configs/finetune/text_classification.py", "--config.text_column=review"),
    *("--config.label_column=verdict", "--config.num_epochs=1", "--config.max_seq_length=32"),
    "--config.length_buckets=1",
)


class Place:
    """A directory or bucket, and commands that run in it: {} in their flags is its path."""

    def __init__(self, path: str, environment: dict[str, str]):
        self.path = path
        self.environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment

    def start(self, module: str, *flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", module, *(flag.format(self.path) for flag in flags)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *flags: str, code: int = 0) -> tuple[str, str]:
        """A command's output and what it says, once it has ended with `code`."""
        process = self.start(module, *flags)
        output, said = process.communicate(timeout=600)
        assert process.returncode == code, said
        return output, said


@pytest.fixture(scope="module")
def server(bucket_server) -> Server:
    bucket_server.delete()
    return bucket_server


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Place:
    return Place(str(tmp_path_factory.mktemp("local")), {})


@pytest.fixture(scope="module")
def bucket(server) -> Place:
    return Place("gs://bucket", server.environment)


@pytest.fixture(scope="module")
def inputs(local, server) -> None:
    """Text and labelled reviews, on the disk and in the bucket."""
    root = pathlib.Path(local.path)
    write_jsonl(root / "text.jsonl", make_documents(150))
    write_reviews(root / "train.csv", 200, 0)
    write_reviews(root / "dev.csv", 40, 1)
    (root / "texts.txt").write_text("the film was good\na poor plot\n")
    for path in root.iterdir():
        server.write(path.name, path.read_bytes())


def tree(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def lines(content: bytes) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    rows = map(json.loads, content.decode().splitlines())
    return [{k: v for k, v in row.items() if k not in SPEEDS} for row in rows]


@pytest.fixture(scope="module")
def data(local, bucket, server, inputs) -> None:
    """The tokenizer and the data set in both places."""
    for place in (local, bucket):
        flags = ("--input={0}/text.jsonl", "--output={0}/tok", "--vocab_size=300")
        place.run("data_prep.vocab", *flags)
        flags = ("--input={0}/text.jsonl", "--tokenizer={0}/tok", "--output={0}/data", *BUILD)
        place.run("data_prep.build", *flags)


def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "-of-" in name}


def test_vocabulary_and_data_set_have_the_same_bytes(local, server, data):
    root = pathlib.Path(local.path)
    assert server.tree("tok") == tree(root / "tok")
    ours, theirs = server.tree("data"), tree(root / "data")
    for files in (ours, theirs):
        files.pop("dataset.json")  # names its sources
        files.pop(".lock", None)
    assert ours.keys() == theirs.keys() and len(shards(ours)) == 4
    assert ours == theirs


def test_a_data_set_in_a_bucket_is_checked(local, bucket, data):
    reports = []
    for place in (local, bucket):
        process = place.start("data_prep.check", "{0}/data")
        output, said = process.communicate(timeout=300)
        assert said.count("\n") == 1 and said.startswith("check: 1,"), said
        reports.append((output.replace(place.path, ""), process.returncode))
    assert reports[0] == reports[1]


@pytest.mark.skipif(
    not importlib.util.find_spec("apache_beam"), reason="needs Apache Beam: make test-gcs has it"
)
def test_beam_writes_the_same_bytes(bucket, server, data):
    flags = ("--input={0}/text.jsonl", "--tokenizer={0}/tok", "--output={0}/beam", *BUILD)
    bucket.run("data_prep.build", *flags, "--runner=beam")
    assert shards(server.tree("beam")) == shards(server.tree("data"))


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(local, bucket, server, data) -> list[str]:
    """A run on the disk; what one in the bucket says that is killed, stopped and resumed."""
    flags = (*PRETRAIN, "--config.data_dir={0}/data", "--workdir={0}/run")
    local.run("bert_jax.pretrain", *flags)
    said = []
    killed = bucket.start("bert_jax.pretrain", *flags)
    wait_for(lambda: server.names("run/checkpoints/8/"), killed)
    killed.kill()  # in the middle of a save
    said.append(killed.communicate()[1])
    stopped = bucket.start("bert_jax.pretrain", *flags)
    wait_for(lambda: server.names("run/checkpoints/16/"), stopped)
    stopped.send_signal(signal.SIGTERM)
    said.append(stopped.communicate(timeout=300)[1])
    assert stopped.returncode == EXIT_INTERRUPTED, said[-1]
    said.append(bucket.run("bert_jax.pretrain", *flags)[1])
    return said


def test_a_run_that_is_killed_and_stopped_has_the_numbers_of_one_on_a_disk(local, server, runs):
    expected = (pathlib.Path(local.path) / "run/metrics.jsonl").read_bytes()
    assert lines(server.read("run/metrics.jsonl")) == lines(expected)
    assert len(lines(expected)) >= STEPS


def test_the_progress_is_not_drowned(runs):
    for said in runs:
        assert "Traceback" not in said and "gcsfs" not in said and "bucket type" not in said


def test_what_a_kill_left_behind_is_cleared(server, runs):
    steps = {name.split("/")[2] for name in server.names("run/checkpoints/")}
    assert str(STEPS) in steps
    assert len([step for step in steps if not step.isdigit()]) <= 1, steps


def test_two_processes_and_then_one_are_one_run(local, bucket, server, runs):
    """Resumes a copy of the run for some steps more, as two processes and as one."""
    further = f"--config.num_steps={STEPS + 8}"
    flags = (*PRETRAIN, "--config.data_dir={0}/data", "--workdir={0}/run", further)
    local.run("bert_jax.pretrain", *flags)
    half = f"--config.num_steps={STEPS + 4}"
    coordinator = f"--coordinator=localhost:{free_port()}"
    processes = [
        bucket.start(
            "bert_jax.pretrain",
            *(*flags, half, coordinator, "--num_processes=2", f"--process_id={i}"),
        )
        for i in range(2)
    ]
    ended = [(process.communicate(timeout=600)[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0], ended
    bucket.run("bert_jax.pretrain", *flags)
    ours = lines(server.read("run/metrics.jsonl"))
    theirs = lines((pathlib.Path(local.path) / "run/metrics.jsonl").read_bytes())
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0]) == STEPS + 8


@pytest.fixture(scope="module")
def exported(local, bucket, server, runs) -> dict[str, bytes]:
    """The checkpoint that both have in common, as a Hugging Face directory in both places."""
    for place in (local, bucket):
        flags = (f"--checkpoint={{0}}/run/checkpoints/{STEPS}", "--output={0}/hf")
        place.run("bert_jax.convert", "to-hf", *flags)
    return server.tree("hf")


def test_exports_have_the_same_bytes(local, exported):
    expected = tree(pathlib.Path(local.path) / "hf")
    assert exported.keys() == expected.keys() and "model.safetensors" in expected
    for name in expected.keys() - {"README.md"}:
        assert exported[name] == expected[name], name


def test_an_import_is_what_was_exported(bucket, server, exported):
    bucket.run("bert_jax.convert", "from-hf", "--model={0}/hf", "--output={0}/back")
    bucket.run("bert_jax.convert", "to-hf", "--checkpoint={0}/back", "--output={0}/again")
    assert server.read("again/model.safetensors") == exported["model.safetensors"]


def test_finetuning_and_predictions(local, bucket, server, exported):
    root = pathlib.Path(local.path)
    for place in (local, bucket):
        files = ("--config.train_file={0}/train.csv", "--config.validation_file={0}/dev.csv")
        flags = (*FINETUNE, *files, "--init={0}/hf", "--workdir={0}/tuned")
        place.run("bert_jax.finetune", *flags)
        flags = ("--model={0}/tuned", "--input={0}/texts.txt", "--output={0}/answers.jsonl")
        place.run("bert_jax.predict", "classify", *flags)
    expected = (root / "tuned/hf/model.safetensors").read_bytes()
    assert server.read("tuned/hf/model.safetensors") == expected
    assert server.read("answers.jsonl") == (root / "answers.jsonl").read_bytes()
    assert len(server.read("answers.jsonl").splitlines()) == 2


def test_metrics_and_plots(local, bucket, server, runs):
    outputs = []
    for place in (local, bucket):
        output, _ = place.run("bert_jax.metrics", "{0}/run", "--plot={0}/curves.png")
        outputs.append(output.replace(place.path, ""))
    assert server.read("curves.png").startswith(b"\x89PNG")
    first, second = (len(output.splitlines()) for output in outputs)
    assert first == second > 0
