"""ModernBERT's step at growing lengths, here and with Hugging Face's in torch, in turns.

    python benchmarks/long_context.py

Every step has the same number of tokens, in fewer and longer sequences; both sides compute loss and
gradients of the same batch in float32, torch with its sdpa attention. Needs the extra `hf`.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import numpy as np
import torch

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from benchmarks import peers
from bert_jax.cli import HelpFormatter, run
from bert_jax.config import recipe
from bert_jax.data import masking
from bert_jax.models import heads
from bert_jax.models.flops import training_flops
from bert_jax.objectives.mlm import pretraining_objective


def random_batch(config, length: int, tokens: int) -> dict[str, np.ndarray]:
    """Full sequences of random ids, 30 % of them to predict."""
    rng = np.random.default_rng(0)
    rows, predictions = tokens // length, masking.default_max_predictions(length, 0.3)
    ids_BL = rng.integers(5, config.model.vocab_size, (rows, length)).astype(np.int32)
    positions_BM = np.stack([np.sort(rng.choice(length, predictions, False)) for _ in range(rows)])
    return {
        "input_ids": ids_BL,
        "attention_mask": np.ones_like(ids_BL),
        "token_type_ids": np.zeros_like(ids_BL),
        "masked_lm_positions": positions_BM.astype(np.int32),
        "masked_lm_ids": np.take_along_axis(ids_BL, positions_BM, 1),
        "masked_lm_weights": np.ones((rows, predictions), np.float32),
        "next_sentence_labels": np.full(rows, -1, np.int32),
    }


def measure(config, params, length: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of each side, medians in turns; and what ours needs of memory."""
    batch = random_batch(config, length, options.tokens)
    model = heads.make_model(config)
    objective = pretraining_objective(model)
    predicted = batch["masked_lm_weights"].sum()

    def loss(params, batch):
        return objective.sums(params, batch, None)["mlm_loss"] / predicted

    program = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()
    theirs, data = (
        peers.pretraining_model(config, params),
        peers.pretraining_batch(batch, "modernbert"),
    )

    def ours() -> float:
        return float(jax.block_until_ready(program(params, batch))[0])

    def in_torch() -> float:
        theirs.zero_grad()
        value = theirs(**data).loss
        value.backward()
        return float(value)

    losses = ours(), in_torch()
    if abs(losses[0] - losses[1]) > 1e-3 * losses[1]:
        raise AssertionError(f"different losses: {losses}")
    seconds: dict[str, list[float]] = {"bert_jax": [], "torch": []}
    for _ in range(options.rounds):
        for name, step in (("bert_jax", ours), ("torch", in_torch)):
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    flops = training_flops(
        model.config, length, batch["masked_lm_ids"].shape[1], options.tokens // length
    )
    return {
        "length": length,
        **{name: statistics.median(values) for name, values in seconds.items()},
        "model_gflops": flops / 1e9,
        "temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
    }


def main(argv) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--lengths", default="1024,2048,4096,8192", help="tokens of a sequence")
    parser.add_argument("--tokens", type=int, default=8192, help="of a step")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each side")
    parser.add_argument(
        "--layers", type=int, default=6, help="of the model, a third of them global"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    config = recipe("modernbert_base:laptop")
    config.model.update(num_hidden_layers=options.layers, vocab_size=8192, attention_dropout=0.0)
    params = jax.device_get(heads.init_params(heads.make_model(config), jax.random.key(0)))
    torch.manual_seed(0)
    rows = []
    for length in map(int, options.lengths.split(",")):
        rows.append(measure(config, params, length, options))
        print(f"\rmeasured {length} ", end="", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"environment": peers.environment(), "results": rows}, indent=1))
        return
    print(
        f"\n{'length':>7} {'bert_jax':>9} {'torch':>9} {'torch/ours':>10} {'growth':>7} "
        f"{'FLOPs':>7} {'MiB':>7}"
    )
    first = rows[0]
    for row in rows:
        print(
            f"{row['length']:>7} {row['bert_jax']:>8.2f}s {row['torch']:>8.2f}s "
            f"{row['torch'] / row['bert_jax']:>10.2f} {row['bert_jax'] / first['bert_jax']:>7.2f} "
            f"{row['model_gflops'] / first['model_gflops']:>7.2f} {row['temporary_mib']:>7,.0f}"
        )
    print("\n" + ", ".join(f"{k} {v}" for k, v in peers.environment().items()) + ".")


if __name__ == "__main__":
    run(main)
