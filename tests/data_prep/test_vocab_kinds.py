"""BPE and Unigram vocabularies: the same on every run, from files in any order; read by others."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest
import transformers
from corpora import make_documents, write_jsonl

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizers
from data_prep import build, check, vocab
from data_prep.options import BuildOptions
from data_prep.vocabulary.options import VocabOptions

UNIGRAM = pytest.param(
    "unigram",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("sentencepiece") is None, reason="trained by sentencepiece"
    ),
)
KINDS = ("bpe", UNIGRAM)
_TRAIN = """
import sys
from data_prep.vocab import VocabOptions, run
run(VocabOptions(tuple(sys.argv[3:]), kind=sys.argv[1], vocab_size=400), sys.argv[2])
"""


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    directory = tmp_path_factory.mktemp("halves")
    documents = make_documents(60)
    write_jsonl(directory / "a.jsonl", documents[:30])
    write_jsonl(directory / "b.jsonl", documents[30:])
    return [str(directory / name) for name in ("a.jsonl", "b.jsonl")]


@pytest.mark.parametrize("kind", KINDS)
def test_same_on_every_run(kind, halves, tmp_path):
    contents = set()
    for seed, threads, inputs in (("1", "1", halves), ("2", "2", halves[::-1])):
        environment = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        output = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", _TRAIN, kind, str(output), *inputs],
            env=os.environ | environment,
            check=True,
        )
        contents.add((output / "tokenizer.json").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["bert", "roberta"])
def test_what_it_writes(kind, names, halves, tmp_path):
    options = VocabOptions(tuple(halves), kind=kind, vocab_size=400, special_tokens=names)
    result = vocab.run(options, tmp_path / "t")
    ours = tokenizers.load(tmp_path / "t")
    assert ours == result.tokenizer and ours.kind == kind and not ours.lowercase
    assert ours.vocab_size == len({*ours.vocab}) <= 400
    assert result.unknown_share == 0 and 1 <= result.pieces_per_word < 3
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    text, mask = "Bakon dusk, the Bakon.", theirs.mask_token
    for segments in ((text,), (f"{text} {mask}x", text)):
        read = theirs(*segments, return_token_type_ids=True)
        ids, types = ours.lay_out(*map(ours.encode, segments))
        assert (read["input_ids"], read["token_type_ids"]) == (ids, types)
    if names == "roberta":
        assert ours.vocab[:4] == ("<s>", "<pad>", "</s>", "<unk>") and ours.vocab[-1] == "<mask>"
        assert ours.encode(f"a {mask}") == [*ours.encode("a"), ours.mask_id]  # takes the blank
    else:
        assert ours.vocab[:5] == tokenizers.SPECIAL_TOKENS and ours.writes_token_types


def test_a_lowercase_vocabulary_without_accents(halves):
    pytest.importorskip("sentencepiece")
    options = VocabOptions(tuple(halves), kind="unigram", vocab_size=300, lowercase=True)
    with pytest.raises(UserError, match="SentencePiece learnt no vocabulary"):
        vocab.run(dataclasses.replace(options, vocab_size=9))
    ours = vocab.run(options).tokenizer
    assert ours.lowercase and ours.encode("Dúsk") == ours.encode("dusk")


@pytest.mark.parametrize("objective", ["nsp", "full_sentences"])
def test_a_data_set_of_it_is_well_formed(objective, halves, tmp_path):
    """RoBERTa's layout, which has two special tokens between segments."""
    vocab.run(VocabOptions(tuple(halves), kind="bpe", vocab_size=400), tmp_path / "t")
    options = BuildOptions(
        tuple(halves), str(tmp_path / "t"), objective=objective, max_seq_length=64, num_shards=1
    )
    build.run(options, tmp_path / "data", workers=1)
    report = check.run(tmp_path / "data", workers=1)
    assert not report.problems
    assert not [m for m in report.measures if m.name == "malformed examples" and not m.is_healthy]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bpe", "vocab_size": 200}, "expected at least 261, for the 256 bytes"),
        ({"kind": "bpe", "alphabet_size": 9}, "--kind=bpe has no such limit"),
        ({"kind": "words"}, "--kind is words: expected one of wordpiece, bpe, unigram"),
        ({"special_tokens": "roberta"}, "bert, for --kind=wordpiece"),
    ],
)
def test_impossible_options(options, message, halves):
    with pytest.raises(UserError, match=message):
        vocab.run(VocabOptions(tuple(halves), **options))
