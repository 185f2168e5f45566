"""Times our pretraining step beside Hugging Face's BertForPreTraining in torch, on the same batch.

    python benchmarks/step_time.py                      # this machine's processor
    python benchmarks/step_time.py --device=gpu         # one GPU, both frameworks on it

A step is forward, backward, gradient clipping and AdamW, with dropout as published. The sides:

    bert_jax          the step that `pretrain` runs; vocabulary scored at the masked positions
    transformers      BertForPreTraining as it is, sdpa, AdamW: the vocabulary at every position
    gathered + fused  the same model, vocabulary at the masked positions, torch's fused AdamW
    … compiled        (GPU) both of torch's under torch.compile

The sides take turns in every repeat; a ratio is the median over repeats of their times' ratios.
Each framework has a process of its own, so that neither's threads and memory disturb the other. The
utilisation is the step's model FLOPs over what a large matrix product reaches in the same run, by
the faster of both frameworks. Needs the extra `hf`.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import peers
from bert_jax import hardware, host_memory, phases, sharding, train
from bert_jax.cli import UserError, run
from configs import bert_base, bert_large, bert_mini, bert_tiny

CONFIGS = {"tiny": bert_tiny, "mini": bert_mini, "base": bert_base, "large": bert_large}
PREDICTIONS = {128: 20, 512: 76}  # a sequence, as the published data has them
# Sequences a step at 128 tokens; at other lengths as many tokens.
BATCH_SIZES = {
    ("cpu", "tiny"): 32,
    ("cpu", "mini"): 32,
    ("cpu", "base"): 8,
    ("cpu", "large"): 4,
    ("gpu", "tiny"): 1024,
    ("gpu", "mini"): 1024,
    ("gpu", "base"): 256,
    ("gpu", "large"): 128,
}
MATRIX = {"cpu": 2048, "gpu": 8192}  # rows of the matrix product that utilisation is measured by

Step = Callable[[], Any]  # starts one step; the result is waited for by `wait`


@dataclasses.dataclass(frozen=True)
class Side:
    """One implementation: `step` starts a step, `wait` returns when all of them are done."""

    name: str
    step: Step
    wait: Callable[[], Any]


def make_config(size: str, dtype: str, batch_size: int, length: int):
    """The laptop recipe (one phase) with AdamW as torch has it."""
    config = CONFIGS[size].get_config("laptop")
    config.batch_size = batch_size
    config.model.dtype = dtype
    config.optimizer.bias_correction = True
    config.model.max_position_embeddings = max(512, length)
    return config


def make_batch(config, length: int) -> dict[str, np.ndarray]:
    """Random tokens and masks; every tenth sequence is short, as in the published data."""
    rng = np.random.default_rng(0)
    batch_size, vocab_size = config.batch_size, config.model.vocab_size
    predictions = PREDICTIONS.get(length, max(1, round(0.15 * length)))
    lengths = np.where(np.arange(batch_size) % 10 == 9, length // 2, length)
    real = np.arange(length) < lengths[:, None]
    count = np.minimum(predictions, np.rint(0.15 * lengths)).astype(int)
    chosen = np.arange(predictions) < count[:, None]
    positions = np.stack([np.sort(rng.permutation(n)[:predictions]) for n in lengths])
    return {
        "input_ids": np.where(real, rng.integers(1, vocab_size, real.shape), 0).astype(np.int32),
        "attention_mask": real.astype(np.int32),
        "token_type_ids": (real & (np.arange(length) >= lengths[:, None] // 2)).astype(np.int32),
        "masked_lm_positions": np.where(chosen, positions, 0).astype(np.int32),
        "masked_lm_ids": rng.integers(1, vocab_size, chosen.shape).astype(np.int32) * chosen,
        "masked_lm_weights": chosen.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, batch_size).astype(np.int32),
    }


def our_side(config, batch: dict[str, np.ndarray]) -> Side:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model, phase = train.make_model(config), phases.resolve(config)[0]
    state = train.init_state(
        lambda key: train.init_params(model, key), phase.make_optimizer(), mesh, config.seed
    )
    step_fn = phase.make_train_step(model, mesh)
    on_device = jax.device_put(batch, sharding.batch_sharding(mesh))
    held = {"state": state, "metrics": None}

    def step() -> None:
        held["state"], held["metrics"] = step_fn(held["state"], on_device)

    return Side("bert_jax", step, lambda: jax.block_until_ready(held["metrics"]))


def gathered_loss(model, batch: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """What BertForPreTraining's loss is, the vocabulary scored at the labelled positions alone."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    output = model.bert(**inputs)
    hidden = output.last_hidden_state.flatten(0, 1)[positions]
    scores = model.cls.predictions(hidden)
    relation = model.cls.seq_relationship(output.pooler_output)
    loss = torch.nn.functional.cross_entropy
    labels = batch["labels"].flatten()[positions]
    return loss(scores, labels) + loss(relation, batch["next_sentence_label"])


