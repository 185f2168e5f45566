"""Fine-tunes the same model here and with transformers' Trainer in torch; compares score and time.

    python benchmarks/finetuning.py --model=HF_DIR --data=DATA --output=DIR --seeds=0,1,2

DATA has a folder for each task: sst2 and rte with train.tsv and dev.tsv, ag_news and movie_reviews
with train.csv and dev.csv, conll2003 with eng.train and eng.testa, squad with train.json and
dev.json, in the formats of the recipes. Both sides read the same rows of tokens, made here (tests
compare them with transformers' tokenizer), in batches of similar length, and train with the
recipe's settings. A time is that of training, and of evaluating and saving after every epoch;
compilation is included, of programs that the cache of earlier runs does not have, such as another
seed's; without data preparation and export.

Every finished (task, side, seed) is a file in DIR: the same command again resumes after the last,
and --report prints the table of what is there, of whichever commands. A seed's two sides run on one
machine, one after the other, each in a process of its own, as a user would run them; the ratio of
times is the median over seeds. Needs the extra `hf`, accelerate, and seqeval for conll2003.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import importlib.util
import json
import multiprocessing
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from benchmarks import peers
from bert_jax.cli import HelpFormatter, UserError, run
from bert_jax.finetuning import loop as finetune_loop
from bert_jax.finetuning.inputs import Inputs, Split, make_split, read_inputs
from bert_jax.parallel import host_memory
from bert_jax.tasks import answers as question_answering
from configs.finetune import ag_news, conll2003, rte, squad, sst2, text_classification

SIDES = ("bert_jax", "transformers")
MODELS = {
    "text_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
}


def movie_reviews():
    """Pang & Lee's reviews: long texts, 0 negative and 1 positive."""
    config = text_classification.get_config()
    config.labels = "0=negative,1=positive"
    config.max_seq_length = 512
    return config


# task -> its recipe, training file, validation file
TASKS = {
    "sst2": (sst2.get_config, "train.tsv", "dev.tsv"),
    "ag_news": (ag_news.get_config, "train.csv", "dev.csv"),
    "rte": (rte.get_config, "train.tsv", "dev.tsv"),
    "movie_reviews": (movie_reviews, "train.csv", "dev.csv"),
    "conll2003": (conll2003.get_config, "eng.train", "eng.testa"),
    "squad": (squad.get_config, "train.json", "dev.json"),
}


def make_config(name: str, options: argparse.Namespace):
    """The task's recipe with its files and what the command line changes."""
    recipe, train_file, validation_file = TASKS[name]
    config = recipe()
    config.train_file = str(options.data / name / train_file)
    config.validation_file = str(options.data / name / validation_file)
    config.checkpoint_every = 0
    for field in ("batch_size", "num_epochs", "max_seq_length"):
        if getattr(options, field):
            config[field] = getattr(options, field)
    if options.learning_rate:
        config.optimizer.learning_rate = options.learning_rate
    return config


def limited(inputs: Inputs, config, max_train: int, max_validation: int) -> Inputs:
    """A random sample of the examples, the same in every run; 0: all of them."""

    def sample(split: Split, most: int) -> Split:
        if not most or most >= len(split.examples):
            return split
        chosen = np.random.default_rng(0).permutation(len(split.examples))[:most]
        return make_split(
            inputs.task, [split.examples[i] for i in sorted(chosen)], config, inputs.model
        )

    return dataclasses.replace(
        inputs,
        train=sample(inputs.train, max_train),
        validation=sample(inputs.validation, max_validation),
    )


