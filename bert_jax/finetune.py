"""Command: fine-tunes a pretrained BERT on a task, evaluates it, exports it for transformers.

WORKDIR receives config.json, checkpoints/, metrics.jsonl, results.json, predictions.jsonl and
report.txt (of the validation file), and hf/, the fine-tuned model for transformers. With several
seeds or learning rates each run has a directory of its own in WORKDIR (`finetuning/sweep.py`).
"""

import sys
from collections.abc import Sequence

from etils import epath

from bert_jax import config as config_lib
from bert_jax.cli import run

USAGE = """\
usage: python -m bert_jax.finetune --config=configs/finetune/text_classification.py \\
         --init=WORKDIR_OR_HF_DIR --workdir=DIR \\
         --config.train_file=FILE --config.validation_file=FILE [--config.FIELD=VALUE …]

Fine-tunes a pretrained BERT and exports it to DIR/hf, which transformers' pipelines load. The same
command again goes on from the last checkpoint. --config.seeds=0,1,2 and
--config.learning_rates=2e-5,3e-5 make all these runs and compare them. Add --config=FILE to this
help to see the config's fields.
"""


def main(argv: Sequence[str]) -> None:
    config, values = config_lib.parse(
        argv,
        USAGE,
        like="finetune/base",
        init="WORKDIR of a pretraining or fine-tuning, Hugging Face directory or hub name",
        workdir="directory of this run, local or gs://",
    )
    # After parsing: JAX takes seconds to import.
    from bert_jax.finetuning import loop as finetune_loop
    from bert_jax.finetuning import sweep
    from bert_jax.parallel import host_memory

    host_memory.keep_freed()
    workdir = epath.Path(values["workdir"])
    if config.seeds or config.learning_rates:
        print(sweep.table(sweep.sweep(config, values["init"], workdir)))
        print(f"wrote {workdir}/summary.json, hf (the best run's, for transformers), and every run")
        return
    results = finetune_loop.finetune(config, values["init"], workdir)
    if (workdir / "report.txt").exists():
        print((workdir / "report.txt").read_text())
    for name, value in results.items():
        if value is not None:  # the parity of an export that nothing was there to compare with
            print(f"{name:16} {value:,}" if isinstance(value, int) else f"{name:16} {value:.4g}")
    print(f"wrote {workdir}/hf (for transformers), predictions.jsonl, metrics.jsonl")


def cli() -> None:
    run(main)


if __name__ == "__main__":
    sys.exit(cli())
