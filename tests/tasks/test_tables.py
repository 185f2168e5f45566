"""Rows of files."""

import json

import pytest

from bert_jax.cli import UserError
from bert_jax.tasks import tables


def test_tables_read_the_same_rows(tmp_path):
    rows = [("a, b\nc", "x"), ("é ; 中", "y")]
    csv = tmp_path / "rows.csv"
    csv.write_text('text,other,label\n"a, b\nc",1,x\n\né ; 中,2,y\n')
    bom = tmp_path / "bom.csv"
    bom.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes().replace(b"\n\xc3", b"\r\n\xc3"))
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("\n".join(json.dumps({"label": y, "text": x}) for x, y in rows) + "\n")
    for path in (csv, bom, jsonl):
        read = tables.read(str(path), ["text", "label"])
        assert [(row.values["text"], row.values["label"]) for row in read] == rows, path
    # A quotation mark opens nothing in a TSV, as in GLUE's files.
    tsv = tmp_path / "rows.tsv"
    tsv.write_text('text\tlabel\n"she said\t1\nplain "\t0\n')
    read = tables.read(str(tsv), ["text", "label"])
    assert [row.values for row in read] == [
        {"text": '"she said', "label": "1"},
        {"text": 'plain "', "label": "0"},
    ]
    assert read[1].place == f"{tsv}:3"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,stars\nx,1\n", r"no column 'label'; its columns are 'text', 'stars'"),
        ("a.csv", b"text;label\nx;1\n", r"separated by ';': expected commas in \.csv"),
        ("a.csv", b"", r"a\.csv is empty: expected the columns 'text', 'label'"),
        ("a.csv", b"text,label\nx\n", r"a\.csv:2 has 1 cells, the header has 2"),
        ("a.csv", b'text,label\n"x,1\n', r"is not valid CSV"),
        ("a.csv", b"text,label\n", r"has no rows"),
        ("a.csv", b"text,label,label\nx,1,2\n", r"a\.csv has the column 'label' 2 times"),
        ("a.jsonl", b'{"text": "x", "label": 1, "label": 2}\n', r"the name 'label' twice"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1 is not JSON \(it is nested too deeply"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", r"is not UTF-8"),
        ("a.jsonl", b'{"text": 1}\n', r"a\.jsonl:1 has no column 'label'"),
        ("a.jsonl", b'{"text": \n', r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1 is not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "x", "label": ["1", "2"], "other": [1]}\n',
            r"a\.jsonl:1: column 'label' has a list, expected one text or number: \['1', '2'\]",
        ),
        ("a.txt", b"x", r"expected a file that ends in \.csv"),
    ],
)
def test_bad_tables(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        tables.read(str(path), ["text", "label"])


def test_columns_that_are_not_asked_for_may_be_there_twice(tmp_path):
    (tmp_path / "a.csv").write_text("text,,,label\nx,1,2,3\n")
    (row,) = tables.read(str(tmp_path / "a.csv"), ["text", "label"])
    assert row.values == {"text": "x", "label": "3"}


def test_missing_values(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null, "label": NaN}\n{"text": "nan"}\n{"label": 1.5}\n')
    rows = tables.read(str(path), ["text", "label"])
    assert [tuple(row.values.values()) for row in rows] == [("", ""), ("nan", ""), ("", "1.5")]


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        tables.read(str(tmp_path / "none.csv"), ["text"])
