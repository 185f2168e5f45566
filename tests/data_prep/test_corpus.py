"""Sources: formats, compression, dirt, mistakes."""

import gzip
import json

import pytest
import sentencex
import zstandard
from corpora import jsonl, read

from bert_jax.cli import UserError
from data_prep.sources import corpus, languages, parsing
from data_prep.sources.corpus import Block, Unit
from data_prep.sources.documents import sentences

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


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("extension", [".txt", ".jsonl"])
def test_a_byte_order_mark_ends_no_file(tmp_path, monkeypatch, extension, compression):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    texts = [f"Document {i}." for i in range(300)]
    content = jsonl(texts) if extension == ".jsonl" else "\n\n".join(texts)
    path = tmp_path / f"file{extension}{compression}"
    path.write_bytes(COMPRESS[compression](b"\xef\xbb\xbf" + content.encode()))
    assert read(path)[0] == texts


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
        assert [t for unit in units for t in parsing.parse_unit(unit)[0]] == [
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
    assert parsing.parse_unit(unit)[0] == [f"Document {i}." for i in range(5)]


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
    text = "Ein schöner Tag." + "\n\nZwei größere Tage." * 10
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8: 21 of \d+ bytes.*first on line 1.*iconv"):
        read(path)
    documents, counts = read(path, max_decode_errors=0.2)
    assert counts.decode_errors == 21
    assert documents[0] == "Ein sch\ufffdner Tag."


def test_a_stray_byte_in_a_short_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"A caf\xe9. " + b"A line of words. " * 50)
    documents, counts = read(path)
    assert counts.decode_errors == 1 and documents[0].startswith("A caf\ufffd. A line")
    with pytest.raises(UserError, match=r"1 of \d+ bytes"):
        read(path, max_decode_errors=0)


def test_stray_bytes_are_a_share_of_many_short_files_together(tmp_path):
    """Over 0.1 % of each page that has one, and more than ten; of all pages 0.07 %."""
    for i in range(30):
        page = b"A line of words. " * 30
        (tmp_path / f"{i:02d}.txt").write_bytes(page + b"\xe9" * (i < 11))
    documents, counts = read(tmp_path / "*.txt")
    assert len(documents) == 30 and counts.decode_errors == 11


