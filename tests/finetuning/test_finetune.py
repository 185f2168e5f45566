"""A fine-tuning's settings, bad input and exact resuming, on small made-up reviews."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from harms import HARMS
from small_finetune import SIZES, TOKENIZER, reviews_config, write_reviews
from small_run import run_command

from bert_jax import finetune
from bert_jax.cli import UserError
from bert_jax.data import batching
from bert_jax.finetuning import loop as finetune_loop
from bert_jax.finetuning import results as results_lib
from bert_jax.finetuning import settings
from bert_jax.finetuning.inputs import hold_out, how_to_keep_head
from bert_jax.models import heads
from bert_jax.models.bert import BertConfig
from bert_jax.runs import checkpoint, telemetry
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import classes
from bert_jax.tasks.answers import Question
from bert_jax.tasks.text import TextClassification
from bert_jax.training import optimizer


@pytest.fixture
def config(tmp_path):
    return reviews_config(tmp_path)


@contextlib.contextmanager
def interrupted_in_epoch(number):
    """What runs inside must be interrupted as this epoch begins."""
    make = batching.epoch_batches

    def interrupted(lengths, buckets, batch_size, seed, epoch):
        if epoch == number:
            raise KeyboardInterrupt
        return make(lengths, buckets, batch_size, seed, epoch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batching, "epoch_batches", interrupted)
        yield


def test_resumes_after_an_interruption(pretrained, config, tmp_path):
    config.select = "best"
    finetune_loop.finetune(config, pretrained, tmp_path / "whole")
    with interrupted_in_epoch(1):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")
    finetune_loop.finetune(config, pretrained, tmp_path / "run")
    whole, again = (checkpoint.load(tmp_path / name).params for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    # Run again when all is done, it evaluates and exports what is there.
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    scored = telemetry.read(tmp_path / "run")
    best = max(line["eval_accuracy"] for line in scored if "eval_accuracy" in line)
    assert results["accuracy"] == best
    # From another model it is another run, and with other data.
    with pytest.raises(UserError, match=r"model to start from is \w{8}… there, \w{8}… here"):
        finetune_loop.finetune(config, tmp_path / "whole", tmp_path / "run")
    config.train_file = write_reviews(tmp_path / "other.csv", 600, 5)
    with pytest.raises(UserError, match="holds another run"):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")


@pytest.mark.slow
def test_resumes_within_an_epoch(pretrained, config, tmp_path, monkeypatch):
    finetune_loop.finetune(config, pretrained, tmp_path / "whole")
    iterate = batching.iterate

    def interrupted(*arguments):
        for count, item in enumerate(iterate(*arguments)):
            if count == 15:
                raise KeyboardInterrupt
            yield item

    config.checkpoint_every = 5
    monkeypatch.setattr(batching, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")
    monkeypatch.setattr(batching, "iterate", iterate)
    assert checkpoint.load(tmp_path / "run").step in (5, 10, 15)
    finetune_loop.finetune(config, pretrained, tmp_path / "run")
    whole, again = (checkpoint.load(tmp_path / name).params for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


@pytest.mark.parametrize("text", ["the film was good and fine " * 4, "good"])
def test_validation_texts_may_be_longer_or_shorter_than_all_of_training(
    text, pretrained, config, tmp_path
):
    config.num_epochs = 1
    with open(config.train_file, "w") as file:
        file.write("review,verdict\n" + "good film plot,yes\nbad film plot,no\n" * 16)
    with open(config.validation_file, "w") as file:
        file.write(f"review,verdict\n{text},yes\nbad,no\n")
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["examples"] == 32 and np.isfinite(results["loss"])


@pytest.mark.slow
def test_two_devices_give_the_same_metrics(pretrained, config, tmp_path):
    config.select = "best"
    alone = finetune_loop.finetune(config, pretrained, tmp_path / "alone")
    flags = [
        "--config=configs/finetune/text_classification.py",
        f"--init={pretrained}",
        f"--workdir={tmp_path / 'together'}",
        *(
            f"--config.{name}={config[name]}"
            for name in ("train_file", "validation_file", "text_column", "label_column", "select")
        ),
        "--config.max_seq_length=32",
        "--config.length_buckets=1",
        "--config.num_epochs=2",
        "--config.optimizer.learning_rate=1e-2",
        "--config.mesh.fsdp=2",
    ]
    devices = "--xla_force_host_platform_device_count=2"
    flags_before = os.environ.get("XLA_FLAGS", "")
    result = run_command("bert_jax.finetune", *flags, XLA_FLAGS=f"{flags_before} {devices}")
    assert result.returncode == 0, result.stderr
    together = json.loads((tmp_path / "together/results.json").read_text())
    assert together["accuracy"] == alone["accuracy"]
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-4)


@pytest.mark.slow
def test_early_stopping_is_exact_on_resuming(pretrained, config, tmp_path):
    config.num_epochs = 6
    config.early_stopping = 2
    config.optimizer.learning_rate = 1e-9  # nothing gets better
    whole = finetune_loop.finetune(config, pretrained, tmp_path / "whole")
    assert whole["epoch"] == 3
    assert len(results_lib.evaluations(tmp_path / "whole", "accuracy")) == 3
    with interrupted_in_epoch(2):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")
    for _ in range(2):  # resuming, and again when all is done
        again = finetune_loop.finetune(config, pretrained, tmp_path / "run")
        assert again["epoch"] == 3 and again["loss"] == whole["loss"]
    whole, again = (checkpoint.load(tmp_path / name).params for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_a_share_of_the_training_file_is_held_out(config, tmp_path):
    rows = [f"good {i},{'yes' if i % 10 == 0 else 'no'}" for i in range(100)]
    path = tmp_path / "one.csv"
    path.write_text("\n".join(["review,verdict", *rows]))
    examples = TextClassification(config, TOKENIZER).read(str(path), training=True)
    train, validation = hold_out(examples, 0.2)
    assert len(train) == 80 and len(validation) == 20
    assert sum(x.label == "yes" for x in validation) == 2  # as in the file
    assert sorted([*train, *validation], key=lambda x: x.texts) == sorted(
        examples, key=lambda x: x.texts
    )
    assert hold_out(examples, 0.2) == (train, validation)
    assert validation != examples[80:] and validation != examples[:20]
    # Numbers are no classes; questions about one context stay together.
    scores = [dataclasses.replace(x, label=str(i), is_class=False) for i, x in enumerate(examples)]
    assert len(hold_out(scores, 0.2)[1]) == 20
    questions = [Question(str(i), "w", f"context {i // 4}", (), 0) for i in range(40)]
    train, validation = hold_out(questions, 0.3)
    assert len(validation) == 12
    assert not {x.context for x in train} & {x.context for x in validation}
    with pytest.raises(UserError, match=r"validation_fraction=0\.1 of 3 examples leaves none"):
        hold_out(questions[:3], 0.1)


def test_a_run_with_one_file(pretrained, config, tmp_path):
    config.validation_file, config.validation_fraction = "", 0.1
    config.num_epochs = 1
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["examples"] == 540
    assert len((tmp_path / "run/predictions.jsonl").read_text().splitlines()) == 60
    config.validation_file = config.train_file
    with pytest.raises(UserError, match=r"holds out a share .* but there is config\.validation_f"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    config.validation_file, config.validation_fraction = "", 0.0
    with pytest.raises(UserError, match=r"or hold out a share .*validation_fraction=0\.1"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    config.validation_fraction = 1.0
    with pytest.raises(UserError, match=r"validation_fraction=1\.0, expected 0 to less than 1"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")


def test_max_steps_end_a_run_within_an_epoch(pretrained, config, tmp_path):
    config.max_steps, config.log_every = 25, 1
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert (results["step"], results["epoch"]) == (25, 2)  # of 19 steps each
    assert 0.0 < results["accuracy"] <= 1.0
    lines = [line for line in telemetry.read(tmp_path / "run") if "loss" in line]
    assert len(lines) == 25 and lines[-1]["learning_rate"] < lines[-2]["learning_rate"] < 1e-3
    assert finetune_loop.finetune(config, pretrained, tmp_path / "run") == results
    config.max_steps = 30
    with pytest.raises(UserError, match="max_steps is 25 there, 30 here"):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")


@pytest.mark.parametrize(
    ("scores", "patience", "stalled"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.7, 0.7, 0.6], 2, True),
        ([0.7, 0.5, 0.8, 0.6], 2, False),
        ([0.7, 0.5, 0.6], 0, False),
    ],
)
def test_has_stalled(scores, patience, stalled):
    assert results_lib.has_stalled(scores, patience) is stalled


@pytest.mark.slow
def test_the_selected_epoch_is_what_is_loaded(pretrained, config, tmp_path):
    config.optimizer.learning_rate = 1e-9  # nothing gets better after the first epoch
    config.select = "best"
    best = finetune_loop.finetune(config, pretrained, tmp_path / "selected")
    assert best["epoch"] == 1
    assert checkpoint.load(tmp_path / "selected").step == best["step"]
    config.select = "last"
    last = finetune_loop.finetune(config, pretrained, tmp_path / "kept")
    assert last["epoch"] == 2
    assert checkpoint.load(tmp_path / "kept").step == last["step"] == 2 * best["step"]


@pytest.mark.slow
def test_a_run_stays_what_it_was_begun_as(pretrained, config, tmp_path):
    config.num_epochs = 1
    first = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    before = (tmp_path / "run/config.json").read_text()
    for field, value in (("select", "best"), ("num_epochs", 2), ("optimizer.learning_rate", 1.0)):
        changed = ml_collections.ConfigDict(config.to_dict())
        changed.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=f"run holds another run: {field} is .* there, .* here"):
            finetune_loop.finetune(changed, pretrained, tmp_path / "run")
    assert (tmp_path / "run/config.json").read_text() == before
    # What its metrics do not depend on is free: the same data by another name, intervals.
    moved = shutil.copy(config.train_file, tmp_path / "moved.csv")
    config.update(log_every=7, train_file=str(moved))
    again = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert again == first  # its seconds too: what is finished is left as it is
    results = tmp_path / "run/results.json"
    written = results.read_bytes()
    for harm in HARMS:
        results.write_bytes(written)
        harm(results)
        assert not workdirs.is_finished(tmp_path / "run")
        if results.exists():
            with pytest.raises(UserError, match=r"results\.json is corrupted: run the same fine-"):
                checkpoint.load(tmp_path / "run")
    again_evaluated = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert (
        again_evaluated["loss"] == first["loss"] and again_evaluated["seconds"] != first["seconds"]
    )


def test_what_cannot_be_written_is_said_before_training(pretrained, config, tmp_path):
    (tmp_path / "run/hf").mkdir(parents=True)
    (tmp_path / "run/hf/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"hf is not empty and not an earlier export .*notes\.txt"):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file cannot be made"):
        finetune_loop.finetune(config, pretrained, tmp_path / "file")
    assert not (tmp_path / "run/checkpoints").exists()


def test_steps_that_changed_nothing_are_counted(pretrained, config, tmp_path, monkeypatch, capfd):
    iterate = batching.iterate

    def poisoned(*arguments):
        for count, (indices, batch) in enumerate(iterate(*arguments)):
            if count == 3:
                batch["weights"][0] = np.inf
            yield indices, batch

    monkeypatch.setattr(batching, "iterate", poisoned)
    config.num_epochs = 1
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run", show=True)
    assert "1 of 19 steps changed nothing" in capfd.readouterr().err
    assert results["accuracy"] > 0.8


def test_frozen_encoder(pretrained, config, tmp_path):
    config.num_epochs = config.log_every = 1
    finetune_loop.finetune(config, pretrained, tmp_path / "all")
    config.freeze_encoder = True
    finetune_loop.finetune(config, pretrained, tmp_path / "run")
    before, after = (checkpoint.load(path).params for path in (pretrained, tmp_path / "run"))
    for part in ("embeddings", "encoder"):
        jax.tree.map(np.testing.assert_array_equal, before["bert"][part], after["bert"][part])
    assert not np.array_equal(before["bert"]["pooler"]["kernel"], after["bert"]["pooler"]["kernel"])
    # The same first step, of which the encoder's gradient is not part.
    steps = [telemetry.read(tmp_path / name)[0] for name in ("all", "run")]
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], rel=1e-6)
    assert 0 < steps[1]["gradient_norm"] < 0.9 * steps[0]["gradient_norm"]
    config.layer_lr_decay = 0.9
    with pytest.raises(UserError, match=r"leaves config\.layer_lr_decay=0\.9 nothing to act on"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    config.layer_lr_decay = 1.0
    config.optimizer.learning_rate_rules = (("encoder/layer_7/", 0.5),)
    with pytest.raises(UserError, match="'encoder/layer_7/' apply to no parameter"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_layerwise_learning_rates(config):
    config.layer_lr_decay = 0.5
    # The user's come first.
    config.optimizer.learning_rate_rules = (("classifier/bias", 0.25), ("layer_1/output/", 0.75))
    model = BertConfig(**SIZES | {"num_hidden_layers": 2})
    module = heads.SequenceClassifier(model, 2)
    ids = np.zeros((1, 8), np.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    rules = settings.learning_rate_rules(config, "bert", params)
    factors = optimizer.values_of_rules(rules, params, 1.0)
    assert factors["classifier"] == {"kernel": 1.0, "bias": 0.25}
    assert set(jax.tree.leaves(factors["bert"]["pooler"])) == {1.0}
    encoder = factors["bert"]["encoder"]
    assert set(jax.tree.leaves(encoder["layer_1"].pop("output"))) == {0.75}
    assert set(jax.tree.leaves(encoder["layer_1"])) == {0.5}
    assert set(jax.tree.leaves(encoder["layer_0"])) == {0.25}
    assert set(jax.tree.leaves(factors["bert"]["embeddings"])) == {0.125}
    # All of the embeddings are the user's: of the decay's rules that one has nothing left.
    config.optimizer.learning_rate_rules = (("embeddings", 0.0), ("classifier", 2.0))
    rules = settings.learning_rate_rules(config, "bert", params)
    factors = optimizer.values_of_rules(rules, params, 1.0)
    assert set(jax.tree.leaves(factors["bert"]["embeddings"])) == {0.0}
    assert set(jax.tree.leaves(factors["bert"]["encoder"]["layer_0"])) == {0.25}


@pytest.mark.slow
def test_class_weights_draw_towards_the_rare_class(pretrained, config, tmp_path):
    """A text says nothing of its label, so only the weights decide: 90 % are 'no'."""
    for name in ("train_file", "validation_file"):
        rows = [f"the film,{'yes' if i % 10 == 0 else 'no'}" for i in range(200)]
        with open(config[name], "w") as file:
            file.write("\n".join(["review,verdict", *rows]) + "\n")
    config.num_epochs = 3
    alike = finetune_loop.finetune(config, pretrained, tmp_path / "alike")
    assert alike["accuracy"] == 0.9
    config.class_weights = "1,20"
    weighted = finetune_loop.finetune(config, pretrained, tmp_path / "weighted")
    assert weighted["accuracy"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_column", "text", r"no column 'text'; its columns are 'review', 'verdict'"),
        ("max_seq_length", 64, r"more than the model's 32 positions"),
        ("train_file", "", r"config\.train_file is empty"),
        ("train_file", "nowhere.csv", r"nowhere\.csv does not exist"),
        ("select", "median", r"neither 'last' nor 'best'"),
        ("labels", "no", r"the label 'no' alone"),
        ("labels", "no,perhaps", r"label 'yes', which config\.labels does not have \('no', 'perh"),
        ("metric", "auc", r"config\.metric='auc' is not one of accuracy, f1, matthews"),
        ("task", "poetry", r"config\.task='poetry' is not one of"),
        ("early_stopping", -1, r"config\.early_stopping=-1, expected at least 0"),
        ("layer_lr_decay", 0.0, r"config\.layer_lr_decay=0\.0, expected more than 0"),
        ("class_weights", "1,2,3", r"expected 'balanced', or 2 numbers .* \('no', 'yes'\)"),
        ("length_buckets", 0, r"config\.length_buckets=0, expected at least 1"),
        ("log_every", 0, r"config\.log_every=0, expected at least 1"),
        ("seed", -1, r"config\.seed=-1, expected at least 0"),
        ("optimizer.learning_rate", -3e-5, r"learning_rate=-3e-05, expected 0 or more"),
        ("optimizer.schedule", "cosin", r"optimizer\.schedule='cosin' is not one of"),
        ("optimizer.warmup_fraction", 1.0, r"warmup_fraction=1\.0, expected at least 0 and less"),
        ("class_weights", "1,-1", r"config\.class_weights='1,-1': expected 'balanced'"),
    ],
)
def test_bad_settings(field, value, message, pretrained, config, tmp_path):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        (
            "validation_file",
            "good film,maybe",
            r":\d+ has the label 'maybe', which the training set",
        ),
        ("validation_file", "good film,", r":\d+ has no label \(column 'verdict'\)"),
        ("train_file", " ,yes", r":\d+ has an empty text \(column 'review'\)"),
    ],
)
def test_bad_rows(file, row, message, pretrained, config, tmp_path):
    config.max_skipped = 0.0
    with open(config[file], "a") as stream:
        stream.write(row + "\n")
    with pytest.raises(UserError, match=message):
        finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_head_that_does_not_fit(pretrained, config, tmp_path):
    labels = ["a", "b", "c"]
    ids = np.zeros((1, 8), np.int32)
    module = heads.SequenceClassifier(BertConfig(**SIZES), 3)
    params = jax.device_get(module.init(jax.random.key(0), ids, ids, ids)["params"])
    description = ml_collections.ConfigDict(
        {"model": dict(SIZES), "task": "text_classification", "labels": labels}
    )
    checkpoint.save_params(tmp_path / "other", params, description, TOKENIZER, 0)
    with pytest.raises(
        UserError, match=r"a head for the labels .*'c'.*config\.new_head=True"
    ) as no:
        finetune_loop.finetune(config, tmp_path / "other", tmp_path / "run")
    assert "config.labels" not in str(no.value)  # three labels cannot be two
    assert not (tmp_path / "run").exists()
    config.new_head = True
    assert finetune_loop.finetune(config, tmp_path / "other", tmp_path / "run")["examples"] == 600


@pytest.mark.parametrize(
    ("theirs", "labels", "message", "flag"),
    [
        (["NO", "Yes"], "", "in case or order alone", "no=NO,yes=Yes"),
        (["yes", "no"], "", "in case or order alone", "yes,no"),
        (["LABEL_0", "LABEL_1"], "", "mean the same, in this order", "no=LABEL_0,yes=LABEL_1"),
        (["yes, it is", "no"], "", "mean the same", '{"no": "yes, it is", "yes": "no"}'),
        (["GOOD", "BAD"], "no=bad,yes=good", "in case or order alone", "yes=GOOD,no=BAD"),
    ],
)
def test_a_head_is_kept_by_naming_its_labels(theirs, labels, message, flag, config):
    def read():
        task = TextClassification(config, TOKENIZER)
        task.read(config.train_file, training=True)
        return task.labels

    config.labels = labels
    advice = how_to_keep_head(theirs, read(), classes.parse_labels(labels))
    assert message in advice and advice.endswith(" keeps the head; or ")
    # As a shell reads it, it gives the head's own labels.
    words = shlex.split(advice)
    typed = next(word for word in words if word.startswith("--config.labels="))
    config.labels = typed.removeprefix("--config.labels=")
    assert config.labels == flag
    assert list(read()) == theirs


def test_command_line(pretrained, config, tmp_path, capsys):
    finetune.main(
        [
            "--config=configs/finetune/text_classification.py",
            f"--init={pretrained}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.train_file={config.train_file}",
            f"--config.validation_file={config.validation_file}",
            "--config.text_column=review",
            "--config.label_column=verdict",
            "--config.max_seq_length=32",
            "--config.num_epochs=2",
            "--config.length_buckets=1",
            "--config.optimizer.learning_rate=1e-2",
        ]
    )
    out = capsys.readouterr().out
    assert "accuracy" in out and "majority_share" in out
    with pytest.raises(UserError, match=r"no field 'batchsize'; did you mean --config\.batch_size"):
        finetune.main(
            [
                "--config=configs/finetune/sst2.py",
                f"--init={pretrained}",
                f"--workdir={tmp_path / 'other'}",
                "--config.batchsize=3",
            ]
        )
