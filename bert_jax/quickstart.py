"""Command: the whole path on one machine, with no download, from text to a fine-tuned classifier.

The corpus is the documentation of the installed Python packages (`pydocs`). Every step prints the
command that does the same by hand. Run again, it reuses what is there.
"""

import argparse
import csv
import importlib.util
import itertools
import json
import os
import pathlib
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import HelpFormatter, UserError, at_least, number, run
from bert_jax.data.records import Manifest
from bert_jax.runs import telemetry

VOCAB_SIZE = 2048
MAX_SEQ_LENGTH = 64
NUM_CLASSES = 8
EXAMPLES_PER_DOCUMENT = 3
NUM_MASKED = 200  # words that the model guesses
NUM_GUESSES = 3  # right ones that are shown, and wrong ones


class Steps:
    """Runs the steps in order, prints their commands, remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(
        self, name: str, command: str, flags: Sequence[str], function: Callable[[list[str]], Any]
    ) -> Any:
        """Prints `python -m COMMAND FLAGS` and calls `function(flags)`."""
        shown = " \\\n      ".join([f"$ python -m {command}", *flags])
        print(f"\n[{len(self.seconds) + 1}] {name}\n    {shown}\n", flush=True)
        started = time.monotonic()
        result = function(list(flags))
        self.seconds[name] = time.monotonic() - started
        return result


def write_corpus(path: epath.Path, max_mb: float) -> None:
    """Writes the installed packages' documentation as JSONL, one {"id", "text"} a module."""
    from data_prep.sources import pydocs

    if path.exists():
        print(f"    {path} is there: reused")
        return
    lines = [
        json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False)
        for document in pydocs.documents(max_mb)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, "\n".join(lines) + "\n")
    print(f"    {len(lines):,} modules, {files.size_and_time(path)[0] / 1e6:.1f} MB in {path}")


def split_corpus(corpus: epath.Path, data_dir: epath.Path) -> dict[str, list[dict[str, str]]]:
    """The corpus' documents, parted as data_prep.build parted them: split -> documents."""
    from data_prep.examples import token_store

    held_out = set(np.load(data_dir / "document_hashes-validation.npy").tolist())
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": []}
    for line in corpus.read_text().splitlines():
        document = json.loads(line)
        is_held_out = token_store.content_hash(document["text"]) in held_out
        splits["validation" if is_held_out else "train"].append(document)
    return splits


