"""dataset.json and the files of a data set: what is not as it was written is found."""

import json
import random
import shutil

import pytest
from small_run import make_data_dir

from bert_jax.cli import UserError
from bert_jax.data import records
from bert_jax.data.records import MANIFEST, Manifest


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "data")


def test_a_manifest_comes_back(tmp_path):
    directory = make_data_dir(tmp_path / "data", {"train": [70]})
    manifest = Manifest.read(directory)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert "checksum" in json.loads((tmp_path / MANIFEST).read_text())


def test_a_flipped_bit_is_found_or_harmless(copy):
    """Of some hundred, at random places; with the checksum or in a data set without one."""
    path = copy / MANIFEST
    whole, manifest = path.read_bytes(), Manifest.read(copy)
    rng = random.Random(0)
    found = 0
    for place in rng.sample(range(len(whole)), 300):
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert Manifest.read(copy) == manifest
        except UserError as error:
            assert str(path) in str(error)
            found += 1
    assert found > 250


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_manifest_that_was_cut_off(copy, size):
    path = copy / MANIFEST
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"dataset\.json is not JSON"):
        Manifest.read(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f.update(format_version=3),
            "version 3, this program reads versions 1, 2",
        ),
        (lambda f: f.pop("splits"), "is corrupted"),
        (lambda f: f.update(splits=[1]), "is corrupted"),
        (lambda f: f.update(splits={"train": [{"nome": "x"}]}), "is corrupted"),
        (lambda f: f.update(further=1), "is corrupted"),
        (lambda f: f["arguments"].pop("max_seq_length"), "is corrupted"),
        (lambda f: f["arguments"].update(max_seq_length="128"), "is corrupted.*found '128'"),
        (lambda f: f["arguments"].update(masking="statik"), "is corrupted.*masking is 'statik'"),
        (lambda f: f.update(statistics=3), "is corrupted"),
    ],
)
def test_contents_that_no_checksum_guards(copy, change, message):
    """As data sets of format version 1 have none."""
    path = copy / MANIFEST
    fields = json.loads(path.read_text())
    del fields["checksum"]
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"dataset\.json.*{message}"):
        Manifest.read(copy)


def test_files_are_compared_quickly(copy):
    """Sizes of shards, contents of the others."""
    manifest = Manifest.read(copy)
    manifest.statistics["files"] = {
        name: records.sha256(copy / name)
        for name in ("token_counts.npy", "num_tokens-validation.npy", "tokenizer/vocab.txt")
    }
    [shard] = manifest.splits["validation"]
    size = (copy / shard.name).stat().st_size
    manifest.splits["validation"] = [records.Shard(shard.name, 45, shard.sha256, size)]
    manifest.verify_quickly(copy, ("train", "validation"))
    for name, change, message in (
        (shard.name, lambda data: data[:-1], f"has {size - 1} bytes, and was written with {size}"),
        (shard.name, None, "is missing"),
        ("token_counts.npy", lambda data: data[:-1] + b"x", "token_counts.npy has changed"),
        ("num_tokens-validation.npy", None, "num_tokens-validation.npy is missing"),
        ("tokenizer/vocab.txt", lambda data: data + b"x", "tokenizer/vocab.txt has changed"),
    ):
        before = (copy / name).read_bytes()
        if change:
            (copy / name).write_bytes(change(before))
        else:
            (copy / name).unlink()
        with pytest.raises(UserError, match=rf"{message}.*data_prep\.check"):
            manifest.verify_quickly(copy, ("train", "validation"))
        if "validation" in name:  # a run on the other split needs none of it
            manifest.verify_quickly(copy, ("train",))
        (copy / name).write_bytes(before)


def test_files_in_a_bucket_are_compared_by_one_listing(copy, bucket):
    manifest = Manifest.read(copy)
    for path in copy.rglob("*"):
        if path.is_file():
            bucket.write(f"data/{path.relative_to(copy)}", path.read_bytes())
    manifest.verify_quickly("gs://bucket/data", ("train", "validation"))
    assert [request.kind for request in bucket.requests] == ["list", "list"]  # and of tokenizer/
    bucket.delete(f"data/{manifest.splits['train'][1].name}")
    with pytest.raises(UserError, match=r"train-00001-of-00003\.array_record is missing"):
        manifest.verify_quickly("gs://bucket/data", ("train", "validation"))