def test_stray_bytes_of_many_short_files_are_added_up(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_bytes(b"caf\xe9 caf\xe9 caf\xe9")
    assert read(tmp_path / "[012].txt")[1].decode_errors == 9
    with pytest.raises(UserError, match=r"0\.txt is not UTF-8: 3 of 14 bytes"):
        read(tmp_path / "*.txt")


@pytest.mark.parametrize(
    ("encoding", "mark", "message"),
    [
        ("utf-16-le", b"\xff\xfe", r"order mark \(ff fe\).*iconv -f UTF-16 -t"),
        ("utf-16-be", b"\xfe\xff", r"order mark \(fe ff\).*iconv -f UTF-16 -t"),
        ("utf-16-le", b"", r"120 of 240 bytes are NUL.*iconv -f UTF-16LE"),
    ],
)
@pytest.mark.parametrize("extension", [".txt", ".jsonl"])
def test_utf16(tmp_path, encoding, mark, message, extension):
    """It decodes: every second byte is a NUL, which cleaning would take out."""
    path = tmp_path / f"file{extension}"
    path.write_bytes(mark + ("A day. Two days.\n\n\n\n" * 6).encode(encoding))
    with pytest.raises(UserError, match=f"is not UTF-8: .*{message}"):
        read(path, max_decode_errors=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ('{"title": "a", "body": "b"}\n', "no field 'text'; the fields there are 'title', 'body'"),
        ('{"text": 3}\n', "holds a int, not text"),
        ('"just a string"\n', "expected an object with the field 'text', found a str"),
        pytest.param("[" * 100_000, "is not JSON", id="deep array"),
        pytest.param('{"text": ' + "[" * 100_000, "line 1 is not JSON", id="deep line"),
        pytest.param('{"text": ' + "1" * 5000 + "}", "line 1 is not JSON: Exc", id="digits"),
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


LONG = jsonl(f"The square of {i} is {i * i}." for i in range(5000)).encode()


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("lost", [5, 10_000])
def test_cut_off_files(tmp_path, compression, lost):
    path = tmp_path / f"file.jsonl{compression}"
    whole = COMPRESS[compression](LONG)
    path.write_bytes(whole)
    assert len(read(path)[0]) == 5000
    path.write_bytes(whole[:-lost])
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def test_zstd_frames(tmp_path):
    path = tmp_path / "file.jsonl.zst"
    skipped = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    frame = COMPRESS[".zst"](LONG)
    path.write_bytes(frame + skipped + frame)
    assert len(read(path)[0]) == 10_000
    path.write_bytes(frame + frame[:9])
    with pytest.raises(UserError, match="ends before its last zstd frame does"):
        read(path)


def test_zstd_with_a_long_window(tmp_path):
    """As zstd --long=28 makes it: a frame of one raw block, whose header names the window."""
    data = jsonl(["One."]).encode()
    block = (len(data) << 3 | 1).to_bytes(3, "little") + data
    path = tmp_path / "file.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0, (28 - 10) << 3]) + block)
    assert read(path)[0] == ["One."]


def test_corrupt_gzip(tmp_path):
    path = tmp_path / "file.jsonl.gz"
    data = bytearray(gzip.compress(LONG))
    data[10:20] = b"\xff" * 10  # a kind of block that there is not: zlib.error
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read: .*invalid block type"):
        read(path)


def test_corrupted_parquet_page(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "file.parquet"
    parquet.write_table(pyarrow.table({"text": [f"Line {i}." for i in range(2000)]}), path)
    data = bytearray(path.read_bytes())
    data[4:104] = b"\xff" * 100  # the header of the first page
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"file\.parquet cannot be read"):
        read(path)


def test_cut_off_compressed_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["One."]}), tmp_path / "plain")
    path = tmp_path / "file.parquet.gz"
    path.write_bytes(gzip.compress((tmp_path / "plain").read_bytes())[:-5])
    with pytest.raises(UserError, match=r"file\.parquet\.gz cannot be read"):
        read(path)


def test_recursive_glob(tmp_path):
    for name in ("a", "x/b", "x/y/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(f"Document {name}.")
    (tmp_path / "x" / "other.md").write_text("No.")
    [part] = corpus.list_parts([f"{tmp_path}/**/*.txt"])
    names = [path.removeprefix(f"{tmp_path}/") for path in part.paths]
    assert names == ["a.txt", "x/b.txt", "x/y/c.txt"]
    assert len(read(f"{tmp_path}/x/**/*.txt")[0]) == 2
    with pytest.raises(UserError, match="no file matches"):
        read(f"{tmp_path}/**/*.jsonl")
    with pytest.raises(UserError, match=r"\*\* is for local files"):
        read("gs://bucket/books/**/*.txt")


SENTENCES = ["The river rose after a week of rain. The lamp went out.", "Nobody knew the song."]


def write_lines(path, number):
    path.write_text("".join(f"{SENTENCES[i % 2]} {i}\n" for i in range(number)))
    return path


def test_text_without_blank_lines_is_counted(tmp_path):
    """One file a document: what a list of documents looks like if nothing parts them."""
    paths = [write_lines(tmp_path / f"{name}.txt", 40) for name in "abc"]
    documents, counts = read(*paths)
    assert len(documents) == 3
    assert (counts.unparted_files, counts.unparted_lines) == (3, 120)
    documents, counts = read(*paths, document_per_line=True)
    assert len(documents) == 120 and documents[1] == "Nobody knew the song. 1"
    assert (counts.unparted_files, counts.empty_documents) == (0, 0)


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("One.\n" * 9, 0),  # a short document
        ("One.\n" * 10, 1),
        ("\n\n" + "One.\r\n" * 10 + "\r\n", 1),
        ("One.\n" * 10 + "\nTwo.\n", 0),
        ("One. " * 100, 0),
    ],
)
def test_what_counts_as_unparted(tmp_path, text, files):
    (tmp_path / "a.txt").write_text(text, newline="")
    assert read(tmp_path / "a.txt")[1].unparted_files == files


