"""benchmarks/finetuning.py: what it stores, reuses and prints; the training itself stood in for."""

import importlib.util
import json
import pathlib

import pytest
import torch
import transformers
from small_finetune import TOKENIZER, make_pretrained, write_reviews

from bert_jax import convert, finetune
from bert_jax.cli import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark():
    path = ROOT / "benchmarks" / "finetuning.py"
    spec = importlib.util.spec_from_file_location("finetuning_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def flags(tmp_path):
    """SST-2 in name, 40 + 12 made-up sentences in fact."""
    convert.to_hf(make_pretrained(tmp_path / "workdir"), tmp_path / "hf")
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
            assert len(inputs.features) == 20 and len(inputs.validation_features) == 12
            lines = [{"label": "a", "prediction": "a"}] * (right + config.seed)
            lines += [{"label": "a", "prediction": "b"}] * (10 - right - config.seed)
            return lines, seconds + config.seed

        return run

    monkeypatch.setattr(transformers.utils, "is_accelerate_available", lambda: True)
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
    inputs = finetune.read_inputs(config, model)
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
