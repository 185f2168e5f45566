"""The benchmarks: that both sides do the same work, what is stored, reused and printed."""
# ruff: noqa: E402 - the benchmarks import torch, without which all of this is skipped

import argparse
import contextlib
import itertools
import json
import os
import time

import jax
import numpy as np
import pytest
import transformers
from small_finetune import TOKENIZER, write_reviews

torch = pytest.importorskip("torch")

from benchmarks import finetuning, input_pipeline, peers, step_time
from bert_jax import convert
from bert_jax.cli import UserError
from bert_jax.finetuning import inputs as finetune_inputs
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective


@pytest.fixture
def benchmark():
    return finetuning


@pytest.fixture
def flags(pretrained, tmp_path):
    """SST-2 in name, 40 + 12 made-up sentences in fact."""
    convert.to_hugging_face(pretrained, tmp_path / "hf")
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for name, count in (("train", 40), ("dev", 12)):
        path = tmp_path / "data" / "sst2" / f"{name}.tsv"
        write_reviews(path, count, len(name))
        text = path.read_text().replace("review,verdict", "sentence,label")
        path.write_text(text.replace(",yes", ",1").replace(",no", ",0").replace(",", "\t"))
    return [
        f"--model={tmp_path / 'hf'}",
        f"--data={tmp_path / 'data'}",
        f"--output={tmp_path / 'results'}",
        "--tasks=sst2",
        "--seeds=0,1,2",
        "--max_seq_length=32",
        "--max_train_examples=20",
    ]


def test_finished_runs_are_stored_and_reused(benchmark, flags, tmp_path, monkeypatch, capsys):
    calls = []

    def side(name, right, seconds):
        def run(config, model, inputs, directory):
            calls.append((name, config.seed))
            if len(calls) == 4:
                raise KeyboardInterrupt
            assert len(inputs.train.features) == 20 and len(inputs.validation.features) == 12
            lines = [{"label": "a", "prediction": "a"}] * (right + config.seed)
            lines += [{"label": "a", "prediction": "b"}] * (10 - right - config.seed)
            return lines, seconds + config.seed

        return run

    monkeypatch.setattr(transformers.utils, "is_accelerate_available", lambda: True)
    monkeypatch.setattr(benchmark, "in_own_process", lambda function, *args: function(*args))
    monkeypatch.setattr(benchmark, "train_here", side("here", 7, 10))
    monkeypatch.setattr(benchmark, "train_there", side("there", 6, 20))
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(flags)
    benchmark.main(flags)
    assert calls[4:] == [("there", 1), ("here", 2), ("there", 2)]
    row = capsys.readouterr().out.splitlines()[2]
    assert row == (
        "| sst2 | 20 + 12 | accuracy | 0.8000 (0.7000–0.9000) | 0.7000 (0.6000–0.8000) | +0.1000 "
        "| 11 (10–12) | 21 (20–22) | 1.91 |"
    )
    benchmark.main([*flags, "--json"])
    assert len(calls) == 7
    results = json.loads(capsys.readouterr().out)
    assert [x["quality"]["accuracy"] for x in results] == [0.7, 0.6, 0.8, 0.7, 0.9, 0.8]
    with pytest.raises(UserError, match=r"of other settings \(epochs was 3, is 4\)"):
        benchmark.main([*flags, "--num_epochs=4"])
    with pytest.raises(UserError, match="poems unknown"):
        benchmark.main([*flags, "--tasks=poems"])


def test_the_trainers_predictions_are_those_of_its_rows(benchmark, flags, tmp_path):
    pytest.importorskip("accelerate")
    data = tmp_path / "data" / "sst2"
    config = benchmark.TASKS["sst2"][0]()
    config.train_file, config.validation_file = str(data / "train.tsv"), str(data / "train.tsv")
    config.max_seq_length = 32
    config.num_epochs = 40
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-2
    model = flags[0].removeprefix("--model=")
    inputs = finetune_inputs.read_inputs(config, model)
    lines, _ = benchmark.train_there(config, model, inputs, tmp_path / "trainer")
    assert benchmark.quality(config.task, lines)["accuracy"] > 0.9


