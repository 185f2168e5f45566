"""The loader: which examples a step gets, and that it is a function of the step alone."""

import concurrent.futures
import dataclasses
import gc
import json
import os
import time

import grain
import ml_collections
import numpy as np
import pytest
import small_run
from small_run import LENGTH, PREDICTIONS, make_data_dir

from bert_jax.cli import UserError
from bert_jax.data import dataset, input_pipeline, placing
from bert_jax.data.dataset import PretrainingData
from bert_jax.models import architectures, heads
from bert_jax.parallel import sharding
from bert_jax.training import phases


@pytest.fixture
def data(config):
    return input_pipeline.open_data(config.data_dir, "train", config)


@pytest.fixture
def mesh():
    return sharding.make_mesh()


def examples_of(batch) -> list[bytes]:
    """Each example of a batch as bytes, to compare and count."""
    count = len(batch["input_ids"])
    return [b"".join(np.asarray(v)[i].tobytes() for v in batch.values()) for i in range(count)]


def test_an_epoch_is_every_example_once(data):
    first = examples_of(data.read(0, data.num_examples))
    second = examples_of(data.read(data.num_examples, 2 * data.num_examples))
    assert len(set(first)) == data.num_examples == 320
    assert sorted(first) == sorted(second)
    assert first != second  # another order


def test_the_position_alone_decides(data):
    whole = data.read(100, 900)  # crosses two epoch boundaries, and records
    parts = [data.read(start, start + 50) for start in range(100, 900, 50)]
    assert sorted(examples_of(whole)) == sorted(e for part in parts for e in examples_of(part))


def test_another_seed_gives_another_order(config, data):
    config.seed = 1
    other = input_pipeline.open_data(config.data_dir, "train", config)
    assert examples_of(other.read(0, 64)) != examples_of(data.read(0, 64))


def test_batches_resume_at_any_step(data, mesh):
    with data.batches(mesh, 0, 30) as batches:
        whole = [examples_of(batch) for batch in batches]
    with data.batches(mesh, 17, 30) as batches:
        rest = [examples_of(batch) for batch in batches]
    assert len(whole) == 30
    assert whole[17:] == rest


def test_rows_of_a_process_are_those_of_its_devices(data, monkeypatch):
    whole = data.read(16 * 7, 16 * 8)["input_ids"]

    class Layout:
        def __init__(self, *ranges):
            self._ranges = ranges

        def addressable_devices_indices_map(self, shape):
            return {i: (slice(*r),) for i, r in enumerate(self._ranges)}

    def rows(*ranges):
        monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Layout(*ranges))
        return placing.local_rows(None, 16)

    assert rows((0, 8), (8, 16)) == [slice(0, 8), slice(8, 16)]
    assert rows((8, 16), (8, 16)) == [slice(8, 16)]  # a tensor axis: both need the same rows
    assert rows((None, None)) == [slice(0, 16)]
    apart = rows((12, 16), (4, 8))
    read = data._read_rows(16 * 7, apart)["input_ids"]
    np.testing.assert_array_equal(read, np.concatenate([whole[4:8], whole[12:16]]))


def test_a_batch_is_one_read_and_its_records_are_shared(data, monkeypatch):
    reads, real = [], data.shards.read

    def counted(numbers):
        reads.append(list(numbers))
        return real(numbers)

    monkeypatch.setattr(data.shards, "read", counted)
    data._cache.clear()  # opening has read some to check them
    data._batch_size = 64
    whole = data._read_rows(0, [slice(0, 64)])
    assert len(reads) == 1
    parts = data._read_rows(0, [slice(0, 4), slice(10, 30), slice(60, 64)])
    assert len(reads) == 1  # nothing again
    rows = [*range(4), *range(10, 30), *range(60, 64)]
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array[rows])
    # Over the end of an epoch: one read each.
    data._read_rows(data.num_rows - 30, [slice(0, 10), slice(50, 60)])
    numbers = [number for read in reads for number in read]
    assert len(reads) <= 3 and len(numbers) == len(set(numbers))


def test_threads_share_what_they_read(data, monkeypatch):
    reads, real = [], data.shards.read

    def slow(numbers):
        reads.extend(numbers)
        time.sleep(0.05)
        return real(numbers)

    monkeypatch.setattr(data.shards, "read", slow)
    data._cache.clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: data.read(8 * i, 8 * i + 8), range(8)))
    assert len(reads) == len(set(reads))
    together = [example for part in parts for example in examples_of(part)]
    assert sorted(together) == sorted(examples_of(data.read(0, 64)))


def test_a_read_that_failed_is_tried_again(data):
    data._cache.clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(data.shards, "read", Failing())
        data.read(0, 8)
    assert len(data.read(0, 8)["input_ids"]) == 8


class Failing:
    def __call__(self, numbers):
        raise ConnectionError


