"""Command: pretrains an encoder as a config says; run again, it resumes from the last checkpoint.

From Python: `run`.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_collections
from etils import epath

from bert_jax import cli as cli_lib
from bert_jax import config as config_lib

if TYPE_CHECKING:
    from bert_jax.parallel.distributed import StopSignal

USAGE = """\
usage: python -m bert_jax.pretrain --config=configs/bert_base.py[:laptop] --workdir=DIR \\
         --config.data_dir=DATA_DIR [--config.FIELD=VALUE …]

Pretrains BERT on a data set made by data_prep.build. WORKDIR receives config.json, checkpoints/,
tokenizer/, metrics.jsonl and TensorBoard events. The same command again resumes from the last
checkpoint. SIGTERM saves and ends with exit code 75. Add --config=FILE to this help to see the
config's fields.
"""

DISTRIBUTED = {
    "coordinator": "host:port of process 0, where no cluster (TPU, Slurm, MPI) says it",
    "num_processes": "how many processes the run has, together with --coordinator",
    "process_id": "which of them this is, from 0, together with --coordinator",
}


def run(
    config: ml_collections.ConfigDict,
    workdir: str | epath.PathLike,
    show: bool = False,
    stop: "StopSignal | None" = None,
) -> dict[str, float]:
    """Pretrains, or resumes the run in WORKDIR.

        config = bert_jax.recipe("bert_tiny:laptop", data_dir="data", num_steps=100)
        bert_jax.pretrain.run(config, "runs/tiny")["eval_mlm_accuracy"]

    Args:
      config: a recipe of configs/.
      show: whether progress is printed.
      stop: what may ask for a stop after a step (bert_jax.parallel.distributed.StopSignal).

    Returns:
      the metrics of the last evaluation (of the last step, with evaluation turned off).

    Raises:
      UserError: data, model, config and workdir do not fit each other.
      Interrupted: asked to stop; the state is saved, and the same call resumes.
    """
    # JAX takes seconds to import: not before it is needed.
    from bert_jax.training import loop

    return loop.train_and_evaluate(config, workdir, stop, show)


def main(argv: Sequence[str]) -> None:
    config, values = config_lib.parse(
        argv, USAGE, workdir="directory of this run, local or gs://", optional=DISTRIBUTED
    )
    from bert_jax.parallel import distributed, failures, host_memory, program_cache
    from bert_jax.training import warm_start

    host_memory.keep_freed()
    program_cache.tidy()
    distributed.initialize(**{name: values[name] for name in DISTRIBUTED})
    given = [match[1] for flag in argv if (match := re.match(r"--?config\.model\.(\w+)", flag))]
    with failures.ending_together(), distributed.StopSignal() as stop:
        warm_start.adopt_model(config, given, values["workdir"])
        run(config, values["workdir"], show=True, stop=stop)


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
