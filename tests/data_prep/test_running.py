"""A build that is stopped, killed, or begun on other input: what is kept, done again, refused."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from corpora import make_documents, shas, write_jsonl
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import Manifest
from data_prep import build as build_module
from data_prep.build import BuildOptions
from data_prep.build import run as build
from data_prep.examples import token_store, writers
from data_prep.running import local, stages


class _Stop(BaseException):
    """Stands for a kill: nothing catches it, and nothing is cleaned up."""


def stop_at(stage, options, output, error=_Stop):
    """Builds up to the first call of a stage's function, which raises the error."""

    def stop(*_):
        raise error

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(build_module if stage == "finish" else local, stage, stop)
        build(options, output, workers=1)


@pytest.mark.parametrize("stage", ["tokenize", "merge", "write_shard", "finish"])
def test_resumes_where_it_was(tmp_path, options, built, monkeypatch, stage):
    monkeypatch.setattr("data_prep.sources.corpus.UNIT_BYTES", 20_000)
    whole = shas(build(options, tmp_path / "whole", workers=1))
    module = build_module if stage == "finish" else local
    original = getattr(module, stage)
    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == (3 if stage in ("tokenize", "write_shard") else 1):
            raise _Stop
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, stage, stopping)
        with pytest.raises(_Stop):
            build(options, tmp_path / "data", workers=1)
    assert not (tmp_path / "data" / "dataset.json").exists()
    written = []
    write = stages._WRITERS["array_record"]
    monkeypatch.setitem(
        stages._WRITERS, "array_record", lambda path, x: written.append(path) or write(path, x)
    )
    assert shas(build(options, tmp_path / "data", workers=1)) == whole
    assert len(written) == {"tokenize": 5, "merge": 5, "write_shard": 3, "finish": 0}[stage]
    assert not (tmp_path / "data" / ".build").exists()


def test_a_stale_listing_loses_no_text(tmp_path, options, built, monkeypatch):
    """gcsfs remembers what a directory held before other processes wrote there."""
    path_class = type(epath.Path("."))
    iterdir = path_class.iterdir
    monkeypatch.setattr(
        path_class, "iterdir", lambda self: () if self.name == "units" else iterdir(self)
    )
    assert shas(build(options, tmp_path / "data", workers=1)) == shas(built[1])


def job_of(options, output):
    return stages.Job(options.checked(), tokenizers.load(options.tokenizer), str(output))


def test_merging_again_changes_nothing(tmp_path, options, monkeypatch):
    """Beam does again what failed, and what came before it in the same bundle."""
    monkeypatch.setattr("data_prep.sources.corpus.UNIT_BYTES", 20_000)
    stop_at("merge", options, tmp_path / "data")
    names = [path.stem for path in (tmp_path / "data" / ".build" / "units").iterdir()]
    assert len(names) > 2
    job = job_of(options, tmp_path / "data")
    stages.merge(job, names)
    files = [path for path in (tmp_path / "data" / ".build" / "store").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    stages.merge(job, names)
    stages.merge(job, names[:1])
    assert {path: path.read_bytes() for path in files} == before


def test_a_store_that_is_refused_is_not_there(tmp_path, tokenizer_dir):
    source = write_jsonl(tmp_path / "c.jsonl", ["Bako duna. Basto fe."])
    options = BuildOptions((source,), tokenizer_dir, objective="nsp")
    stop_at("merge", options, tmp_path / "data")
    [unit] = (tmp_path / "data" / ".build" / "units").iterdir()
    job = job_of(options, tmp_path / "data")
    for _ in range(2):  # as Beam would
        with pytest.raises(UserError, match="holds one document"):
            stages.merge(job, [unit.stem])
        assert not stages.has_store(job)


@pytest.fixture
def tokenised(monkeypatch):
    """The names of the files whose units are tokenised, with units of 20 kB."""
    monkeypatch.setattr("data_prep.sources.corpus.UNIT_BYTES", 20_000)
    names = []
    tokenize_unit = token_store.tokenize_unit

    def recording(unit, *arguments, **keywords):
        names.append(os.path.basename(unit.blocks[0].path))
        return tokenize_unit(unit, *arguments, **keywords)

    monkeypatch.setattr(token_store, "tokenize_unit", recording)
    return names


def write_letters(directory, letters):
    for letter in letters:
        write_jsonl(directory / f"{letter}.jsonl", make_documents(60, seed=ord(letter)))


def _lengthen(path):
    write_jsonl(path, make_documents(80, seed=7))


def _mend(path):
    """Other text of the same size, at another time."""
    text = path.read_text()
    path.write_text(text.replace(" ban ", " bun "))
    assert path.read_text() != text
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("change", "named", "read_again"),
    [
        (lambda d: _lengthen(d / "d.jsonl"), "d.jsonl", {"d.jsonl"}),
        (lambda d: _mend(d / "d.jsonl"), "d.jsonl", {"d.jsonl"}),
        # The numbers of those after it change.
        (lambda d: write_letters(d, "c"), "c.jsonl", {"c.jsonl", "d.jsonl", "f.jsonl"}),
        (lambda d: (d / "d.jsonl").unlink(), "d.jsonl", {"f.jsonl"}),
    ],
)
def test_input_that_changed_is_read_again(
    tmp_path, tokenizer_dir, tokenised, caplog, change, named, read_again
):
    write_letters(tmp_path, "bdf")
    options = BuildOptions((f"{tmp_path}/*.jsonl",), tokenizer_dir, num_shards=2, dupe_factor=1)
    stop_at("merge", options, tmp_path / "data")
    assert set(tokenised) == {"b.jsonl", "d.jsonl", "f.jsonl"}
    tokenised.clear()
    change(tmp_path)
    build(options, tmp_path / "data", workers=1)
    assert set(tokenised) == read_again
    assert "1 of the input's files changed" in caplog.text and named in caplog.text
    for path in tmp_path.glob("*.jsonl"):
        os.utime(path, (2, 2))  # times are nothing that a data set depends on
    build(options, tmp_path / "fresh", workers=1)
    written = [(tmp_path / name / "dataset.json").read_bytes() for name in ("data", "fresh")]
    assert written[0] == written[1]


