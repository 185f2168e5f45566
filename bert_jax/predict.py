"""Command: what a trained model says of texts, one JSON object a line.

Lines are texts (for fill-mask with the tokenizer's mask: [MASK], <mask>). In a .jsonl file, with
--jsonl, and for answer and choose always, they are JSON objects. Also what bert_jax.finetune reads
is read: .csv and .tsv files, data sets (hf:, tfds:), CoNLL (tag) and SQuAD's .json (answer). The
fields are
  classify, embed, fill-mask   text (and text_pair: the second text of a pair)
  zero-shot                    text
  tag                          tokens: a list of words; or text
  answer                       question, context
  choose                       context, choices: a list of texts (and beginning: of all choices)
or, else, called as in the model's fine-tuning, or by --columns. Others of JSON are passed on. Empty
lines are skipped: no line of output is theirs. Interrupted, the same command resumes.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bert_jax import cli as cli_lib
from bert_jax.cli import UserError, at_least, number, print_lines

# JAX, and what imports it, is imported inside the functions: --help must answer at once.


def parse_names(text: str) -> list[str]:
    """'sports, politics' -> ['sports', 'politics']."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--labels={text!r}: expected two or more different labels, by commas")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.predict",
        description=__doc__.removeprefix("Command: "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    positive = at_least(1)
    for name, text in (
        ("classify", "the class of a text or a pair, or its number"),
        ("tag", "the labels of words, and the entities they make"),
        ("answer", "the span of a context that answers a question"),
        ("choose", "the choice that goes with a context"),
        ("fill-mask", "the likeliest tokens for each mask ([MASK], <mask>: the tokenizer's)"),
        ("zero-shot", "the fitting one of any labels, by a model of textual entailment"),
        ("embed", "a vector of a text"),
    ):
        command = commands.add_parser(name, help=text)
        add = command.add_argument
        add(
            "--model", required=True, help="WORKDIR, checkpoint, Hugging Face directory or hub name"
        )
        add("--input", default="-", help="a file or data set; - is standard input (default)")
        kinds = " (.npy: the vectors alone; .parquet: with rows and ids)" if name == "embed" else ""
        add("--output", default="-", help=f"a file{kinds}; - is standard output (default)")
        add("--jsonl", action="store_true", help="lines are JSON objects")
        add("--columns", default="", help="FIELD=COLUMN pairs by commas, e.g. text=review")
        add("--batch_size", type=positive, default=32)
        add(
            "--max_seq_length",
            type=at_least(8),
            help="cut longer texts, or read them in parts (tag, answer); default: as the model was "
            "fine-tuned, else all that it takes",
        )
        add("--dtype", choices=("float32", "bfloat16"), default="float32")
        if name == "classify":
            text = "of the softmax, as bert_jax.explain probabilities fits it (default 1)"
            add("--temperature", type=number, default=1.0, help=text)
        if name in ("answer", "fill-mask"):
            add("--top_k", type=positive, default=5, help="alternatives listed")
        if name == "answer":
            own = "default: as the model was fine-tuned"
            add("--max_answer_length", type=positive, help=f"in tokens; {own}, else 30")
            add(
                "--null_threshold",
                type=number,
                help="answer '' if its score is higher than the best span's by more than this; "
                f"inf: never; {own}, else always a span",
            )
        if name == "zero-shot":
            add("--labels", required=True, type=parse_names, help="separated by commas")
            add("--template", default="This example is {}.", help="a sentence; {} is the label")
        if name == "embed":
            own = "default: as the model says"
            add("--pooling", choices=("cls", "mean", "max"), help=f"{own}, else mean")
            add("--normalize", action=argparse.BooleanOptionalAction, help=f"length 1; {own}")
    return parser


def run(
    command: str,
    model: str,
    input: str,
    output: str,
    *,
    jsonl: bool = False,
    columns: str = "",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    dtype: str = "float32",
    progress: bool = False,
    **options: Any,
) -> int:
    """Writes what a model says of the inputs in a file; arguments as the flags.

    Args:
      output: a file; interrupted, the same call resumes. "-" prints.
      options: those that the command has: `top_k`, `labels`, `pooling`, ….

    Returns:
      the number of results.

    Raises:
      UserError: output, inputs and model do not go together; before anything is computed.
    """
    from bert_jax.inference import jobs

    sizes = {"batch_size": batch_size, "max_seq_length": max_seq_length}
    settings = {"dtype": dtype, "progress": progress, **sizes}
    job = jobs.prepare(command, model, input, output, jsonl, columns, options, **settings)
    if output == "-":
        print_lines(job.lines())
    else:
        job.write(output)
    return job.records.count


def main(argv: Sequence[str]) -> None:
    arguments = vars(_parser().parse_args(argv))
    visible = arguments["output"] != "-" or not sys.stdout.isatty()
    run(**arguments, progress=visible)


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
