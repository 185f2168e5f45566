"""Data sets that are read by a library: Hugging Face datasets and TensorFlow Datasets."""

import sys
import types

import pytest
from corpora import jsonl, read

from bert_jax.cli import UserError
from data_prep.sources import streams


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("hf:wikitext", ("wikitext", "train")),
        ("hf:org/name/config:test", ("org/name/config", "test")),
    ],
)
def test_parse_hf(spec, parsed):
    assert streams.parse_hf(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("tfds:lm1b", ("lm1b", "train")),
        ("tfds:lm1b:test", ("lm1b", "test")),
        ("tfds:wiki/en:1.0.0:train[:1%]", ("wiki/en:1.0.0", "train[:1%]")),
        ("tfds:wiki/en:1.0.0", ("wiki/en:1.0.0", "train")),
    ],
)
def test_parse_tfds(spec, parsed):
    assert streams.parse_tfds(spec) == parsed


def test_tfds_through_its_data_source(monkeypatch):
    class Source(list):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    def data_source(name, split):
        assert (name, split) == ("lm1b", "test")
        return Source({"text": f"Line {i}.".encode()} for i in range(600))

    fake = types.SimpleNamespace(data_source=data_source)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    documents, _ = read("tfds:lm1b:test")
    assert len(documents) == 600 and documents[599] == "Line 599."
    with pytest.raises(UserError, match="no field 'body'; the fields are 'text'"):
        read("tfds:lm1b:test", field="body")


@pytest.mark.parametrize(
    ("spec", "module", "function"),
    [("hf:x", "datasets", "load_dataset"), ("tfds:x", "tensorflow_datasets", "data_source")],
)
def test_errors_without_a_message(monkeypatch, spec, module, function):
    def fail(*arguments, **keywords):
        raise TimeoutError

    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: fail}))
    with pytest.raises(UserError, match="could not be loaded: TimeoutError"):
        read(spec)


def test_a_stream_that_breaks_off(monkeypatch):
    def load_dataset(*arguments, **keywords):
        yield {"text": "One."}
        raise ConnectionError("the peer is gone")

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(UserError, match="hf:x cannot be read: ConnectionError: the peer is gone"):
        read("hf:x")


def test_hf_streams_a_local_directory(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(jsonl(["One.", "Two."]))
    assert read(f"hf:{tmp_path / 'data'}")[0] == ["One.", "Two."]


def test_hf_names_the_files_that_datasets_leaves_out(tmp_path, monkeypatch, caplog):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(jsonl(["One.", "Two."]))
    (data / "more.jsonl").write_text(jsonl(["Three."]))
    assert read(f"hf:{data}")[0] == ["One.", "Two."]
    assert "split train has 1 of 2 data files; 1 belong to no split and are skipped (more" in (
        caplog.text
    )
    assert read(f"{data}/*.jsonl")[0] == ["Three.", "One.", "Two."]


def test_hf_keeps_dates_as_text(tmp_path, monkeypatch):
    """datasets makes timestamps of them: 2020-01-01 00:00:00."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    dates = ["2020-01-01", "2021-02-03"]
    (tmp_path / "train.jsonl").write_text(jsonl(dates))
    assert read(f"hf:{tmp_path}")[0] == dates


def test_hf_lines_of_text_are_documents(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "test.txt").write_text("One.\nTwo.\n")
    assert read(f"hf:{tmp_path}:test")[0] == ["One.", "Two."]