def train_here(config, model: str, inputs: Inputs, directory: pathlib.Path):
    """(objects of predictions.jsonl, seconds)."""
    results = finetune_loop.finetune(config, model, directory, inputs)
    with (directory / "predictions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file], results["seconds"]


def torch_row(arrays: dict[str, Any], task: str) -> dict[str, Any]:
    """A row of ours as transformers' models name it."""
    row = {name: arrays[name] for name in ("input_ids", "token_type_ids")}
    row["attention_mask"] = [1] * len(arrays["input_ids"])
    if task == "question_answering":
        return row | {"start_positions": arrays["starts"], "end_positions": arrays["ends"]}
    if task == "token_classification":
        return row | {"labels": [peers.IGNORED if x < 0 else x for x in arrays["token_labels"]]}
    return row | {"labels": arrays["labels"]}


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest row."""
    length = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list):
            padding = peers.IGNORED if name == "labels" else 0
            values = [value + [padding] * (length - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    return batch


def train_there(config, model: str, inputs: Inputs, directory: pathlib.Path):
    """(objects as ours, seconds) of transformers' Trainer with the same settings."""
    settings, task = config.optimizer, inputs.task
    transformers.set_seed(config.seed)  # of the new head
    labels = {"num_labels": len(task.labels)} if task.labels else {}
    steps = -(-len(inputs.train.features) // config.batch_size) * config.num_epochs
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        seed=config.seed,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        num_train_epochs=config.num_epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(settings.warmup_fraction * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_norm,
        adam_beta1=settings.b1,
        adam_beta2=settings.b2,
        adam_epsilon=settings.eps,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=jax.default_backend() == "cpu",
        dataloader_pin_memory=jax.default_backend() != "cpu",
        tf32=jax.default_backend() == "gpu" or None,  # as JAX multiplies float32 there
    )
    rows, validation_rows = (
        [torch_row(arrays, config.task) for arrays in split.arrays]
        for split in (inputs.train, inputs.validation)
    )
    trainer = transformers.Trainer(
        model=MODELS[config.task].from_pretrained(model, dtype=torch.float32, **labels),
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=validation_rows,
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    # The Trainer sorts by length here too; the logits are wanted in the order of the rows.
    trainer.args.train_sampling_strategy = "sequential"
    logits = trainer.predict(validation_rows).predictions
    if config.task == "question_answering":
        logits = np.stack(logits[:2], axis=-1)
    outputs = [*logits]
    if config.task != "text_classification":  # without the padding
        outputs = [
            x[: len(row["input_ids"])] for x, row in zip(outputs, validation_rows, strict=True)
        ]
    _, lines = task.evaluate(inputs.validation.examples, inputs.validation.features, outputs)
    return lines, seconds


def quality(task: str, lines: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics compared, the first of them leading; entities as seqeval counts them."""
    if task == "text_classification":
        return {"accuracy": statistics.mean(x["label"] == x["prediction"] for x in lines)}
    if task == "token_classification":
        from seqeval.metrics import f1_score

        return {
            "entity F1": float(
                f1_score(*([x[k] for x in lines] for k in ("labels", "predictions")))
            )
        }
    return {
        name: statistics.mean(
            question_answering.best_score(score, x["prediction"], x["answers"]) for x in lines
        )
        for name, score in (
            ("F1", question_answering.token_f1),
            ("EM", question_answering.exact_match),
        )
    }


def settings_of(config, options: argparse.Namespace) -> dict[str, Any]:
    """What a stored result must agree with to be used again."""
    return {
        "model": str(options.model),
        "batch_size": config.batch_size,
        "epochs": config.num_epochs,
        "max_seq_length": config.max_seq_length,
        **{
            name: config.optimizer[name]
            for name in (
                "learning_rate",
                "warmup_fraction",
                "schedule",
                "weight_decay",
                "clip_norm",
            )
        },
        "max_train_examples": options.max_train_examples,
        "max_validation_examples": options.max_validation_examples,
    }


def stored(path: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A finished result; None if there is none.

    Raises:
      UserError: it was made with other settings.
    """
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    there = result["settings"]
    if differences := [
        f"{name} was {there.get(name)!r}, is {value!r}"
        for name, value in settings.items()
        if there.get(name) != value
    ]:
        raise UserError(f"{path} is of other settings ({'; '.join(differences)}): new --output")
    return result


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function` returns, called in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


def run_one(name: str, side: str, seed: int, path: pathlib.Path, options: argparse.Namespace):
    """Fine-tunes, writes the result to `path` and returns it."""
    if side == "bert_jax":
        host_memory.keep_freed()  # first of all, as the command does
    config = make_config(name, options)
    config.seed = seed
    inputs = limited(
        read_inputs(config, options.model),
        config,
        options.max_train_examples,
        options.max_validation_examples,
    )
    directory = path.with_suffix("")
    # Begun and not finished: its time would not be the whole.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    train = {"bert_jax": train_here, "transformers": train_there}[side]
    lines, seconds = train(config, options.model, inputs, directory)
    result = {
        "task": name,
        "side": side,
        "seed": seed,
        "examples": [len(inputs.train.examples), len(inputs.validation.examples)],
        "quality": quality(config.task, lines),
        "seconds": seconds,
        "settings": settings_of(config, options),
        "environment": peers.environment(),
    }
    shutil.rmtree(directory)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    return result


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of every task, seed and side, those that are stored included."""
    results = []
    for name in options.tasks:
        settings = settings_of(make_config(name, options), options)
        for seed in options.seeds:
            paths = {side: options.output / name / f"{side}_seed-{seed}.json" for side in SIDES}
            pair = {side: stored(path, settings) for side, path in paths.items()}
            environments = [result["environment"] for result in pair.values() if result]
            if None in pair.values() and any(x != peers.environment() for x in environments):
                pair = dict.fromkeys(SIDES)  # two machines do not compare
            for side, result in pair.items():
                if result is None:
                    print(f"{name}, seed {seed}: {side}", file=sys.stderr, flush=True)
                    result = in_own_process(run_one, name, side, seed, paths[side], options)
                results.append(result)
    return results


def spread(values: Sequence[float], form: str) -> str:
    """'0.912 (0.905–0.915)': the median, and the range of several."""
    median = format(statistics.median(values), form)
    if len(values) == 1:
        return median
    return f"{median} ({format(min(values), form)}–{format(max(values), form)})"


def table(results: Sequence[dict[str, Any]]) -> str:
    """The comparison in Markdown: a row for every metric of every task."""
    groups: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for result in results:
        groups[result["task"], result["side"]].append(result)
    lines = [
        "| task | examples | metric | bert_jax | transformers | difference | seconds here | "
        "seconds in torch | torch / here |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        here, there = (groups[task, side] for side in SIDES)
        times = [[result["seconds"] for result in side] for side in (here, there)]
        ratio = statistics.median(y / x for x, y in zip(*times, strict=True))
        for metric in here[0]["quality"]:
            values = [[result["quality"][metric] for result in side] for side in (here, there)]
            difference = statistics.median(values[0]) - statistics.median(values[1])
            train, validation = here[0]["examples"]
            cells = [
                task,
                f"{train:,} + {validation:,}",
                metric,
                *(spread(side, ".4f") for side in values),
                f"{difference:+.4f}",
                *(spread(side, ".0f") for side in times),
                f"{ratio:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Median (lowest–highest) over the seeds."]
    for (task, side), its in groups.items():
        if side == SIDES[0]:
            seeds = ", ".join(str(result["seed"]) for result in its)
            settings = ", ".join(f"{name} {x}" for name, x in its[0]["settings"].items())
            lines.append(f"{task}: seeds {seeds}; {settings}.")
    lines += dict.fromkeys(
        ", ".join(f"{name} {x}" for name, x in result["environment"].items()) + "."
        for result in results
    )
    return "\n".join(lines)


def finished(output: pathlib.Path) -> list[dict[str, Any]]:
    """The stored results of both sides of a seed, by task, side and seed.

    Raises:
      UserError: there are none.
    """
    results = [json.loads(path.read_text()) for path in sorted(output.glob("*/*.json"))]
    seeds = {side: {(x["task"], x["seed"]) for x in results if x["side"] == side} for side in SIDES}
    both = set.intersection(*seeds.values())
    results = [x for x in results if (x["task"], x["seed"]) in both]
    if not results:
        raise UserError(f"{output} holds no finished pair of runs: leave out --report to make some")
    return sorted(results, key=lambda x: ([*TASKS].index(x["task"]), x["side"], x["seed"]))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face directory of a BERT")
    add("--data", required=True, type=pathlib.Path, help="directory with a folder for each task")
    add("--output", required=True, type=pathlib.Path, help="directory of the finished results")
    add("--tasks", default=",".join(TASKS), help="by commas")
    add("--seeds", default="0,1,2", help="by commas")
    add("--num_epochs", type=int, default=0, help="0: the recipe's")
    add("--batch_size", type=int, default=0, help="0: the recipe's")
    add("--max_seq_length", type=int, default=0, help="0: the recipe's")
    add("--learning_rate", type=float, default=0.0, help="0: the recipe's")
    add("--max_train_examples", type=int, default=0, help="a random sample; 0: all")
    add("--max_validation_examples", type=int, default=0, help="a random sample; 0: all")
    add("--report", action="store_true", help="run nothing; print what DIR holds")
    add("--json", action="store_true", help="print every result as JSON, not the table")
    options = parser.parse_args(argv)
    options.tasks = options.tasks.split(",")
    if unknown := sorted(set(options.tasks) - TASKS.keys()):
        raise UserError(f"--tasks: {', '.join(unknown)} unknown; there are {', '.join(TASKS)}")
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds={options.seeds}: expected whole numbers, as in 0,1,2") from None
    if not options.report and not transformers.utils.is_accelerate_available():
        raise UserError("transformers' Trainer needs accelerate: pip install accelerate")
    words = [task for task in options.tasks if TASKS[task][0]().task == "token_classification"]
    if not options.report and words and importlib.util.find_spec("seqeval") is None:
        raise UserError(f"{', '.join(words)} needs seqeval: pip install seqeval")
    results = finished(options.output) if options.report else run_all(options)
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    run(main)