def write_task(splits: dict[str, list[dict[str, str]]], directory: epath.Path) -> None:
    """Writes train.csv and validation.csv: which package does this docstring belong to?

    The classes are the packages with the most modules; the text is a run of a module's paragraphs.
    Held-out documents of pretraining are the validation set, so neither run has seen them.
    """
    from data_prep.sources import pydocs

    train, validation = (
        Counter(pydocs.package_of(document["id"]) for document in splits[split])
        for split in ("train", "validation")
    )
    there = [name for name, _ in validation.most_common() if train[name]]
    packages = there[:NUM_CLASSES]
    directory.mkdir(parents=True, exist_ok=True)
    for split, documents in splits.items():
        with (directory / f"{split}.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "package"])
            for document in documents:
                package = pydocs.package_of(document["id"])
                paragraphs = [p for p in document["text"].split("\n") if len(p) >= 40]
                if package in packages:
                    for text in paragraphs[:EXAMPLES_PER_DOCUMENT]:
                        writer.writerow([text, package])


def masked_sentences(
    documents: Sequence[dict[str, str]], tokenizer: Any, max_seq_length: int
) -> dict[str, str]:
    """Sentences of held-out documents with one word masked -> that word; one per document."""
    from data_prep.sources.documents import sentences

    found: dict[str, str] = {}
    for document in documents:
        for sentence in sentences(document["text"]):
            here = re.findall(r"\b[A-Za-z]+\b", sentence)
            known = [w for w in here if len(w) >= 5 and w.lower() in tokenizer.ids]
            if not 8 <= len(here) <= 16 or not known or not sentence[0].isupper():
                continue
            word = known[len(known) // 2]
            masked = re.sub(rf"\b{word}\b", tokenizer.roles.mask, sentence, count=1)
            if len(tokenizer.encode(masked)) > max_seq_length - tokenizer.num_special(1):
                continue
            found[masked] = word.lower()
            break
        if len(found) == NUM_MASKED:
            break
    return found


def guesses(model: Any, documents: Sequence[dict[str, str]]) -> Iterator[str]:
    """The model's best guesses for masked words, some right and some wrong, and how often it is.

    Args:
      model: as `bert_jax.load` returns it.
    """
    size = model.tokenizer.vocab_size
    words = masked_sentences(documents, model.tokenizer, model.max_seq_length)
    if not words:
        return
    ranks, shown = [], {True: 0, False: 0}
    results = model.fill_mask(list(words), top_k=size)
    for (text, word), result in zip(words.items(), results, strict=True):
        best = result["masks"][0]
        rank = [choice["token"] for choice in best].index(word) + 1
        ranks.append(rank)
        if shown[rank == 1] == NUM_GUESSES:
            continue
        shown[rank == 1] += 1
        found = ", ".join(f"{choice['token']} {choice['score']:.0%}" for choice in best[:3])
        mark = "right" if rank == 1 else f"its rank of {size:,}: {rank:,}"
        yield textwrap.fill(text, 79, initial_indent=" " * 4, subsequent_indent=" " * 4)
        yield f"      was {word} ({mark}); guesses: {found}"
    shares = ", ".join(
        f"within the first {most} {sum(rank <= most for rank in ranks) / len(ranks):.0%}"
        for most in (5, 20)
    )
    yield (
        f"    Of {len(ranks)} masked words the model's first guess was right for "
        f"{ranks.count(1) / len(ranks):.0%};\n    the word was {shares}."
    )


def table(rows: Sequence[tuple[str, str]], width: int = 80) -> str:
    """Two columns, the second one wrapped, with rules above and below."""
    left = max(len(name) for name, _ in rows)
    lines = []
    for name, text in rows:
        # Paths stay whole, to be copied.
        wrapped = textwrap.wrap(
            text, width - left - 3, break_long_words=False, break_on_hyphens=False
        )
        lines += [
            f"{part:<{left}} | {piece}"
            for part, piece in itertools.zip_longest([name], wrapped, fillvalue="")
        ]
    rule = "-" * max(map(len, lines))
    return "\n".join([rule, *lines, rule])


def draw_curves(model: epath.Path, target: epath.Path) -> str:
    """Draws the pretraining's curves where matplotlib is installed; a line that says where."""
    from bert_jax.runs import curves

    if importlib.util.find_spec("matplotlib") is None:
        return f"python -m bert_jax.metrics {model} --plot=curves.png (pip install matplotlib)"
    curves.plot([str(model)], target, 10)
    return str(target)


def quickstart(output: str, corpus_mb: float, num_steps: int) -> None:
    """Runs all steps; `num_steps` 0 takes the recipe's."""
    from bert_jax import convert, finetune, pretrain
    from bert_jax.inference import model as models
    from data_prep import build, check, vocab

    started = time.monotonic()
    root = epath.Path(output)
    corpus, tokenizer, data = root / "corpus.jsonl", root / "tokenizer", root / "data"
    model, hf, task = (root / name for name in ("model", "hf", "task"))
    # A classifier resumes with the model that it began with.
    classifier = root / (f"classifier_{num_steps}" if num_steps else "classifier")
    steps = Steps()

    print(f"[1] Corpus: the documentation of the installed packages\n    -> {corpus}", flush=True)
    write_corpus(corpus, corpus_mb)
    steps.seconds["corpus"] = time.monotonic() - started

    def train_vocabulary(flags: list[str]) -> None:
        if (tokenizer / "tokenizer_config.json").exists():
            print(f"    {tokenizer} is there: reused")
        else:
            vocab.main(flags)

    steps.run(
        "vocabulary",
        "data_prep.vocab",
        [f"--input={corpus}", f"--output={tokenizer}", f"--vocab_size={VOCAB_SIZE}"],
        train_vocabulary,
    )
    steps.run(
        "examples",
        "data_prep.build",
        [
            f"--input={corpus}",
            f"--tokenizer={tokenizer}",
            f"--output={data}",
            f"--max_seq_length={MAX_SEQ_LENGTH}",
            # Twice the published rate: twice as much to learn from in each step.
            "--masked_lm_prob=0.3",
            "--max_predictions_per_seq=20",
            "--validation_fraction=0.05",
        ],
        build.main,
    )
    unhealthy = steps.run("check", "data_prep.check", [str(data)], lambda f: check.main(f))
    manifest = Manifest.read(data)
    flags = [
        "--config=quickstart",
        f"--workdir={model}",
        f"--config.data_dir={data}",
        f"--config.model.vocab_size={manifest.vocab_size}",
    ]
    if num_steps:
        flags.append(f"--config.num_steps={num_steps}")
    steps.run("pretraining", "bert_jax.pretrain", flags, pretrain.main)
    parity = steps.run(
        "conversion",
        "bert_jax.convert to-hf",
        [f"--checkpoint={model}", f"--output={hf}"],
        lambda flags: convert.to_hugging_face(model, hf),
    )
    print(f"    {parity}")

    splits = split_corpus(corpus, data)
    print("\n    Guesses on held-out documents:", flush=True)
    for line in guesses(models.load(model), splits["validation"]):
        print(line, flush=True)

    write_task(splits, task)
    steps.run(
        "fine-tuning",
        "bert_jax.finetune",
        [
            "--config=finetune/text_classification",
            f"--init={model}",
            f"--workdir={classifier}",
            f"--config.train_file={task / 'train.csv'}",
            f"--config.validation_file={task / 'validation.csv'}",
            "--config.label_column=package",
            f"--config.max_seq_length={MAX_SEQ_LENGTH}",
            "--config.optimizer.learning_rate=5e-4",
        ],
        finetune.main,
    )
    with (task / "validation.csv").open() as file:
        labels = [row["package"] for row in csv.DictReader(file)]
    majority = Counter(labels).most_common(1)[0]
    evaluation = [line for line in telemetry.read(model) if "eval_mlm_loss" in line][-1]
    accuracy = [line for line in telemetry.read(classifier) if "eval_accuracy" in line][-1]
    entropy = manifest.statistics["unigram_entropy_nats"]
    below = entropy - evaluation["eval_mlm_loss"]
    times = ", ".join(f"{name} {seconds:.0f}" for name, seconds in steps.seconds.items())
    print("\nWhat was done:\n")
    size, _ = files.size_and_time(corpus)
    rows = [
        ("corpus", f"{size / 1e6:.1f} MB of Python documentation: {corpus}"),
        ("vocabulary", f"{manifest.vocab_size:,} word pieces: {tokenizer}"),
        (
            "examples",
            f"{manifest.num_examples('train'):,} + {manifest.num_examples('validation'):,} held "
            f"out, {'UNHEALTHY' if unhealthy else 'checked, healthy'}: {data}",
        ),
        ("pretrained BERT", f"{evaluation['step']:,} steps: {model}"),
        (
            "held-out MLM loss",
            f"{evaluation['eval_mlm_loss']:.2f} nats; unigram entropy {entropy:.2f}: "
            f"{below:.2f} below{', so it uses context' if below >= 1 else ''}",
        ),
        ("held-out MLM accuracy", f"{evaluation['eval_mlm_accuracy']:.1%}"),
        ("held-out NSP accuracy", f"{evaluation['eval_nsp_accuracy']:.1%} (chance 50 %)"),
        ("curves", draw_curves(model, root / "curves.png")),
        ("Hugging Face export", f"{hf}"),
        (
            "off transformers by",
            f"{parity.largest:.1e} at most (1e-4 is allowed)"
            if parity.verified
            else "not verified",
        ),
        (
            "which package?",
            f"accuracy {accuracy['eval_accuracy']:.1%}; always saying {majority[0]!r} gives "
            f"{majority[1] / len(labels):.1%}: {classifier / 'hf'}",
        ),
        ("seconds", f"{sum(steps.seconds.values()):.0f} ({times})"),
    ]
    summary = f"""{table(rows)}

Try next:

{_activation()}  # ask the model
  echo "the [MASK] module" | python -m bert_jax.predict fill-mask \\
      --model={model}
  # which package do your own lines document?
  python -m bert_jax.predict classify --input=TEXTS.txt \\
      --model={classifier}
  # curves
  python -m bert_jax.metrics {model} --plot=curves.png
  # text of your own: docs/tutorials/your_text.md
  python -m data_prep.build --input='*.txt' --output=data \\
      --tokenizer={tokenizer}
  python -m bert_jax.pretrain --config=bert_mini:laptop --workdir=runs/mine \\
      --config.data_dir=data --config.model.vocab_size={manifest.vocab_size}
"""
    (root / "summary.txt").write_text(summary)
    print(summary)


def _activation() -> str:
    """The line that makes `python` this environment's, where it isn't yet."""
    script = pathlib.Path(sys.prefix, "bin", "activate")
    if os.environ.get("VIRTUAL_ENV") == sys.prefix or not script.exists():
        return ""
    return f"  . {os.path.relpath(script)}\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.quickstart",
        description="The whole path on this machine with no download: vocabulary, examples, "
        "pretraining, Hugging Face export, fine-tuning. Run again, it reuses what is there.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--output", default="quickstart", help="directory for everything it makes")
    parser.add_argument("--corpus_mb", type=number, default=10, help="megabytes of text at most")
    parser.add_argument(
        "--num_steps", type=at_least(0), default=0, help="of pretraining; 0: the recipe's"
    )
    options = parser.parse_args(argv)
    if options.corpus_mb <= 0:
        raise UserError(f"--corpus_mb is {options.corpus_mb}: expected more than 0")
    quickstart(options.output, options.corpus_mb, options.num_steps)
    return 0


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
