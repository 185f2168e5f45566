"""A training loop of your own: the data, the objective and the sharded step are three calls.

    python examples/own_loop.py DATA_DIR

DATA_DIR is what data_prep.build writes. The loop below gives the losses of bert_jax.pretrain, which
adds checkpoints, evaluations, logs and guards.
"""

import sys
from collections.abc import Iterator

import ml_collections

import bert_jax
from bert_jax.data import input_pipeline
from bert_jax.data.records import Manifest
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.runs.state import init_state
from bert_jax.training import optimizer
from bert_jax.training.step import make_train_step


def train(config: ml_collections.ConfigDict) -> Iterator[dict[str, float]]:
    """Yields the metrics of every step."""
    mesh = sharding.make_mesh(**config.mesh)  # of all devices: data, fsdp, tensor

    # 1. The data: batches already lie on the devices, and step N has the same one in every run.
    data = input_pipeline.open_data(config.data_dir, "train", config)

    # 2. The objective: sums over a batch, and the weights that divide them. Your own is another
    #    `bert_jax.objectives.base.Objective`, of two functions of (parameters, batch).
    model = heads.make_model(config)
    objective = pretraining_objective(model, next_sentence=data.has_next_sentence_labels)

    # 3. The step: jitted, sharded over the mesh. State goes in and out, the one given is used up.
    updates = optimizer.make_optimizer(config.optimizer)
    schedule = optimizer.make_schedule(config.optimizer, config.num_steps)
    step = make_train_step(objective, updates, schedule, mesh, config.seed)

    # The state is made where it belongs: no device, and no host, ever holds all of it.
    state = init_state(lambda key: heads.init_params(model, key), updates, mesh, config.seed)
    with data.batches(mesh, start_step=0, stop_step=config.num_steps) as batches:
        for batch in batches:
            state, metrics = step(state, batch)
            # Reading a metric waits for the step: for speed read it when the next one runs.
            yield {name: float(value) for name, value in metrics.items()}


def main(data_dir: str) -> None:
    config = bert_jax.recipe("bert_tiny:laptop", data_dir=data_dir, num_steps=100)
    config.model.vocab_size = Manifest.read(data_dir).vocab_size
    for number, metrics in enumerate(train(config), 1):
        print(number, " ".join(f"{name}={value:.4g}" for name, value in metrics.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
