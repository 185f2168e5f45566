"""Trains one model here and with Hugging Face's class in torch, and compares every step's loss.

    python benchmarks/loss_parity.py --data_dir=DATA_DIR [--architecture=roberta]

Both start from the same weights, read the same batches, and take steps of the recipe's optimizer;
dropout is off, since the two draw it differently. Needs the extra `hf`. Ends with code 1 when a
step's losses differ by more than the tolerance.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np
import torch

from bert_jax.models import heads

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from benchmarks import peers
from bert_jax.cli import HelpFormatter, UserError, run
from bert_jax.config import recipe
from bert_jax.data import input_pipeline, placing, records, tokenizer
from bert_jax.models.architectures import ARCHITECTURES
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.runs.state import init_state
from bert_jax.training import optimizer
from bert_jax.training.step import make_train_step

SIZES = ("tiny", "mini", "base")


def make_config(options: argparse.Namespace):
    """The encoder's laptop recipe at a size of BERT's, Adam as torch has it, and no dropout."""
    config = recipe(f"{options.architecture}_base:laptop")
    sizes = recipe(f"bert_{options.size}").model
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        config.model[field] = sizes[field]
    # A gated feed-forward has three matrices for two.
    is_gated = options.architecture == "modernbert"
    config.model.intermediate_size = (3 if is_gated else 8) * sizes.hidden_size // 2
    config.phases = config.batch_size_warmup = ()
    config.masked_lm_prob = 0.0
    config.data_dir = options.data_dir
    config.num_steps = options.steps
    config.batch_size = options.batch_size
    config.seed = options.seed
    for field in config.model:
        if field.endswith(("dropout", "dropout_prob")):
            config.model[field] = 0.0
    config.optimizer.bias_correction = True
    config.optimizer.warmup_steps = options.steps // 10
    manifest = records.Manifest.read(options.data_dir)
    config.model.vocab_size = manifest.vocab_size
    if "pad_token_id" in config.model:
        config.model.pad_token_id = tokenizer.load(f"{options.data_dir}/tokenizer").pad_id
    return config


def torch_losses(config, params, batches) -> list[float]:
    """Losses of Hugging Face's model, trained in torch."""
    model = peers.pretraining_model(config, params)
    adamw = peers.adamw(model, config.optimizer)
    schedule = optimizer.make_schedule(config.optimizer, config.num_steps)
    losses = []
    for step, batch in enumerate(batches):
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        adamw.zero_grad()
        loss = model(**peers.pretraining_batch(batch, config.model.architecture)).loss
        loss.backward()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        adamw.step()
        losses.append(loss.item())
        progress("torch", step, losses[-1])
    return losses


def our_losses(config, mesh, tx, state, batches) -> list[float]:
    """Losses of the step that `pretrain` runs."""
    objective = pretraining_objective(heads.make_model(config))
    schedule = optimizer.make_schedule(config.optimizer, config.num_steps)
    step_fn = make_train_step(objective, tx, schedule, mesh, config.seed)
    losses = []
    for step, batch in enumerate(batches):
        on_device = placing.to_devices(batch, mesh, config.batch_size)
        state, values = step_fn(state, on_device)
        losses.append(float(values["loss"]))
        progress("bert_jax", step, losses[-1])
    return losses


def progress(side: str, step: int, loss: float) -> None:
    print(f"\r{side}: step {step + 1}, loss {loss:.4f} ", end="", file=sys.stderr, flush=True)


def main(argv) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="made by data_prep.build")
    parser.add_argument("--architecture", default="bert", choices=sorted(ARCHITECTURES))
    parser.add_argument("--size", default="mini", choices=SIZES, help="of the model")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences a step")
    parser.add_argument("--seed", type=int, default=0, help="of weights and the order of data")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative, at every step")
    parser.add_argument("--json", action="store_true", help="print the losses as JSON")
    options = parser.parse_args(argv)
    if options.steps < 10:
        raise UserError(f"--steps={options.steps}: expected at least 10")
    config = make_config(options)

    data = input_pipeline.open_data(config.data_dir, "train", config)
    batches = [
        data.read(step * config.batch_size, (step + 1) * config.batch_size)
        for step in range(config.num_steps)
    ]
    mesh = sharding.make_mesh()
    model = heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)
    state = init_state(lambda key: heads.init_params(model, key), tx, mesh, config.seed)
    params = jax.tree.map(np.array, jax.device_get(state.params))  # the step donates its buffers
    ours = our_losses(config, mesh, tx, state, batches)
    theirs = torch_losses(config, params, batches)
    differences = np.abs(np.array(ours) - theirs) / np.array(theirs)
    worst = int(differences.argmax())  # NaN is the largest
    holds = bool(differences[worst] <= options.tolerance)
    result = {
        "architecture": options.architecture,
        "size": options.size,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "largest_relative_difference": float(differences[worst]),
        "at_step": worst + 1,
        "tolerance": options.tolerance,
        "bert_jax": ours,
        "torch": theirs,
        "environment": peers.environment(),
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"\n{'step':>5} {'bert_jax':>10} {'torch':>10} {'difference':>11}")
        shown = sorted({0, worst, *range(9, options.steps, 10), options.steps - 1})
        for i in shown:
            print(f"{i + 1:>5} {ours[i]:>10.5f} {theirs[i]:>10.5f} {differences[i]:>11.1e}")
        print(
            f"largest relative difference {differences[worst]:.1e} at step {worst + 1} "
            f"(at most {options.tolerance:.0e} {'holds' if holds else 'DOES NOT HOLD'})"
        )
    return int(not holds)


if __name__ == "__main__":
    run(main)
