"""Fixtures: a small data set in the on-disk format, and a config that trains on it in seconds."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# XLA's CPU collectives deadlock when virtual devices outnumber the thread pool (2 cores).
os.environ["NPROC"] = "16"
# A quarter of the time to compile, and the same arithmetic.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Most of the suite's time would be compiling the same programs again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir(), "bert_jax_tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import numpy as np
import pytest
from array_record.python import array_record_module

from bert_jax import records, tokenizer
from configs import bert_tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCAB_SIZE, LENGTH, PREDICTIONS = 100, 32, 5


def make_tokenizer() -> tokenizer.Tokenizer:
    words = [f"w{i}" for i in range(VOCAB_SIZE - len(tokenizer.SPECIAL_TOKENS))]
    return tokenizer.Tokenizer((*tokenizer.SPECIAL_TOKENS, *words))


def make_examples(count: int, seed: int) -> np.ndarray:
    """Random pairs with a rule to learn: token i+1 is token i + 1, and B repeats A when IsNext."""
    rng = np.random.default_rng(seed)
    examples = np.zeros(count, records.example_dtype(LENGTH, VOCAB_SIZE, PREDICTIONS))
    low, high = len(tokenizer.SPECIAL_TOKENS), VOCAB_SIZE
    for example in examples:
        length = rng.integers(LENGTH // 2, LENGTH + 1)
        second = length // 2
        ids = low + (rng.integers(high - low) + np.arange(length)) % (high - low)
        label = rng.integers(2)
        if label:
            ids[second:] = low + (rng.integers(high - low) + np.arange(length - second)) % (
                high - low
            )
        ids[0], ids[second - 1], ids[-1] = 2, 3, 3
        candidates = np.setdiff1d(np.arange(length), [0, second - 1, length - 1])
        positions = np.sort(rng.choice(candidates, rng.integers(2, PREDICTIONS + 1), False))
        example["masked_lm_positions"][: len(positions)] = positions
        example["masked_lm_ids"][: len(positions)] = ids[positions]
        example["num_masked"] = len(positions)
        ids[positions] = 4
        example["input_ids"][:length] = ids
        example["num_tokens"], example["second_start"] = length, second
        example["next_sentence_label"] = label
    return examples


def make_data_dir(directory: pathlib.Path, shards: dict[str, list[int]]) -> pathlib.Path:
    """Writes a DATA_DIR; `shards`: split -> number of examples of each shard."""
    directory.mkdir(parents=True, exist_ok=True)
    tok = make_tokenizer()
    tokenizer.save(tok, directory / "tokenizer")
    splits = {}
    for split, counts in shards.items():
        splits[split] = []
        for i, count in enumerate(counts):
            name = records.shard_name(split, i, len(counts))
            examples = make_examples(count, seed=1000 * len(split) + i)
            writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1")
            for start in range(0, count, records.EXAMPLES_PER_RECORD):
                writer.write(examples[start : start + records.EXAMPLES_PER_RECORD].tobytes())
            writer.close()
            splits[split].append(records.Shard(name, count, f"hash of {split} {i} {count}"))
    arguments = {
        "masking": "static",
        "objective": "nsp",
        "max_seq_length": LENGTH,
        "max_predictions_per_seq": PREDICTIONS,
    }
    records.Manifest(arguments, tok.fingerprint, VOCAB_SIZE, splits, {}).write(directory)
    return directory


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("data")
    return make_data_dir(directory, {"train": [150, 100, 70], "validation": [45]})


@pytest.fixture
def config(data_dir):
    """bert_tiny, small enough to compile and train in seconds."""
    config = bert_tiny.get_config("laptop")
    config.data_dir = str(data_dir)
    config.batch_size = 16
    config.num_steps = 20
    config.log_every = 1
    config.eval_every = 10
    config.checkpoint_every = 10
    config.model.update(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    config.optimizer.warmup_steps = 2
    return config


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m …` as a user would, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def overrides(config) -> list[str]:
    """A config as --config.field=value flags."""

    def flat(node, prefix):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"--config.{prefix}{name}={value}"

    return list(flat(json.loads(config.to_json()), ""))