def test_input_that_changed_after_the_first_stage_is_refused(tmp_path, tokenizer_dir):
    source = write_jsonl(tmp_path / "c.jsonl", make_documents(60))
    options = BuildOptions((source,), tokenizer_dir, num_shards=2, dupe_factor=1)
    stop_at("write_shard", options, tmp_path / "data")
    before = os.stat(source)
    os.utime(source, (1, 1))
    with pytest.raises(UserError, match=r"c\.jsonl.*remove .*/data .*another --output"):
        build(options, tmp_path / "data", workers=1)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    same = build(options, tmp_path / "data", workers=1)
    assert same == build(options, tmp_path / "fresh", workers=1)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_shards_of_an_unknown_build_are_left_alone(tmp_path, tokenizer_dir):
    """Another program's, or those of a build whose .build was removed."""
    source = write_jsonl(tmp_path / "c.jsonl", make_documents(60))
    options = BuildOptions((source,), tokenizer_dir, num_shards=2, dupe_factor=1)
    stop_at("finish", options, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / ".build")
    (tmp_path / "data" / "train-00000-of-00009.tfrecord").write_bytes(b"another's")
    before = contents(tmp_path / "data")
    with pytest.raises(UserError, match=r"shards of an unknown build, such as train.*remove"):
        build(options, tmp_path / "data", workers=1)
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize("left", [0, 50])
@pytest.mark.parametrize(
    ("stage", "damaged"), [("merge", ".build/units/*.npz"), ("finish", ".build/shards/*.json")]
)
def test_what_a_power_failure_cut_off_is_done_again(tmp_path, options, built, stage, damaged, left):
    stop_at(stage, options, tmp_path / "data")
    for path in (tmp_path / "data").glob(damaged):
        path.write_bytes(path.read_bytes()[:left])
    assert shas(build(options, tmp_path / "data", workers=1)) == shas(built[1])


def test_files_are_on_the_disk_before_they_are_renamed(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.fstat(fd).st_size) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("renamed") or replace(*paths))
    writers.save_array(epath.Path(tmp_path / "array.npy"), np.arange(100))
    assert events == [(tmp_path / "array.npy").stat().st_size, "renamed"]


