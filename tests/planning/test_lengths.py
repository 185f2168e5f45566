"""What a plan takes from flags, data and launch files."""

import dataclasses
import json

import pytest
from small_run import LENGTH, PREDICTIONS, run_command

from bert_jax import plan
from bert_jax.cli import UserError
from bert_jax.planning import compiled, lengths, report


def test_lengths_come_from_flags_data_or_publication(config):
    assert lengths.lengths_of(config, 0, 0) == {
        "max_seq_length": LENGTH,
        "max_predictions_per_seq": PREDICTIONS,
    }
    assert lengths.lengths_of(config, 16, 0)["max_predictions_per_seq"] == PREDICTIONS
    config.data_dir, config.model.max_position_embeddings = "", 512
    assert list(lengths.lengths_of(config, 0, 0).values()) == [128, 20]
    assert list(lengths.lengths_of(config, 512, 0).values()) == [512, 77]
    assert list(lengths.lengths_of(config, 512, 80).values()) == [512, 80]


def planned_lengths(monkeypatch) -> list[tuple[int, int]]:
    """Replaces make_plan by one that compiles nothing; returns the lengths it is called with."""
    calls = []
    names = [field.name for field in dataclasses.fields(compiled.Plan)]
    blank = compiled.Plan(**dict.fromkeys(names))

    def make_plan(phase, devices, max_seq_length, max_predictions_per_seq, hardware_name):
        calls.append((max_seq_length, max_predictions_per_seq))
        return blank

    monkeypatch.setattr(compiled, "make_plan", make_plan)
    monkeypatch.setattr(report, "describe", lambda plan: "")
    return calls


@pytest.mark.parametrize(
    ("flags", "lengths", "assumed"),
    [
        ([], [(128, 20), (128, 20)], "in phase 1 and phase 2, "),
        (["--max_seq_length=512"], [(512, 77), (512, 77)], ""),
        (["--max_seq_length=128,512"], [(128, 20), (512, 77)], ""),
        # The data says the number for its own length alone: for another its masked_lm_prob, 0.3.
        (["--config.data_dir=DATA", "--max_seq_length=32,64"], [(32, PREDICTIONS), (64, 20)], ""),
        (
            ["--max_seq_length=128,512", "--max_predictions_per_seq=19,80"],
            [(128, 19), (512, 80)],
            "",
        ),
        (["--max_seq_length=0,512"], [(128, 20), (512, 77)], "in phase 1, "),
        (["--config.phases[0].max_seq_length=64"], [(64, 10), (128, 20)], "in phase 2, "),
        (["--config.data_dir=DATA"], [(LENGTH, PREDICTIONS)] * 2, ""),
        (["--config.phases[1].data_dir=DATA"], [(128, 20), (LENGTH, PREDICTIONS)], "in phase 1, "),
    ],
)
def test_each_phase_has_its_length(data_dir, flags, lengths, assumed, capsys, monkeypatch):
    calls = planned_lengths(monkeypatch)
    flags = [flag.replace("DATA", str(data_dir)) for flag in flags]
    plan.main(["--config=configs/bert_tiny.py", *flags])
    assert calls == lengths
    lines = [line for line in capsys.readouterr().out.splitlines() if "assumed" in line]
    assert len(lines) == bool(assumed)
    if assumed:
        assert f"assumed: 128 tokens per sequence {assumed}" in lines[0]
        assert "set it by --max_seq_length=LENGTH,LENGTH or max_seq_length in" in lines[0]
    plan.main(["--config=configs/bert_tiny.py", "--json", *flags])
    assert json.loads(capsys.readouterr().out)["assumed"] == "".join(lines)


def test_the_length_of_a_run_of_one_phase_is_assumed_too(capsys, monkeypatch):
    planned_lengths(monkeypatch)
    plan.main(["--config=configs/bert_tiny.py:laptop"])
    text = capsys.readouterr().out
    assert "in phase 1, as no data" in text
    assert "by --max_seq_length=LENGTH or config.data_dir" in text


LAUNCH = """\
target = "slurm"
name = "mini"
config = "configs/bert_tiny.py:laptop"
data_dir = "/nowhere/data"
workdir = "/nowhere/run"
nodes = 1
gpus_per_node = 8
cpus_per_node = 8
time = "1:00:00"
install_dir = "/nowhere"

[overrides]
batch_size = 8
model.vocab_size = 1024
"""


def test_launch_file_says_what_is_planned(capsys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(LAUNCH)
    plan.main([f"--launch={path}", "--max_seq_length=32", "--json", "--config.num_steps=700"])
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["batch_size"] == 8 and result["max_seq_length"] == 32
    assert result["num_steps"] == 700  # flags go over the file


def test_launch_file_s_data_may_be_out_of_reach_in_any_phase(
    data_dir, capsys, monkeypatch, tmp_path
):
    calls = planned_lengths(monkeypatch)
    path = tmp_path / "run.toml"
    text = LAUNCH.replace("bert_tiny.py:laptop", "bert_tiny.py")
    path.write_text(text + '"phases[1].data_dir" = "/nowhere/data_512"\n')
    plan.main([f"--launch={path}", f"--config.data_dir={data_dir}"])
    assert calls == [(LENGTH, PREDICTIONS), (128, 20)]
    assert "128 tokens per sequence in phase 2, " in capsys.readouterr().out
    plan.main([f"--launch={path}", "--max_seq_length=128,512"])  # neither can be read
    assert calls[2:] == [(128, 20), (512, 77)]


def test_launch_file_without_training_is_refused(tmp_path):
    path = tmp_path / "data.toml"
    path.write_text(
        'target = "dataflow"\nname = "d"\nproject = "p"\nregion = "r"\n'
        'input = "gs://b/*.txt"\ntokenizer = "t"\ndata_dir = "gs://b/d"\n'
    )
    with pytest.raises(UserError, match="launches dataflow, which trains nothing"):
        plan.main([f"--launch={path}"])


@pytest.mark.slow
def test_plan_of_a_launch_on_several_slices():
    pytest.importorskip("libtpu")
    result = run_command(
        "bert_jax.plan",
        "--launch=launch/bert_base_multislice.toml",
        "--config.model.num_hidden_layers=1",
        "--config.model.vocab_size=1024",
        "--max_seq_length=128",
        "--max_predictions_per_seq=20",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    planned = json.loads(result.stdout)
    assert planned["hardware"].startswith("4 slices of v5e:8x8")
    assert planned["chips"] == 4 * 64 == planned["mesh"]["data"]
    assert planned["hours"] > 0 and planned["fits"]
