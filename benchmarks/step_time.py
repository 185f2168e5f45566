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
MFU is the step's model FLOPs over what a large product of random matrices reaches in the
same run, by the faster of both frameworks. On a GPU both compute float32's products as TF32. A side
that fails is named on stderr with its error and has dashes in its row; the others go on. Needs the
extra `hf`.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import multiprocessing
import pathlib
import statistics
import sys
import textwrap
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
from bert_jax.cli import UserError, run
from bert_jax.models import heads
from bert_jax.models.flops import training_flops
from bert_jax.parallel import host_memory, sharding
from bert_jax.runs.state import init_state
from bert_jax.training import phases
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
MATRIX = {"cpu": 2048, "gpu": 8192}  # rows of the matmul that MFU is measured by
HEADER = """\
| model | arithmetic | batch × length | side | ms per step (fastest) | sequences/s | \
of the matrix product | time / bert_jax's |
|---|---|---|---|---|---|---|---|"""

Step = Callable[[], Any]  # starts one step; the result is waited for by `wait`


@dataclasses.dataclass(frozen=True)
class Side:
    """One implementation: `step` starts a step, `wait` returns when all of them are done."""

    step: Step
    wait: Callable[[], Any]


class SideError(Exception):
    """Why a side has no time, in a line."""


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
    model, phase = heads.make_model(config), phases.resolve(config)[0]
    state = init_state(
        lambda key: heads.init_params(model, key), phase.optimizer, mesh, config.seed
    )
    step_fn = phase.make_train_step(model, mesh)
    on_device = jax.device_put(batch, sharding.batch_sharding(mesh))
    held = {"state": state, "metrics": None}

    def step() -> None:
        held["state"], held["metrics"] = step_fn(held["state"], on_device)

    return Side(step, lambda: jax.block_until_ready(held["metrics"]))


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
    params = heads.init_params(heads.make_model(config), jax.random.key(config.seed))
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

    return Side(step, torch_wait(device))


def random_matrix(size: int) -> np.ndarray:
    """What both multiply: a GPU is faster at ones or zeros than at what a model holds."""
    return np.random.default_rng(0).standard_normal((size, size), np.float32)


def our_product(dtype: str, size: int) -> Side:
    """A square matrix product."""
    x = jnp.asarray(random_matrix(size), dtype)
    product = jax.jit(lambda a: a @ a)
    held = {}

    def step() -> None:
        held["x"] = product(x)

    return Side(step, lambda: jax.block_until_ready(held["x"]))


def torch_product(dtype: str, device: str, size: int) -> Side:
    x = torch.from_numpy(random_matrix(size)).to(device, getattr(torch, dtype))
    held = {}

    def step() -> None:
        held["x"] = x @ x

    return Side(step, torch_wait(device))


def make_sides(
    framework: str, config, batch: dict[str, np.ndarray], matrix_size: int, options
) -> dict[str, Callable[[], Side]]:
    """What builds each side in this framework, by its name; the matrix product last."""
    dtype = config.model.dtype
    if framework == "jax":
        return {
            "bert_jax": functools.partial(our_side, config, batch),
            "matrix product, jax": functools.partial(our_product, dtype, matrix_size),
        }
    device = "cuda" if options.device == "gpu" else "cpu"
    sides: dict[str, Callable[[], Side]] = {}
    for compiled, gathered in itertools.product((False, True), (False, True)):
        if options.device == "gpu" or not compiled:
            name = "gathered + fused" if gathered else "transformers"
            name += ", compiled" if compiled else ""
            sides[name] = functools.partial(
                torch_side, config, batch, device, gathered=gathered, compiled=compiled
            )
    sides["matrix product, torch"] = functools.partial(torch_product, dtype, device, matrix_size)
    return sides