def test_unparted_text_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    monkeypatch.setattr(parsing, "UNIT_BYTES", 1000)
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_BYTES", 3000)
    counts = read(write_lines(tmp_path / "a.txt", 200))[1]
    assert counts.unparted_files == 1 and counts.cut_documents == 2
    long = "One.\n" * 300
    (tmp_path / "b.txt").write_text(f"{long}\n{long}\n{long}")
    counts = read(tmp_path / "b.txt")[1]
    assert counts.unparted_files == 0 and counts.cut_documents == 0


def test_a_document_per_line_in_units(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    path = write_lines(tmp_path / "a.txt", 200)
    [part] = corpus.list_parts([str(path)], document_per_line=True)
    assert part.kind == corpus.LINES and len(list(corpus.read_units(part))) > 5
    assert len(read(path, document_per_line=True)[0]) == 200


@pytest.mark.parametrize("characters", ["\u6cb3\u6d41", "a\u00e9", "\U0001f600\u20ac"])
def test_a_cut_is_between_characters(tmp_path, monkeypatch, characters):
    """Text without blanks, as Chinese on one line: no part of a character is lost."""
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_BYTES", 2000)
    for extra in range(4):
        text = "x" * extra + characters * 3000
        (tmp_path / "a.txt").write_text(text)
        documents, counts = read(tmp_path / "a.txt", max_decode_errors=0)
        assert "".join(documents) == text
        assert 3 < len(documents) - 1 <= counts.cut_documents <= len(documents)  # also at the end


def test_names_with_brackets(tmp_path):
    (tmp_path / "a[1].txt").write_text("One.")
    assert read(tmp_path / "a[1].txt")[0] == ["One."]


def test_sentences():
    text = "One is here. Two is there!\nDr. Smith left.\n\nno end"
    assert [s.strip() for s in sentences(text)] == [
        "One is here.",
        "Two is there!",
        "Dr. Smith left.",
        "no end",
    ]
    assert list(sentences("One. Two.\nThree.", one_per_line=True)) == ["One. Two.", "Three."]


def test_language_changes_the_rules():
    text = "Am 3. Oktober kam er. Ende."
    assert [x.strip() for x in sentences(text, "de")] == ["Am 3. Oktober kam er.", "Ende."]
    assert len(list(sentences(text, "en"))) == 3


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        ("en", "en"),
        ("es-mx", "es"),
        ("es_419", "es"),
        ("spa", "es"),
        ("ES", "es"),
        ("gre", "el"),
        ("ell", "el"),
        ("pt-br", "pt"),
        ("zh-Hans-CN", "zh"),
        ("zho", "zh"),
        ("gsw", "de"),
        ("cs", "sk"),
        ("swe", "sv"),
    ],
)
def test_languages(tag, language):
    assert languages.resolve(tag) == language


@pytest.mark.parametrize("tag", ["german", "xx", "qqq", "", "e", "en us", "en-"])
def test_no_languages(tag):
    with pytest.raises(UserError, match=f"--language is {tag}: expected an ISO 639-1 code"):
        languages.resolve(tag)


def test_every_language_has_the_rules_that_are_said():
    """Where sentencex knows a relative, it splits as for that one."""
    text = "Am 3. Oktober kam Dr. Weiß. Ca. 5 Std. z. B. п. ст. pág. 4 EE. UU. fin. Τέλος; म. क. अ"
    for code, language in languages._RULES_OF.items():
        assert sentencex.segment(code, text) == sentencex.segment(language, text)


def test_a_language_without_rules_is_said(caplog):
    languages.warn_without_rules("es")
    assert not caplog.text
    languages.warn_without_rules("sv")
    assert "--language=sv: there are no rules for its sentences; those of English" in caplog.text


def test_line_numbers_continue_in_later_units():
    block = Block("f.jsonl", b'{"text": "a"}\n{"x": 1}\n', first_line=101)
    with pytest.raises(UserError, match=r"f\.jsonl, line 102: no field"):
        parsing.parse_unit(Unit("", "json", (block,)))
