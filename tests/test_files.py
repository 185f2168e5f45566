"""Files are there whole or not at all, whoever reads, writes or fails meanwhile."""

import ast
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import threading

import pytest
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_texts_and_bytes_replace_what_was_there(tmp_path):
    files.write_whole(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    files.write_whole(str(tmp_path / "a"), b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_what_was_there_stays_where_writing_fails(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError("no space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(type(epath.Path(tmp_path)), failing, fail)
    with pytest.raises(OSError, match="no space"):
        files.write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_links_stay_links_and_pipes_are_written_to(tmp_path, capfd):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.write_whole(tmp_path / "link", "content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "content"
    files.write_whole("/dev/stderr", "said")
    assert capfd.readouterr().err == "said"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no memory to write files to")
def test_a_file_in_shared_memory_is_a_file():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = os.path.join(directory, "file")
        assert not files.is_stream(path)
        assert files.is_stream("/dev/stdout") and files.is_stream("/dev/fd/1")


def test_locks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "one", "two"):
        with files.lock(path, "held"), pytest.raises(UserError, match="in use"):
            files.lock(path, "in use")
        files.lock(path, "in use").close()
    assert files.lock("gs://bucket/lock", "in use") is None


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / files.LOCK_FILE).mkdir()  # for an administrator no directory is read-only
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written to"):
        files.lock(tmp_path / files.LOCK_FILE, "in use")


def test_bytes_are_on_the_disk_before_the_name_is_and_then_the_name_is(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        status = os.fstat(descriptor)
        what = "folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes"
        synced.append((what, (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_whole(tmp_path / "file", "content")
    assert synced == [("7 bytes", False), ("folder", True)]


def test_json_that_is_not_what_was_written_is_recognised(tmp_path):
    path = epath.Path(tmp_path / "file.json")
    value = {"rate": 1e-4, "sizes": (1, 2), "by_step": {40: "a"}}
    files.write_json(path, value)
    assert files.read_json(path) == {"rate": 1e-4, "sizes": [1, 2], "by_step": {"40": "a"}}
    path.write_text(path.read_text().replace("0.0001", "0.0002"))
    with pytest.raises(files.DamagedError, match=r"file\.json is corrupted: its contents do not"):
        files.read_json(path)
    path.write_text('{"of": "others"}')
    assert files.read_json(path) == {"of": "others"}
    for content in (b"", b'{"a": 1', b"[1]", b"\xff{}", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(files.DamagedError, match=r"file\.json is not (JSON|a JSON object)"):
            files.read_json(path)


def test_size_and_time_of_a_file_whose_owner_has_no_name(tmp_path, monkeypatch):
    def fail(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", fail)
    (tmp_path / "file").write_text("content")
    os.utime(tmp_path / "file", (1, 2.5))
    assert files.size_and_time(tmp_path / "file") == (7, 2)


def test_a_reader_never_sees_a_part_of_what_several_write(tmp_path):
    contents = ["a" * 100_000, "b" * 100_000]
    files.write_whole(tmp_path / "file", contents[0])

    def write(content: str) -> None:
        for _ in range(50):
            files.write_whole(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert (tmp_path / "file").read_text() in contents
    assert names(tmp_path) == ["file"]


def test_a_reader_of_lines_may_leave():
    program = "from bert_jax.cli import print_lines; print_lines(map(str, range(10**6)))"
    shell = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{program}" | head -n 1; exit ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (shell.stdout, shell.stderr, shell.returncode) == ("0\n", "", 0)


def test_a_bucket_has_no_local_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(files.absolute("gs://bucket/run")) == "gs://bucket/run"
    assert files.absolute("run") == epath.Path(tmp_path.resolve()) / "run"


def test_no_module_but_files_asks_a_path_for_its_local_form():
    """Of a path on gs://, etils' resolve() and absolute() are local paths, without an error."""
    root = pathlib.Path(__file__).resolve().parent.parent
    found = []
    for path in (p for folder in ("bert_jax", "data_prep") for p in (root / folder).rglob("*.py")):
        if path == root / "bert_jax" / "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            method = node.func.attr in ("resolve", "absolute") and not node.args
            if method or node.func.attr in ("abspath", "realpath"):
                found.append(f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}")
    assert not found, "use files.absolute"
