"""Inputs that are checked first, and results that are written as they come and resumed."""

import io
import json
import os
import sys
import threading

import numpy as np
import pytest
from small_models import generated_texts, random_model

from bert_jax import predict
from bert_jax.cli import UserError
from bert_jax.inference import inputs, model, outputs, predictions

TEXTS = generated_texts(20, 0)
LABELS = ["good", "bad"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"), "text_classification", LABELS)[0]


@pytest.fixture
def counted(monkeypatch):
    """The texts that are computed, chunk by chunk; "stop" is where the user interrupts."""
    chunks, functions = [], dict(predictions.COMMANDS)

    def counting(name):
        def function(loaded, records, **options):
            texts = [record["text"] for record in records]
            if "stop" in texts:
                raise KeyboardInterrupt
            chunks.append(texts)
            return functions[name](loaded, records, **options)

        return function

    monkeypatch.setattr(predictions, "COMMANDS", {name: counting(name) for name in functions})
    monkeypatch.setattr(model, "CHUNK", 4)
    return chunks


@pytest.mark.parametrize("name", ["out.jsonl", "out.npy", "out.parquet"])
def test_an_interrupted_command_resumes(name, classifier, counted, tmp_path, monkeypatch):
    command = "classify" if name == "out.jsonl" else "embed"
    source, output = tmp_path / "input.txt", tmp_path / name
    source.write_text("\n".join([*TEXTS[:9], "stop", *TEXTS[10:]]))
    arguments = (command, str(classifier), str(source))
    with pytest.raises(KeyboardInterrupt):
        predict.run(*arguments, str(output))
    partial = tmp_path / f"{name}.partial"
    assert not output.exists() and partial.exists()
    assert counted == [TEXTS[:4], TEXTS[4:8]]
    # As a kill in the middle of a write leaves it.
    with partial.open("ab") as file:
        file.write(b'{"text": "the fi')
    counted.clear()
    with pytest.raises(KeyboardInterrupt):
        predict.run(*arguments, str(output))
    assert counted == []
    # Another input is another job, begun from the start; so is another length.
    source.write_text("\n".join(TEXTS))
    assert predict.run(*arguments, str(output)) == 20
    assert len(counted) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["input.txt", name]


def test_the_resumed_results_are_those_of_one_run(classifier, counted, tmp_path, monkeypatch):
    source = tmp_path / "input.txt"
    source.write_text("\n".join(TEXTS))
    functions = dict(predictions.COMMANDS)
    for command, name in (("classify", "out.jsonl"), ("embed", "out.npy")):
        arguments = (command, str(classifier), str(source))
        predict.run(*arguments, str(tmp_path / f"whole.{name}"))

        def once(loaded, records, command=command, **options):
            monkeypatch.setitem(predictions.COMMANDS, command, functions[command])
            yield from functions[command](loaded, records, **options)
            raise KeyboardInterrupt

        monkeypatch.setitem(predictions.COMMANDS, command, once)
        with pytest.raises(KeyboardInterrupt):
            predict.run(*arguments, str(tmp_path / name))
        counted.clear()
        predict.run(*arguments, str(tmp_path / name))
        assert counted == [TEXTS[i : i + 4] for i in range(4, 20, 4)]
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole.{name}").read_bytes()


def test_two_processes_do_not_write_one_file(tmp_path):
    output = str(tmp_path / "out.jsonl")
    with outputs.whole(output, {"job": 1}) as partial:
        partial.write([b"1\n"])
        with (
            pytest.raises(UserError, match=r"out\.jsonl\.partial is being written by another"),
            outputs.whole(output, {"job": 1}),
        ):
            pass
    assert (tmp_path / "out.jsonl").read_bytes() == b"1\n"


def test_everything_is_checked_before_the_model_is_loaded(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))
    source = tmp_path / "input.jsonl"
    good = '{"text": "good"}\n'
    for command, line, message in (
        ("classify", "{", r"input\.jsonl:2001 is not JSON"),
        ("classify", "[1]", r"input\.jsonl:2001 is not a JSON object, but \[1\]"),
        ("embed", '{"txt": "bad"}', r"input\.jsonl:2001: embed needs the field 'text'"),
        ("fill-mask", '{"text": "bad"}', r"input\.jsonl:1: no \[MASK\] in 'good'"),
    ):
        source.write_text(good * 2000 + line)
        with pytest.raises(UserError, match=message):
            predict.run(command, str(classifier), str(source), str(tmp_path / "out"))
    source.write_bytes(good.encode() + b'{"text": "caf\xe9"}')
    with pytest.raises(UserError, match=r"input\.jsonl:2 is not UTF-8 text"):
        predict.run("classify", str(classifier), str(source), str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["input.jsonl"]


def test_files_standard_input_and_pipes_are_read_alike(tmp_path, monkeypatch):
    data = "\ufeffthe film\r\n\r\n  good \u2028 bad\rpoor\r\n".encode()
    (tmp_path / "input.txt").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    end, begin = os.pipe()
    writer = threading.Thread(target=lambda: os.write(begin, data) and os.close(begin))
    writer.start()
    sources = (str(tmp_path / "input.txt"), "-", f"/dev/fd/{end}")
    found = [inputs.read(source, "classify", False, dict) for source in sources]
    writer.join()
    os.close(end)
    expected = [{"text": "the film"}, {"text": "  good \u2028 bad\rpoor"}]
    for records in found:
        assert [fields for _, fields in records] == expected
        assert [fields for _, fields in records] == expected  # again
        assert (records.count, records.sha256) == (2, found[0].sha256)


def test_fields_by_the_names_of_the_models_data(tmp_path):
    source = tmp_path / "input.jsonl"
    rows = [{"review": "good", "id": 1}, {"review": "bad", "text": "poor"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = inputs.columns({"text_column": "review", "text_pair_column": "", "seed": 1})
    records = list(inputs.read(str(source), "classify", False, lambda: columns))
    # A field of the command's own name comes first; what stands there is passed on.
    assert records == [(rows[0], {"text": "good"}), (rows[1], {"text": "poor"})]


def test_vectors_can_be_mapped_into_memory(classifier, tmp_path):
    (tmp_path / "input.txt").write_text("\n".join(TEXTS))
    predict.run("embed", str(classifier), str(tmp_path / "input.txt"), str(tmp_path / "out.npy"))
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert vectors.shape == (20, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.load(classifier).embed(TEXTS), atol=1e-6)


def read(tmp_path, name, content, command, **names):
    (tmp_path / name).write_text(content)
    return list(inputs.read(str(tmp_path / name), command, False, lambda: names))


def test_what_finetuning_reads_is_read(tmp_path):
    table = 'review,title,stars\n"good, very",a,5\nbad,,1\n'
    names = {"text": "review", "text_pair": "title"}
    found = read(tmp_path, "a.csv", table, "classify", **names)
    assert [fields for _, fields in found] == [
        {"text": "good, very", "text_pair": "a"},
        {"text": "bad", "text_pair": ""},
    ]
    with pytest.raises(UserError, match=r"a\.csv has no column 'text'; its columns are 'review'"):
        read(tmp_path, "a.csv", table, "embed")
    story = "story\ta\tb\nthe film\tgood\tbad\n"
    found = read(tmp_path, "b.tsv", story, "choose", context="story", choices="a, b")
    assert found[0][1] == {"context": "the film", "choices": ["good", "bad"]}
    words = [["Ada", "lives"], ["Ulm"]]
    conll = "Ada NNP B-PER\nlives VBZ O\n\nUlm NNP B-LOC\n"
    for name in ("c.conll", "c.txt"):
        found = read(tmp_path, name, conll, "tag")
        assert [fields["tokens"] for _, fields in found] == words
    universal = "# text = Ada lives\n1\tAda\tPROPN\n2\tlives\tVERB\n\n1\tUlm\tPROPN\n"
    found = read(tmp_path, "d.conllu", universal, "tag", word_index="1", tag_index="2")
    assert [fields["tokens"] for _, fields in found] == words
    texts = "Ada lives in Ulm .\nTo be or not to be, is O\n"
    assert [x["text"] for x, _ in read(tmp_path, "e.txt", texts, "tag")] == texts.splitlines()
    question = {"id": "q1", "question": "who", "answers": [{"text": "Ada", "answer_start": 0}]}
    squad = {"data": [{"paragraphs": [{"context": "Ada lives", "qas": [question]}]}]}
    found = read(tmp_path, "f.json", json.dumps(squad), "answer")
    record = {"id": "q1", "question": "who", "context": "Ada lives"}
    assert found == [(record, {"question": "who", "context": "Ada lives"})]
    with pytest.raises(UserError, match=r"f\.json is of a kind that `predict answer` reads"):
        read(tmp_path, "f.json", json.dumps(squad), "classify")
    with pytest.raises(UserError, match=r"c\.conll is of a kind that `predict tag` reads"):
        read(tmp_path, "c.conll", conll, "embed")


def test_columns_named_by_the_flag(classifier, tmp_path):
    (tmp_path / "a.csv").write_text("review\n" + "\n".join(TEXTS[:3]) + "\n")
    arguments = ("classify", str(classifier), str(tmp_path / "a.csv"), str(tmp_path / "out.jsonl"))
    assert predict.run(*arguments, columns="text=review") == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS[:3]
    for columns in ("words=review", "text", "text="):
        with pytest.raises(UserError, match=r"--columns='.*': expected FIELD=COLUMN"):
            predict.run(*arguments, columns=columns)