def test_torch_rows_are_as_transformers_makes_them(benchmark, flags):
    directory = flags[0].removeprefix("--model=")
    texts = ["good film", "a very poor plot and a bad film"]
    encoded = [[2, *TOKENIZER.encode(text), 3] for text in texts]
    rows = [
        benchmark.torch_row(
            {"input_ids": ids, "token_type_ids": [0] * len(ids), "labels": i},
            "text_classification",
        )
        for i, ids in enumerate(encoded)
    ]
    ours = benchmark.collate(rows)
    read = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = read(texts, padding=True, return_tensors="pt") | {"labels": torch.tensor([0, 1])}
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    tagged = [{"input_ids": [2, 5, 3], "token_type_ids": [0] * 3, "token_labels": [-1, 4, -1]}]
    tagged += [{"input_ids": [2, 3], "token_type_ids": [0] * 2, "token_labels": [-1, -1]}]
    batch = benchmark.collate([benchmark.torch_row(x, "token_classification") for x in tagged])
    assert batch["labels"].tolist() == [[-100, 4, -100], [-100, -100, -100]]


def test_the_sides_of_step_time_have_one_loss(one_thread):
    config = step_time.make_config("tiny", "float32", batch_size=10, length=32)
    config.model.update(vocab_size=100, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = step_time.make_batch(config, 32)
    assert (batch["masked_lm_weights"].sum(1) == [5] * 9 + [2]).all()  # 15 % of 32, of 16
    model = heads.make_model(config)
    params = heads.init_params(model, jax.random.key(0))
    objective = pretraining_objective(model)
    sums, weights = objective.sums(params, batch, None), objective.weights(batch)
    ours = float(sum(sums[name] / weights[name] for name in objective.losses))
    theirs = peers.pretraining_model(config, jax.tree.map(np.array, params))
    data = peers.pretraining_batch(batch)
    positions = torch.nonzero(data["labels"].flatten() != peers.IGNORED).squeeze(1)
    with torch.no_grad():
        assert theirs(**data).loss.item() == pytest.approx(ours, rel=1e-5)
        gathered = step_time.gathered_loss(theirs, data, positions)
    assert gathered.item() == pytest.approx(ours, rel=1e-5)


STEP_TIME = ["--sizes=tiny", "--dtypes=float32", "--lengths=16", "--batch_size=2"]
STEP_TIME += ["--steps=1", "--repeats=2", "--matrix_size=64"]


@pytest.mark.slow
def test_step_time_prints_every_side(capsys):
    assert step_time.main([*STEP_TIME, "--json"]) == 0
    out, err = capsys.readouterr()
    (result,) = json.loads(out)["results"]
    assert [x["side"] for x in result["sides"]] == ["bert_jax", "transformers", "gathered + fused"]
    assert result["sides"][0]["ratio"] == 1 and all(x["mfu"] > 0 for x in result["sides"])
    assert err.count("| tiny | float32 | 2 × 16 |") == 3  # the table, as it came to be
    with pytest.raises(UserError, match="both must see the GPU"):
        step_time.main(["--device=gpu"])
    with pytest.raises(SystemExit):
        step_time.main(["--sizes=giant"])
    assert "'giant' is not one of" in capsys.readouterr().err


@pytest.mark.slow
def test_step_time_continues_without_a_side_that_fails(capsys, monkeypatch):
    make_batch = step_time.make_batch

    def with_unknown_token(config, length):
        batch = make_batch(config, length)
        batch["input_ids"][0, 0] = config.model.vocab_size  # torch refuses it, JAX does not
        return batch

    monkeypatch.setattr(step_time, "make_batch", with_unknown_token)
    assert step_time.main(STEP_TIME) == 1
    out, err = capsys.readouterr()
    ours, *theirs = out.splitlines()[2:5]
    assert ours.startswith("| tiny | float32 | 2 × 16 | bert_jax |") and ours.endswith("% | 1.00 |")
    for name, row in zip(("transformers", "gathered + fused"), theirs, strict=True):
        assert f"float32, 16 tokens: {name} failed: IndexError: index out of range" in err
        assert row == f"| tiny | float32 | 2 × 16 | {name} | – | – | – | – |"
    assert "matrix product, torch failed" not in err


def test_step_time_leaves_out_what_a_failure_makes_unknown(capsys, monkeypatch):
    failing = {"gathered + fused, compiled"}

    @contextlib.contextmanager
    def in_process(framework, *args):
        def timer(name):
            turns = itertools.count()

            def seconds(steps):
                if next(turns) == 2 and name in failing:
                    raise step_time.SideError("out of memory")
                return 0.5

            return seconds

        yield {name: timer(name) for name in step_time.make_sides(framework, *args)}

    def rows():
        result = step_time.measure("tiny", "float32", 16, options)
        assert result["dtype"] == "float32 (TF32)"
        return {row.pop("side"): row for row in result["sides"]}

    monkeypatch.setattr(step_time, "in_process", in_process)
    options = argparse.Namespace(device="gpu", batch_size=2, matrix_size=64, steps=10, repeats=3)
    result = rows()
    assert len(result) == 5 and set(result.pop("gathered + fused, compiled").values()) == {None}
    assert all(row["mfu"] and row["ratio"] == 1 for row in result.values())
    failing = {"bert_jax", "matrix product, jax"}
    assert rows()["transformers"]["ratio"] is None
    assert rows()["transformers"]["mfu"] > 0  # torch's product is left
    failing = {"matrix product, jax", "matrix product, torch"}
    assert rows()["transformers"] == {
        "seconds": 0.5,
        "fastest_seconds": 0.5,
        "mfu": None,
        "ratio": 1,
    }
    assert "gathered + fused, compiled failed: out of memory\n" in capsys.readouterr().err


class EndsProcess:
    """Ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.slow
def test_step_time_says_that_a_process_has_ended():
    config = step_time.make_config("tiny", "float32", batch_size=2, length=16)
    options = argparse.Namespace(device="cpu")
    with step_time.in_process("torch", config, EndsProcess(), 64, options) as sides:
        assert len(sides) == 3
        for seconds in sides.values():
            with pytest.raises(step_time.SideError, match=r"of torch has ended \(exit code 3\)"):
                seconds(1)


def test_input_pipeline_prints_both_sides(data_dir, capsys, monkeypatch):
    input_pipeline.main([f"--data_dir={data_dir}", "--batch_size=8", "--seconds=0.1", "--json"])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["examples"] == 320 and result["bert_jax"] > 0 and result["torch"] > 0
    with pytest.raises(UserError, match="must be positive"):
        input_pipeline.main([f"--data_dir={data_dir}", "--seconds=0"])


def test_late_reads_are_late(data_dir):
    data = input_pipeline.open_ours(str(data_dir), 8, latency_ms=50)
    start = time.monotonic()
    first = data.read(0, 8)
    assert time.monotonic() - start > 0.05
    np.testing.assert_array_equal(
        first["input_ids"], input_pipeline.open_ours(str(data_dir), 8, 0).read(0, 8)["input_ids"]
    )


def test_torch_sees_the_examples_that_ours_are(data_dir):
    data = input_pipeline.PretrainingData(str(data_dir), "train", 8, seed=0)
    batch = next(iter(input_pipeline.torch_batches(data, 8)))
    assert batch["input_ids"].shape == (8, 32) and (batch["labels"] != peers.IGNORED).any()
    # A random word of the collator may be [CLS]; what is to be guessed never is.
    labels = batch["labels"].numpy()
    assert not data.tokenizer.is_special_V[labels[labels != peers.IGNORED]].any()
