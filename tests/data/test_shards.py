"""Reading shards: those that are missing, cut or another data set's are named, never empty."""

import subprocess
import sys

import numpy as np
import pytest
from bucket_server import Rule
from small_run import make_data_dir

from bert_jax.cli import UserError
from bert_jax.data import records, shards
from bert_jax.data.split import Split


@pytest.fixture
def directory(tmp_path):
    return make_data_dir(tmp_path, {"train": [150, 0, 100, 70]})


def name(number: int) -> str:
    return records.shard_name("train", number, 4)


def read_all(directory, is_remote=False):
    split = Split(str(directory), "train", 0)
    split.shards._is_remote = is_remote
    return split.examples(0, np.arange(len(split.sizes)))


def test_records_are_numbered_one_shard_after_the_other(directory):
    assert len(read_all(directory)) == 320
    split = Split(str(directory), "train", 0)
    assert [split.shards.name(number) for number in (0, 2, 3, 4, 5, 6)] == [
        f"{name(0)}#0",
        f"{name(0)}#2",
        f"{name(2)}#0",
        f"{name(2)}#1",
        f"{name(3)}#0",
        f"{name(3)}#1",
    ]
    one_by_one = [split.examples(0, np.array([number])) for number in range(7)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), read_all(directory))


def test_a_missing_shard_is_named_at_once_and_later(directory):
    split = Split(str(directory), "train", 0)
    (directory / name(2)).unlink()
    with pytest.raises(UserError, match=rf"{name(2)} is missing"):
        Split(str(directory), "train", 0)
    # Gone after the start: array_record would open it as an empty one.
    with pytest.raises(UserError, match=rf"{name(2)}.* cannot be read .*No such file"):
        split.examples(0, np.arange(7))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:70_000], r"#\d cannot be read .*: python -m data_prep\.check"),
        (lambda data: data[:30_000], "cannot be read .*at least 64KB"),
        (lambda data: b"", "cannot be read"),
        (lambda data: bytes(b ^ (i == 1000) for i, b in enumerate(data)), r"#0 cannot be read"),
    ],
    ids=["cut", "shorter", "empty", "flipped"],
)
def test_a_corrupted_shard_is_named_with_the_record(directory, damage, message):
    path = directory / name(0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{name(0)}.*{message}"):
        read_all(directory)


def test_shards_of_another_data_set_are_named(directory):
    (directory / name(3)).replace(directory / name(0))
    (directory / name(3)).write_bytes((directory / name(2)).read_bytes())
    with pytest.raises(UserError, match=rf"{name(0)} holds 2 records, dataset.json says 3"):
        read_all(directory)
    make_data_dir(directory, {"train": [150, 0, 100, 70]})
    (directory / name(3)).write_bytes((directory / name(2)).read_bytes())
    with pytest.raises(UserError, match=rf"{name(3)}#1 has .* bytes, dataset.json says 6 examples"):
        read_all(directory)


def test_a_bucket_that_does_not_answer_is_waited_for(directory, monkeypatch):
    """Reads of a bucket, by a reader that fails as array_record does there."""
    waits, failures = [], ["UNAVAILABLE: try later"] * 3
    opened = shards.array_record_module.ArrayRecordReader

    class Reader:
        def __init__(self, path, **options):
            self.reader = opened(path, **options)

        def ok(self):
            return True

        def num_records(self):
            return self.reader.num_records()

        def read(self, positions):
            if failures:
                raise RuntimeError(failures.pop())
            return self.reader.read(positions)

    monkeypatch.setattr(shards.array_record_module, "ArrayRecordReader", Reader)
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    assert len(read_all(directory, is_remote=True)) == 320
    assert sum(waits) <= 7 and len(waits) == 3
    failures[:] = ["UNAVAILABLE: try later"] * 100
    monkeypatch.setattr(shards, "MAX_WAIT", 0.0)
    with pytest.raises(RuntimeError, match="UNAVAILABLE"):
        read_all(directory, is_remote=True)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_bucket_that_refuses_is_not_waited_for(directory, bucket, is_open):
    for path in directory.rglob("*.*"):
        bucket.write(f"data/{path.relative_to(directory)}", path.read_bytes())
    split = Split("gs://bucket/data", "train", 0)
    if is_open:
        assert len(split.examples(0, np.array([3]))) == 64
    forbidden = bucket.breaking(Rule("data/train", 403))
    with forbidden, pytest.raises(UserError, match="no permission for bucket gs://bucket"):
        split.examples(0, np.array([4]))
    bucket.delete(f"data/{name(2)}")
    with pytest.raises(UserError, match=f"gs://bucket/data/{name(2)} is missing: restore it"):
        split.examples(0, np.array([4]))


LIMITED = """
import resource, sys
from bert_jax.data import shards
from bert_jax.cli import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[1])))
try:
    shards.allow_open_files(100, "DATA")
except UserError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_as_many_files_as_shards_may_be_open():
    def limited(hard: int) -> str:
        command = [sys.executable, "-c", LIMITED, str(hard)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert limited(1000) == "1000\n"  # all: other splits and phases have shards too
    assert "DATA has 100 shards, each an open file in training, but this" in limited(300)