def test_batches_ahead_are_bounded_by_their_bytes(config, data, mesh, monkeypatch):
    seen, real = [], grain.ReadOptions

    def noted(**options):
        seen.append((options["num_threads"], options["prefetch_buffer_size"]))
        return real(**options)

    monkeypatch.setattr(grain, "ReadOptions", noted)

    def options(**fields):
        opened = PretrainingData(config.data_dir, "train", 16, 0, **fields)
        with opened.batches(mesh, 0, 1) as batches:
            next(batches)
        return seen.pop()

    assert options() == (2, 8)
    assert options(threads=3, prefetch=5) == (3, 5)
    assert options(threads=3, prefetch=2) == (2, 2)
    row = 4 * (3 * LENGTH + 3 * PREDICTIONS + 1)
    monkeypatch.setattr(dataset, "MAX_PREFETCH_BYTES", 4 * 16 * row + 1)
    assert options() == (2, 4)
    monkeypatch.setattr(dataset, "MAX_PREFETCH_BYTES", 1)
    assert options() == (1, 1)


def test_shards_are_closed_with_the_batches(data, mesh):
    gc.collect()  # data of other tests

    def open_shards():
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if link.startswith(f"{data.data_dir}/train-")]

    with data.batches(mesh, 0, 30) as batches:
        list(batches)
        assert open_shards()
    assert not open_shards()
    assert len(data.read(0, 8)["input_ids"]) == 8  # they open again


def test_batch_arrays_follow_from_the_record(data):
    batch = data.read(0, 64)
    assert batch["input_ids"].shape == (64, LENGTH)
    for i in range(64):
        ids, length = batch["input_ids"][i], batch["attention_mask"][i].sum()
        assert (batch["attention_mask"][i][:length] == 1).all()
        assert ids[0] == 2 and ids[length - 1] == 3 and (ids[length:] == 0).all()
        second = np.flatnonzero(ids == 3)[0] + 1  # after the first [SEP]
        expected = np.zeros(LENGTH)
        expected[second:length] = 1
        np.testing.assert_array_equal(batch["token_type_ids"][i], expected)
        masked = batch["masked_lm_positions"][i][batch["masked_lm_weights"][i] > 0]
        np.testing.assert_array_equal(masked, np.flatnonzero(ids == 4))
    assert set(batch["next_sentence_labels"]) == {0, 1}


def test_batch_shapes_are_those_of_batches(data):
    shapes = placing.batch_shapes(7, LENGTH, PREDICTIONS)
    batch = data.read(0, 7)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }


def test_evaluation_reads_the_split_once_with_empty_rows_at_the_end(config, mesh):
    data = input_pipeline.open_data(config.data_dir, "validation", config)
    batches = list(data.eval_batches(mesh, 0))
    assert len(batches) == 3  # 45 examples in batches of 16
    labels = np.concatenate([b["next_sentence_labels"] for b in batches])
    weights = np.concatenate([b["masked_lm_weights"] for b in batches])
    assert (labels >= 0).sum() == 45 and (labels[45:] == -1).all()
    assert weights[45:].sum() == 0
    real = [row for b in batches for row in examples_of(b)][:45]
    assert sorted(real) == sorted(examples_of(data.read(0, 45)))
    assert len(list(data.eval_batches(mesh, 2))) == 2
    # In parts, as a step that accumulates works it off.
    parts = list(data.eval_batches(mesh, 2, num_parts=4))
    assert [len(part["input_ids"]) for part in parts] == [4] * 8
    for name in batches[0]:
        np.testing.assert_array_equal(
            np.concatenate([part[name] for part in parts]),
            np.concatenate([batch[name] for batch in batches[:2]]),
        )


def test_how_dynamic_data_is_masked_is_a_part_of_what_it_is(data):
    def described(masking, rate):
        arguments = data.manifest.arguments | {
            "masking": masking,
            "masked_lm_prob": rate,
            **{"mask_fraction": 0.8, "random_fraction": 0.1, "whole_word_mask": False},
            "max_ngram": 1,
        }
        data.manifest = dataclasses.replace(data.manifest, arguments=arguments)
        return data.fingerprint

    assert described("static", 0.15) == described("static", 0.3)
    assert described("dynamic", 0.15) != described("dynamic", 0.3)


def test_evaluation_sets_of_one_name_are_refused(config, data_dir, tmp_path):
    (tmp_path / data_dir.name).symlink_to(data_dir)
    config.extra_eval_data_dirs = f"{data_dir},{tmp_path / data_dir.name}"
    with pytest.raises(UserError, match=rf"would be called eval_{data_dir.name}_"):
        input_pipeline.open_eval_data(config)


