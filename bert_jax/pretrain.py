"""Command: pretrains BERT as a config says; run again, it goes on from the last checkpoint."""

from collections.abc import Sequence

from bert_jax import config as config_lib
from bert_jax.cli import run

USAGE = """\
usage: python -m bert_jax.pretrain --config=configs/bert_base.py[:laptop] --workdir=DIR \\
         --config.data_dir=DATA_DIR [--config.FIELD=VALUE …]

Pretrains BERT on a data set made by data_prep.build. WORKDIR receives config.json, checkpoints/,
tokenizer/, metrics.jsonl and TensorBoard events. The same command again goes on where the last
checkpoint left off. SIGTERM saves and ends with exit code 75. Add --config=FILE to this help to see
the config's fields.
"""

DISTRIBUTED = {
    "coordinator": "host:port of process 0, where no cluster (TPU, Slurm, MPI) says it",
    "num_processes": "how many processes the run has, together with --coordinator",
    "process_id": "which of them this is, from 0, together with --coordinator",
}


def main(argv: Sequence[str]) -> None:
    config, values = config_lib.parse(
        argv, USAGE, workdir="directory of this run, local or gs://", optional=DISTRIBUTED
    )
    # After parsing: JAX takes seconds to import.
    from bert_jax.parallel import distributed, host_memory
    from bert_jax.training import loop

    host_memory.keep_freed()
    distributed.initialize(**{name: values[name] for name in DISTRIBUTED})
    loop.train_and_evaluate(config, values["workdir"])


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