def torch_wait(device: str) -> Callable[[], Any]:
    """Returns when torch is done: at once on a CPU."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def torch_side(config, batch, device: str, *, gathered: bool, compiled: bool) -> Side:
    params = train.init_params(train.make_model(config), jax.random.key(config.seed))
    model = peers.pretraining_model(config, params).to(device)
    data = {name: x.to(device) for name, x in peers.pretraining_batch(batch).items()}
    optimizer = peers.adamw(model, config.optimizer, **({"fused": True} if gathered else {}))
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    positions = torch.nonzero(data["labels"].flatten() != peers.IGNORED).squeeze(1)

    def loss_fn() -> torch.Tensor:
        return gathered_loss(model, data, positions) if gathered else model(**data).loss

    loss_fn = torch.compile(loss_fn) if compiled else loss_fn

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
            loss = loss_fn()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()

    name = "gathered + fused" if gathered else "transformers"
    name += ", compiled" if compiled else ""
    return Side(name, step, torch_wait(device))


def our_product(dtype: str, size: int) -> Side:
    """A square matrix product."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    held = {}

    def step() -> None:
        held["x"] = product(x)

    return Side("matrix product, jax", step, lambda: jax.block_until_ready(held["x"]))


def torch_product(dtype: str, device: str, size: int) -> Side:
    x = torch.ones((size, size), dtype=getattr(torch, dtype), device=device)
    held = {}

    def step() -> None:
        held["x"] = x @ x

    return Side("matrix product, torch", step, torch_wait(device))


def make_sides(
    framework: str, config, batch: dict[str, np.ndarray], matrix_size: int, options
) -> list[Side]:
    """The sides in this framework, the matrix product last."""
    dtype = config.model.dtype
    if framework == "jax":
        return [our_side(config, batch), our_product(dtype, matrix_size)]
    jax.config.update("jax_platforms", "cpu")  # for the initial parameters alone
    device = "cuda" if options.device == "gpu" else "cpu"
    return [
        *(
            torch_side(config, batch, device, gathered=gathered, compiled=compiled)
            for compiled, gathered in itertools.product((False, True), (False, True))
            if options.device == "gpu" or not compiled
        ),
        torch_product(dtype, device, matrix_size),
    ]


