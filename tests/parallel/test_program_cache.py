"""JAX's cache of programs: entries that were cut short go, and the oldest above the limit."""

import os
import pathlib
import shutil
import time

import jax
import pytest

from bert_jax import evaluate, finetune, predict, pretrain
from bert_jax.parallel import program_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of three entries as JAX writes them, an hour old."""
    jax.jit(lambda x: x * 0.123)(1.0)
    real = next(pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for age, name in enumerate("abc"):
        shutil.copy(real, tmp_path / f"{name}-cache")
        an_hour_ago = time.time() - 3600 - age
        os.utime(tmp_path / f"{name}-cache", (an_hour_ago, an_hour_ago))
    return tmp_path


def cut(path, age=3600.0):
    path.write_bytes(path.read_bytes()[:-20])
    then = time.time() - age
    os.utime(path, (then, then))


def names(directory) -> list[str]:
    return sorted(path.name[0] for path in directory.glob("*-cache"))


def test_entries_that_were_cut_short_are_removed(cache):
    cut(cache / "a-cache")
    program_cache.tidy()
    assert names(cache) == ["b", "c"]
    cut(cache / "b-cache", age=1)  # perhaps being written now
    program_cache.tidy()
    assert names(cache) == ["b", "c"]
    cut(cache / "b-cache", age=program_cache.BEING_WRITTEN)  # two minutes later
    program_cache.tidy()
    assert names(cache) == ["c"]


def test_entries_are_read_once(cache, monkeypatch):
    read = []
    monkeypatch.setattr(program_cache, "_is_whole", lambda path: read.append(path) or True)
    program_cache.tidy()
    assert len(read) == 3
    program_cache.tidy()
    assert len(read) == 3


def test_the_longest_unused_go_where_there_are_too_many(cache):
    size = (cache / "a-cache").stat().st_size
    os.utime(cache / "c-cache")  # used just now
    program_cache.tidy(limit=2 * size)
    assert names(cache) == ["a", "c"]


def test_no_cache_is_no_error(monkeypatch, tmp_path):
    for directory in ("", "gs://bucket/cache", str(tmp_path / "nowhere")):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", directory)
        program_cache.tidy()


class Tidied(Exception):  # noqa: N818  (no error)
    pass


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (pretrain, ("--config=configs/bert_tiny.py:laptop", "--workdir={}/run")),
        (finetune, ("--config=configs/finetune/sst2.py", "--workdir={}/run", "--init={}")),
        (predict, ("embed", "--model={}", "--input={}/texts.txt", "--output={}/vectors.npy")),
        (evaluate, ("{}", "{}/texts.txt")),
    ],
)
def test_commands_that_run_programs_tidy_first(command, flags, monkeypatch, tmp_path):
    def tidy():
        raise Tidied

    (tmp_path / "texts.txt").write_text("a\n")
    monkeypatch.setattr(program_cache, "tidy", tidy)
    with pytest.raises(Tidied):
        command.main([flag.format(tmp_path) for flag in flags])
