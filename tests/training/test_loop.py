"""The loop: what it writes, that it resumes exactly, and what it does when something goes wrong."""

import json
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import small_run
from array_record.python import array_record_module
from etils import epath
from small_run import (
    ROOT,
    SPEEDS,
    VOCAB_SIZE,
    dying_at,
    make_data_dir,
    numbers,
    overrides,
    small_config,
)
from two_processes import PRETRAIN

from bert_jax.cli import EXIT_INTERRUPTED, Interrupted, UserError
from bert_jax.data import dataset, records
from bert_jax.runs import checkpoint, telemetry
from bert_jax.runs import workdir as workdirs
from bert_jax.training import loop, phases, reporting
from bert_jax.training.inputs import open_inputs


def test_metrics_have_the_names_of_the_contract(config, tmp_path):
    last = loop.train_and_evaluate(config, tmp_path)
    lines = telemetry.read(tmp_path)
    training = [line for line in lines if "loss" in line]
    evaluation = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 21))
    assert [line["step"] for line in evaluation] == [10, 20]
    names = {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    assert set(training[0]) == names | {
        "step",
        "learning_rate",
        "gradient_norm",
        "padding",
        *SPEEDS,
    }
    kinds = {f"mlm_accuracy_{kind}" for kind in ("mask",)}  # as the data has them
    bands = {f"mlm_accuracy_rank_{band}" for band in ("1_100",)}  # 100 tokens in all
    evaluated = names | kinds | bands | {"mlm_perplexity"}
    assert set(evaluation[0]) == {f"eval_{name}" for name in evaluated} | {"step"}
    assert last == {k: v for k, v in evaluation[-1].items() if k != "step"}
    for line in training:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"])
    assert (tmp_path / "checkpoints" / "20").is_dir()
    assert json.loads((tmp_path / "config.json").read_text())["model"]["hidden_size"] == 32


class StopAt:
    """Asked for the n-th time, it says that the run is to stop."""

    received = "SIGTERM"

    def __init__(self, number):
        self.left = number

    def asked(self):
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize(
    "encoder",
    ["roberta", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "modernbert"))],
)
def test_resumed_run_equals_the_uninterrupted_one(encoder, data_dir, tmp_path):
    config = small_config(data_dir, encoder)
    loop.train_and_evaluate(config, tmp_path / "whole")
    # The interruption: the loop dies at step 13, after the checkpoint of step 10.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reporting.Reporter, "step", dying_at(13))
        loop.train_and_evaluate(config, tmp_path / "parts")
    loop.train_and_evaluate(config, tmp_path / "parts")
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def start(config, workdir) -> subprocess.Popen:
    flags = ["--config=configs/bert_tiny.py:laptop", *overrides(config), f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, "-c", PRETRAIN, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_process_resumes_with_the_same_numbers(config, tmp_path, capfd):
    config.update(num_steps=40, eval_every=0, checkpoint_every=5)
    loop.train_and_evaluate(config, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start(config, killed)
    saved = lambda: [p for p in (killed / "checkpoints").glob("*") if p.name.isdigit()]  # noqa: E731
    wait_for(saved, process)
    process.kill()
    process.communicate()
    again = start(config, killed)
    _, error = again.communicate()
    assert again.returncode == 0, error
    assert "resuming from step" in error
    assert numbers(killed) == numbers(tmp_path / "whole")
    loop.train_and_evaluate(config, killed, show=True)
    assert "trained to the end already" in capfd.readouterr().err


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_number(config, tmp_path):
    """With a checkpoint after every other step, many of them fall into a save."""
    config.update(num_steps=400, eval_every=50, checkpoint_every=2, keep_checkpoints=2)
    whole = start(config, tmp_path / "whole")
    _, error = whole.communicate()
    assert whole.returncode == 0, error
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(10):
        process = start(config, tmp_path / "killed")
        before = len(telemetry.read(tmp_path / "killed"))
        wait_for(lambda n=before: len(telemetry.read(tmp_path / "killed")) > n + 3, process)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        steps.append(telemetry.read(tmp_path / "killed")[-1]["step"])
    assert len(set(steps)) > 5 and max(steps) < 400, steps
    process = start(config, tmp_path / "killed")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_signal_saves_and_ends_with_a_code_of_its_own(config, tmp_path, name):
    config.update(num_steps=30_000, eval_every=0, checkpoint_every=100_000)
    process = start(config, tmp_path)
    wait_for(lambda: len(telemetry.read(tmp_path)) > 3, process)
    process.send_signal(signal.Signals[name])
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, error
    step = checkpoint.load(tmp_path).step
    assert step < 30_000 and f"stopped by {name}: step {step} is saved" in error
    assert telemetry.read(tmp_path)[-1]["step"] == step


def test_phases_that_the_length_cuts_off_are_named(config, caplog):
    config.update(num_steps=3, eval_every=0)
    config.phases = ({"num_steps": 7}, {"num_steps": 4}, {"batch_size": 8})
    open_inputs(config)
    assert "num_steps=3 ends the run in phase 1: the last 2 of 3 are skipped" in caplog.text
    caplog.clear()
    config.phases = ()
    open_inputs(config)
    assert "skipped" not in caplog.text


@pytest.mark.parametrize("length", [4, 6])
def test_a_last_phase_s_length_that_is_not_the_run_s_is_refused(length, config):
    config.num_steps = 12
    config.phases = ({"num_steps": 7}, {"num_steps": length})
    with pytest.raises(
        UserError, match=rf"the phase's out .*, or give --config\.num_steps={7 + length}"
    ):
        phases.resolve(config)
    config.phases = ({"num_steps": 7}, {"num_steps": 5})
    assert [phase.stop for phase in phases.resolve(config)] == [7, 12]
    config.num_steps = 3  # a trial run needs this one flag alone
    assert [phase.stop for phase in phases.resolve(config)] == [3]


def test_phases_are_one_run_and_may_be_interrupted(config, data_dir, tmp_path):
    longer = make_data_dir(tmp_path / "longer", {"train": [200], "validation": [20]}, shortest=8)
    config.update(num_steps=12, eval_every=0, checkpoint_every=5)
    config.phases = (
        {"num_steps": 7},
        {
            "data_dir": str(longer),
            "batch_size": 8,
            "packing": 4,
            "optimizer": {"learning_rate": 3e-4, "warmup_steps": 1},
            "reset_moments": True,
        },
    )
    loop.train_and_evaluate(config, tmp_path / "whole")
    lines = {line["step"]: line for line in numbers(tmp_path / "whole") if "loss" in line}
    assert sorted(lines) == list(range(1, 13))
    # Also at the boundary: the time after it may be all that a phase has.
    assert workdirs.steps_in(epath.Path(tmp_path / "whole" / "checkpoints")) == [7, 10, 12]
    assert lines[7]["learning_rate"] == pytest.approx(5e-4 * (12 - 6) / 12)  # of the run
    assert lines[8]["learning_rate"] == pytest.approx(3e-4)  # of the phase
    assert lines[12]["learning_rate"] == pytest.approx(3e-4 * 1 / 5)
    assert lines[8]["padding"] < 0.1 < 0.2 < lines[7]["padding"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reporting.Reporter, "step", dying_at(6))  # it resumes in the phase before
        loop.train_and_evaluate(config, tmp_path / "interrupted")
    loop.train_and_evaluate(config, tmp_path / "interrupted")
    assert numbers(tmp_path / "interrupted") == numbers(tmp_path / "whole")
    config.phases[1]["packing"] = 3
    with pytest.raises(UserError, match="packing of the phase from step 7 is 4 there, 3 here"):
        loop.train_and_evaluate(config, tmp_path / "whole")
    config.phases = (config.phases[0] | {"num_steps": 6}, config.phases[1])
    with pytest.raises(
        UserError, match=r"batch_size of the phase from step 6 is missing there, 8 here"
    ):
        loop.train_and_evaluate(config, tmp_path / "whole")


@pytest.mark.slow
def test_a_phase_on_the_same_data_continues_where_the_one_before_stopped(
    config, tmp_path, monkeypatch, caplog
):
    read, starts = dataset.PretrainingData._read_rows, []

    def noted(data, start, rows):
        starts.append(start)
        return read(data, start, rows)

    monkeypatch.setattr(dataset.PretrainingData, "_read_rows", noted)
    config.update(num_steps=12, eval_every=0, checkpoint_every=2)
    config.phases = ({"num_steps": 7}, {"batch_size": 8})
    loop.train_and_evaluate(config, tmp_path / "whole")
    assert "the phase from step 7 has no data of its own and continues with" in caplog.text
    second = list(range(7 * 16, 7 * 16 + 5 * 8, 8))
    assert sorted(starts) == [*range(0, 7 * 16, 16), *second]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reporting.Reporter, "step", dying_at(10))
        loop.train_and_evaluate(config, tmp_path / "parts")
    starts.clear()
    loop.train_and_evaluate(config, tmp_path / "parts")
    assert sorted(starts) == second[1:]  # from step 8 on
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    # Packed, it has other rows.
    caplog.clear()
    config.phases = ({"num_steps": 7}, {"packing": 4})
    open_inputs(config)
    assert "has no data of its own and begins again with" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam"}, r"phases\[1\]\.optimizer\.name='adam' is not one of adamw, lamb"),
        ({"clip_norm": -1.0}, r"phases\[1\]\.optimizer\.clip_norm=-1.0, expected 0"),
        ({"learning_rate_rules": (("encodr", 0.5),)}, "'encodr' apply to no parameter"),
    ],
)
def test_a_later_phase_s_optimizer_is_checked_before_the_first_step(
    settings, message, config, tmp_path
):
    config.phases = ({"num_steps": 5}, {"optimizer": settings})
    with pytest.raises(UserError, match=message):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_attention_that_a_later_phase_s_length_excludes_is_refused_before_the_first_step(
    config, tmp_path, monkeypatch
):
    config.model.update(attention="splash", attention_probs_dropout_prob=0.0)
    config.model.max_position_embeddings = 128
    monkeypatch.setattr(small_run, "LENGTH", 128)
    longer = make_data_dir(tmp_path / "longer", {"train": [64], "validation": [20]})
    config.phases = ({"num_steps": 5, "data_dir": str(longer)}, {"batch_size": 8})
    with pytest.raises(UserError, match=r"attention=splash needs lengths .* of 128; .* length 32"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(  # after step 10, and between batches of its evaluation
    "asks", [pytest.param(10, marks=pytest.mark.slow), 12]
)
def test_a_stop_around_an_evaluation_saves_and_resumes_exactly(asks, config, tmp_path):
    config.update(checkpoint_every=10 if asks > 10 else 7)
    whole = loop.train_and_evaluate(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped by SIGTERM: step 10 is saved"):
        loop.train_and_evaluate(config, tmp_path / "parts", StopAt(asks))
    assert checkpoint.load(tmp_path / "parts").step == 10
    assert not [line for line in telemetry.read(tmp_path / "parts") if "eval_loss" in line]
    assert loop.train_and_evaluate(config, tmp_path / "parts") == whole
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert loop.train_and_evaluate(config, tmp_path / "parts") == whole  # nothing left to do


def test_a_stop_in_the_last_evaluation_leaves_the_run_unfinished(config, tmp_path):
    config.update(num_steps=4, eval_every=4)
    whole = loop.train_and_evaluate(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        loop.train_and_evaluate(config, tmp_path / "parts", StopAt(5))
    assert loop.train_and_evaluate(config, tmp_path / "parts") == whole
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_what_is_due_is_saved_before_the_evaluation(config, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.evaluation, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path).step == 10


@pytest.mark.slow
def test_best_parameters_whose_saving_was_cut_off_are_saved_by_the_next_start(
    config, tmp_path, monkeypatch
):
    losses = iter([1.0, 2.0])
    evaluate = lambda *args: {"loss": next(losses), "mlm_loss": 0.0}  # noqa: E731
    monkeypatch.setattr(loop.evaluation, "evaluate", evaluate)
    config.update(num_steps=2, eval_every=2)
    config.optimizer.warmup_steps = 1
    loop.train_and_evaluate(config, tmp_path)
    shutil.rmtree(tmp_path / "best")
    config.num_steps = 4
    loop.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path / "best").step == 2


def test_evaluation_reads_ahead_and_fetches_its_sums_once(config, tmp_path, monkeypatch):
    inputs = open_inputs(config)
    (part,) = inputs.phases
    data, started, fetched = part.eval_data["eval_"], [], []
    read, fetch = data._read_rows, jax.device_get
    monkeypatch.setattr(data, "_read_rows", lambda *rows: started.append(rows) or read(*rows))
    batches = data.eval_batches(inputs.mesh, 0)
    next(batches)
    deadline = time.monotonic() + 20
    while len(started) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(started) == 3  # all of them, and one was asked for
    batches.close()
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or fetch(tree))
    step = lambda params, batch: ({"mlm_loss": 6.0}, {"mlm_loss": 2.0})  # noqa: E731
    result = loop.evaluation.evaluate(step, None, range(9), ("mlm_loss",))
    assert result["loss"] == 3.0 and len(fetched) == 1


def test_the_end_is_announced_when_the_last_checkpoint_is_there(config, tmp_path, monkeypatch):
    config.update(num_steps=2, eval_every=2)
    config.optimizer.warmup_steps = 1
    there = {}

    def note(report, text):
        there[text.split(":")[0]] = [
            sorted(p.name for p in (tmp_path / name).glob("*")) for name in ("checkpoints", "best")
        ]

    monkeypatch.setattr(reporting.Reporter, "note", note)
    loop.train_and_evaluate(config, tmp_path, show=True)
    assert there["finished"] == [["2"], ["2", "best.json"]]


def test_each_line_s_speed_is_of_its_own_steps(config, tmp_path, monkeypatch):
    """On CPUs a step is over when it is dispatched: read later, its time would be another's."""
    events = []
    for name in ("before_step", "step"):
        method = getattr(reporting.Reporter, name)

        def noted(self, step, *args, name=name, method=method):
            events.append((name, step))
            return method(self, step, *args)

        monkeypatch.setattr(reporting.Reporter, name, noted)
    config.update(num_steps=3, eval_every=0)
    loop.train_and_evaluate(config, tmp_path)
    assert events == [(name, step) for step in (1, 2, 3) for name in ("before_step", "step")]


def test_impossible_token_in_the_first_examples_stops_before_compiling(config, tmp_path):
    directory = make_data_dir(tmp_path / "data", {"train": [64], "validation": [20]})
    manifest = records.Manifest.read(directory)
    shard = directory / manifest.splits["train"][0].name
    reader = array_record_module.ArrayRecordReader(str(shard))
    examples = np.frombuffer(reader.read_all()[0], manifest.dtype).copy()
    reader.close()
    examples["input_ids"][5, 1] = VOCAB_SIZE
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(examples.tobytes())
    writer.close()
    config.data_dir = str(directory)
    with pytest.raises(UserError, match="holds token id 100, but its vocabulary has 100 tokens"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluation_goes_in_the_microbatches_of_a_step(config, tmp_path):
    config.update(num_steps=4, eval_every=4)
    whole = loop.train_and_evaluate(config, tmp_path / "whole")
    config.accumulate_steps = 4
    parts = loop.train_and_evaluate(config, tmp_path / "parts")
    assert parts == pytest.approx(whole, rel=1e-4)


def test_held_out_text_without_pairs(config, tmp_path):
    plain = tmp_path / "plain"
    make_data_dir(plain, {"validation": [40]}, objective="full_sentences")
    config.update(num_steps=4, eval_every=4, extra_eval_data_dirs=str(plain))
    last = loop.train_and_evaluate(config, tmp_path / "run")
    assert last["eval_loss"] == pytest.approx(last["eval_mlm_loss"] + last["eval_nsp_loss"])
    assert last["eval_plain_loss"] == last["eval_plain_mlm_loss"]
    assert "eval_plain_nsp_loss" not in last
    # The best parameters are not chosen by half of the loss.
    config.eval_data_dir = str(plain)
    with pytest.raises(UserError, match=r"plain has no sentence pairs to evaluate"):
        loop.train_and_evaluate(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("log_every", 0, 1),
        ("checkpoint_every", 0, 1),
        ("keep_checkpoints", 0, 1),
        ("accumulate_steps", 0, 1),
        ("eval_batches", -1, 0),
        ("seed", -1, 0),
    ],
)
def test_numbers_out_of_range_are_refused(field, value, least, config, tmp_path):
    config[field] = value
    with pytest.raises(UserError, match=rf"config\.{field}={value}, expected at least {least}"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_profile_and_wandb_get_what_they_should(config, tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    init = lambda **kwargs: calls.append(kwargs) or run  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config.update(num_steps=4, eval_every=0, profile_steps=(2, 3), wandb_project="bert")
    loop.train_and_evaluate(config, tmp_path)
    assert calls[0]["project"] == "bert" and calls[0]["config"]["num_steps"] == 4
    assert [call[0] for call in calls[1:-1]] == [1, 2, 3, 4] and calls[-1] == "end"
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    first = calls[0]["id"]
    config.num_steps = 5
    loop.train_and_evaluate(config, tmp_path)
    assert [call["id"] for call in calls if isinstance(call, dict)] == [first, first]
