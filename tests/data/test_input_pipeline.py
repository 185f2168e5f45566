"""The loader: which examples a step gets, and that it is a function of the step alone."""

import dataclasses

import ml_collections
import numpy as np
import pytest
import small_run
from small_run import LENGTH, PREDICTIONS, make_data_dir

from bert_jax.cli import UserError
from bert_jax.data import input_pipeline
from bert_jax.parallel import sharding


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
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([p[name] for p in parts]))


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
        return input_pipeline.local_rows(None, 16)

    assert rows((0, 8), (8, 16)) == [slice(0, 8), slice(8, 16)]
    assert rows((8, 16), (8, 16)) == [slice(8, 16)]  # a tensor axis: both need the same rows
    assert rows((None, None)) == [slice(0, 16)]
    apart = rows((12, 16), (4, 8))
    read = data._read_rows(16 * 7, apart)["input_ids"]
    np.testing.assert_array_equal(read, np.concatenate([whole[4:8], whole[12:16]]))


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
    shapes = input_pipeline.batch_shapes(7, LENGTH, PREDICTIONS)
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
    assert "sequences of 32 tokens" in message(vocab_size=100, max_position_embeddings=16)
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
    assert "train-00001-of-00002.array_record missing" in message(max_position_embeddings=64)
    manifest = tmp_path / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"array_record"', '"tfrecord"'))
    assert "is in the format tfrecord" in message()


def test_batch_that_does_not_divide_is_refused(config, mesh):
    config.accumulate_steps = 3
    with pytest.raises(UserError, match="batch_size=16 must be a positive multiple of 3"):
        input_pipeline.check_batch(config, mesh)
