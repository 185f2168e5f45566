"""A small data set in the on-disk format, and commands run as a user would run them."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np
from array_record.python import array_record_module

from bert_jax.config import recipe
from bert_jax.data import records, tokenizer
from bert_jax.runs import telemetry
from bert_jax.training import reporting
from bert_jax.training.inputs import open_inputs
from configs import bert_tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
VOCAB_SIZE, LENGTH, PREDICTIONS, PROBABILITY = 100, 32, 5, 0.3


def make_tokenizer() -> tokenizer.Tokenizer:
    words = [f"w{i}" for i in range(VOCAB_SIZE - len(tokenizer.SPECIAL_TOKENS))]
    return tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *words))


def make_examples(count: int, seed: int, shortest: int) -> np.ndarray:
    """Random pairs with a rule to learn: token i+1 is token i + 1, and B repeats A when IsNext."""
    rng = np.random.default_rng(seed)
    examples = np.zeros(count, records.example_dtype(LENGTH, VOCAB_SIZE, PREDICTIONS))
    low, high = len(tokenizer.SPECIAL_TOKENS), VOCAB_SIZE
    for example in examples:
        length = rng.integers(shortest, LENGTH + 1)
        second = length // 2
        ids = low + (rng.integers(high - low) + np.arange(length)) % (high - low)
        label = rng.integers(2)
        if label:
            ids[second:] = low + (rng.integers(high - low) + np.arange(length - second)) % (
                high - low
            )
        ids[0], ids[second - 1], ids[-1] = 2, 3, 3
        candidates = np.setdiff1d(np.arange(length), [0, second - 1, length - 1])
        most = min(PREDICTIONS, round(length * PROBABILITY))
        positions = np.sort(rng.choice(candidates, rng.integers(2, most + 1), False))
        example["masked_lm_positions"][: len(positions)] = positions
        example["masked_lm_ids"][: len(positions)] = ids[positions]
        example["num_masked"] = len(positions)
        ids[positions] = 4
        example["input_ids"][:length] = ids
        example["num_tokens"], example["second_start"] = length, second
        example["next_sentence_label"] = label
    return examples


def make_data_dir(
    directory: pathlib.Path,
    shards: dict[str, list[int]],
    shortest: int = LENGTH // 2,
    objective: str = "nsp",
) -> pathlib.Path:
    """Writes a DATA_DIR of examples of `shortest` (at least 8) to LENGTH tokens.

    `shards`: split -> number of examples of each shard.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tok = make_tokenizer()
    tokenizer.save(tok, directory / "tokenizer")
    np.save(directory / records.TOKEN_COUNTS, np.arange(VOCAB_SIZE)[::-1])
    splits, statistics = {}, {}
    for split, counts in shards.items():
        splits[split], lengths = [], []
        for i, count in enumerate(counts):
            name = records.shard_name(split, i, len(counts))
            examples = make_examples(count, 1000 * len(split) + i, shortest)
            lengths.append(examples["num_tokens"])
            if objective == "full_sentences":
                examples["next_sentence_label"] = records.NO_NEXT_SENTENCE_LABEL
            writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1")
            for start in range(0, count, records.EXAMPLES_PER_RECORD):
                writer.write(examples[start : start + records.EXAMPLES_PER_RECORD].tobytes())
            writer.close()
            splits[split].append(records.Shard(name, count, f"hash of {split} {i} {count}"))
        np.save(directory / records.NUM_TOKENS.format(split=split), np.concatenate(lengths))
        statistics[split] = {"example_tokens": int(np.concatenate(lengths).sum())}
    arguments = {
        "format": "array_record",
        "masking": "static",
        "objective": objective,
        "max_seq_length": LENGTH,
        "max_predictions_per_seq": PREDICTIONS,
        "masked_lm_prob": PROBABILITY,
    }
    manifest = records.Manifest(
        arguments, tok.fingerprint, VOCAB_SIZE, splits, {"splits": statistics}
    )
    manifest.write(directory)
    return directory


# What an encoder's small config has besides sizes: the data is of pairs, and its pad id is 0.
ENCODERS = {
    "bert": {},
    "roberta": {"type_vocab_size": 2, "pad_token_id": 0, "max_position_embeddings": LENGTH + 1},
    "modernbert": {"local_attention": 8},
}


def small_config(data_dir: pathlib.Path, encoder: str = "bert") -> ml_collections.ConfigDict:
    """bert_tiny, small enough to compile and train in seconds, or another encoder of its size."""
    config = bert_tiny.get_config("laptop")
    if encoder != "bert":
        config.model = recipe(f"{encoder}_base:laptop").model
        config.model.update(num_hidden_layers=2, num_attention_heads=2)
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
    config.model.update(ENCODERS[encoder])
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


# Metrics that depend on the clock.
SPEEDS = {
    "sequences_per_second",
    "tokens_per_second",
    "data_wait",
    "training_seconds",
    "goodput",
}


def numbers(workdir) -> list[dict]:
    """The values of metrics.jsonl that do not depend on the clock."""
    return [
        {name: value for name, value in line.items() if name not in SPEEDS}
        for line in telemetry.read(workdir)
    ]


def overrides(config) -> list[str]:
    """A config as --config.field=value flags."""

    def flat(node, prefix):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"--config.{prefix}{name}={value}"

    return list(flat(json.loads(config.to_json()), ""))


def dying_at(step: int):
    """A stand-in for Reporter.step that is interrupted at a step."""
    report = reporting.Reporter.step

    def interrupted(self, number, *args):
        if number == step:
            raise KeyboardInterrupt
        return report(self, number, *args)

    return interrupted


def state_bytes(config) -> int:
    """Parameters and two moments of each."""
    inputs = open_inputs(config)
    state = inputs.phases[0].phase.abstract_state(inputs.model, inputs.mesh)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
