"""Checkpoints: what they refuse, what they recognise as corrupted, and what is loaded from them."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from harms import HARMS, cut, empty, flip_a_bit, truncate
from small_run import make_tokenizer, small_config

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.huggingface import card
from bert_jax.runs import checkpoint, integrity
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


@pytest.mark.slow
def test_warm_start_takes_what_fits_and_names_the_rest(config, tmp_path, caplog):
    caplog.set_level("INFO")
    config.update(num_steps=3, eval_every=0)
    loop.train_and_evaluate(config, tmp_path / "first")
    config.init_from = str(tmp_path / "first")
    config.model.max_position_embeddings = 48
    config.model.scan_layers = True
    config.optimizer.learning_rate = 0.0
    loop.train_and_evaluate(config, tmp_path / "second")
    assert "position_embeddings/embedding 32 of 48 rows (there 32)" in caplog.text
    first, second = (checkpoint.load(tmp_path / name).params for name in ("first", "second"))
    positions = second["bert"]["embeddings"]["position_embeddings"]
    positions["embedding"] = positions["embedding"][:32]
    for params in (first, second):  # the padding of the vocabulary is nobody's
        words = params["bert"]["embeddings"]["word_embeddings"]
        words["embedding"], params["mlm_bias"] = words["embedding"][:100], params["mlm_bias"][:100]
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


@pytest.fixture(scope="module")
def whole_run(data_dir, tmp_path_factory):
    """A workdir with checkpoints of steps 2 and 4 and best parameters, to be copied."""
    config = small_config(data_dir)
    config.update(num_steps=4, checkpoint_every=2, eval_every=2)
    workdir = tmp_path_factory.mktemp("whole") / "run"
    loop.train_and_evaluate(config, workdir)
    saved = json.loads((workdir / "config.json").read_text())
    return config, workdir, saved["identity"]


@pytest.fixture
def copy(whole_run, tmp_path):
    """A copy of it to harm: its path, and what opens it as the same command would."""
    config, workdir, identity = whole_run
    shutil.copytree(workdir, tmp_path / "run")

    def reopen() -> checkpoint.CheckpointStore:
        return checkpoint.CheckpointStore(tmp_path / "run", config, make_tokenizer(), identity)

    return tmp_path / "run", reopen


@pytest.mark.parametrize("harm", HARMS)
def test_corrupted_checksums_are_a_corrupted_checkpoint(copy, caplog, harm):
    workdir, reopen = copy
    harm(workdir / "checkpoints" / "4" / "checksums.json")
    # A flipped bit may be in what is said of the optimizer's files, which loading does not read.
    assert checkpoint.load(workdir).step in ((2, 4) if harm is flip_a_bit else (2,))
    store = reopen()
    assert store.latest_step == 2
    store.close()
    assert "checkpoint 4 is corrupted: " in caplog.text
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4.damaged"]


@pytest.mark.parametrize("harm", HARMS)
def test_corrupted_record_of_the_best_is_no_record(copy, harm):
    workdir, reopen = copy
    record = json.loads((workdir / "best" / "best.json").read_text())
    harm(workdir / "best" / "best.json")
    reopen().close()
    assert json.loads((workdir / "best" / "best.json").read_text()) == record  # written again
    harm(workdir / "best" / f"{record['step']}" / "best.json")
    harm(workdir / "best" / "best.json")
    if harm is not flip_a_bit:  # which may have made another loss of it
        assert checkpoint._best_record(workdir / "best") is None
    params = {"bert": {"kernel": jax.numpy.ones(3)}}
    store = reopen()
    assert store.save_if_best(record["step"] + 1, params, record["loss"] - 1e3)
    store.close()
    assert json.loads((workdir / "best" / "best.json").read_text())["step"] == record["step"] + 1


@pytest.mark.parametrize("harm", (empty, cut, flip_a_bit))
def test_corrupted_config_is_one_line(copy, harm):
    workdir, reopen = copy
    harm(workdir / "config.json")
    for read in (reopen, lambda: checkpoint.load(workdir)):
        with pytest.raises(UserError, match=r"config\.json is (not JSON|corrupted)") as error:
            read()
        assert "\n" not in str(error.value)


def test_flipped_setting_in_a_config_is_recognised(copy):
    workdir, _ = copy
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 36'))
    with pytest.raises(UserError, match="do not match the field 'checksum' in it"):
        checkpoint.load(workdir)


@pytest.mark.parametrize("harm", HARMS)
def test_corrupted_tokenizer_is_one_line_and_comes_back_with_the_next_start(copy, harm):
    workdir, reopen = copy
    for name in ("vocab.txt", "tokenizer.json"):
        harm(workdir / "tokenizer" / name)
    with pytest.raises(UserError, match="tokenizer"):
        checkpoint.load(workdir)
    reopen().close()
    assert checkpoint.load(workdir).step == 4


def test_unfinished_saves_are_removed_and_one_corrupted_checkpoint_is_kept(copy, caplog):
    workdir, reopen = copy
    for name in ("checkpoints/6.orbax-checkpoint-tmp", "best/6.orbax-checkpoint-tmp"):
        shutil.copytree(workdir / "checkpoints" / "4", workdir / name)
    (workdir / "checkpoints" / "1.damaged").mkdir()
    for step in ("8", "6"):
        shutil.copytree(workdir / "checkpoints" / "4", workdir / "checkpoints" / step)
        truncate(largest_file(workdir / "checkpoints" / step))
    reopen().close()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4", "8.damaged"]
    assert not list((workdir / "best").glob("6*"))
    assert re.search("checkpoint 6 is corrupted: .*; removed; taking that of step 4", caplog.text)


def test_a_store_s_unfinished_save_is_one_without_the_commit_marker(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity.files, "is_remote", lambda path: True)
    for name in ("2", "4"):
        (tmp_path / name).mkdir()
    (tmp_path / "2" / "commit_success.txt").write_text("")
    integrity.remove_unfinished(epath.Path(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_a_workdir_in_which_nothing_was_saved_takes_other_settings(copy):
    """As after running out of memory, when a smaller batch is advised."""
    workdir, _ = copy
    config = workdirs.read_config(workdir)
    identity = config.identity.to_dict()
    identity["phases"]["0"]["batch_size"] = 8
    with pytest.raises(UserError, match="batch_size of the phase from step 0 is 16 there, 8 here"):
        workdirs.check_same_run(workdir, config, identity)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match="holds another run"):  # best/ could be mixed up
        workdirs.check_same_run(workdir, config, identity)
    shutil.rmtree(workdir / "best")
    assert workdirs.check_same_run(workdir, config, identity) == []


def test_a_model_s_field_that_an_older_run_lacks_has_its_default(copy):
    workdir, _ = copy
    config = workdirs.read_config(workdir)
    older = json.loads((workdir / "config.json").read_text())
    del older["checksum"], older["model"]["dropout_rng"]
    older["model"].pop("architecture", None)
    (workdir / "config.json").write_text(json.dumps(older))
    workdirs.check_same_run(workdir, config, config.identity.to_dict())
    config.model.dropout_rng = "threefry"
    with pytest.raises(UserError, match=r"model\.dropout_rng is 'hash' there, 'threefry' here"):
        workdirs.check_same_run(workdir, config, config.identity.to_dict())


def test_a_run_from_before_sampling_had_versions_is_resumed_with_the_first(copy):
    workdir, _ = copy
    config = workdirs.read_config(workdir)
    older = json.loads((workdir / "config.json").read_text())
    del older["checksum"], older["sampling"]
    (workdir / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match="sampling is 1 there, 2 here"):
        workdirs.check_same_run(workdir, config, config.identity.to_dict())
    config.sampling = 1
    workdirs.check_same_run(workdir, config, config.identity.to_dict())


@pytest.mark.parametrize(
    "harm, reason",
    [
        (flip_a_bit, "is not what was written"),
        (truncate, "bytes, .* were written"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_corrupted_checkpoint_is_skipped_with_the_reason(config, trained, caplog, harm, reason):
    whole = checkpoint.load(trained / "checkpoints" / "2").params
    harm(largest_file(trained / "checkpoints" / "4" / "params"))
    with pytest.raises(UserError, match="every checkpoint there is corrupted"):
        checkpoint.load(trained / "checkpoints" / "4")
    loaded = checkpoint.load(trained)
    assert loaded.step == 2
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole)
    caplog.clear()
    config.update(num_steps=6)
    loop.train_and_evaluate(config, trained)
    assert "checkpoint 4 is corrupted: params/" in caplog.text
    assert "taking that of step 2" in caplog.text
    assert re.search(reason, caplog.text)
    assert (trained / "checkpoints" / "4.damaged").is_dir()
    assert checkpoint.load(trained).step == 6


def test_run_without_a_whole_checkpoint_is_not_started_from_scratch(config, trained):
    for step in ("2", "4"):
        truncate(largest_file(trained / "checkpoints" / step))
    with pytest.raises(UserError, match=r"every checkpoint in .* is corrupted \(4: .*; 2: "):
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


@pytest.mark.slow
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


def test_second_run_in_a_workdir_is_rejected(config, trained):
    lock = files.lock(trained / files.LOCK_FILE, "held")
    with lock, pytest.raises(UserError, match="is in use by a run that has not ended"):
        loop.train_and_evaluate(config, trained)
    loop.train_and_evaluate(config, trained)


def test_a_save_that_cannot_begin_is_not_waited_for(copy):
    _, reopen = copy
    with pytest.raises(ValueError, match="object"), reopen() as store:
        store.save_if_best(8, {"x": object()}, loss=-1.0)
    # The store is closed: else it waits for ever.


def test_best_parameters_are_kept_beside_the_latest(config, tmp_path, monkeypatch):
    workdir = tmp_path / "best"  # a workdir may have that name, too
    config.update(num_steps=8, eval_every=2, checkpoint_every=4)
    losses = iter([3.0, 1.0, 2.0, 1.0])
    evaluate = lambda *args: {"loss": next(losses), "mlm_loss": 0.0}  # noqa: E731
    monkeypatch.setattr(loop.evaluation, "evaluate", evaluate)
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
    monkeypatch.setattr(loop.evaluation, "evaluate", lambda *args: {"loss": 1.0, "mlm_loss": 0.0})
    (tmp_path / "best").mkdir(parents=True)
    line = {"step": 2, "loss": 1.0, "phase_start": 0}
    (tmp_path / "best" / "best.json").write_text(json.dumps(line))
    loop.train_and_evaluate(config, tmp_path)
    assert checkpoint.load(tmp_path / "best").step == 2


@pytest.mark.slow
def test_best_parameters_of_steps_that_were_lost_make_room(config, tmp_path, monkeypatch):
    """Best at step 6, killed at 7, resumed from 4: what is best then is kept, whatever its step."""
    config.update(num_steps=6, eval_every=2, checkpoint_every=4)
    losses = iter([3.0, 2.0, 1.0])
    evaluate = lambda *args: {"loss": next(losses), "mlm_loss": 0.0}  # noqa: E731
    monkeypatch.setattr(loop.evaluation, "evaluate", evaluate)
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
