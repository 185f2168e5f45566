"""Several seeds and learning rates in one command."""

import json
import shutil

import pytest
from harms import HARMS, remove
from small_finetune import reviews_config

from bert_jax import files, finetune, loading
from bert_jax.cli import UserError
from bert_jax.data import batching
from bert_jax.finetuning import loop as finetune_loop
from bert_jax.finetuning import sweep
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs


@pytest.fixture
def config(tmp_path):
    config = reviews_config(tmp_path)
    config.num_epochs = 1
    return config


def test_runs_are_made_compared_and_reused(pretrained, config, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "sweep"
    fields = ("train_file", "validation_file", "text_column", "label_column", "max_seq_length")
    flags = [
        "--config=configs/finetune/text_classification.py",
        f"--init={pretrained}",
        f"--workdir={workdir}",
        "--config.seeds=0,1",
        "--config.learning_rates=1e-2",
        *(f"--config.{name}={config[name]}" for name in fields),
        "--config.num_epochs=1",
        "--config.length_buckets=1",
    ]
    runs = []
    finetune_one = finetune_loop.finetune

    def interrupted(config, init, workdir, *rest):
        if len(runs) == 1:
            raise KeyboardInterrupt
        runs.append(workdir.name)
        return finetune_one(config, init, workdir, *rest)

    monkeypatch.setattr(finetune_loop, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.main(flags)
    assert runs == ["lr-0.01_seed-0"]
    assert not (workdir / "hf").exists()
    runs.clear()
    finetune.main(flags)
    assert runs == ["lr-0.01_seed-1"]

    summary = json.loads((workdir / "summary.json").read_text())
    assert [run["name"] for run in summary["runs"]] == ["lr-0.01_seed-0", "lr-0.01_seed-1"]
    accuracies = {}
    for run in summary["runs"]:
        alone = json.loads((workdir / run["name"] / "results.json").read_text())
        assert run["accuracy"] == alone["accuracy"]
        accuracies[run["name"]] = run["accuracy"]
    best = summary["best"]
    assert accuracies[best] == max(accuracies.values())
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        exported = (workdir / "hf" / name).read_bytes()
        assert exported == (workdir / best / "hf" / name).read_bytes()
    out = capsys.readouterr().out
    assert "lr-0.01_seed-0, finished before" in out and "median" in out

    # Another command's runs there count too: the best one stays the best.
    other = next(run for run in summary["runs"] if run["name"] != best)
    finetune.main(
        [flag for flag in flags if "seeds" not in flag] + [f"--config.seeds={other['seed']}"]
    )
    assert json.loads((workdir / "summary.json").read_text())["best"] == best

    # A finished run whose model is gone is exported again.
    shutil.rmtree(workdir / best / "hf")
    runs.clear()
    finetune.main(flags)
    assert runs == [best] and (workdir / best / "hf/config.json").exists()

    # A run is what it is without the others.
    config.optimizer.learning_rate, config.seed = 1e-2, 1
    alone = finetune_one(config, pretrained, tmp_path / "alone")
    assert alone["loss"] == summary["runs"][1]["loss"]

    with pytest.raises(UserError, match=r"lr-0\.01_seed-0 holds another run: batch_size is 32 "):
        finetune.main([*flags, "--config.batch_size=16"])
    with open(config.validation_file, "a") as file:
        file.write("good film,yes\n")
    with pytest.raises(UserError, match=r"holds another run: validation data is"):
        finetune.main(flags)
    config.seeds = (0, 1)
    with pytest.raises(UserError, match="holds a single run"):
        sweep.sweep(config, pretrained, tmp_path / "alone")
    config.seeds = ()
    with pytest.raises(UserError, match="holds several seeds or learning rates"):
        finetune_one(config, pretrained, workdir)
    for read in (checkpoint.load, loading.load_parts):
        with pytest.raises(UserError, match=rf"give one of them, such as the best, .*{best}, or "):
            read(workdir)


def test_an_interrupted_run_is_resumed_with_the_same_settings_alone(
    pretrained, config, tmp_path, monkeypatch
):
    """Of two learning rates the second's run is there, unfinished: no other is made first."""
    config.learning_rates, config.num_epochs = (1e-3, 1e-2), 2
    make = batching.epoch_batches
    workdir = tmp_path / "lr-0.01_seed-0"

    def interrupted_in(epoch):
        def batches(*arguments):
            if arguments[-1] == epoch:
                raise KeyboardInterrupt
            return make(*arguments)

        one = sweep.run_configs(config)[workdir.name]
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(batching, "epoch_batches", batches)
            finetune_loop.finetune(one, pretrained, workdir)

    interrupted_in(0)
    config.optimizer.weight_decay = 0.5  # nothing has been trained with the other
    interrupted_in(1)
    config.optimizer.weight_decay = 0.1
    with pytest.raises(UserError, match=r"optimizer\.weight_decay is 0\.5 there, 0\.1 here"):
        sweep.sweep(config, pretrained, tmp_path)
    assert not (tmp_path / "lr-0.001_seed-0").exists()


def test_grid(config):
    config.seeds, config.learning_rates = (0, 3), (2e-5, 1e-4)
    runs = sweep.run_configs(config)
    assert {name: (x.optimizer.learning_rate, x.seed) for name, x in runs.items()} == {
        "lr-2e-05_seed-0": (2e-5, 0),
        "lr-2e-05_seed-3": (2e-5, 3),
        "lr-0.0001_seed-0": (1e-4, 0),
        "lr-0.0001_seed-3": (1e-4, 3),
    }
    config.seeds = ()
    assert [*sweep.run_configs(config)] == ["lr-2e-05_seed-0", "lr-0.0001_seed-0"]


def test_summary():
    runs = [
        {"name": f"{rate} {seed}", "learning_rate": rate, "seed": seed, "epoch": 1, "f1": f1}
        for rate, seed, f1 in ((1.0, 0, 0.5), (1.0, 1, 0.9), (1.0, 2, 0.6), (2.0, 0, 0.7))
    ]
    summary = sweep.summarize("f1", runs)
    assert summary["best"] == "1.0 1"
    assert summary["learning_rates"] == [
        {"learning_rate": 1.0, "runs": 3, "median": 0.6, "min": 0.5, "max": 0.9},
        {"learning_rate": 2.0, "runs": 1, "median": 0.7, "min": 0.7, "max": 0.7},
    ]
    assert "best" in sweep.table(summary).splitlines()[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", (0, 0)),
        ("seeds", (0.5,)),
        ("seeds", (-1,)),
        ("learning_rates", (0.0,)),
        ("learning_rates", ("a",)),
    ],
)
def test_bad_grids(field, value, config):
    config[field] = value
    with pytest.raises(UserError, match=f"config.{field}=.*: expected different"):
        sweep.run_configs(config)


@pytest.mark.parametrize("harm", HARMS)
def test_a_corrupted_summary_is_one_line(harm, tmp_path):
    files.write_json(tmp_path / "summary.json", {"best": "lr-0.01_seed-1", "runs": []})
    assert workdirs.best_run(tmp_path) == tmp_path / "lr-0.01_seed-1"
    harm(tmp_path / "summary.json")
    if harm is remove:
        assert workdirs.best_run(tmp_path) is None
        return
    with pytest.raises(UserError, match=r"summary\.json is corrupted: run the same fine-tuning"):
        loading.load_parts(tmp_path)
