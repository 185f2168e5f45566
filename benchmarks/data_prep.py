"""Times data preparation against google-research/bert's create_pretraining_data.py.

    python benchmarks/data_prep.py --input='wiki/*.jsonl.gz' --tokenizer=vocab.txt \\
        --reference=CHECKOUT --reference_python=PYTHON_WITH_TENSORFLOW

Both read the same file, one sentence a line, and are timed as whole processes, one after the other
in one run: only the ratio means something on a shared machine. Then it prints where this builder's
time goes, stage by stage in one process, beside the tokenizer's own speed. Without --reference only
the builder is timed.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import numpy as np
from etils import epath

from bert_jax.data import masking
from bert_jax.data import tokenizer as tokenizers
from data_prep.examples import shards, writers
from data_prep.examples.encoders import make_encoder
from data_prep.examples.token_store import Store
from data_prep.options import BuildOptions
from data_prep.running.local import tokenize_units
from data_prep.running.stages import Job
from data_prep.sources import corpus, parsing
from data_prep.sources.documents import sentences


def write_text(sources: Iterable[str], path: pathlib.Path, megabytes: float) -> None:
    """Writes one sentence a line and a blank line after each document, as the reference reads."""
    size = 0
    with path.open("w") as file:
        for part in corpus.list_parts(sources):
            for unit in corpus.read_units(part):
                for document in parsing.parse_unit(unit)[0]:
                    text = "\n".join(s.strip() for s in sentences(document)) + "\n\n"
                    file.write(text)
                    size += len(text.encode())
                    if size >= megabytes * 1e6:
                        return


def seconds(command: list[str], **environment: str) -> float:
    """How long a command takes from start to end."""
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return time.perf_counter() - start


def time_builder(text: pathlib.Path, tokenizer: str, duplicates: int, workers: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "data_prep.build", f"--input={text}"]
        command += [f"--tokenizer={tokenizer}", f"--output={directory}/data", "--num_shards=4"]
        command += [f"--dupe_factor={duplicates}", f"--workers={workers}", "--sentence_per_line"]
        return seconds([*command, "--validation_fraction=0"])


def time_reference(
    checkout: pathlib.Path, python: str, text: pathlib.Path, vocab: str, duplicates: int
) -> float:
    with tempfile.TemporaryDirectory() as directory:
        # Written for TensorFlow 1, whose names TensorFlow 2 keeps under compat.v1.
        for name in ("create_pretraining_data.py", "tokenization.py"):
            source = re.sub(
                r"^import tensorflow as tf",
                "import tensorflow.compat.v1 as tf",
                (checkout / name).read_text(),
                flags=re.MULTILINE,
            )
            (pathlib.Path(directory) / name).write_text(source)
        command = [python, f"{directory}/create_pretraining_data.py", f"--input_file={text}"]
        command += [f"--output_file={directory}/out.tfrecord", f"--vocab_file={vocab}"]
        command += ["--max_seq_length=128", "--max_predictions_per_seq=20"]
        return seconds([*command, f"--dupe_factor={duplicates}"], TF_CPP_MIN_LOG_LEVEL="3")


class Stopwatch:
    """Adds up the time of named stages."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, function: Callable, *arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **keywords)
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start
        return result

    def iterate(self, stage: str, items: Iterable) -> Iterator:
        iterator = iter(items)
        while (item := self(stage, next, iterator, None)) is not None:
            yield item


