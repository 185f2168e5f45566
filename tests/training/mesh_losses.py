"""Run by test_train.py on 8 virtual devices: prints the losses of meshes and variants as JSON.

Arguments: a recipe; "quick", "packed" or "all"; the config's overrides. Variants of settings that
the recipe's encoder has not are skipped.
"""

import json
import sys

import jax

from bert_jax import config as config_lib
from bert_jax.data import input_pipeline
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.runs.state import init_state
from bert_jax.training import optimizer
from bert_jax.training.step import make_train_step

QUICK = {
    "1x1x1": {},
    "2x2x2 accumulated": {"accumulate_steps": 2},
}
PACKED = {
    "1x1x1": {},
    "2x2x2 accumulated, scanned": {"accumulate_steps": 2, "model.scan_layers": True},
}
SLOW = {
    "2x2x2": {},
    "1x2x2 accumulated": {"accumulate_steps": 4},
    "2x2x1 scanned, full remat": {"model.scan_layers": True, "model.remat": "full"},
    "2x1x2 fused attention": {"model.attention": "fused"},
    "8x1x1": {},
    "1x8x1": {},
    "1x4x2": {},
    "8x1x1 accumulated": {"accumulate_steps": 2},
    "1x1x1 scanned": {"model.scan_layers": True},
    "1x4x2 dots remat": {"model.remat": "dots"},
    "1x1x1 threefry": {"model.dropout_rng": "threefry"},
    "2x2x2 threefry": {"model.dropout_rng": "threefry"},
    "1x1x1 muon": {"optimizer.name": "muon"},
    "1x2x2 muon": {"optimizer.name": "muon"},
    "1x1x1 stableadamw": {"optimizer.name": "stableadamw"},
    "1x2x2 stableadamw": {"optimizer.name": "stableadamw"},
}


def losses(config, axes) -> list[float]:
    count = axes[0] * axes[1] * axes[2]
    mesh = sharding.make_mesh(*axes, devices=jax.devices()[:count])
    data = input_pipeline.open_data(config.data_dir, "train", config)
    model = heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)
    state = init_state(lambda key: heads.init_params(model, key), tx, mesh, config.seed)
    objective = pretraining_objective(model)
    schedule = optimizer.make_schedule(config.optimizer, config.num_steps)
    step = make_train_step(objective, tx, schedule, mesh, config.seed, config.accumulate_steps)
    values = []
    with data.batches(mesh, 0, config.num_steps) as batches:
        for batch in batches:
            state, metrics = step(state, batch)
            values.append(float(metrics["loss"]))
    return values


result = {}
recipe, variants, *overrides = sys.argv[1:]
for name, changes in {"quick": QUICK, "packed": PACKED, "all": QUICK | SLOW}[variants].items():
    flags = [f"--config={recipe}:laptop", "--workdir=-", *overrides]
    config, _ = config_lib.parse(flags, "", workdir="unused")
    if any(x.startswith("model.") and x[6:] not in config.model for x in changes):
        continue
    config.update_from_flattened_dict(changes)
    axes = [int(n) for n in name.split()[0].split("x")]
    result[name] = losses(config, axes)
print(json.dumps(result))
