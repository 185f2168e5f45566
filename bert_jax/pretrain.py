"""Command: pretrains BERT as a config says; run again, it goes on from the last checkpoint."""

from collections.abc import Sequence

from bert_jax import config as config_lib
from bert_jax.cli import run

USAGE = """\
usage: python -m bert_jax.pretrain --config=configs/bert_base.py[:laptop] --workdir=DIR \\
         --config.data_dir=DATA_DIR [--config.FIELD=VALUE …]

Pretrains BERT on a data set made by data_prep.build. WORKDIR receives config.json, checkpoints/,
tokenizer/, metrics.jsonl and TensorBoard events. The same command again goes on where the last
checkpoint left off. Add --config=FILE to this help to see the config's fields.
"""


def main(argv: Sequence[str]) -> None:
    config, values = config_lib.parse(argv, USAGE, workdir="directory of this run, local or gs://")
    from bert_jax import train  # after parsing: JAX takes seconds to import

    train.train_and_evaluate(config, values["workdir"])


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
