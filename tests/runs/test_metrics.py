"""metrics.jsonl: lines survive, later ones of a resumed run are dropped, crashes are forgiven."""

import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from bert_jax import metrics
from bert_jax.cli import UserError


def test_lines_are_objects_with_their_step(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": math.nan})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": None},  # JSON has no NaN
    ]


def test_going_on_drops_what_will_be_computed_anew(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3]
    writer = metrics.MetricWriter(tmp_path, step=2)
    writer.write(3, {"loss": 30})
    writer.close()
    assert [line["loss"] for line in metrics.read(tmp_path)] == [1, 2, 30]


def test_remote_lines_go_out_now_and_then(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    writer = metrics.MetricWriter(tmp_path)
    writer._is_remote = True  # as on gs://
    for step, seconds, uploaded in ((1, 1, 0), (2, 29, 0), (3, 31, 3), (4, 32, 3)):
        now[0] = seconds
        writer.write(step, {"loss": 1.0})
        assert len(metrics.read(tmp_path)) == uploaded
    writer.flush()
    assert len(metrics.read(tmp_path)) == 4
    writer.write(5, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5]


def test_tensorboard_events_are_written(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"loss": 2.5})
    writer.close()
    events = list(tmp_path.glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"loss" in events[0].read_bytes()


def test_nothing_there_reads_as_nothing(tmp_path):
    assert metrics.read(tmp_path) == []


def test_progress_shows_figures_and_the_time_left(capsys, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    progress = metrics.Progress(100)
    progress.update(10, {"loss": 3.14159})
    progress.update(20, {"loss": 3.0, "learning_rate": 1e-4})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 10/100  loss 3.142"  # no speed known yet
    assert second == "step 20/100  loss 3  learning_rate 1.00e-04  ETA 0:01:20"


def test_speeds_leave_out_what_is_no_training(tmp_path, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock["now"])

    def pass_time(seconds):
        clock["now"] += seconds

    telemetry = metrics.Telemetry(tmp_path, 0, wall_clock=lambda: 1000 + clock["now"])
    pass_time(8)
    with telemetry.pause():
        pass_time(5)  # evaluating

    def slow_data():
        pass_time(2)
        yield "batch"

    assert list(telemetry.waited(slow_data())) == ["batch"]
    figures = telemetry.figures(10, examples=4, tokens=32, flops=6.0, peak=12.0)
    assert figures == {
        "sequences_per_second": 4.0,
        "tokens_per_second": 32.0,
        "data_wait": pytest.approx(0.2),
        "training_seconds": 10.0,
        "goodput": pytest.approx(10 / 15),
        "model_flops_utilization": pytest.approx(0.5),
    }
    # Killed at second 20, started again at 30 from step 10, whose line survived.
    writer = metrics.MetricWriter(tmp_path)
    writer.write(10, figures)
    writer.close()
    pass_time(15)
    telemetry = metrics.Telemetry(tmp_path, 10, wall_clock=lambda: 1000 + clock["now"])
    pass_time(10)
    figures = telemetry.figures(15, examples=4, tokens=32, flops=6.0, peak=None)
    assert figures["sequences_per_second"] == 2.0
    assert figures["training_seconds"] == 20.0 and figures["goodput"] == pytest.approx(20 / 40)
    assert "model_flops_utilization" not in figures
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(s["step"], s["time"]) for s in starts] == [(0, 1000), (10, 1030)]


@pytest.mark.parametrize("steps", [(1,), (3, 2), (0, 2)])
def test_impossible_profile_steps_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match="expected \\(\\) or"):
        metrics.Profiler(tmp_path, steps)


def test_missing_wandb_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'bert_jax\[wandb\]'"):
        metrics.MetricWriter(tmp_path, wandb_project="bert")


def test_durations():
    assert metrics.duration(3725.4) == "1:02:05"
    assert metrics.duration(-1) == "0:00:00"


def test_curves_of_two_runs_are_drawn(tmp_path):
    for name, level in (("a", 5.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        writer = metrics.MetricWriter(tmp_path / name)
        for step in range(1, 20):
            writer.write(step, {"mlm_loss": level / step, "nsp_loss": 0.7, "nsp_accuracy": 0.5})
        accuracies = {f"eval_mlm_accuracy_{part}": 0.5 for part in ("mask", "rank_1_100")}
        writer.write(20, {"eval_mlm_loss": level / 20, "eval_other_mlm_loss": 2.0, **accuracies})
        writer.close()
    runs = [str(tmp_path / name) for name in "ab"]
    metrics.main([*runs, f"--plot={tmp_path / 'curves.png'}"])
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).reshape(-1, 3)
    for color in ([31, 119, 180], [255, 127, 14]):  # matplotlib's first two colours, the dots
        assert (pixels == color).all(1).any()


def test_unknown_kind_of_figure_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no figure ends in \.foo; expected .*png"):
        metrics.main([str(tmp_path), f"--plot={tmp_path / 'x.foo'}"])


def test_smoothing_is_a_running_mean():
    assert metrics.smoothed([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


def test_run_without_metrics_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        metrics.main([str(tmp_path)])
