"""Integrated gradients of a classifier's texts, here and by captum on its export, in turns.

    python benchmarks/attribution.py --model=runs/sst2 --input=dev.tsv --column=sentence

Both take the same points and the same baseline ([MASK] for words), captum in batches of texts of
similar length with padding masked. Each side has a process of its own. Needs the extra `hf`, and
captum (pip install captum).
"""

import argparse
import csv
import importlib.metadata
import json
import multiprocessing
import pathlib
import resource
import statistics
import sys
import time

import numpy as np

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from bert_jax.cli import HelpFormatter, UserError, run

POINTS = 64  # in a call of captum's model at most: texts times steps


def ours(options: argparse.Namespace, texts: list[str]):
    """A function that explains all texts: a score per token of each."""
    import bert_jax
    from bert_jax.interpretation import attribution, targets
    from bert_jax.parallel import host_memory

    host_memory.keep_freed()
    model = bert_jax.load(options.model)

    def explain() -> list[np.ndarray]:
        read = targets.texts(model, [{"text": text} for text in texts])
        return [of_text[0].tokens_L for of_text in attribution.attribute(model, read)]

    return explain


def captum(options: argparse.Namespace, texts: list[str]):
    """The same by captum, on WORKDIR/hf."""
    import torch
    import transformers
    from captum.attr import LayerIntegratedGradients

    directory = pathlib.Path(options.model) / "hf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    embeddings = model.base_model.embeddings

    def forward(ids, mask):
        return model(input_ids=ids, attention_mask=mask).logits

    explained = LayerIntegratedGradients(forward, embeddings)
    length = model.config.max_position_embeddings

    def explain() -> list[np.ndarray]:
        ids = [tokenizer(text, truncation=True, max_length=length).input_ids for text in texts]
        found: list[np.ndarray] = [np.zeros(0)] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), 8):
            chosen = order[start : start + 8]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt")
            words = batch.input_ids.clone()
            special = torch.isin(words, torch.tensor(tokenizer.all_special_ids))
            words[~special] = tokenizer.mask_token_id
            with torch.no_grad():
                targets = forward(batch.input_ids, batch.attention_mask).argmax(-1)
            scores = explained.attribute(
                batch.input_ids,
                words,
                target=targets,
                additional_forward_args=(batch.attention_mask,),
                n_steps=64,
                method="gausslegendre",
                internal_batch_size=POINTS,
            )
            for i, row in zip(chosen, scores.sum(-1).detach().numpy(), strict=True):
                found[i] = row[: len(ids[i])]
        return found

    return explain


SIDES = {"bert_jax": ours, "captum": captum}


def serve(connection, name: str, options: argparse.Namespace, texts: list[str]) -> None:
    """A side's process: explains when it is asked, and sends seconds, MiB at most and scores."""
    explain = SIDES[name](options, texts)
    while connection.recv():
        begun = time.perf_counter()
        scores = explain()
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        connection.send((seconds, peak, scores))


def main(argv) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--model", required=True, help="WORKDIR of a fine-tuned text classifier")
    parser.add_argument("--input", required=True, help="a .csv or .tsv file")
    parser.add_argument("--column", default="text", help="of the text")
    parser.add_argument("--texts", type=int, default=100, help="how many are explained")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides, after the first")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    with open(options.input, newline="") as file:
        tabs = "\t" if options.input.endswith(".tsv") else ","
        rows = list(csv.DictReader(file, delimiter=tabs))
    if not rows or options.column not in rows[0]:
        raise UserError(f"{options.input} has no column {options.column!r}: give --column=NAME")
    texts = [row[options.column] for row in rows][: options.texts]
    context = multiprocessing.get_context("spawn")
    ends, found = {}, {name: [] for name in SIDES}
    for name in SIDES:
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, name, options, texts), daemon=True).start()
        ends[name] = here
    for number in range(options.rounds + 1):  # the first compiles
        for name, end in ends.items():
            end.send(True)
            found[name].append(end.recv())
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    pairs = zip(*(found[name][0][2] for name in SIDES), strict=True)
    difference = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)
    first, later = (
        {name: [x[0] for x in values[part]] for name, values in found.items()}
        for part in (slice(1), slice(1, None))
    )
    ratios = [y / x for x, y in zip(later["bert_jax"], later["captum"], strict=True)]
    result = {
        "texts": len(texts),
        "difference": difference,
        "first_seconds": {name: values[0] for name, values in first.items()},
        "seconds": {name: statistics.median(values) for name, values in later.items()},
        "captum_by_ours": {
            "median": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        },
        "peak_mib": {name: max(x[1] for x in values) for name, values in found.items()},
        "versions": {x: importlib.metadata.version(x) for x in ("jax", "torch", "captum")},
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{len(texts)} texts, 64 steps; scores differ by {difference:.1e} of a text's largest")
    for name in SIDES:
        seconds, slow = result["seconds"][name], result["first_seconds"][name]
        peak = result["peak_mib"][name]
        print(f"{name:<9} {seconds:7.1f} s (first {slow:.1f} s), at most {peak:,.0f} MiB")
    print(f"captum takes {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
          "times as long")  # fmt: skip
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))


if __name__ == "__main__":
    run(main)
