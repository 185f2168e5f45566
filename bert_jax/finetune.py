"""Command: fine-tunes a pretrained encoder on a task, evaluates it, exports it for transformers.

WORKDIR receives config.json, checkpoints/, metrics.jsonl, results.json, predictions.jsonl and
report.txt (of the validation file), and hf/, the fine-tuned model for transformers. With several
seeds or learning rates each run has a directory of its own in WORKDIR (`finetuning/sweep.py`).
"""

from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from bert_jax import cli as cli_lib
from bert_jax import config as config_lib

USAGE = """\
usage: python -m bert_jax.finetune --config=configs/finetune/text_classification.py \\
         --init=WORKDIR_OR_HF_DIR --workdir=DIR \\
         --config.train_file=FILE --config.validation_file=FILE [--config.FIELD=VALUE …]

Fine-tunes a pretrained encoder and exports it to DIR/hf, which transformers' pipelines load. The
same command again resumes from the last checkpoint. --config.seeds=0,1,2 and
--config.learning_rates=2e-5,3e-5 make all these runs and compare them. Add --config=FILE to this
help to see the config's fields.
"""


def run(
    config: ml_collections.ConfigDict,
    init: str | epath.PathLike,
    workdir: str | epath.PathLike,
    show: bool = False,
) -> dict[str, Any]:
    """Fine-tunes the model at `init` and writes WORKDIR; an unfinished run there is resumed.

        config = bert_jax.recipe("finetune/sst2", train_file="train.tsv", validation_file="dev.tsv")
        bert_jax.finetune.run(config, "runs/base", "runs/sst2")["accuracy"]

    Args:
      config: a recipe of configs/finetune.
      init: WORKDIR of a pretraining or fine-tuning, a Hugging Face directory or hub name.
      show: whether progress is printed.

    Returns:
      what WORKDIR/results.json holds: the validation metrics of the selected epoch, "epoch",
      "step", "examples", "seconds" and "parity". With several seeds or learning rates what
      WORKDIR/summary.json holds: "metric", "best" (a run's name), "learning_rates" and "runs".

    Raises:
      UserError: data, model, config and workdir do not fit each other.
    """
    # JAX takes seconds to import: not before it is needed.
    from bert_jax.finetuning import loop, sweep

    if config.seeds or config.learning_rates:
        return sweep.sweep(config, init, workdir, show)
    return loop.finetune(config, init, workdir, show=show)


def main(argv: Sequence[str]) -> None:
    config, values = config_lib.parse(
        argv,
        USAGE,
        like="finetune/base",
        init="WORKDIR of a pretraining or fine-tuning, Hugging Face directory or hub name",
        workdir="directory of this run, local or gs://",
    )
    from bert_jax.finetuning import sweep
    from bert_jax.inference.model import TASKS
    from bert_jax.parallel import host_memory, program_cache

    host_memory.keep_freed()
    program_cache.tidy()
    workdir = epath.Path(values["workdir"])
    resumable = f"interrupted: the same command resumes from the last checkpoint in {workdir}"
    with cli_lib.saying_when_interrupted(resumable):
        results = run(config, values["init"], workdir, show=True)
    if config.seeds or config.learning_rates:
        print(sweep.table(results))
        print(f"wrote {workdir}/summary.json, hf (the best run's, for transformers), and every run")
        return
    if (workdir / "report.txt").exists():
        print((workdir / "report.txt").read_text())
    for name, value in results.items():
        if value is not None:  # the parity of an export that nothing was there to compare with
            print(f"{name:16} {value:,}" if isinstance(value, int) else f"{name:16} {value:.4g}")
    print(f"wrote {workdir}/hf (for transformers), predictions.jsonl, metrics.jsonl")
    verb = next((name for name, tasks in TASKS.items() if config.task in tasks), "")
    print(f"curves: python -m bert_jax.metrics {workdir} --plot=curves.png")
    if verb:
        print(f"use it: python -m bert_jax.predict {verb} --model={workdir} --input=FILE")


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