def timed(side: Side, steps: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for _ in range(steps):
        side.step()
    side.wait()
    return (time.perf_counter() - start) / steps


def serve(connection, *args: Any) -> None:
    """A framework's process: sends the names of its sides, then a time for every (name, steps)."""
    if args[0] == "jax":
        host_memory.keep_freed()  # as our commands do
    sides = {side.name: side for side in make_sides(*args)}
    connection.send(list(sides))
    while order := connection.recv():
        name, steps = order
        connection.send(timed(sides[name], steps))


@contextlib.contextmanager
def in_process(framework: str, *args: Any) -> Iterator[dict[str, Callable[[int], float]]]:
    """The sides by name, each a function from a number of steps to seconds a step."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, framework, *args), daemon=True)
    process.start()
    there.close()  # so that the process's end is noticed here

    def answer() -> Any:
        try:
            return here.recv()
        except EOFError:
            raise UserError(f"the process of {framework} has ended; its error is above") from None

    def timer(name: str) -> Callable[[int], float]:
        def seconds(steps: int) -> float:
            here.send((name, steps))
            return answer()

        return seconds

    try:
        yield {name: timer(name) for name in answer()}
    finally:
        process.terminate()
        process.join()


def measure(size: str, dtype: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times of all sides, taking turns."""
    batch_size = options.batch_size or max(1, BATCH_SIZES[options.device, size] * 128 // length)
    matrix_size = options.matrix_size or MATRIX[options.device]
    config = make_config(size, dtype, batch_size, length)
    batch = make_batch(config, length)
    arguments = (config, batch, matrix_size, options)
    with in_process("jax", *arguments) as ours, in_process("torch", *arguments) as theirs:
        sides = ours | theirs
        times: dict[str, list[float]] = {name: [] for name in sides}
        for name, seconds in sides.items():
            progress(f"{size}, {dtype}, {length} tokens: {name}, first steps")
            seconds(2)
        for repeat in range(options.repeats):
            for name, seconds in sides.items():
                progress(f"{size}, {dtype}, {length} tokens: repeat {repeat + 1}, {name}")
                times[name].append(seconds(options.steps))
    progress("")
    flops = hardware.training_flops(
        train.make_model(config).config, length, batch["masked_lm_ids"].shape[1], batch_size
    )
    products = [name for name in sides if name.startswith("matrix product")]
    rate = 2.0 * matrix_size**3 / min(min(times[name]) for name in products)
    rows = [
        {
            "side": name,
            "seconds": statistics.median(times[name]),
            "fastest_seconds": min(times[name]),
            "utilisation": flops / statistics.median(times[name]) / rate,
            "ratio": statistics.median(
                x / y for x, y in zip(times[name], times["bert_jax"], strict=True)
            ),
        }
        for name in sides
        if name not in products
    ]
    return {
        "size": size,
        "dtype": dtype,
        "length": length,
        "batch_size": batch_size,
        "matrix_product_flops": rate,
        "model_flops": flops,
        "sides": rows,
    }


def progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| model | arithmetic | batch × length | side | ms a step (fastest) | sequences/s | "
        "of the matrix product | time / bert_jax's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["sides"]:
            cells = [
                result["size"],
                result["dtype"],
                f"{result['batch_size']} × {result['length']}",
                row["side"],
                f"{row['seconds'] * 1e3:.1f} ({row['fastest_seconds'] * 1e3:.1f})",
                f"{result['batch_size'] / row['seconds']:.1f}",
                f"{row['utilisation']:.1%}",
                f"{row['ratio']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def choices(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """Parses a list by commas, every entry of which must be among `allowed`."""

    def parse(value: str) -> list[str]:
        chosen = value.split(",")
        if unknown := [x for x in chosen if x not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(allowed)}")
        return chosen

    return parse


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--sizes", type=choices(list(CONFIGS)), help="mini,base; on a GPU base,large")
    add("--dtypes", type=choices(["float32", "bfloat16"]), help="both; on a GPU bfloat16")
    add("--lengths", help="tokens a sequence, by commas: 128; on a GPU 128,512")
    add("--batch_size", type=int, default=0, help="sequences a step; 0: by size, device, length")
    add("--steps", type=int, default=0, help="steps of a side in a repeat: 2; on a GPU 10")
    add("--repeats", type=int, default=7)
    add("--matrix_size", type=int, default=0, help="rows of the matrix product; 0: by device")
    add("--json", action="store_true", help="print the figures as JSON, not the table")
    options = parser.parse_args(argv)
    on_gpu = options.device == "gpu"
    options.sizes = options.sizes or (["base", "large"] if on_gpu else ["mini", "base"])
    options.dtypes = options.dtypes or (["bfloat16"] if on_gpu else ["float32", "bfloat16"])
    options.steps = options.steps or (10 if on_gpu else 2)
    if on_gpu and not (jax.default_backend() == "gpu" and torch.cuda.is_available()):
        raise UserError(
            f"--device=gpu: JAX runs on {jax.default_backend()}, torch "
            f"{'has' if torch.cuda.is_available() else 'has no'} CUDA; both must see the GPU "
            "(pip install 'bert_jax[cuda12]', and torch's CUDA build)"
        )
    if not on_gpu and jax.default_backend() != "cpu":
        raise UserError("--device=cpu on a machine with an accelerator: set JAX_PLATFORMS=cpu")
    try:
        lengths = [int(x) for x in (options.lengths or ("128,512" if on_gpu else "128")).split(",")]
    except ValueError:
        raise UserError(f"--lengths={options.lengths}: expected numbers, as in 128,512") from None
    results = [
        measure(size, dtype, length, options)
        for size, dtype, length in itertools.product(options.sizes, options.dtypes, lengths)
    ]
    if options.json:
        print(json.dumps({"environment": peers.environment(), "results": results}, indent=1))
    else:
        print(table(results))
        print("\n" + ", ".join(f"{k} {v}" for k, v in peers.environment().items()) + ".")


if __name__ == "__main__":
    run(main)
