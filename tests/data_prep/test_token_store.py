"""Stage 1: units, splits, merging, reading back."""

import numpy as np
import pytest
from corpora import make_documents
from etils import epath

from data_prep import corpus, token_store
from data_prep.fast_encoder import FastEncoder
from data_prep.token_store import Store, choose_split

UINT = np.uint64


def make_store(directory, tokenizer, units, fraction=0.1, smallest=1, deduplicate=False):
    """Tokenises lists of texts, one unit each of source 0, 1, … and merges them."""
    directory = epath.Path(directory)
    (directory / "units").mkdir(parents=True)
    encoder = FastEncoder(tokenizer)
    for i, texts in enumerate(units):
        token_store.tokenize_unit(
            corpus.Unit(f"{i:03d}-000000-000000", i, "stream", texts=tuple(texts)),
            encoder,
            directory / "units",
            language="en",
            sentence_per_line=False,
            max_decode_errors=0,
        )
    return token_store.merge(
        token_store.unit_files(directory / "units"),
        directory / "store",
        tokenizer,
        validation_fraction=fraction,
        smallest_split=smallest,
        deduplicate=deduplicate,
    )


def texts_of(store, tokenizer):
    for document in range(store.num_documents):
        first, last = store.document_offsets[document : document + 2].tolist()
        offsets = store.sentence_offsets(first, last).tolist()
        yield tokenizer.decode(store.tokens(offsets[:1], [offsets[-1] - offsets[0]]))


def test_everything_comes_back_in_order(tmp_path, tokenizer):
    documents = make_documents(60)
    summary = make_store(tmp_path, tokenizer, [documents[:25], documents[25:]])
    stores = {s: Store(tmp_path / "store", s, tokenizer.vocab_size) for s in token_store.SPLITS}
    held_out = set(stores["validation"].hashes.tolist())
    expected = {"train": [], "validation": []}
    for text in documents:
        split = "validation" if token_store.content_hash(text) in held_out else "train"
        expected[split].append(tokenizer.decode(tokenizer.encode(text)))
    for split, store in stores.items():
        assert list(texts_of(store, tokenizer)) == expected[split]
        assert store.counts["documents"] == len(expected[split])
        store.close()
    assert summary["counts"]["documents"] == 60
    assert sum(stores["train"].documents_of_source.values()) == len(expected["train"])


def test_tokens_of_runs(tmp_path, tokenizer):
    make_store(tmp_path, tokenizer, [make_documents(5)], fraction=0)
    store = Store(tmp_path / "store", "train", tokenizer.vocab_size)
    everything = store.tokens([0], [store.counts["tokens"]])
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


def test_remote_stores_are_copied_once(tmp_path, tokenizer, monkeypatch):
    make_store(tmp_path / "remote", tokenizer, [make_documents(20)])
    monkeypatch.setattr(token_store, "is_remote", lambda path: "remote" in str(path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()
    for _ in range(2):
        store = Store(tmp_path / "remote" / "store", "train", tokenizer.vocab_size)
        assert len(store.tokens([0], [10])) == 10
        store.close()
        [copy] = (tmp_path / "disk").iterdir()
        (tmp_path / "remote" / "store" / "train" / "tokens.bin").write_bytes(b"gone")
    assert (copy / "train" / "tokens.bin").stat().st_size == 2 * store.counts["tokens"]
