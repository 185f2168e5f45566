"""Examples/s of the training loader beside torch's DataLoader with transformers' MLM collator.

    python benchmarks/input_pipeline.py --data_dir=STATIC_DATA_DIR,DYNAMIC_DATA_DIR

Ours is what `pretrain` iterates over, from the shards to batches on the device, in one process. The
other side has the same examples, tokenised, in memory: DataLoader with one worker process and
DataCollatorForLanguageModeling, which draws masks for every batch. Both take turns in every repeat;
the ratio is the median over the repeats. Needs the extra `hf`.

    python benchmarks/input_pipeline.py --data_dir=DATA_DIR --latency_ms=50

has ours wait so long for each read, as for one of a bucket, with the threads and batches ahead that
are the default there.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import torch
import transformers

from benchmarks import peers
from bert_jax.cli import UserError, run
from bert_jax.data import dataset
from bert_jax.data.dataset import PretrainingData
from bert_jax.parallel import sharding

IN_MEMORY = 20_000  # examples that torch's side goes round


def open_ours(data_dir: str, batch_size: int, latency_ms: float) -> PretrainingData:
    """The data set, each read of which takes `latency_ms` longer."""
    if not latency_ms:
        return PretrainingData(data_dir, "train", batch_size, seed=0)
    remote = {"threads": dataset.THREADS_REMOTE, "prefetch": dataset.PREFETCH_REMOTE}
    data = PretrainingData(data_dir, "train", batch_size, seed=0, **remote)
    read = data.shards.read

    def read_late(numbers: Sequence[int]) -> list[bytes]:
        time.sleep(latency_ms / 1e3)
        return read(numbers)

    data.shards.read = read_late
    return data


def our_batches(data: PretrainingData) -> Iterator[Any]:
    """The endless stream of training batches on this process's devices."""
    with data.batches(sharding.make_mesh(), 0, 10**9) as batches:
        yield from batches


def torch_batches(data: PretrainingData, batch_size: int) -> Iterator[Any]:
    """The same examples by DataLoader, round after round."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(data.data_dir / "tokenizer"))
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    examples = data.read(0, min(data.num_examples, IN_MEMORY))
    special = data.tokenizer.is_special_V[examples["input_ids"]]
    rows = [
        {
            "input_ids": examples["input_ids"][i].tolist(),
            "token_type_ids": examples["token_type_ids"][i].tolist(),
            "attention_mask": examples["attention_mask"][i].tolist(),
            "special_tokens_mask": special[i].astype(int).tolist(),
            "next_sentence_label": int(examples["next_sentence_labels"][i]),
        }
        for i in range(len(special))
    ]
    loader = torch.utils.data.DataLoader(
        rows,
        batch_size=batch_size,
        shuffle=True,
        collate_fn=collator,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",  # JAX's threads would not survive a fork
        drop_last=True,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def rate(batches: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Examples/s over at least `seconds`."""
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += batch_size
    return count / elapsed


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="data sets made by data_prep.build, by commas")
    add("--batch_size", type=int, default=256)
    add("--latency_ms", type=float, default=0.0, help="that each of our reads takes longer")
    add("--seconds", type=float, default=5.0, help="of a side in a repeat")
    add("--repeats", type=int, default=5)
    add("--json", action="store_true", help="print the numbers as JSON, not the table")
    options = parser.parse_args(argv)
    if options.seconds <= 0 or options.repeats < 1 or options.batch_size < 1:
        raise UserError("--seconds, --repeats and --batch_size must be positive")
    results = []
    for data_dir in options.data_dir.split(","):
        data = open_ours(data_dir, options.batch_size, options.latency_ms)
        sides = {
            "bert_jax": our_batches(data),
            "torch": torch_batches(data, options.batch_size),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for name, batches in sides.items():  # workers start, caches fill
            print(f"{data_dir}: {name}", file=sys.stderr, flush=True)
            for _ in range(20):
                next(batches)
        for _ in range(options.repeats):
            for name, batches in sides.items():
                rates[name].append(rate(batches, options.batch_size, options.seconds))
        results.append(
            {
                "data_dir": data_dir,
                "masking": data.manifest.arguments["masking"],
                "max_seq_length": data.max_seq_length,
                "examples": data.num_examples,
                "latency_ms": options.latency_ms,
                **{name: statistics.median(values) for name, values in rates.items()},
                "ratio": statistics.median(
                    ours / theirs
                    for ours, theirs in zip(rates["bert_jax"], rates["torch"], strict=True)
                ),
            }
        )
        for batches in sides.values():
            getattr(batches, "close", lambda: None)()
    if options.json:
        print(json.dumps({"environment": peers.environment(), "results": results}, indent=1))
        return
    print("| masks | tokens | bert_jax, examples/s | torch, examples/s | ratio |")
    print("|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['masking']} | {r['max_seq_length']} | {r['bert_jax']:,.0f} | "
            f"{r['torch']:,.0f} | {r['ratio']:.1f} |"
        )
    print("\n" + ", ".join(f"{k} {v}" for k, v in peers.environment().items()) + ".")


if __name__ == "__main__":
    run(main)
