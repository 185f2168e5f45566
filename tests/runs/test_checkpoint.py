"""Checkpoints: what they refuse, what they recognise as damaged, and what is loaded from them."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.huggingface import card
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs
from bert_jax.training import loop


def test_workdir_of_another_model_is_refused_and_left_alone(config, tmp_path):
    config.update(num_steps=3, eval_every=0)
    loop.train_and_evaluate(config, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    config.model.hidden_size = 64
    config.seed = 9
    with pytest.raises(UserError, match=r"hidden_size is 32 there, 64 here.*seed is 0 there, 9"):
        loop.train_and_evaluate(config, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_warm_start_takes_what_fits_and_names_the_rest(config, tmp_path, caplog):
    caplog.set_level("INFO")
    config.update(num_steps=3, eval_every=0)
    loop.train_and_evaluate(config, tmp_path / "first")
    config.init_from = str(tmp_path / "first")
    config.model.max_position_embeddings = 48
    config.model.scan_layers = True
    config.optimizer.learning_rate = 0.0
    loop.train_and_evaluate(config, tmp_path / "second")
    assert "position_embeddings/embedding ((32, 32) there, (48, 32) here)" in caplog.text
    first, second = (checkpoint.load(tmp_path / name).params for name in ("first", "second"))
    for params in (first, second):
        params["bert"]["embeddings"].pop("position_embeddings")
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_checkpoint_can_be_chosen_and_a_missing_one_is_named(config, tmp_path):
    config.update(num_steps=4, checkpoint_every=2, eval_every=0)
    loop.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path).step == 4
    loaded = checkpoint.load(tmp_path / "checkpoints" / "2")
    assert loaded.step == 2 and loaded.tokenizer.vocab_size == 100
    with pytest.raises(UserError, match="holds the steps 2, 4"):
        checkpoint.load(tmp_path / "checkpoints" / "3")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.fixture
def trained(config, tmp_path):
    """A workdir with checkpoints of steps 2 and 4."""
    config.update(num_steps=4, checkpoint_every=2, eval_every=0)
    config.optimizer.end_factor = 1.0  # a learning rate that does not depend on num_steps
    loop.train_and_evaluate(config, tmp_path / "run")
    return tmp_path / "run"


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "harm, reason",
    [
        (flip_a_bit, "is not what was written"),
        (truncate, "bytes, .* were written"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_checkpoint_is_passed_over_with_the_reason(config, trained, caplog, harm, reason):
    whole = checkpoint.load(trained / "checkpoints" / "2").params
    harm(largest_file(trained / "checkpoints" / "4" / "params"))
    with pytest.raises(UserError, match="every checkpoint there is damaged"):
        checkpoint.load(trained / "checkpoints" / "4")
    loaded = checkpoint.load(trained)
    assert loaded.step == 2
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole)
    caplog.clear()
    config.update(num_steps=6)
    loop.train_and_evaluate(config, trained)
    assert "checkpoint 4 is damaged: params/" in caplog.text
    assert "taking that of step 2" in caplog.text
    assert re.search(reason, caplog.text)
    assert (trained / "checkpoints" / "4.damaged").is_dir()
    assert checkpoint.load(trained).step == 6


def test_run_without_a_whole_checkpoint_is_not_started_anew(config, trained):
    for step in ("2", "4"):
        truncate(largest_file(trained / "checkpoints" / step))
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(4: .*; 2: "):
        loop.train_and_evaluate(config, trained)
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["2", "4"]


def test_settings_that_changed_are_named(config, trained, caplog):
    config.num_steps = 5
    config.optimizer.name = "lamb"
    loop.train_and_evaluate(config, trained)
    assert "num_steps was 4, is 5; optimizer.name was 'adamw', is 'lamb'" in caplog.text


def test_checkpoint_without_checksums_was_not_finished(trained):
    (trained / "checkpoints" / "4" / "checksums.json").unlink()
    assert checkpoint.load(trained).step == 2


def test_layers_may_become_scanned_and_unrolled_again(config, trained, tmp_path):
    config.update(num_steps=6)
    config.model.scan_layers = True
    loop.train_and_evaluate(config, trained)
    config.update(num_steps=8)
    config.model.scan_layers = False
    loop.train_and_evaluate(config, trained)
    loop.train_and_evaluate(config, tmp_path / "unrolled")
    mixed, unrolled = checkpoint.load(trained).params, checkpoint.load(tmp_path / "unrolled").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mixed, unrolled)


def test_second_run_in_a_workdir_is_turned_away(config, trained):
    lock = files.lock(trained / files.LOCK_FILE, "held")
    with lock, pytest.raises(UserError, match="is in use by a run that has not ended"):
        loop.train_and_evaluate(config, trained)
    loop.train_and_evaluate(config, trained)


def test_best_parameters_are_kept_beside_the_latest(config, tmp_path, monkeypatch):
    workdir = tmp_path / "best"  # a workdir may have that name, too
    config.update(num_steps=8, eval_every=2, checkpoint_every=4)
    losses = iter([3.0, 1.0, 2.0, 1.0])
    evaluate = lambda *args: {"loss": next(losses), "mlm_loss": 0.0}  # noqa: E731
    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.train_and_evaluate(config, workdir)
    assert json.loads((workdir / "best" / "best.json").read_text()) == {
        "step": 4,
        "loss": 1.0,
        "phase_start": 0,
    }
    best = checkpoint.load(workdir / "best")
    assert best.step == 4
    facts = dict(card.results(best, workdir / "best"))
    assert facts["eval_loss"] == "1"
    there = checkpoint.load(workdir / "checkpoints" / "4").params
    jax.tree.map(np.testing.assert_array_equal, best.params, there)
    assert workdirs.is_workdir(workdir / "best")
    assert workdirs.is_workdir(workdir / "best" / "4")
    assert workdirs.is_workdir(workdir) and checkpoint.load(workdir).step == 8


def test_best_parameters_lost_in_a_crash_are_saved_again(config, tmp_path, monkeypatch):
    config.update(num_steps=4, eval_every=2, checkpoint_every=4)
    monkeypatch.setattr(loop, "evaluate", lambda *args: {"loss": 1.0, "mlm_loss": 0.0})
    (tmp_path / "best").mkdir(parents=True)
    line = {"step": 2, "loss": 1.0, "phase_start": 0}
    (tmp_path / "best" / "best.json").write_text(json.dumps(line))
    loop.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path / "best").step == 2


def test_best_parameters_of_steps_that_were_lost_make_room(config, tmp_path, monkeypatch):
    """Best at step 6, killed at 7, gone on from 4: what is best then is kept, whatever its step."""
    config.update(num_steps=6, eval_every=2, checkpoint_every=4)
    losses = iter([3.0, 2.0, 1.0])
    evaluate = lambda *args: {"loss": next(losses), "mlm_loss": 0.0}  # noqa: E731
    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path / "best").step == 6
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    config.update(num_steps=8, eval_every=5)
    losses = iter([1.5, 1.7])
    loop.train_and_evaluate(config, tmp_path)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 5
    assert checkpoint.load(tmp_path / "best").step == 5


def test_both_managers_have_barriers_of_their_own(config, tmp_path, monkeypatch):
    """They may be writing the same step at once, which several processes wait for by name."""
    prefixes = []
    make = checkpoint.ocp.CheckpointManager

    def recording(*arguments, options, **keywords):
        prefixes.append(options.multiprocessing_options.barrier_sync_key_prefix)
        return make(*arguments, options=options, **keywords)

    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", recording)
    config.update(num_steps=4, eval_every=4)
    loop.train_and_evaluate(config, tmp_path)
    assert len(prefixes) == len(set(prefixes)) == 2


def test_a_phase_that_has_not_begun_may_change_at_its_very_start(config, trained):
    """Trained as phase 1 alone, to its end: the next is added."""
    config.num_steps = 6
    config.phases = ({"num_steps": 4}, {"batch_size": 8})
    loop.train_and_evaluate(config, trained)
    assert checkpoint.load(trained).step == 6
    config.phases = ({"num_steps": 4}, {"batch_size": 16})
    with pytest.raises(UserError, match="batch_size of the phase from step 4 is 8 there, 16 here"):
        loop.train_and_evaluate(config, trained)
