"""The flags of `bert_jax.explain`."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from bert_jax.cli import HelpFormatter, at_least

TASKS = ("text_classification", "token_classification")  # of labels that layers are probed for
# Inputs that are read by default.
LIMITS = {"attention": 10, "attribution": 100, "checkpoints": 10, "layers": 2000, "lime": 100}


def parser(kinds: Mapping[str, Callable[..., Any]], description: str) -> argparse.ArgumentParser:
    """A parser with a subcommand for each kind, a function whose docstring says what it shows."""
    result = argparse.ArgumentParser(
        prog="python -m bert_jax.explain",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="kind", required=True)
    for name, function in kinds.items():
        text = (function.__doc__ or "").split("\n")[0]
        add = commands.add_parser(name, help=text, formatter_class=HelpFormatter).add_argument
        model = "WORKDIR, checkpoint, Hugging Face folder or hub name"
        if name == "checkpoints":
            model = "WORKDIR of a run that kept several checkpoints, or models by commas"
        add("--model", required=True, help=model)
        add("--output", required=True, help="PAGE.html, DATA.json or PICTURE.png")
        add("--batch_size", type=at_least(1), default=32)
        add("--max_seq_length", type=at_least(8), help="tokens that are read of a text")
        if name == "probabilities":
            add("--input", required=True, help="a labelled file, as bert_jax.evaluate reads it")
            add("--fit", default="", help="another one, to fit a temperature on")
            add("--bins", type=at_least(1), default=10, help="of probabilities, equally wide")
        elif name == "layers":
            _add_probes(add)
        else:
            _add_texts(add, LIMITS[name])
        if name in ("attribution", "lime"):
            _add_checks(add)
        if name == "attribution":
            add("--steps", type=at_least(1), default=64, help="of integrated gradients")
            add("--baseline", choices=("mask", "pad"), default="mask", help="in place of words")
        if name == "lime":
            add("--samples", type=at_least(2), default=500, help="of each text")
            add("--seed", type=at_least(0), default=0, help="of the samples")
    return result


def _add_texts(add: Callable[..., Any], most: int) -> None:
    add("--input", default="-", help="a file or data set; - is standard input")
    add("--limit", type=at_least(0), default=most, help="inputs that are read; 0: all")
    add("--jsonl", action="store_true", help="lines are JSON objects")
    add("--columns", default="", help="FIELD=COLUMN pairs by commas, e.g. text=review")


def _add_probes(add: Callable[..., Any]) -> None:
    add("--input", required=True, help="labelled texts or words, as bert_jax.finetune reads them")
    add("--test", default="", help="another such file to test on; default: a fifth of the input")
    add("--task", choices=TASKS, default="", help="default: as the model or the file is")
    text = "examples that are read; 0: all"
    add("--limit", type=at_least(0), default=LIMITS["layers"], help=text)
    add("--seed", type=at_least(0), default=0, help="of the control task's labels")
    text = "of a pretraining model: what its MLM head says after each layer"
    add("--lens", action=argparse.BooleanOptionalAction, default=True, help=text)
    for column in ("text_column", "text_pair_column", "label_column", "words_column"):
        add(f"--{column}", default=argparse.SUPPRESS, metavar="NAME")
    add("--tags_column", default=argparse.SUPPRESS, metavar="NAME")
    for column, text in (("word_index", "of the word, from 0"), ("tag_index", "of the label")):
        add(f"--{column}", type=int, default=argparse.SUPPRESS, help=f"CoNLL: the column {text}")


def _add_checks(add: Callable[..., Any]) -> None:
    add("--target", default="", help="class, label or token; default: the predicted one")
    add("--seeds", type=at_least(1), default=3, help="random orders to compare with")
    text = "whether the scores are to be believed: takes longer than the scores"
    add("--checks", action=argparse.BooleanOptionalAction, default=True, help=text)
