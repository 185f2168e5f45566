"""Stage 1: units, splits, merging, reading back."""

import concurrent.futures
import shutil
import time

import numpy as np
import pytest
from corpora import make_documents
from etils import epath

from bert_jax import files
from data_prep.examples import token_store
from data_prep.examples.token_store import Store, choose_split
from data_prep.examples.wordpiece_encoder import WordPieceEncoder
from data_prep.sources import corpus

UINT = np.uint64


def make_store(directory, tokenizer, units, fraction=0.1, smallest=1, deduplicate=False):
    """Tokenises lists of texts, one unit each of source 0, 1, … and merges them."""
    directory = epath.Path(directory)
    (directory / "units").mkdir(parents=True)
    encoder = WordPieceEncoder(tokenizer)
    for i, texts in enumerate(units):
        token_store.tokenize_unit(
            corpus.Unit(f"{i:03d}-000000-000000", "stream", texts=tuple(texts)),
            encoder,
            directory / "units",
            language="en",
            sentence_per_line=False,
            max_decode_errors=0,
        )
    summary = token_store.merge(
        sorted((directory / "units").iterdir()),
        directory / "store",
        tokenizer,
        validation_fraction=fraction,
        smallest_split=smallest,
        deduplicate=deduplicate,
    )
    token_store.complete(directory / "store", summary)
    return summary


def texts_of(store, tokenizer):
    for document in range(len(store.document_offsets) - 1):
        first, last = store.document_offsets[document : document + 2].tolist()
        offsets = store.sentence_offsets(first, last).tolist()
        yield tokenizer.decode(store.tokens(offsets[:1], [offsets[-1] - offsets[0]]))


def test_everything_comes_back_in_order(tmp_path, tokenizer):
    documents = make_documents(60)
    summary = make_store(tmp_path, tokenizer, [documents[:25], documents[25:]])
    stores = {s: Store(tmp_path / "store", s, tokenizer.vocab_size) for s in token_store.SPLITS}
    held_out = set(np.fromfile(tmp_path / "store" / "validation" / "hashes.bin", "<u8").tolist())
    expected = {"train": [], "validation": []}
    for text in documents:
        split = "validation" if token_store.content_hash(text) in held_out else "train"
        expected[split].append(tokenizer.decode(tokenizer.encode(text)))
    for split, store in stores.items():
        assert list(texts_of(store, tokenizer)) == expected[split]
        assert summary["splits"][split]["documents"] == len(expected[split])
        store.close()
    assert summary["counts"]["documents"] == 60
    assert sum(stores["train"].documents_of_source.values()) == len(expected["train"])


def test_tokens_of_runs(tmp_path, tokenizer):
    summary = make_store(tmp_path, tokenizer, [make_documents(5)], fraction=0)
    store = Store(tmp_path / "store", "train", tokenizer.vocab_size)
    everything = store.tokens([0], [summary["splits"]["train"]["tokens"]])
    assert store.tokens([0, 9], [2, 1]).tolist() == everything[[0, 1, 9]].tolist()
    store.close()


def test_long_sentences_are_cut_and_empty_ones_dropped():
    lengths, pieces = token_store._cut_long(np.array([3, 0, 600]))
    assert lengths.tolist() == [3, 256, 256, 88]
    assert pieces.tolist() == [1, 0, 3]


def test_document_without_tokens_is_empty(tmp_path, tokenizer):
    summary = make_store(tmp_path, tokenizer, [["\u200b\u200b", "bako."]], fraction=0)
    assert summary["counts"]["documents"] == 1
    assert summary["counts"]["empty_documents"] == 1


@pytest.mark.parametrize(
    ("hashes", "fraction", "smallest", "held_out"),
    [
        ([1, 2, 3, 4], 0.0, 1, []),
        ([1 << 62, 2 << 62, 3 << 62], 0.5, 1, [1 << 62]),
        ([1 << 60, 2 << 62, 3 << 62, (3 << 62) + 1], 0.01, 1, [1 << 60]),  # one at least
        ([1 << 60, 2 << 62, 3 << 62, (3 << 62) + 1], 0.01, 2, [1 << 60, 2 << 62]),
        ([5, 6, 7], 0.99, 1, [5, 6]),  # one stays
        ([5, 6, 7], 0.5, 2, []),  # too few for two on each side
        ([5, 5, 5], 0.5, 1, []),  # duplicates stay together
        ([9], 0.5, 1, []),
    ],
)
def test_choose_split(hashes, fraction, smallest, held_out):
    hashes = np.array(hashes, UINT)
    splitter = choose_split([hashes[:2], hashes[2:]], fraction, smallest)
    assert hashes[splitter.is_validation(hashes)].tolist() == held_out


