"""Command: the metrics of a fine-tuned model on labelled files, without training.

The files are those that bert_jax.finetune reads (CSV, TSV, JSONL, CoNLL, SQuAD, hf:, tfds:), and
the metrics the same, by the same code. Columns are called as in the model's own fine-tuning unless
flags name them.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from bert_jax import cli as cli_lib
from bert_jax import files as files_lib
from bert_jax.cli import UserError, at_least, number

# Fields of the recipes in configs/finetune, which explain them, that say how a file is read.
FIELDS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("text_column", "text_pair_column", "label_column", "label_columns"), str),
    **dict.fromkeys(("words_column", "tags_column"), str),
    **dict.fromkeys(("word_index", "tag_index"), int),
    **dict.fromkeys(("context_column", "beginning_column", "choice_columns"), str),
    **dict.fromkeys(("max_skipped", "null_threshold", "threshold"), number),
    "labels": str,
}


def run(
    model: str,
    files: Sequence[str],
    *,
    predictions: str = "",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    dtype: str = "float32",
    **fields: Any,
) -> dict[str, dict[str, float]]:
    """The metrics of a model on each file.

        bert_jax.evaluate.run("runs/sst2", ["test.tsv"])["test.tsv"]["accuracy"]

    Args:
      model: WORKDIR of a fine-tuning, a checkpoint in one, a Hugging Face directory or hub name.
      files: labelled files or data sets.
      predictions: a file to write, one object per example with its file, as predictions.jsonl of a
        fine-tuning.
      fields: of FIELDS, what is different from the model's fine-tuning.

    Raises:
      UserError: the model has no fine-tuned head, or a file does not fit it.
    """
    from bert_jax.inference import model as models
    from bert_jax.inference import outputs, settings
    from bert_jax.parallel import host_memory, program_cache

    if predictions:
        outputs.check(predictions)
    host_memory.keep_freed()
    program_cache.tidy()
    loaded = models.load(model, dtype=dtype, batch_size=batch_size, max_seq_length=max_seq_length)
    task = settings.task_of(loaded, **fields)
    read = {file: task.read(file) for file in files}  # all of them before anything is computed
    results, lines = {}, []
    for file, examples in read.items():
        features = task.features(examples)
        logits = loaded.logits([feature.arrays for feature in features])
        results[file], found = task.evaluate(examples, features, logits)
        lines += [{"file": file, **line} for line in found]
    if predictions:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files_lib.write_whole(predictions, text)
    return results


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.evaluate",
        description=__doc__.removeprefix("Command: "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", help="WORKDIR of a fine-tuning, checkpoint, Hugging Face folder or hub name")
    add(
        "files", nargs="+", metavar="file", help="labelled files, or hf:NAME:SPLIT, tfds:NAME:SPLIT"
    )
    add("--output", default="", help="a .json file for the metrics, by file")
    add("--predictions", default="", help="a .jsonl file for the predictions")
    add("--batch_size", type=at_least(1), default=32)
    add("--max_seq_length", type=at_least(8), help="default: as the model was fine-tuned")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    for name, kind in FIELDS.items():
        add(f"--{name}", type=kind, default=argparse.SUPPRESS, metavar=kind.__name__)
    arguments = vars(parser.parse_args(argv))
    output = arguments.pop("output")
    if output and not output.endswith(".json"):
        raise UserError(f"--output={output}: expected a file that ends in .json")
    results = run(**arguments)
    for file, metrics in results.items():
        print(file)
        for name, value in metrics.items():
            print(f"  {name:16} {value:.4f}")
    if output:
        files_lib.write_whole(output, json.dumps(results, indent=2) + "\n")


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