@pytest.mark.parametrize("field", ["eval_data_dir", "extra_eval_data_dirs"])
def test_held_out_data_of_another_length_is_named_by_its_field(
    config, tmp_path, monkeypatch, field
):
    config[field] = config.data_dir
    config.model.max_position_embeddings = 2 * LENGTH
    monkeypatch.setattr(small_run, "LENGTH", 2 * LENGTH)
    config.data_dir = str(make_data_dir(tmp_path, {"validation": [20]}))
    config = ml_collections.ConfigDict(config.to_dict() | {"max_seq_length": 2 * LENGTH})
    with pytest.raises(UserError, match=rf"wants 64: .*--config\.phases\[N\]\.{field}=DATA_DIR"):
        input_pipeline.open_eval_data(config)


def test_objective_without_pairs_has_no_labels(tmp_path, config):
    make_data_dir(tmp_path, {"train": [64]}, objective="full_sentences")
    data = input_pipeline.open_data(str(tmp_path), "train", config)
    assert not data.has_next_sentence_labels
    assert (data.read(0, 64)["next_sentence_labels"] == -1).all()


def test_misfits_are_named(config, tmp_path):
    def message(split="train", **model):
        config.model.update(model)
        with pytest.raises(UserError) as error:
            input_pipeline.open_data(config.data_dir, split, config)
        return str(error.value)

    assert "config.model.vocab_size is 99" in message(vocab_size=99)
    config.model.vocab_size = 100
    assert "no test examples (splits: train, validation)" in message("test")
    config.data_dir = str(tmp_path / "nowhere")
    assert "does not exist" in message()
    config.data_dir = str(tmp_path)
    assert "has no dataset.json" in message()
    config.data_dir = ""
    assert "--config.data_dir=DATA_DIR" in message()
    make_data_dir(tmp_path, {"train": [64, 64]})
    (tmp_path / "train-00001-of-00002.array_record").unlink()
    config.data_dir = str(tmp_path)
    assert "train-00001-of-00002.array_record is missing" in message()
    manifest = tmp_path / "dataset.json"
    fields = json.loads(manifest.read_text())
    fields["arguments"]["format"] = "tfrecord"
    del fields["checksum"]
    manifest.write_text(json.dumps(fields))
    assert "is in the format tfrecord" in message()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type_vocab_size": 1}, r"pairs of segments, but config\.model\.type_vocab_size=1"),
        ({"max_position_embeddings": 31}, "sequences of 32 tokens, but the model reads 31"),
        # A row of the positions for padding, and the row before it for nothing.
        (
            {"architecture": "roberta", "pad_token_id": 0, "max_position_embeddings": 32},
            "sequences of 32 tokens, but the model reads 31",
        ),
        (
            {"architecture": "roberta", "pad_token_id": 1, "max_position_embeddings": 34},
            r"add --config\.model\.pad_token_id=0",
        ),
    ],
)
def test_data_that_the_model_cannot_read_is_refused(data, config, fields, message):
    model = architectures.make_config({**config.model.to_dict(), **fields})
    with pytest.raises(UserError, match=message):
        input_pipeline.check_model(data, model)


def test_numbers_of_threads_are_checked(config):
    config.data_prefetch = -1
    with pytest.raises(UserError, match=r"config\.data_prefetch=-1: expected at least 1, or 0"):
        input_pipeline.open_data(config.data_dir, "train", config)


def test_sizes_beyond_memory_are_named_before_anything_is_allocated(config, mesh):
    def check(**fields):
        config.update_from_flattened_dict(fields)
        (phase,) = phases.resolve(config)
        state = phase.abstract_state(heads.make_model(config), mesh)
        shapes = placing.batch_shapes(config.batch_size, LENGTH, PREDICTIONS)
        batch = sharding.abstract_batch(shapes, mesh)
        input_pipeline.check_sizes(config, mesh, state, batch)

    check()
    with pytest.raises(UserError, match=r"GiB per device .*config\.batch_size=2000000000\)"):
        check(batch_size=2 * 10**9)
    with pytest.raises(UserError, match=r"GiB per device .*vocab_size=1000000000, \.hidden_size"):
        check(**{"batch_size": 16, "model.vocab_size": 10**9})


def test_runs_of_before_keep_their_order(config, data):
    config.sampling = 1
    old = input_pipeline.open_data(config.data_dir, "train", config)
    # Records move as blocks: 64 rows are those of one or two records.
    assert len(old.origin(64, 128)["records"]) <= 3 < len(data.origin(64, 128)["records"])
    config.sampling = 3
    with pytest.raises(UserError, match=r"config\.sampling=3: expected 1 or 2"):
        input_pipeline.open_data(config.data_dir, "train", config)


def test_batch_that_does_not_divide_is_refused(config, mesh):
    config.accumulate_steps = 3
    with pytest.raises(UserError, match="batch_size=16 must be a positive multiple of 3"):
        input_pipeline.check_batch(config, mesh)
