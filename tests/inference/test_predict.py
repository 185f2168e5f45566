"""bert_jax.predict against transformers' pipelines and torch, on random weights."""

import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
import transformers
from small_models import TASKS, generated_texts, random_model
from small_run import ROOT

from bert_jax import convert, predict
from bert_jax.cli import UserError

torch = pytest.importorskip("torch")

CUT = "--max_seq_length=8"
TEXTS = ["the film was good", "bads", "a very very very poor plot and the films was fine"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """task -> (WORKDIR, its export), with random weights."""
    return {
        task: random_model(tmp_path_factory.mktemp(task), task, labels) for task, labels in TASKS
    }


def call(command, model, lines, tmp_path, *flags):
    """Runs the command over a file; returns its objects."""
    jsonl = isinstance(lines[0], dict)
    path = tmp_path / ("input.jsonl" if jsonl else "input.txt")
    path.write_text("".join((json.dumps(x) if jsonl else x) + "\n" for x in lines))
    output = tmp_path / "output.jsonl"
    predict.main([command, f"--model={model}", f"--input={path}", f"--output={output}", *flags])
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_classify(models, tmp_path):
    workdir, export = models["text_classification"]
    answers = call("classify", workdir, TEXTS * 20, tmp_path)
    assert answers == call("classify", export, TEXTS * 20, tmp_path)
    pipeline = transformers.pipeline("text-classification", model=str(export), top_k=None)
    for answer, theirs in zip(answers, pipeline(TEXTS * 20), strict=True):
        expected = {choice["label"]: choice["score"] for choice in theirs}
        assert answer["scores"] == pytest.approx(expected, abs=1e-6)
        assert answer["prediction"] == theirs[0]["label"]
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    answer = call("classify", workdir, [pair], tmp_path)[0]
    theirs = pipeline(pair)
    expected = {choice["label"]: choice["score"] for choice in theirs}
    assert answer["scores"] == pytest.approx(expected, abs=1e-6)


def test_what_a_classification_head_of_others_means(tmp_path):
    """A single output is a score; labels that do not exclude each other have no softmax."""
    _, export = random_model(tmp_path / "score", "text_regression", ["score"])
    path = export / "config.json"
    config = json.loads(path.read_text())
    del config["problem_type"]  # as the hub's rerankers go without
    path.write_text(json.dumps(config))
    answers = call("classify", export, TEXTS, tmp_path)
    pipeline = transformers.pipeline("text-classification", str(export), function_to_apply="none")
    expected = [x["score"] for x in pipeline(TEXTS)]
    assert [x["prediction"] for x in answers] == pytest.approx(expected, abs=1e-5)

    _, export = random_model(tmp_path / "multi", "text_classification", ["rude", "loud"])
    path = export / "config.json"
    config = json.loads(path.read_text()) | {"problem_type": "multi_label_classification"}
    path.write_text(json.dumps(config))
    answers = call("classify", export, TEXTS, tmp_path)
    pipeline = transformers.pipeline("text-classification", str(export), top_k=None)
    for answer, theirs in zip(answers, pipeline(TEXTS), strict=True):
        expected = {choice["label"]: choice["score"] for choice in theirs}
        assert answer["scores"] == pytest.approx(expected, abs=1e-6)
        assert set(answer["prediction"]) == {x for x, score in expected.items() if score > 0.5}
    convert.from_hugging_face(export, tmp_path / "back")
    convert.to_hugging_face(tmp_path / "back", tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again["problem_type"] == "multi_label_classification"


def test_zero_shot(models, tmp_path):
    workdir, export = models["text_classification"]
    labels = ["good", "bad", "plot"]
    flags = (f"--labels={','.join(labels)}", "--template=the film was {} .")
    answers = call("zero-shot", workdir, TEXTS, tmp_path, *flags)
    pipeline = transformers.pipeline("zero-shot-classification", model=str(export))
    theirs = pipeline(TEXTS, candidate_labels=labels, hypothesis_template="the film was {} .")
    for answer, expected in zip(answers, theirs, strict=True):
        scores = dict(zip(expected["labels"], expected["scores"], strict=True))
        assert answer["scores"] == pytest.approx(scores, abs=1e-5)
        assert answer["prediction"] == expected["labels"][0]
    with pytest.raises(UserError, match="expected two or more different labels"):
        call("zero-shot", workdir, TEXTS, tmp_path, "--labels=good,good")
    with pytest.raises(UserError, match=r"template='a' has no \{\} for the label"):
        call("zero-shot", workdir, TEXTS, tmp_path, "--labels=good,bad", "--template=a")
    other, _ = random_model(tmp_path / "other", "text_classification", ["no", "yes"])
    with pytest.raises(UserError, match=r"with a label 'entailment': .* 'no', 'yes'"):
        call("zero-shot", other, TEXTS, tmp_path, *flags)


def test_tag(models, tmp_path):
    workdir, export = models["token_classification"]
    answers = call("tag", workdir, TEXTS, tmp_path)
    pipeline = transformers.pipeline("token-classification", model=str(export))
    for answer, theirs in zip(answers, pipeline(TEXTS, ignore_labels=[]), strict=True):
        firsts = [piece for piece in theirs if not piece["word"].startswith("##")]
        assert answer["labels"] == [piece["entity"] for piece in firsts]
        assert answer["scores"] == pytest.approx([float(p["score"]) for p in firsts], abs=1e-5)
        for entity in answer["entities"]:
            assert entity["text"] == answer["text"][entity["start"] : entity["end"]]
    words = call("tag", workdir, [{"tokens": TEXTS[0].split()}], tmp_path)[0]
    assert all(words[name] == answers[0][name] for name in ("tokens", "labels", "scores"))


def test_fill_mask(models, tmp_path):
    workdir, export = models["pretraining"]
    texts = ["the [MASK] was good", "[MASK] very [MASK] and [MASK]", *TEXTS[:1]]
    answers = call("fill-mask", workdir, texts[:2], tmp_path, "--top_k=3")
    pipeline = transformers.pipeline("fill-mask", model=str(export), top_k=3, device="cpu")
    for answer, theirs in zip(answers, pipeline(texts[:2]), strict=True):
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        for ours, choices in zip(answer["masks"], theirs, strict=True):
            assert [x["token"] for x in ours] == [x["token_str"].replace(" ", "") for x in choices]
            assert [x["score"] for x in ours] == pytest.approx(
                [x["score"] for x in choices], abs=1e-5
            )
    with pytest.raises(UserError, match=r"no \[MASK\] in 'the film"):
        call("fill-mask", workdir, texts, tmp_path)
    with pytest.raises(
        UserError, match=r"a \[MASK\] stands behind the 8 tokens .* 'the \[MASK\] was"
    ):
        late = f"{texts[0]} and very very very [MASK]"
        call("fill-mask", workdir, [late], tmp_path, "--max_seq_length=8")


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_embed(pooling, models, tmp_path):
    workdir, export = models["pretraining"]
    output = tmp_path / "vectors.npy"
    path = tmp_path / "input.txt"
    path.write_text("\n".join(TEXTS))
    flags = [f"--model={workdir}", f"--input={path}", f"--output={output}"]
    predict.main(["embed", *flags, f"--pooling={pooling}", "--normalize"])
    read = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModel.from_pretrained(export).eval()
    batch = read(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].bool()
    expected = {
        "cls": hidden[:, 0],
        "mean": (hidden * mask).sum(1) / mask.sum(1),
        "max": hidden.masked_fill(~mask, -1e9).max(1).values,
    }[pooling]
    expected = torch.nn.functional.normalize(expected).numpy()
    np.testing.assert_allclose(np.load(output), expected, atol=1e-5)


def test_embed_to_parquet(models, tmp_path, monkeypatch):
    workdir, _ = models["pretraining"]
    path = tmp_path / "input.jsonl"
    path.write_text('{"text": "the film", "id": 7}\n\n{"text": "good"}\n')
    flags = ["embed", f"--model={workdir}", f"--input={path}"]
    for name in ("vectors.parquet", "vectors.npy"):
        predict.main([*flags, f"--output={tmp_path / name}"])
    read = pyarrow.parquet.read_table(tmp_path / "vectors.parquet").to_pydict()
    assert read["row"] == [0, 1] and read["id"] == ["7", None]
    np.testing.assert_array_equal(read["embedding"], np.load(tmp_path / "vectors.npy"))
    path.write_text('{"text": "the film"}\n')
    predict.main([*flags, f"--output={tmp_path / 'vectors.parquet'}"])
    read = pyarrow.parquet.read_table(tmp_path / "vectors.parquet")
    assert read.column_names == ["row", "embedding"]
    path.write_text("\n")
    with pytest.raises(UserError, match="has no texts"):
        predict.main([*flags, f"--output={tmp_path / 'none.parquet'}"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"none\.parquet needs pyarrow: pip install"):
        predict.main([*flags, f"--output={tmp_path / 'none.parquet'}"])
    assert not (tmp_path / "none.parquet").exists()


def test_the_guides_logistic_regression(models, tmp_path, monkeypatch, capsys):
    """The example of docs/guides/inference.md, as it stands there."""
    guide = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides" / "inference.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "LogisticRegression" in block)
    rows = [f"{text},{stars}" for text, stars in zip(TEXTS * 4, "135" * 4, strict=True)]
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("\n".join(["review,stars", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("MODEL", str(models["pretraining"][0])), {})
    assert float(capsys.readouterr().out) == 1.0


def torch_answer(read, model, record, max_answer_length):
    """The best span by transformers' model, and its probability among all of them."""
    batch = read(
        record["question"], record["context"], return_tensors="pt", return_offsets_mapping=True
    )
    offsets = batch.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = model(**batch)
    start, end = output.start_logits[0], output.end_logits[0]
    inside = [i for i, part in enumerate(batch.sequence_ids()) if part == 1]
    spans = [
        (float(start[i] + end[j]), i, j)
        for i in inside
        for j in inside
        if i <= j < i + max_answer_length
    ]
    score, first, last = max(spans)
    total = np.logaddexp.reduce([other for other, _, _ in spans])
    return record["context"][offsets[first][0] : offsets[last][1]], float(np.exp(score - total))


def test_answer(models, tmp_path):
    workdir, export = models["question_answering"]
    record = {"question": "was the film good", "context": TEXTS[2]}
    flags = ("--max_answer_length=6", "--top_k=4")
    found = call("answer", workdir, [record], tmp_path, *flags)[0]
    read = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(export).eval()
    best, share = torch_answer(read, model, record, max_answer_length=6)
    assert found["prediction"] == best and share < 0.2
    assert len(found["n_best"]) == 4
    assert found["n_best"][0]["score"] == pytest.approx(share, abs=1e-5)
    # How many are listed changes neither which is the best nor how sure it is.
    found = call("answer", workdir, [record], tmp_path, flags[0], "--top_k=1")[0]
    assert found["prediction"] == best and len(found["n_best"]) == 1
    assert found["n_best"][0]["score"] == pytest.approx(share, abs=1e-5)


@pytest.mark.slow
def test_labels_and_answers_of_transformers_on_200_examples(tmp_path, one_thread):
    texts = generated_texts(200, 0)
    # Weights with which the answers depend on the texts.
    models = {
        task: random_model(tmp_path / task, task, labels, scale=0.7, seed=7)
        for task, labels in TASKS[1:]
    }

    workdir, export = models["text_classification"]
    ours = [answer["prediction"] for answer in call("classify", workdir, texts, tmp_path)]
    classify = transformers.pipeline("text-classification", model=str(export))
    assert ours == [answer["label"] for answer in classify(texts)]
    assert len(set(ours)) > 1

    workdir, export = models["token_classification"]
    ours = [answer["labels"] for answer in call("tag", workdir, texts, tmp_path)]
    tag = transformers.pipeline("token-classification", model=str(export))
    theirs = [
        [piece["entity"] for piece in answer if not piece["word"].startswith("##")]
        for answer in tag(texts, ignore_labels=[])
    ]
    assert ours == theirs
    assert len({label for labels in ours for label in labels}) > 1

    # transformers 5 has no pipeline for this one: its model, and the same search.
    workdir, export = models["question_answering"]
    questions = [" ".join(text.split()[:4]) for text in generated_texts(200, 1)]
    records = [{"question": q, "context": text} for q, text in zip(questions, texts, strict=True)]
    ours = call("answer", workdir, records, tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(export).eval()
    theirs = [torch_answer(read, model, record, 30)[0] for record in records]
    assert [answer["prediction"] for answer in ours] == theirs
    assert len(set(theirs)) > 100

    workdir, export = random_model(tmp_path / "pretraining", "pretraining", [], scale=0.7, seed=7)
    masked = []
    for text in texts:
        words = text.split()
        words[len(words) // 2] = "[MASK]"
        masked.append(" ".join(words))
    ours = [x["masks"][0][0] for x in call("fill-mask", workdir, masked, tmp_path, "--top_k=1")]
    fill = transformers.pipeline("fill-mask", model=str(export), top_k=1)
    assert [x["token"] for x in ours] == [answer[0]["token_str"] for answer in fill(masked)]
    assert len({x["token"] for x in ours}) > 1

    entails = ["contradiction", "entailment"]
    workdir, export = random_model(tmp_path / "nli", "text_classification", entails, 0.7, 8)
    labels = ["good", "bad", "plot"]
    flags = (f"--labels={','.join(labels)}", "--template=the film was {} .")
    ours = [x["prediction"] for x in call("zero-shot", workdir, texts, tmp_path, *flags)]
    choose = transformers.pipeline("zero-shot-classification", model=str(export))
    theirs = choose(texts, candidate_labels=labels, hypothesis_template="the film was {} .")
    for label, answer in zip(ours, theirs, strict=True):
        scores = dict(zip(answer["labels"], answer["scores"], strict=True))
        assert scores[label] >= max(scores.values()) - 1e-6  # some are alike
    assert len(set(ours)) == 3


def test_standard_input_and_output(models, monkeypatch, capsys):
    workdir, _ = models["text_classification"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the film\n\ngood\n")))
    predict.main(["classify", f"--model={workdir}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["the film", "good"]
    latin = io.TextIOWrapper(
        io.BytesIO("café\n".encode("latin-1")), encoding="utf-8", errors="surrogateescape"
    )
    monkeypatch.setattr(sys, "stdin", latin)
    with pytest.raises(UserError, match="standard input:1 is not UTF-8 text"):
        predict.main(["classify", f"--model={workdir}"])


def test_a_reader_of_the_output_may_leave(models, tmp_path):
    workdir, _ = models["text_classification"]
    (tmp_path / "input.txt").write_text("good\n" * 20_000)
    command = f"{sys.executable} -m bert_jax.predict classify --model={workdir}"
    command += f" --input={tmp_path / 'input.txt'} --max_seq_length=8 | head -n 1"
    shell = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert json.loads(shell.stdout)["text"] == "good"
    assert "Traceback" not in shell.stderr


def test_texts_are_cut_as_in_fine_tuning(models, tmp_path):
    _, export = models["text_classification"]
    whole, cut = (call("classify", export, TEXTS, tmp_path, *flags) for flags in ((), (CUT,)))
    assert whole != cut
    several = tmp_path / "several"
    run = several / "lr-0.1_seed-0"
    for directory in (several, run):
        shutil.copytree(export, directory / "hf")
    settings = {"task": "text_classification", "max_seq_length": 8, "model": {}}
    (run / "config.json").write_text(json.dumps(settings))
    (several / "summary.json").write_text(json.dumps({"best": run.name}))
    for directory in (run, several):
        assert call("classify", directory, TEXTS, tmp_path) == cut
        assert call("classify", directory, TEXTS, tmp_path, "--max_seq_length=40") == whole


def test_an_export_beside_a_pretraining_is_not_taken_for_it(models, tmp_path):
    workdir, _ = models["pretraining"]
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    config = json.loads((run / "config.json").read_text())
    del config["task"], config["labels"], config["checksum"]  # as pretraining leaves it
    (run / "config.json").write_text(json.dumps(config))
    shutil.copytree(random_model(tmp_path / "old", "pretraining", [], seed=1)[1], run / "hf")
    assert call("fill-mask", run, ["[MASK]"], tmp_path) == call(
        "fill-mask", workdir, ["[MASK]"], tmp_path
    )


def test_bad_input(models, tmp_path):
    workdir, _ = models["text_classification"]
    (tmp_path / "table.csv").write_text("review\ngood\n")
    with pytest.raises(UserError, match=r"table\.csv has no column 'text'; its columns are"):
        predict.main(["classify", f"--model={workdir}", f"--input={tmp_path / 'table.csv'}"])
    with pytest.raises(UserError, match=r"has no head to tag with \(it is a text_classification"):
        call("tag", workdir, TEXTS, tmp_path)
    with pytest.raises(UserError, match="has no MLM head"):
        call("fill-mask", workdir, ["a [MASK]"], tmp_path)
    with pytest.raises(UserError, match=r"input\.jsonl:2: classify needs the field 'text'"):
        call("classify", workdir, [{"text": "good"}, {"txt": "bad"}], tmp_path)
    (tmp_path / "half.jsonl").write_text('{"text": "good \\ud83d"}\r\n')
    half = ["classify", f"--model={workdir}", f"--input={tmp_path / 'half.jsonl'}"]
    predict.main([*half, f"--output={tmp_path / 'mended.jsonl'}"])
    assert json.loads((tmp_path / "mended.jsonl").read_text())["text"] == "good \ufffd"
    with pytest.raises(UserError, match=r"half\.jsonl is the input"):
        predict.main([*half, f"--output={tmp_path / 'half.jsonl'}"])
    with pytest.raises(UserError, match=r"input\.jsonl:1: 'text_pair' is not a text"):
        call("classify", workdir, [{"text": "good", "text_pair": 5}], tmp_path)
    with pytest.raises(UserError, match=r"has the field 'scores', where classify writes"):
        call("classify", workdir, [{"text": "good", "scores": [1]}], tmp_path)
    with pytest.raises(UserError, match=r"input\.jsonl:1: tag needs the field 'tokens'"):
        call("tag", models["token_classification"][0], [{"tokens": ["a", None]}], tmp_path)
    with pytest.raises(UserError, match=r"input\.txt:1 is not JSON"):
        call("answer", models["question_answering"][0], ["what"], tmp_path)
    assert not (tmp_path / "output.jsonl").exists()
    # Before anything is computed: directories are made, and what cannot be written is said.
    (tmp_path / "input.txt").write_text("good\n")
    command = ["classify", f"--model={workdir}", f"--input={tmp_path / 'input.txt'}"]
    predict.main([*command, f"--output={tmp_path / 'new/here.jsonl'}"])
    assert len((tmp_path / "new/here.jsonl").read_text().splitlines()) == 1
    for output, message in (("new", "is a directory"), ("input.txt/x", "cannot be written")):
        with pytest.raises(UserError, match=message):
            predict.main([*command, f"--output={tmp_path / output}"])
    for flag in ("--batch_size=0", "--max_seq_length=7"):
        with pytest.raises(SystemExit):
            predict.main([*command, flag])