def test_split_depends_on_content_alone():
    assert token_store.content_hash("a b\nc") == token_store.content_hash(" a b \n\n c")
    assert token_store.content_hash("a b") != token_store.content_hash("a b c")


def test_duplicates_are_kept_once_on_request(tmp_path, tokenizer):
    documents = make_documents(30)
    units = [documents, documents[:10], documents[5:15]]
    for deduplicate, expected in ((False, 50), (True, 30)):
        summary = make_store(tmp_path / str(deduplicate), tokenizer, units, deduplicate=deduplicate)
        assert sum(s["documents"] for s in summary["splits"].values()) == expected
        assert summary["counts"]["duplicate_documents"] == 50 - expected


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """The temporary directory of a machine for which paths with "remote" in them are remote."""
    monkeypatch.setattr(files, "is_remote", lambda path: "remote" in str(path))
    directory = tmp_path / "disk"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


def directories(path):
    return [entry for entry in path.iterdir() if entry.is_dir()]


@pytest.fixture
def copied(monkeypatch):
    """The names of the files that are copied, one after another, slowly."""
    names = []
    path_class = type(epath.Path("."))
    copy = path_class.copy

    def slow(self, target, overwrite=False):
        names.append(self.name)
        time.sleep(0.01)
        return copy(self, target, overwrite)

    monkeypatch.setattr(path_class, "copy", slow)
    return names


def test_remote_stores_are_copied_once(tmp_path, tokenizer, disk):
    summary = make_store(tmp_path / "remote", tokenizer, [make_documents(20)])
    for _ in range(2):
        store = Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size)
        assert len(store.tokens([0], [10])) == 10
        store.close()
        [copy] = directories(disk)
        (tmp_path / "remote" / "store" / "train" / "tokens.bin").write_bytes(b"gone")
    assert (copy / "train" / "tokens.bin").stat().st_size == 2 * summary["splits"]["train"][
        "tokens"
    ]
    token_store.remove_copy(epath.Path(tmp_path / "remote" / "store"))
    assert not list(disk.iterdir())


def test_readers_at_once_make_one_copy(tmp_path, tokenizer, disk, copied):
    make_store(tmp_path / "remote", tokenizer, [make_documents(20)])

    def read(_):
        store = Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size)
        store.close()
        return len(store.document_offsets)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(read, range(4)))) == 1
    assert len(copied) == 6  # three files of two splits
    assert len(directories(disk)) == 1


def test_a_copy_that_fails_leaves_nothing(tmp_path, tokenizer, disk, copied, monkeypatch):
    make_store(tmp_path / "remote", tokenizer, [make_documents(20)])

    def fill_up(_):
        if len(copied) == 4:
            raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", fill_up)
        with pytest.raises(OSError, match="disk full"):
            Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size)
    assert len(copied) == 4
    assert not directories(disk)
    Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size).close()


def test_what_a_killed_process_copied_is_no_obstacle(tmp_path, tokenizer, disk):
    make_store(tmp_path / "remote", tokenizer, [make_documents(20)])
    Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size).close()
    [copy] = directories(disk)
    (copy / "store.json").unlink()
    copy.rename(f"{copy}.partial")
    Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size).close()
    assert directories(disk) == [copy]


def test_a_copy_of_an_earlier_store_is_not_taken(tmp_path, tokenizer, disk):
    """The two have the same counts: the second has the same documents in another order."""
    documents = make_documents(20)
    for texts in (documents, documents[::-1]):
        shutil.rmtree(tmp_path / "remote", ignore_errors=True)
        make_store(tmp_path / "remote", tokenizer, [texts], fraction=0)
        store = Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size)
        expected = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
        assert list(texts_of(store, tokenizer)) == expected
        store.close()
