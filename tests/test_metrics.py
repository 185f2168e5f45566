"""metrics.jsonl: lines survive, later ones of a resumed run are dropped, crashes are forgiven."""

import json
import math

from bert_jax import metrics


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


def test_durations():
    assert metrics.duration(3725.4) == "1:02:05"
    assert metrics.duration(-1) == "0:00:00"
