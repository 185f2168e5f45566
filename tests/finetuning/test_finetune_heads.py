"""Every head from end to end on a small made-up task, and what transformers makes of the result."""

import json
import os
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import transformers
from small_finetune import WORDS, reviews_config, write_reviews

from bert_jax import convert, finetune, loading
from bert_jax.cli import UserError
from bert_jax.finetuning import loop as finetune_loop
from bert_jax.runs import telemetry
from configs.finetune import (
    multi_label_classification,
    squad2,
    swag,
    text_regression,
    token_classification,
)

torch = pytest.importorskip("torch")


def predictions(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_learns_and_exports(pretrained, tmp_path):
    config = reviews_config(tmp_path)
    config.length_buckets = 2
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["accuracy"] > 0.9
    assert 0.5 <= results["majority_share"] < 0.7
    assert results["parity"] < 1e-5 and results["examples"] == 600 and results["epoch"] == 2

    # Predictions: the file's own metrics are those reported.
    lines = predictions(tmp_path / "run")
    truth, guesses = ([line[name] for line in lines] for name in ("label", "prediction"))
    assert sklearn.metrics.accuracy_score(truth, guesses) == pytest.approx(results["accuracy"])
    f1 = sklearn.metrics.f1_score(truth, guesses, pos_label="yes")
    assert f1 == pytest.approx(results["f1"])

    report = (tmp_path / "run/report.txt").read_text()
    assert re.search(rf"yes +\S+ +\S+ +{results['f1']:.4f}", report)
    assert (tmp_path / "run/confusion.png").read_bytes()[:4] == b"\x89PNG"

    # transformers' pipeline gives the same labels and scores, in this order.
    classify = transformers.pipeline(
        "text-classification", model=str(tmp_path / "run/hf"), top_k=None, device="cpu"
    )
    answers = classify([line["texts"][0] for line in lines])
    for line, answer in zip(lines, answers, strict=True):
        theirs = {choice["label"]: choice["score"] for choice in answer}
        assert theirs == pytest.approx(line["scores"], abs=1e-5)

    # Metrics of the run.
    steps = telemetry.read(tmp_path / "run")
    evaluations = [line for line in steps if "eval_accuracy" in line]
    assert [line["step"] for line in evaluations] == [19, 38]
    assert evaluations[-1]["eval_accuracy"] == results["accuracy"]
    assert steps[0]["learning_rate"] > 0

    # The fine-tuned workdir is itself a start, and an export by hand is the same model.
    convert.to_hugging_face(tmp_path / "run", tmp_path / "by_hand")
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("run/hf", "by_hand")
    ]
    assert weights[0] == weights[1]
    config.optimizer.learning_rate = 0.0
    again = finetune_loop.finetune(config, tmp_path / "run/hf", tmp_path / "more")
    assert again["accuracy"] == results["accuracy"]  # the head came along


def test_pairs(pretrained, tmp_path):
    config = reviews_config(tmp_path)
    config.train_file = write_reviews(tmp_path / "train.csv", 600, 0, pair=True)
    config.validation_file = write_reviews(tmp_path / "dev.csv", 64, 1, pair=True)
    config.text_column, config.text_pair_column = "claim", "review"
    config.labels = "no=contradiction,yes=entailment"
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["accuracy"] > 0.9
    line = predictions(tmp_path / "run")[0]
    assert set(line["scores"]) == {"contradiction", "entailment"}
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "run/hf"))
    answer = classify({"text": line["texts"][0], "text_pair": line["texts"][1]})
    answer = answer[0] if isinstance(answer, list) else answer
    assert answer["label"] == line["prediction"]
    assert answer["score"] == pytest.approx(line["scores"][line["prediction"]], abs=1e-5)