def test_a_second_process_is_rejected(tmp_path, options, built):
    stop_at("merge", options, tmp_path / "data")
    lock = files.lock(tmp_path / "data" / ".lock", "held")
    with lock, pytest.raises(UserError, match=r"another process is building .*data"):
        build(options, tmp_path / "data", workers=1)
    assert build(options, tmp_path / "data", workers=1) == built[1]
    # Killed as it tidied up: the same command does it.
    (tmp_path / "data" / ".build" / "store").mkdir(parents=True)
    build(options, tmp_path / "data", workers=1)
    assert not (tmp_path / "data" / ".build").exists()


def test_a_mistake_keeps_what_is_finished(tmp_path, tokenizer_dir, tokenised, caplog):
    write_letters(tmp_path, "ab")
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write("no JSON\n")
    options = BuildOptions((f"{tmp_path}/*.jsonl",), tokenizer_dir, num_shards=2, dupe_factor=1)
    with pytest.raises(UserError, match=r"b\.jsonl, line 61 is not JSON"):
        build(options, tmp_path / "data", workers=1)
    assert "the same command resumes" in caplog.text
    tokenised.clear()
    write_letters(tmp_path, "b")
    mended = build(options, tmp_path / "data", workers=1)
    assert set(tokenised) == {"b.jsonl"}
    assert mended == build(options, tmp_path / "fresh", workers=1)


def test_ctrl_c_says_that_the_same_command_resumes(tmp_path, options, built, caplog):
    stop_at("merge", options, tmp_path / "data", KeyboardInterrupt)
    assert "interrupted: " in caplog.text and "the same command resumes" in caplog.text
    assert shas(build(options, tmp_path / "data", workers=1)) == shas(built[1])


def test_units_of_an_older_version_are_made_again(tmp_path, options, built):
    stop_at("merge", options, tmp_path / "data")
    for path in (tmp_path / "data" / ".build" / "units").glob("*.npz"):
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays if name != "document_long_words"}
        np.savez(path, **kept)
    assert shas(build(options, tmp_path / "data", workers=1)) == shas(built[1])


def test_a_mistake_in_the_second_stage_keeps_the_store(tmp_path, options, tokenised):
    """For instance --format=tfrecord without its package."""
    stop_at("write_shard", options, tmp_path / "data", UserError)
    tokenised.clear()
    build(options, tmp_path / "data", workers=1)
    assert not tokenised


def test_copies_of_a_remote_store_are_removed(tmp_path, options, built, bucket, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    stop_at("finish", options, "gs://bucket/copied")
    assert list((tmp_path / "disk").glob("bert_jax-store-*"))
    assert shas(build(options, "gs://bucket/copied", workers=1)) == shas(built[1])
    assert not list((tmp_path / "disk").glob("bert_jax-store-*"))


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path, tokenizer_dir):
    source = write_jsonl(tmp_path / "c.jsonl", make_documents(6000))
    command = [sys.executable, "-m", "data_prep.build", f"--input={source}"]
    command += [f"--tokenizer={tokenizer_dir}", "--workers=2", "--num_shards=12"]
    start = time.monotonic()
    subprocess.run([*command, f"--output={tmp_path / 'whole'}"], check=True, capture_output=True)
    duration = time.monotonic() - start
    rng = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen([*command, f"--output={tmp_path / 'killed'}"])
        try:
            process.wait(rng.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run([*command, f"--output={tmp_path / 'killed'}"], check=True, capture_output=True)
    assert shas(Manifest.read(tmp_path / "killed")) == shas(Manifest.read(tmp_path / "whole"))
    assert not list((tmp_path / "killed").glob("*partial*"))


def test_another_command_is_refused(built, options, tmp_path, tokenizer):
    directory, _ = built
    with pytest.raises(UserError, match="--dupe_factor was 2 and is now 3; --seed was 12345"):
        build(dataclasses.replace(options, dupe_factor=3, seed=1), directory)
    cased = dataclasses.replace(tokenizer, lowercase=False)
    tokenizers.save(cased, tmp_path / "cased")
    with pytest.raises(UserError, match=r"--tokenizer=.*cased is not what --tokenizer=.* was"):
        build(dataclasses.replace(options, tokenizer=str(tmp_path / "cased")), directory)
    # Also while a build is unfinished.
    stop_at("merge", options, tmp_path / "data")
    with pytest.raises(UserError, match="--objective was 'nsp' and is now 'sop'"):
        build(dataclasses.replace(options, objective="sop"), tmp_path / "data", workers=1)
