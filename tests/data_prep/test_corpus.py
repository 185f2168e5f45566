"""Sources: formats, compression, dirt, mistakes."""

import gzip
import json
import sys
import types

import pytest
import zstandard

from bert_jax.cli import UserError
from data_prep import corpus, streams
from data_prep.corpus import Block, Unit


def read(*sources, field="text", max_decode_errors=corpus.MAX_DECODE_ERRORS):
    """All documents of some sources, and the sums of what was counted."""
    documents, total = [], corpus.ParseCounts()
    for part in corpus.list_parts([str(source) for source in sources], field):
        for unit in corpus.read_units(part):
            texts, counts = corpus.parse_unit(unit, max_decode_errors)
            documents += texts
            total.add(counts)
    return documents, total


def jsonl(texts):
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))


COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("extension", "content"),
    [
        (".txt", "One.\nTwo.\n\nThree.\n"),
        (".jsonl", jsonl(["One.\nTwo.", "Three."])),
        (".json", jsonl(["One.\nTwo.", "", "Three."])),
        (".json", json.dumps([{"text": "One.\nTwo."}, {"text": "Three."}])),
    ],
)
def test_formats(tmp_path, extension, content, compression):
    path = tmp_path / f"file{extension}{compression}"
    path.write_bytes(COMPRESS[compression](content.encode()))
    assert read(path)[0] == ["One.\nTwo.", "Three."]


@pytest.mark.parametrize("compression", COMPRESS)
def test_parquet(tmp_path, compression):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["One.", None, "Two."], "id": [1, 2, 3]})
    path = tmp_path / f"file.parquet{compression}"
    plain = tmp_path / "plain"
    parquet.write_table(table, plain)
    path.write_bytes(COMPRESS[compression](plain.read_bytes()))
    documents, counts = read(path)
    assert documents == ["One.", "Two."]
    assert counts.empty_documents == 1
    with pytest.raises(UserError, match="no column 'body'; the columns are 'text', 'id'"):
        read(path, field="body")


def test_dirt_is_removed(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(
        b"\xef\xbb\xbfOne\x00 \x07word.\r\nTwo.\r\n \t\r\n\r\nThree.\rFour.\x0cFive.\n\n\n\n \n"
    )
    documents, counts = read(path)
    assert documents == ["One word.\nTwo.", "Three.\nFour.\nFive."]
    assert counts.empty_documents == 1


def test_lone_surrogates_are_removed(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"text": "a \\ud800 b"}\n')
    assert read(path)[0] == ["a  b"]


def test_units_cut_between_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    texts = [f"Document {i}. " + "word " * (i % 50) for i in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "b.jsonl").write_text(jsonl(texts))
    (tmp_path / "c.jsonl").write_text(jsonl(texts) + " " * (-len(jsonl(texts)) % 1000))
    for name in ("a.txt", "b.jsonl", "c.jsonl"):
        [part] = corpus.list_parts([str(tmp_path / name)])
        units = list(corpus.read_units(part))
        assert len(units) > 10
        assert [unit.name for unit in units] == [f"000-000000-{i:06d}" for i in range(len(units))]
        assert [t for unit in units for t in corpus.parse_unit(unit)[0]] == [
            text.strip() for text in texts
        ]
        assert sum(unit.disk_bytes for unit in units) == part.num_bytes


@pytest.mark.parametrize("compression", COMPRESS)
def test_empty_file(tmp_path, compression):
    path = tmp_path / f"file.txt{compression}"
    path.write_bytes(COMPRESS[compression](b""))
    assert read(path)[0] == []


def test_small_files_share_a_unit(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"Document {i}.")
    [part] = corpus.list_parts([str(tmp_path / "*.txt")])
    [unit] = corpus.read_units(part)
    assert corpus.parse_unit(unit)[0] == [f"Document {i}." for i in range(5)]


def test_document_of_10_mb(tmp_path):
    text = "A sentence of some words. " * 400_000
    path = tmp_path / "file.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(["First.", text, "Last."]).encode(), 1))
    assert [len(t) for t in read(path)[0]] == [6, len(text.strip()), 5]


def test_file_of_one_line_is_cut_at_blanks(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_BYTES", 4000)
    path = tmp_path / "file.txt"
    path.write_text("word " * 5000)
    documents, _ = read(path)
    assert len(documents) > 4
    assert " ".join(documents) == ("word " * 5000).strip()


def test_not_utf8(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes("Ein schöner Tag.\n\nZwei größere Tage.".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8: 3 of \d+ bytes.*first on line 1.*iconv"):
        read(path)
    documents, counts = read(path, max_decode_errors=0.2)
    assert counts.decode_errors == 3
    assert documents[0] == "Ein sch\ufffdner Tag."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ('{"title": "a", "body": "b"}\n', "no field 'text'; the fields there are 'title', 'body'"),
        ('{"text": 3}\n', "holds a int, not text"),
        ('"just a string"\n', "expected an object with the field 'text', found a str"),
    ],
)
def test_bad_json(tmp_path, content, message):
    path = tmp_path / "file.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_bad_paths(tmp_path):
    (tmp_path / "file.pdf").write_text("x")
    (tmp_path / "file.txt.gz").write_text("not gzip")
    for source, message in (
        (tmp_path / "missing.txt", "does not exist: expected a file or glob"),
        (tmp_path / "*.jsonl", "no file matches"),
        (tmp_path, "is a directory: give its files"),
        (tmp_path / "file.pdf", "unknown kind of file; the name must end in .txt"),
        (tmp_path / "file.txt.gz", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read(source)


def test_sentences():
    text = "One is here. Two is there!\nDr. Smith left.\n\nno end"
    assert [s.strip() for s in corpus.sentences(text)] == [
        "One is here.",
        "Two is there!",
        "Dr. Smith left.",
        "no end",
    ]
    assert list(corpus.sentences("One. Two.\nThree.", one_per_line=True)) == ["One. Two.", "Three."]


def test_language_changes_the_rules():
    text = "Das ist z.B. ein Satz. Noch einer."
    assert len(list(corpus.sentences(text, "de"))) == 2


def test_line_numbers_go_on_in_later_units():
    block = Block("f.jsonl", b'{"text": "a"}\n{"x": 1}\n', first_line=101)
    with pytest.raises(UserError, match=r"f\.jsonl, line 102: no field"):
        corpus.parse_unit(Unit("", 0, "json", (block,)))


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


def test_hf_streams_a_local_directory(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(jsonl(["One.", "Two."]))
    assert read(f"hf:{tmp_path / 'data'}")[0] == ["One.", "Two."]