def test_regression(pretrained, tmp_path):
    """The score of a text is its number of good words."""
    rng = np.random.default_rng(0)
    for name, count in (("train.csv", 600), ("dev.csv", 80)):
        rows = [rng.choice(WORDS[:5], 8) for _ in range(count)]
        lines = [f"{' '.join(row)},{np.isin(row, WORDS[:2]).sum()}" for row in rows]
        (tmp_path / name).write_text("\n".join(["text,score", *lines]) + "\n")
    config = text_regression.get_config()
    config.train_file, config.validation_file = (
        str(tmp_path / f"{x}.csv") for x in ("train", "dev")
    )
    config.max_seq_length = 32
    config.num_epochs = 4
    config.optimizer.learning_rate = 1e-2
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    lines = predictions(tmp_path / "run")
    truth, guesses = ([line[name] for line in lines] for name in ("label", "prediction"))
    assert results["pearson"] == pytest.approx(np.corrcoef(truth, guesses)[0, 1], abs=1e-5)
    assert results["pearson"] > 0.7 and results["parity"] < 1e-5
    estimate = transformers.pipeline("text-classification", model=str(tmp_path / "run/hf"))
    answers = estimate([line["texts"][0] for line in lines])
    assert [answer["score"] for answer in answers] == pytest.approx(guesses, abs=1e-5)
    (tmp_path / "dev.csv").write_text("text,score\ngood film,high\n")
    with pytest.raises(UserError, match=r"dev\.csv:2 has the score 'high', which is not a number"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    assert loading.load_parts(tmp_path / "run/hf").config.task == "text_regression"


@pytest.mark.slow
def test_multi_label_classification(pretrained, tmp_path):
    """Columns of 0 and 1: a text is "nice" with a good word in it, "nasty" with a bad one."""
    rng = np.random.default_rng(0)
    for name, count in (("train.csv", 1000), ("dev.csv", 80)):
        lines = ["text,nice,nasty"]
        for _ in range(count):
            row = rng.choice(WORDS[:11], 4)
            nice, nasty = (int(np.isin(row, words).any()) for words in (WORDS[:2], WORDS[2:4]))
            lines.append(f"{' '.join(row)},{nice},{float(nasty)}")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    config = multi_label_classification.get_config()
    config.train_file, config.validation_file = (
        str(tmp_path / f"{x}.csv") for x in ("train", "dev")
    )
    config.label_columns = "nice,nasty"
    config.max_seq_length = 32
    config.length_buckets = 1
    config.num_epochs = 8
    config.optimizer.learning_rate = 5e-3
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["f1_micro"] > 0.8 and results["parity"] < 1e-5
    lines = predictions(tmp_path / "run")
    truth, guesses = (
        np.array([[x in line[side] for x in ("nice", "nasty")] for line in lines])
        for side in ("labels", "predictions")
    )
    assert sorted(set(truth.sum(1).tolist())) == [0, 1, 2]
    assert results["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, guesses))
    for average in ("micro", "macro"):
        oracle = sklearn.metrics.f1_score(truth, guesses, average=average, zero_division=0)
        assert results[f"f1_{average}"] == pytest.approx(oracle)
    report = (tmp_path / "run/report.txt").read_text()
    of_labels = sklearn.metrics.f1_score(truth, guesses, average=None)
    for name, f1 in zip(("nice", "nasty"), of_labels, strict=True):
        assert re.search(rf"{name} +\S+ +\S+ +{f1:.4f}", report)
    assert re.search(rf"all \(micro\) +\S+ +\S+ +{results['f1_micro']:.4f}", report)

    exported = json.loads((tmp_path / "run/hf/config.json").read_text())
    assert exported["problem_type"] == "multi_label_classification"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/hf")
    inputs = tokenizer(
        [line["texts"][0] for line in lines], padding=True, return_tensors="pt"
    )  # fmt: skip
    labels = torch.tensor(truth, dtype=torch.float32)
    with torch.no_grad():
        output = model.eval()(**inputs, labels=labels)
    assert results["loss"] == pytest.approx(float(output.loss), abs=1e-5)
    scores = [[line["scores"][x] for x in ("nice", "nasty")] for line in lines]
    np.testing.assert_allclose(scores, torch.sigmoid(output.logits), atol=1e-5)
    # Its head is kept.
    config.max_steps = 1
    config.optimizer.learning_rate = 0.0
    again = finetune_loop.finetune(config, tmp_path / "run/hf", tmp_path / "again")
    assert again["f1_micro"] == results["f1_micro"] and again["step"] == 1


def write_tagged(path, count, seed):
    """A name ('good', 'fine') begins a PER, 'bad' and 'poor' a LOC, and 'and' continues it."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        label = "O"
        for word in rng.choice(WORDS[:11], rng.integers(1, 12)):
            kind = {"good": "PER", "fine": "PER", "bad": "LOC", "poor": "LOC"}.get(word)
            if kind:
                label = f"B-{kind}"
            elif word == "and" and label != "O":
                label = f"I-{label[2:]}"
            else:
                label = "O"
            lines.append(f"{word}s NN {label}")  # two pieces a word: film ##s
        lines.append("")
    path.write_text("\n".join(lines))
    return str(path)


def test_token_classification(pretrained, tmp_path):
    config = token_classification.get_config()
    config.train_file = write_tagged(tmp_path / "train.conll", 800, 0)
    config.validation_file = write_tagged(tmp_path / "dev.conll", 100, 1)
    config.max_seq_length = 16  # 7 words: longer sentences are split into overlapping windows
    config.length_buckets = 1
    config.num_epochs = 2
    config.optimizer.learning_rate = 1e-2
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["f1"] > 0.8 and results["parity"] < 1e-5
    lines = predictions(tmp_path / "run")
    truth, guesses = ([line[name] for line in lines] for name in ("labels", "predictions"))
    for name in ("f1", "precision", "recall"):
        oracle = getattr(seqeval.metrics, f"{name}_score")(truth, guesses)
        assert results[name] == pytest.approx(oracle), name
    assert max(len(line["words"]) for line in lines) > 7
    report = (tmp_path / "run/report.txt").read_text()
    assert re.search(rf"all \(micro\) .* {results['f1']:.4f} ", report)
    assert "confusion matrix (labels down, predictions across)" in report

    # transformers' pipeline labels the same words, on sentences that fit one window.
    tag = transformers.pipeline(
        "token-classification", model=str(tmp_path / "run/hf"), aggregation_strategy="none"
    )
    short = [line for line in lines if len(line["words"]) <= 7]
    answers = tag([" ".join(line["words"]) for line in short], ignore_labels=[])
    for line, answer in zip(short, answers, strict=True):
        firsts = [piece["entity"] for piece in answer if not piece["word"].startswith("##")]
        assert firsts == line["predictions"]

    with open(config.validation_file, "a") as stream:
        stream.write("\ngood NN B-RIVER\n")
    with pytest.raises(UserError, match=r"the label 'B-RIVER', which is not among 'O', 'B-LOC'"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_multiple_choice(pretrained, tmp_path):
    """The right ending is the one with a good word."""
    rng = np.random.default_rng(0)
    for name, count in (("train.csv", 500), ("dev.csv", 60)):
        lines = ["sent1,sent2,ending0,ending1,ending2,label"]
        for _ in range(count):
            label = int(rng.integers(3))
            endings = [list(rng.choice(WORDS[4:11], rng.integers(1, 6))) for _ in range(3)]
            for i, ending in enumerate(endings):
                ending.append(str(rng.choice(WORDS[:2] if i == label else WORDS[2:4])))
            lines.append(f"the film,was very,{','.join(map(' '.join, endings))},{label}")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    config = swag.get_config()
    config.train_file, config.validation_file = (
        str(tmp_path / f"{x}.csv") for x in ("train", "dev")
    )
    config.choice_columns = "ending0,ending1,ending2"
    config.max_seq_length = 32
    config.length_buckets = 1
    config.num_epochs = 2
    config.optimizer.learning_rate = 1e-2
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["accuracy"] > 0.8 and results["parity"] < 1e-5
    # transformers' class, fed by its own tokenizer, chooses alike.
    lines = predictions(tmp_path / "run")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/hf")
    model = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "run/hf").eval()
    for line in lines[:20]:
        pairs = [(line["context"], f"{line['beginning']} {choice}") for choice in line["choices"]]
        batch = read(pairs, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: x[None] for name, x in batch.items()}).logits[0]
        assert logits.softmax(-1).tolist() == pytest.approx(line["scores"], abs=1e-5)
    config.choice_columns = "ending0"
    with pytest.raises(UserError, match="names 1 column"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    config.choice_columns = "ending0,ending1"
    with pytest.raises(UserError, match=r"has the label '2' \(column 'label'\): expected 0 to 1"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def write_squad(path, count, seed):
    """The answer is the first good word of the context and what follows it; some have none."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for i in range(count):
        words = list(rng.choice(WORDS[4:11], rng.integers(3, 40)))
        at = int(rng.integers(len(words)))
        answers = []
        if i % 4:
            words[at] = str(rng.choice(WORDS[:2]))
            start = len(" ".join(words[:at])) + bool(at)
            answers = [{"text": " ".join(words[at : at + 2]), "answer_start": start}]
        qa = {"id": f"q{i}", "question": "was the film good?", "answers": answers}
        paragraphs.append({"context": " ".join(words), "qas": [qa | {"is_impossible": i % 4 == 0}]})
    path.write_text(json.dumps({"version": "2.0", "data": [{"paragraphs": paragraphs}]}))
    return str(path)


def test_question_answering(pretrained, tmp_path):
    config = squad2.get_config()
    config.train_file = write_squad(tmp_path / "train.json", 900, 0)
    config.validation_file = write_squad(tmp_path / "dev.json", 80, 1)
    config.max_seq_length = 32
    config.max_question_length = 8
    config.doc_stride = 10  # contexts of up to 40 words: up to four windows
    config.length_buckets = 1
    config.optimizer.learning_rate = 1e-2
    results = finetune_loop.finetune(config, pretrained, tmp_path / "run")
    assert results["exact"] > 0.6 and results["f1"] > 0.8
    assert results["parity"] < 1e-5
    lines = predictions(tmp_path / "run")

    def plain(text):  # the words that the official script compares
        return [word for word in text.split() if word not in ("a", "the")]

    right = [
        plain(line["prediction"]) in [plain(answer) for answer in line["answers"] or [""]]
        for line in lines
    ]
    assert np.mean(right) == pytest.approx(results["exact"])
    assert any(not line["answers"] and not line["prediction"] for line in lines)
    dev = json.loads((tmp_path / "dev.json").read_text())["data"][0]["paragraphs"]
    for line, paragraph in zip(lines, dev, strict=True):
        for answer in line["n_best"]:
            assert paragraph["context"][answer["start"] : answer["end"]] == answer["text"]
        spans = [(answer["start"], answer["end"]) for answer in line["n_best"]]
        assert len(set(spans)) == len(spans)
        assert 0 < sum(answer["score"] for answer in line["n_best"]) < 1 + 1e-4

    # What the model was fine-tuned with travels in hf/, without the workdir.
    moved = shutil.copytree(tmp_path / "run/hf", tmp_path / "moved")
    loaded = loading.load_parts(moved).config
    assert (loaded.max_seq_length, loaded.doc_stride, loaded.max_answer_length) == (32, 10, 30)
    assert loaded.null_threshold == 0.0 and loaded.may_have_none

    config.doc_stride = 0
    with pytest.raises(UserError, match=r"config\.doc_stride=0, expected at least 1"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    config.doc_stride = 25
    with pytest.raises(UserError, match=r"doc_stride=25 is more than the 21 context tokens"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    broken = json.loads((tmp_path / "train.json").read_text())
    broken["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "train.json").write_text(json.dumps(broken))
    config.doc_stride, config.max_skipped = 10, 0.0
    with pytest.raises(UserError, match=r"question 'q1': the answer '.*' does not stand at"):
        finetune_loop.finetune(config, pretrained, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_guides_commands_for_ones_own_files(pretrained, tmp_path, monkeypatch, capsys):
    """Those of docs/guides/finetuning.md as they stand there, but for fewer steps."""
    root = pathlib.Path(__file__).resolve().parents[2]
    guide = (root / "docs/guides/finetuning.md").read_text()
    commands = re.findall(r"```\n(python -m bert_jax\.finetune [^`]*runs/(\w+)[^`]*)```", guide)
    commands = {name: shlex.split(text.replace("\\\n", " ")) for text, name in commands}
    (tmp_path / "configs").symlink_to(root / "configs")
    monkeypatch.chdir(tmp_path)

    def follow(name):
        short = ("--config.num_epochs=1", "--config.max_seq_length=32", "--config.length_buckets=1")
        if name == "answers":
            short += ("--config.max_question_length=8", "--config.doc_stride=10")
        arguments = [word.replace("MODEL", str(pretrained)) for word in commands[name][3:]]
        finetune.main([*arguments, *short])
        return json.loads(pathlib.Path(f"runs/{name}/results.json").read_text())

    # Other column names, and labels that are texts.
    for file, count in (("train.csv", 200), ("dev.csv", 30)):
        write_reviews(tmp_path / file, count, 0)
        text = pathlib.Path(file).read_text().replace("review,verdict", "review,stars", 1)
        pathlib.Path(file).write_text(text)
    assert 0 <= follow("reviews")["accuracy"] <= 1
    names = json.loads(pathlib.Path("runs/reviews/hf/config.json").read_text())["id2label"]
    assert names == {"0": "no", "1": "yes"}

    for file, count in (("train.conll", 200), ("dev.conll", 30)):
        write_tagged(tmp_path / file, count, 0)
        text = pathlib.Path(file).read_text().replace("-LOC", "-RIVER")
        pathlib.Path(file).write_text(text)
    assert 0 <= follow("entities")["f1"] <= 1
    report = pathlib.Path("runs/entities/report.txt").read_text()
    assert "RIVER" in report and os.path.getsize("runs/entities/confusion.png") > 0

    for file, count in (("train.json", 200), ("dev.json", 30)):
        write_squad(tmp_path / file, count, 0)
    assert 0 <= follow("answers")["exact"] <= 1
    assert any(not line["answers"] for line in predictions(tmp_path / "runs/answers"))
    assert "wrote runs/answers/hf" in capsys.readouterr().out
