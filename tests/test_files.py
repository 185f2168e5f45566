"""Files are there whole or not at all, whoever reads, writes or fails meanwhile."""

import threading

import pytest
from etils import epath

from bert_jax import files


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