def stage_times(text: pathlib.Path, tokenizer_name: str, duplicates: int) -> dict[str, float]:
    """Seconds of each stage in this one process, and of the Rust tokenizer on the same text."""
    watch = Stopwatch()
    tokenizer = tokenizers.load(tokenizer_name)
    [part] = corpus.list_parts([str(text)])
    encoder = make_encoder(tokenizer)
    everything: list[str] = []
    for unit in watch.iterate("read", corpus.read_units(part)):
        documents, _ = watch("parse", parsing.parse_unit, unit)
        split = watch(
            "split sentences", lambda ds: [s for d in ds for s in sentences(d)], documents
        )
        watch("tokenise (word cache)", encoder.encode, split)
        everything += split
    watch(
        "(the Rust tokenizer alone)",
        tokenizer.backend.encode_batch_fast,
        everything,
        add_special_tokens=False,
    )
    with tempfile.TemporaryDirectory() as directory:
        options = BuildOptions(
            (str(text),), tokenizer_name, sentence_per_line=True, dupe_factor=duplicates
        ).checked()
        job = Job(options, tokenizer, directory)
        job.units.mkdir(parents=True)
        watch("(stage 1 as a whole)", tokenize_units, job, [part], 1)
        store = Store(job.store, "train", tokenizer.vocab_size)
        what = options.shard_options("train")
        dtype = shards.ShardExamples(store, what, tokenizer, 0, 1, 0).dtype
        blocks = []
        for spans in watch.iterate("pair", shards._pairs(store, what, tokenizer, 0, 1)):
            runs = (spans.start_P.tolist(), spans.length_P.tolist())
            tokens = watch("fetch tokens", store.tokens, *runs)
            laid_out = watch("assemble", shards.assemble, tokens, spans, tokenizer, 128, dtype)
            blocks.append(laid_out)
        store.close()
        examples = np.concatenate(blocks)
        for start in range(0, len(examples), shards.BLOCK_EXAMPLES):
            block = examples[start : start + shards.BLOCK_EXAMPLES]
            masked = watch(
                "mask",
                masking.mask_tokens,
                np.random.default_rng(start),
                block["input_ids"],
                block["num_tokens"],
                what.masking,
                mask_id=tokenizer.mask_id,
                is_special_V=tokenizer.is_special_V,
            )
            block["input_ids"] = masked.input_ids_BL
            block["masked_lm_positions"] = masked.positions_BM
            block["masked_lm_ids"] = masked.ids_BM
            block["num_masked"] = masked.num_masked_B
        path = epath.Path(directory) / "shard"
        start = time.perf_counter()
        with writers.write_array_record(path, [examples]):
            pass
        watch.seconds["write"] = time.perf_counter() - start
        print(
            f"{len(examples):,} examples, {path.stat().length / len(examples):.0f} bytes each; "
            f"masking alone {len(examples) / watch.seconds['mask']:,.0f} examples/s"
        )
    return watch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", default="pydocs", help="SOURCE of text")
    parser.add_argument("--tokenizer", required=True, help="vocab.txt of an uncased vocabulary")
    parser.add_argument("--megabytes", type=float, default=8, help="how much text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--reference", type=pathlib.Path, help="checkout of google-research/bert")
    parser.add_argument(
        "--reference_python", default=sys.executable, help="interpreter with TensorFlow"
    )
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        text = pathlib.Path(directory) / "text.txt"
        write_text([flags.input], text, flags.megabytes)
        megabytes = text.stat().st_size / 1e6
        print(f"{megabytes:.1f} MB of text, whole processes")
        print(f"{'dupe_factor':>11} {'workers':>7} {'MB/s':>7} {'reference MB/s':>14} {'ratio':>6}")
        for duplicates in (1, 5):
            reference = 0.0
            if flags.reference:
                reference = megabytes / time_reference(
                    flags.reference, flags.reference_python, text, flags.tokenizer, duplicates
                )
            for workers in sorted({1, flags.workers}):
                ours = megabytes / time_builder(text, flags.tokenizer, duplicates, workers)
                compared = f"{reference:14.2f} {ours / reference:6.1f}" if reference else ""
                print(f"{duplicates:11} {workers:7} {ours:7.2f} {compared}", flush=True)
        for duplicates in (1, 5):
            print(f"\nstages in one process, dupe_factor {duplicates}")
            for stage, duration in stage_times(text, flags.tokenizer, duplicates).items():
                print(f"{stage:28} {duration:6.2f} s {megabytes / duration:8.1f} MB/s")


if __name__ == "__main__":
    main()
