"""Batches that are not accepted: named, skipped or rolled back, up to a limit."""

import json

import jax
import numpy as np
import pytest
from array_record.python import array_record_module
from small_run import (
    dying_at,
    make_data_dir,
    numbers,
    state_bytes,
)

from bert_jax.cli import UserError
from bert_jax.data import records
from bert_jax.runs import checkpoint
from bert_jax.training import loop, reporting


@pytest.fixture
def poisoned(config, tmp_path, request):
    """The config on a data set of which one example has a token id that does not exist.

    Or several, the numbers of which are the parameter.
    """
    directory = make_data_dir(tmp_path / "poisoned", {"train": [1280], "validation": [20]})
    manifest = records.Manifest.read(directory)
    shard = directory / manifest.splits["train"][0].name
    reader = array_record_module.ArrayRecordReader(str(shard))
    raw = reader.read_all()
    reader.close()
    config.sampling = 1  # records in the order of a permutation: a batch is of one
    # A record behind the first 1,024 examples, which are checked before the run.
    order = np.random.default_rng((config.seed, 0)).permutation(20)
    bad = int(order[17])
    examples = np.frombuffer(raw[bad], manifest.dtype).copy()
    examples["input_ids"][list(getattr(request, "param", [5])), 1] = 200
    raw[bad] = examples.tobytes()
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for record in raw:
        writer.write(record)
    writer.close()
    config.data_dir = str(directory)
    config.update(num_steps=75, eval_every=0, checkpoint_every=20)
    return config, f"{shard.name}#{bad}"


@pytest.mark.parametrize("action", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_poisoned_record_is_named_and_the_run_continues(poisoned, tmp_path, caplog, action):
    config, record = poisoned
    config.guard.action = action
    loop.train_and_evaluate(config, tmp_path / "run")
    (incident,) = map(json.loads, (tmp_path / "run" / "incidents.jsonl").read_text().splitlines())
    assert incident["step"] == 17 * 4 + 1 and incident["reason"] == "not finite"
    assert incident["records"] == [record]
    assert incident["out_of_vocabulary"] == [{"record": record, "example": 5, "token_id": 200}]
    assert record in caplog.text and "token id 200" in caplog.text
    assert ("rolled back to the parameters of step 60" in caplog.text) == (action == "rollback")
    lines = {line["step"]: line["loss"] for line in numbers(tmp_path / "run")}
    assert lines.pop(69) is None
    assert len(lines) == 74 and None not in lines.values()
    # Interrupted after it, the run meets it again and does the same.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reporting.Reporter, "step", dying_at(71))
        loop.train_and_evaluate(config, tmp_path / "parts")
    loop.train_and_evaluate(config, tmp_path / "parts")
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "run")
    assert len((tmp_path / "parts" / "incidents.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("poisoned", [[5, 20]], indirect=True)  # in two batches, one after another
def test_what_is_rolled_back_already_is_not_restored_again(poisoned, tmp_path, monkeypatch):
    config, _ = poisoned
    config.guard.action = "rollback"
    restored, restore = [], checkpoint.CheckpointStore.restore
    live = lambda: sum(x.nbytes for x in jax.live_arrays())  # noqa: E731
    before = live()

    def counted(store, state):
        restored.append(live() - before)
        return restore(store, state)

    monkeypatch.setattr(checkpoint.CheckpointStore, "restore", counted)
    loop.train_and_evaluate(config, tmp_path / "run")
    lines = (tmp_path / "run" / "incidents.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [69, 70]
    # The state was freed first: what is left are batches and metrics.
    assert len(restored) == 1 and restored[0] < 0.3 * state_bytes(config)


def test_gives_up_after_too_many_incidents(poisoned, tmp_path):
    config, _ = poisoned
    config.guard.max_incidents = 0
    with pytest.raises(UserError, match=r"gave up at step 69: 1 batches were not accepted"):
        loop.train_and_evaluate(config, tmp_path / "run")