def timed(side: Side, steps: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for _ in range(steps):
        side.step()
    side.wait()
    return (time.perf_counter() - start) / steps


def serve(connection, framework: str, config, batch, matrix_size: int, options) -> None:
    """A framework's process: sends, for every (side, steps), its time, or why it has none."""
    if framework == "jax":
        host_memory.keep_freed()  # as our commands do
    else:
        jax.config.update("jax_platforms", "cpu")  # for the initial parameters alone
        if options.device == "gpu":
            torch.set_float32_matmul_precision("high")  # TF32, as is JAX's default
    builders, sides = make_sides(framework, config, batch, matrix_size, options), {}
    while order := connection.recv():
        name, steps = order
        try:
            if name not in sides:
                gc.collect()  # what is left of a side that failed
                sides[name] = builders[name]()
            answer = timed(sides[name], steps)
        except Exception as error:
            sides.pop(name, None)
            answer = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        connection.send(answer)


@contextlib.contextmanager
def in_process(framework: str, *args: Any) -> Iterator[dict[str, Callable[[int], float]]]:
    """The sides by name, each a function from a number of steps to seconds a step.

    A side is built when it is called first, and raises `SideError` for any error.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, framework, *args), daemon=True)
    process.start()
    there.close()  # so that the process's end is noticed here

    def seconds(name: str, steps: int) -> float:
        try:
            here.send((name, steps))
            answer = here.recv()
        except (EOFError, ConnectionError):
            process.join(10)
            raise SideError(
                f"the process of {framework} has ended (exit code {process.exitcode}); "
                "its error, if it had time for one, is above"
            ) from None
        if isinstance(answer, str):
            raise SideError(answer)
        return answer

    try:
        yield {name: functools.partial(seconds, name) for name in make_sides(framework, *args)}
    finally:
        process.terminate()
        process.join()


def numbers(
    times: list[float] | None, ours: list[float] | None, flops: float, rate: float | None
) -> dict[str, float | None]:
    """A side's times beside ours of the same repeats; None where a failure leaves no figure."""
    if times is None:
        return dict.fromkeys(("seconds", "fastest_seconds", "mfu", "ratio"))
    ratios = [x / y for x, y in zip(times, ours, strict=True)] if ours else None
    return {
        "seconds": statistics.median(times),
        "fastest_seconds": min(times),
        "mfu": flops / statistics.median(times) / rate if rate else None,
        "ratio": statistics.median(ratios) if ratios else None,
    }


def measure(size: str, dtype: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times of all sides, taking turns; None where a side has failed."""
    batch_size = options.batch_size or max(1, BATCH_SIZES[options.device, size] * 128 // length)
    matrix_size = options.matrix_size or MATRIX[options.device]
    config = make_config(size, dtype, batch_size, length)
    batch = make_batch(config, length)
    arguments = (config, batch, matrix_size, options)
    with in_process("jax", *arguments) as ours, in_process("torch", *arguments) as theirs:
        sides = ours | theirs
        times: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(options.repeats + 1):  # before the first are steps that do not count
            for name in list(times):
                what = f"{size}, {dtype}, {length} tokens: {name}"
                progress(f"{what}, " + (f"repeat {repeat}" if repeat else "first steps"))
                try:
                    seconds = sides[name](options.steps if repeat else 2)
                except SideError as failure:
                    progress(f"{what} failed: {failure}\n")
                    del times[name]
                else:
                    if repeat:
                        times[name].append(seconds)
    progress("")
    flops = training_flops(
        heads.make_model(config).config, length, batch["masked_lm_ids"].shape[1], batch_size
    )
    products = [name for name in sides if name.startswith("matrix product")]
    fastest = [min(times[name]) for name in products if name in times]
    rate = 2.0 * matrix_size**3 / min(fastest) if fastest else None
    rows = [
        {"side": name, **numbers(times.get(name), times.get("bert_jax"), flops, rate)}
        for name in sides
        if name not in products
    ]
    on_gpu = options.device == "gpu"
    return {
        "size": size,
        "dtype": "float32 (TF32)" if on_gpu and dtype == "float32" else dtype,
        "length": length,
        "batch_size": batch_size,
        "matrix_product_flops": rate,
        "model_flops": flops,
        "sides": rows,
    }


def progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def table_rows(result: dict[str, Any]) -> str:
    lines = []
    for row in result["sides"]:
        seconds, mfu, ratio = row["seconds"], row["mfu"], row["ratio"]
        cells = [
            result["size"],
            result["dtype"],
            f"{result['batch_size']} × {result['length']}",
            row["side"],
            f"{seconds * 1e3:.1f} ({row['fastest_seconds'] * 1e3:.1f})" if seconds else "–",
            f"{result['batch_size'] / seconds:.1f}" if seconds else "–",
            f"{mfu:.1%}" if mfu else "–",
            f"{ratio:.2f}" if ratio else "–",
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


def main(argv: Sequence[str]) -> int:
    """Returns 1 if a side has failed, which its row shows and stderr explains."""
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
    add("--repeats", type=int, default=7, help="of every side, taking turns: 7")
    add("--matrix_size", type=int, default=0, help="rows of the matrix product; 0: by device")
    add("--json", action="store_true", help="print the numbers as JSON, not the table")
    options = parser.parse_args(argv)
    on_gpu = options.device == "gpu"
    options.sizes = options.sizes or (["base", "large"] if on_gpu else ["mini", "base"])
    options.dtypes = options.dtypes or (["bfloat16"] if on_gpu else ["float32", "bfloat16"])
    options.steps = options.steps or (10 if on_gpu else 2)
    if options.steps < 1 or options.repeats < 1:
        raise UserError("--steps and --repeats: expected at least 1")
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
    out = sys.stderr if options.json else sys.stdout
    print(HEADER, file=out, flush=True)
    results = []
    for size, dtype, length in itertools.product(options.sizes, options.dtypes, lengths):
        results.append(measure(size, dtype, length, options))
        print(table_rows(results[-1]), file=out, flush=True)  # kept if the next is cut short
    if options.json:
        print(json.dumps({"environment": peers.environment(), "results": results}, indent=1))
    else:
        print("\n" + ", ".join(f"{k} {v}" for k, v in peers.environment().items()) + ".")
    return int(any(row["seconds"] is None for result in results for row in result["sides"]))


if __name__ == "__main__":
    run(main)
