"""Several fine-tunings of one model on one task: seeds × learning rates, compared.

Each run is a WORKDIR of its own, WORKDIR/lr-3e-05_seed-1. Finished ones are reused, an interrupted
one is resumed. WORKDIR receives summary.json and hf/, the best run's model.
"""

import re
import statistics
from typing import Any

import ml_collections
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.finetuning import loop as finetune_loop
from bert_jax.finetuning.inputs import read_inputs
from bert_jax.huggingface import files as hf_files
from bert_jax.runs import workdir as workdirs


def run_configs(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """The runs by name: one config for every pair of a learning rate and a seed.

    Raises:
      UserError: a seed that is not a whole number, a learning rate that is not positive, or a value
        given twice.
    """
    rates = tuple(config.learning_rates) or (config.optimizer.learning_rate,)
    seeds = tuple(config.seeds) or (config.seed,)
    for field, values, valid, expected in (
        ("seeds", seeds, lambda x: type(x) is int and x >= 0, "whole numbers from 0, as in 0,1,2"),
        (
            "learning_rates",
            rates,
            lambda x: type(x) in (int, float) and x > 0,
            "numbers above 0, as in 2e-5,3e-5",
        ),
    ):
        if not all(map(valid, values)) or len(set(values)) < len(values):
            raise UserError(
                f"config.{field}={values!r}: expected different {expected} (--config.{field}=…)"
            )
    configs = {}
    for rate in map(float, rates):
        for seed in seeds:
            one = ml_collections.ConfigDict(config.to_dict())
            one.seeds = one.learning_rates = ()
            one.seed, one.optimizer.learning_rate = seed, rate
            configs[f"lr-{rate}_seed-{seed}"] = one
    return configs


def finished_configs(
    config: ml_collections.ConfigDict, workdir: epath.Path
) -> dict[str, ml_collections.ConfigDict]:
    """The runs that are finished in WORKDIR, by name, with the settings they should have.

    They count in the summary whichever seeds and learning rates a command asks for.
    """
    found: dict[str, ml_collections.ConfigDict] = {}
    for path in sorted(workdir.glob("lr-*_seed-*/results.json")):
        if match := re.fullmatch(r"lr-(.+)_seed-(\d+)", path.parent.name):
            one = ml_collections.ConfigDict(config.to_dict())
            one.learning_rates, one.seeds = (float(match[1]),), (int(match[2]),)
            found |= run_configs(one)
    return found


def summarize(metric: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The best run, and median, lowest and highest value of every learning rate.

    Args:
      runs: "name", "learning_rate", "seed", and the metrics of each.
    """
    by_rate: dict[float, list[float]] = {}
    for run in runs:
        by_rate.setdefault(run["learning_rate"], []).append(run[metric])
    return {
        "metric": metric,
        "best": max(runs, key=lambda run: run[metric])["name"],
        "learning_rates": [
            {
                "learning_rate": rate,
                "runs": len(values),
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for rate, values in by_rate.items()
        ],
        "runs": runs,
    }


def table(summary: dict[str, Any]) -> str:
    """Every run, and the spread over the seeds of each learning rate, as text."""
    metric = summary["metric"]
    lines = [f"{'learning rate':>13}  {'seed':>6}  {'epoch':>5}  {metric:>9}"]
    for run in summary["runs"]:
        mark = "  best" if run["name"] == summary["best"] else ""
        lines.append(
            f"{run['learning_rate']:13g}  {run['seed']:6}  {run['epoch']:5}  "
            f"{run[metric]:9.4f}{mark}"
        )
    lines += ["", f"{'learning rate':>13}  {'runs':>6}  {'median':>7}  {'min':>7}  {'max':>7}"]
    lines += [
        f"{line['learning_rate']:13g}  {line['runs']:6}  {line['median']:7.4f}  "
        f"{line['min']:7.4f}  {line['max']:7.4f}"
        for line in summary["learning_rates"]
    ]
    return "\n".join(lines)


def sweep(
    config: ml_collections.ConfigDict,
    init: str | epath.PathLike,
    workdir: str | epath.PathLike,
    show: bool = False,
) -> dict[str, Any]:
    """Makes all runs of `config.seeds` × `config.learning_rates` that are not finished yet.

    What is finished in `workdir` is summarized with them.

    Args:
      show: whether the runs and their progress are printed.

    Returns:
      what summary.json holds (see `summarize`). The best run is the one with the highest value of
      the task's metric on the validation file.

    Raises:
      UserError: as `finetune_loop.finetune` and `run_configs`, before any run is made; or `workdir`
        holds a single run.
    """
    workdir = epath.Path(workdir)
    wanted = run_configs(config)
    if (workdir / "config.json").exists():
        raise UserError(
            f"{workdir} holds a single run: give another --workdir for several seeds or learning "
            "rates"
        )
    hf_files.check_replaceable(workdir / "hf")
    inputs = read_inputs(config, init)

    def all_runs() -> dict[str, ml_collections.ConfigDict]:
        configs = finished_configs(config, workdir) | wanted
        for name, one in configs.items():
            described = inputs.resolved(one, init), inputs.identity(one)
            workdirs.check_same_run(workdir / name, *described)
        return configs

    configs = all_runs()
    for number, (name, one) in enumerate(configs.items(), 1):
        path = workdir / name
        finished = workdirs.is_finished(path)
        if show:
            print(f"run {number} of {len(configs)}: {name}{', finished before' * finished}")
        if not finished:
            finetune_loop.finetune(one, init, path, inputs, show)
    runs = []
    for name, one in all_runs().items():  # another command may have finished some here meanwhile
        facts = {"name": name, "learning_rate": one.optimizer.learning_rate, "seed": one.seed}
        results = workdirs.read_results(workdir / name)
        runs.append(facts | results)
    summary = summarize(inputs.task.metric, runs)
    with hf_files.replace_directory(workdir / "hf") as scratch:
        for path in (workdir / summary["best"] / "hf").iterdir():
            (scratch / path.name).write_bytes(path.read_bytes())
    files.write_json(workdir / workdirs.SUMMARY_FILE, summary)
    return summary
