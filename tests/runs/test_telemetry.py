"""metrics.jsonl: lines survive, later ones of a resumed run are dropped, crashes are forgiven."""

import concurrent.futures
import json
import math
import sys
import threading

import pytest
from harms import cut, empty, flip_a_bit, remove

from bert_jax.cli import UserError
from bert_jax.runs import telemetry
from bert_jax.training.guard import Guard


def test_lines_are_objects_with_their_step(tmp_path):
    writer = telemetry.MetricWriter(tmp_path)
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": math.nan})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": None},  # JSON has no NaN
    ]


def test_resuming_drops_what_will_be_computed_again(tmp_path):
    writer = telemetry.MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    assert [line["step"] for line in telemetry.read(tmp_path)] == [1, 2, 3]
    writer = telemetry.MetricWriter(tmp_path, step=2)
    writer.write(3, {"loss": 30})
    writer.close()
    assert [line["loss"] for line in telemetry.read(tmp_path)] == [1, 2, 30]


class SlowPath:
    """A file on a store that takes its time."""

    def __init__(self):
        self.stored, self.may_continue, self.text = [], threading.Event(), ""

    def write_text(self, text):
        self.may_continue.wait(10)
        self.text = text
        self.stored.append(text.count("\n"))


def test_no_step_waits_for_an_upload_and_a_flush_does(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    path = SlowPath()
    upload = telemetry.Upload(path, "first\n")
    for now[0] in (1, 29):
        upload.append("line\n")
    assert upload._running is None  # not yet
    now[0] = 31
    upload.append("line\n")
    upload.append("line\n")  # nobody waited: the store has not answered
    assert path.stored == []
    path.may_continue.set()
    upload.flush()
    assert path.stored[-1] == 5 and path.text == "first\n" + 4 * "line\n"


def test_a_store_that_fails_once_is_tried_again(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])

    class Failing(SlowPath):
        def write_text(self, text):
            if not self.stored:
                self.stored.append(0)
                raise OSError("no answer")
            super().write_text(text)

    path = Failing()
    path.may_continue.set()
    upload = telemetry.Upload(path, "")
    for now[0] in (31, 62):
        upload.append("line\n")
        concurrent.futures.wait([upload._running], 10)
    assert path.text == "line\nline\n"
    assert "could not be stored (OSError: no answer); trying again" in caplog.text


def test_lines_that_a_disk_has_damaged_are_skipped(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n\xff{"step": 2}\n{"stop": 3}\n[4]\n{"step": "5"}\n\n{"step": 6}\n{"st'
    )
    assert telemetry.read(tmp_path) == [{"step": 1}, {"step": 6}]
    (tmp_path / "starts.jsonl").write_bytes(b'{"time": "x"}\n\x00\n')
    telemetry.Telemetry(tmp_path, 6)
    assert len((tmp_path / "starts.jsonl").read_text().splitlines()) == 1


LEFT = {empty: (0,), cut: (1,), flip_a_bit: (2, 3), remove: (0,)}  # of three lines


@pytest.mark.parametrize("harm", LEFT)
@pytest.mark.parametrize(
    ("name", "fields", "added"),
    [
        ("metrics.jsonl", {"step": int}, 0),
        ("starts.jsonl", {"time": float}, 1),
        ("incidents.jsonl", {"step": int}, 1),
    ],
)
def test_a_run_resumes_with_what_is_left_of_its_lines(harm, name, fields, added, config, tmp_path):
    def resume(step: int) -> Guard:
        telemetry.MetricWriter(tmp_path, step).close()
        telemetry.Telemetry(tmp_path, step)
        return Guard(config.guard, tmp_path, step)

    def skip(guard: Guard, step: int) -> None:
        origin = {"records": ["a#1"], "data_dir": "data", "out_of_vocabulary": []}
        guard.skipped(step, {"loss": 1e9, "gradient_norm": 1.0}, origin)

    for step in (1, 2, 3):
        writer = telemetry.MetricWriter(tmp_path, step)
        writer.write(step, {"loss": step})
        writer.close()
        telemetry.Telemetry(tmp_path, step)
        skip(Guard(config.guard, tmp_path, step), step)
    harm(tmp_path / name)
    left = telemetry.read_lines(tmp_path / name, **fields)
    assert len(left) in LEFT[harm]
    skip(resume(3), 4)
    lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert lines[: len(left)] == left and len(lines) == len(left) + added


def test_tensorboard_events_are_written(tmp_path):
    writer = telemetry.MetricWriter(tmp_path)
    writer.write(1, {"loss": 2.5})
    writer.close()
    telemetry.MetricWriter(tmp_path).close()  # which has nothing to write, and leaves no file
    events = list(tmp_path.glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"loss" in events[0].read_bytes()


def test_nothing_there_reads_as_nothing(tmp_path):
    assert telemetry.read(tmp_path) == []


def test_speeds_leave_out_what_is_no_training(tmp_path, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: clock["now"])

    def pass_time(seconds):
        clock["now"] += seconds

    clocked = telemetry.Telemetry(tmp_path, 0, wall_clock=lambda: 1000 + clock["now"])
    pass_time(8)
    with clocked.pause():
        pass_time(5)  # evaluating

    def slow_data():
        pass_time(2)
        yield "batch"

    assert list(clocked.waited(slow_data())) == ["batch"]
    speeds = clocked.speeds(10, examples=4, tokens=32, flops=6.0, peak=12.0)
    assert speeds == {
        "sequences_per_second": 4.0,
        "tokens_per_second": 32.0,
        "data_wait": pytest.approx(0.2),
        "training_seconds": 10.0,
        "goodput": pytest.approx(10 / 15),
        "model_flops_utilization": pytest.approx(0.5),
    }
    # Killed at second 20, started again at 30 from step 10, whose line survived.
    writer = telemetry.MetricWriter(tmp_path)
    writer.write(10, speeds)
    writer.close()
    pass_time(15)
    clocked = telemetry.Telemetry(tmp_path, 10, wall_clock=lambda: 1000 + clock["now"])
    pass_time(10)
    speeds = clocked.speeds(15, examples=4, tokens=32, flops=6.0, peak=None)
    assert speeds["sequences_per_second"] == 2.0
    assert speeds["training_seconds"] == 20.0 and speeds["goodput"] == pytest.approx(20 / 40)
    assert "model_flops_utilization" not in speeds
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(s["step"], s["time"]) for s in starts] == [(0, 1000), (10, 1030)]


@pytest.mark.parametrize("steps", [(1,), (3, 2), (0, 2)])
def test_impossible_profile_steps_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match="expected \\(\\) or"):
        telemetry.Profiler(tmp_path, steps)


def test_missing_wandb_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'bert_jax\[wandb\]'"):
        telemetry.MetricWriter(tmp_path, wandb_project="bert")
