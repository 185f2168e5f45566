"""TFRecord shards: framing, features, and TensorFlow's own reader."""

import dataclasses

import numpy as np
import pytest
from corpora import make_documents, write_jsonl

from bert_jax.cli import UserError
from bert_jax.data.records import example_dtype
from data_prep.build import BuildOptions
from data_prep.build import run as build
from data_prep.check import run as check
from data_prep.examples import tfrecord

pytest.importorskip("google_crc32c")
L, M, V = 16, 4, 40_000


def make_examples(count, seed=0):
    rng = np.random.default_rng(seed)
    examples = np.zeros(count, example_dtype(L, V, M))
    for example in examples:
        n = rng.integers(6, L + 1)
        m = rng.integers(1, M + 1)
        example["input_ids"][:n] = rng.integers(0, V, n)
        example["num_tokens"], example["second_start"] = n, rng.integers(2, n)
        example["next_sentence_label"] = rng.integers(2)
        example["num_masked"] = m
        example["masked_lm_positions"][:m] = np.sort(rng.choice(np.arange(1, n), m, False))
        example["masked_lm_ids"][:m] = rng.integers(0, V, m)
    return examples


def write(path, examples):
    with tfrecord.write_tfrecord(path, [examples]) as written:
        return written.sha256


def test_round_trip(tmp_path):
    examples = make_examples(500)
    write(tmp_path / "a.tfrecord", examples)
    [got] = tfrecord.read_tfrecord(tmp_path / "a.tfrecord", examples.dtype)
    assert got.tobytes() == examples.tobytes()


def test_known_bytes():
    # From tf.train.Example(features={"a": int64_list [1, 300]}).SerializeToString().
    feature = tfrecord._int64_features("a", np.array([[1, 300]]))[0]
    assert tfrecord._field(1, feature) == bytes.fromhex("0a0e0a0c0a016112071a050a0301ac02")


def test_masked_crc():
    import google_crc32c

    # The check value of CRC-32C's specification.
    crc = google_crc32c.value(b"123456789")
    assert crc == 0xE3069283
    rotated = int(f"{crc:032b}"[-15:] + f"{crc:032b}"[:-15], 2)
    assert tfrecord._masked(crc) == (rotated + 0xA282EAD8) % 2**32


@pytest.mark.parametrize("position", [2, 9, 40, -2])
def test_damage_is_found(tmp_path, position):
    examples = make_examples(3)
    path = tmp_path / "a.tfrecord"
    write(path, examples)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="corrupted"):
        list(tfrecord.read_tfrecord(path, examples.dtype))


def test_build_and_check(tmp_path, corpus_file, tokenizer_dir):
    options = BuildOptions((corpus_file,), tokenizer_dir, dupe_factor=1, num_shards=2)
    as_tfrecord = dataclasses.replace(options, format="tfrecord")
    manifest = build(as_tfrecord, tmp_path / "tf", workers=1)
    assert manifest.splits["train"][0].name == "train-00000-of-00002.tfrecord"
    assert check(tmp_path / "tf", workers=1).is_healthy
    other = build(options, tmp_path / "ar", workers=1)
    assert manifest.statistics["splits"]["train"] == other.statistics["splits"]["train"]


def tensorflow_batches(tf, paths, length, predictions):
    """What TensorFlow's own reader and parser make of shards, 1,000 examples at a time."""
    features = {
        name: tf.io.FixedLenFeature([size], tf.float32 if "weights" in name else tf.int64)
        for name, size in (
            ("input_ids", length),
            ("input_mask", length),
            ("segment_ids", length),
            ("masked_lm_positions", predictions),
            ("masked_lm_ids", predictions),
            ("masked_lm_weights", predictions),
            ("next_sentence_labels", 1),
        )
    }
    records = tf.data.TFRecordDataset([str(path) for path in paths])
    parsed = records.map(lambda record: tf.io.parse_single_example(record, features))
    return [{k: v.numpy() for k, v in batch.items()} for batch in parsed.batch(1000)]


def test_tensorflow_reads_it(tmp_path):
    tf = pytest.importorskip("tensorflow")
    examples = make_examples(200)
    path = tmp_path / "a.tfrecord"
    write(path, examples)
    [got] = tensorflow_batches(tf, [path], L, M)
    assert np.array_equal(got["input_ids"], examples["input_ids"])
    place = np.arange(L)
    assert np.array_equal(got["input_mask"], place < examples["num_tokens"][:, None])
    is_second = got["input_mask"] * (place >= examples["second_start"][:, None])
    assert np.array_equal(got["segment_ids"], is_second)
    assert np.array_equal(got["masked_lm_positions"], examples["masked_lm_positions"])
    assert np.array_equal(got["masked_lm_ids"], examples["masked_lm_ids"])
    weights = np.arange(M) < examples["num_masked"][:, None]
    assert np.array_equal(got["masked_lm_weights"], weights)
    assert np.array_equal(got["next_sentence_labels"][:, 0], examples["next_sentence_label"])


@pytest.mark.slow
def test_statistics_as_published_by_tensorflow(tmp_path, tokenizer_dir, tokenizer):
    """Over 50,000 examples; shares within 5 standard errors."""
    tf = pytest.importorskip("tensorflow")
    source = write_jsonl(tmp_path / "c.jsonl", make_documents(8000))
    options = BuildOptions((source,), tokenizer_dir, format="tfrecord", num_shards=2)
    build(options, tmp_path / "data", workers=1)
    paths = sorted((tmp_path / "data").glob("train-*.tfrecord"))
    count = is_next = masked = became_mask = became_other = 0
    for batch in tensorflow_batches(tf, paths, 128, 20):
        count += len(batch["input_ids"])
        is_next += (batch["next_sentence_labels"] == 0).sum()
        is_real = batch["masked_lm_weights"] > 0
        wanted = np.rint(batch["input_mask"].sum(1) * 0.15)
        assert np.array_equal(is_real.sum(1), np.clip(wanted, 1, 20))
        seen = np.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], 1)[is_real]
        original = batch["masked_lm_ids"][is_real]
        masked += len(seen)
        became_mask += (seen == tokenizer.mask_id).sum()
        became_other += ((seen != tokenizer.mask_id) & (seen != original)).sum()
    assert count > 50_000
    assert abs(is_next / count - 0.5) < 0.01
    for found, share in ((became_mask, 0.8), (became_other, 0.1)):
        # A random token is the original one time in a vocabulary.
        assert abs(found / masked - share) < 5 * (share * (1 - share) / masked) ** 0.5 + 0.001
