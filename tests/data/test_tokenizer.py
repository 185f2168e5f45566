"""The tokenizer: read back by transformers as it was written, and by us as others wrote it."""

import json
import sys
import types

import pytest
import tokenizers
import transformers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import files as hf_files

WORDS = (
    "the",
    "man",
    "##kind",
    "went",
    "un",
    "##aff",
    "##able",
    ",",
    ".",
    "!",
    "U",
    "naive",
    "naïve",
)
TEXTS = ["The mankind, unaffable man!", "Naïve the\tthe.", "xyzzy went", "[MASK] went ##kind"]


def make(lowercase: bool, strip_accents: bool | None = None) -> tokenizer.Tokenizer:
    vocab = (*tokenizer.SPECIAL_TOKENS, *WORDS)
    return tokenizer.WordPieceTokenizer(vocab, lowercase, strip_accents)


@pytest.mark.parametrize(
    ("lowercase", "strip_accents"), [(True, None), (False, None), (True, False), (False, True)]
)
def test_transformers_reads_what_we_write(tmp_path, lowercase, strip_accents):
    ours = make(lowercase, strip_accents)
    tokenizer.save(ours, tmp_path, model_max_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 64
    assert theirs.mask_token_id == ours.mask_id and theirs.pad_token_id == ours.pad_id
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
    assert theirs("the", "man")["token_type_ids"] == [0, 0, 0, 1, 1]
    again = tokenizer.load(tmp_path)
    assert again == ours and again.fingerprint == ours.fingerprint
    theirs.save_pretrained(tmp_path / "theirs")
    again = tokenizer.load(tmp_path / "theirs")
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text), text


def test_casing_changes_ids_and_fingerprint():
    assert make(True).encode("The") == [make(True).ids["the"]]
    assert make(False).encode("The") == [make(False).unknown_id]
    assert make(True).fingerprint != make(False).fingerprint
    # As German and Turkish models are.
    assert make(True, False).encode("Naïve") == [make(True).ids["naïve"]]
    assert make(True).encode("Naïve") == [make(True).ids["naive"]]
    assert make(True, False).fingerprint != make(True).fingerprint


def test_reads_a_directory_without_vocab_txt_and_a_bare_vocabulary(tmp_path):
    ours = make(False)
    tokenizer.save(ours, tmp_path)
    (tmp_path / "vocab.txt").rename(tmp_path / "bert-base-cased-vocab.txt")
    assert tokenizer.load(tmp_path) == ours
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert tokenizer.load(tmp_path / "bert-base-cased-vocab.txt") == ours
    (tmp_path / "bert-base-cased-vocab.txt").rename(tmp_path / "bert-base-uncased-vocab.txt")
    assert tokenizer.load(tmp_path / "bert-base-uncased-vocab.txt").lowercase


def write_vocab(path, words):
    path.parent.mkdir()
    path.write_text("\n".join([*tokenizer.SPECIAL_TOKENS, *words]) + "\n")


@pytest.mark.parametrize(
    ("name", "lowercase"),
    [
        ("cased_L-12_H-768_A-12/vocab.txt", False),
        ("uncased_L-12_H-768_A-12/vocab.txt", True),
        ("BERT-Base-Cased/vocab.txt", False),
        ("cased/bert-base-uncased-vocab.txt", True),
    ],
)
def test_a_bare_vocabulary_is_known_by_name(name, lowercase, tmp_path, monkeypatch):
    path = tmp_path / name
    write_vocab(path, ["the"] if not lowercase else ["the", "The"])
    assert tokenizer.load(path).lowercase is lowercase
    monkeypatch.chdir(path.parent)
    assert tokenizer.load(path.name).lowercase is lowercase
    if path.name == "vocab.txt":
        assert tokenizer.load(path.parent).lowercase is lowercase


@pytest.mark.parametrize(
    ("words", "lowercase"),
    [
        (["the", "The"], False),
        # No word with a capital: ℝ, in BERT's uncased vocabulary, has no small letter.
        (["the", "##The", "[Entity]", "[unused1]", "<S>", "ℝ"], True),
    ],
)
def test_a_bare_vocabulary_is_known_by_its_capitals(words, lowercase, tmp_path):
    write_vocab(tmp_path / "plain" / "vocab.txt", words)
    assert tokenizer.load(tmp_path / "plain" / "vocab.txt").lowercase is lowercase
    assert tokenizer.load(tmp_path / "plain").lowercase is lowercase


def test_the_config_beside_a_vocabulary_file_is_heeded(tmp_path):
    path = tmp_path / "uncased" / "vocab.txt"
    write_vocab(path, ["the"])
    config = path.parent / "tokenizer_config.json"
    config.write_text(json.dumps({"do_lower_case": False, "strip_accents": True}))
    got = tokenizer.load(path)
    assert got.lowercase is False and got.strip_accents is True
    config.write_text(json.dumps({"tokenize_chinese_chars": False}))
    with pytest.raises(UserError, match="Chinese characters"):
        tokenizer.load(path)


def test_a_hub_error_without_a_message(monkeypatch):
    def fail(*arguments, **keywords):
        raise TimeoutError

    fake = types.SimpleNamespace(snapshot_download=fail, list_repo_files=fail)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    for load in (tokenizer.load, hf_files.locate):
        with pytest.raises(UserError, match=r"could not be had .*\(TimeoutError\)"):
            load("no-such-model")


def test_an_earlier_download_does_where_the_hub_is_out_of_reach(monkeypatch, tmp_path):
    def fail(*arguments, **keywords):
        raise ConnectionError("offline mode is enabled")

    def snapshot_download(name, local_files_only=False, **keywords):
        return str(tmp_path) if local_files_only else fail()

    fake = types.SimpleNamespace(snapshot_download=snapshot_download, list_repo_files=fail)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(UserError, match="offline mode is enabled"):  # the tokenizer alone is there
        hf_files.locate("a-model")
    (tmp_path / "model.safetensors").write_text("")
    assert hf_files.locate("a-model") == tmp_path


def test_masks_of_the_vocabulary():
    tok = make(True)
    assert tok.is_special_V.tolist() == [True] * 5 + [False] * len(WORDS)
    assert [tok.vocab[i] for i in tok.is_continuation_V.nonzero()[0]] == [
        "##kind",
        "##aff",
        "##able",
    ]


def test_unusable_tokenizers_are_named(tmp_path):
    def message(source):
        with pytest.raises(UserError) as error:
            tokenizer.load(source)
        return str(error.value)

    assert "has no vocabulary" in message(tmp_path)
    assert "could not be had" in message(tmp_path / "nowhere")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    assert "has no [MASK]: expected tokens for padding" in message(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*tokenizer.SPECIAL_TOKENS, "a", "a"]))
    assert "'a' is listed twice, in the lines 6 and 7" in message(tmp_path)
    (tmp_path / "vocab.txt").write_text("\ufeff[PAD]\n")
    assert "byte order mark" in message(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    assert "cannot be read as a tokenizer" in message(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not JSON" in message(tmp_path)
    assert "give its directory" in message(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("normalizer", None, "normalizer's type is None, not 'BertNormalizer'"),
        ("normalizer", {"type": "Sequence", "normalizers": []}, "type is 'Sequence'"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer's type is 'Whitespace'"),
        ("model", {"type": "BPE"}, "cannot be read as a tokenizer"),
        ("model", {"type": "WordLevel"}, "model's type is 'WordLevel'"),
        ("model", {"unk_token": "<unk>"}, "unk_token is '<unk>'"),
        ("model", {"continuing_subword_prefix": ""}, "prefix is '', not '##'"),
    ],
)
@pytest.mark.parametrize("with_vocabulary", [True, False])
def test_other_parts_than_those_of_bert_are_refused(
    part, change, message, with_vocabulary, tmp_path
):
    tokenizer.save(make(False), tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    if not with_vocabulary:
        (tmp_path / "vocab.txt").unlink()
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole[part] = whole[part] | change if part == "model" else change
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=message):
        tokenizer.load(tmp_path)


def test_a_tokenizer_json_of_2020_does_not_name_its_model(tmp_path):
    tokenizer.save(make(False), tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    del whole["model"]["type"]
    path.write_text(json.dumps(whole))
    assert tokenizer.load(tmp_path) == make(False)
    assert tokenizers.Tokenizer.from_file(str(path)).get_vocab() == make(False).ids


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "a dictionary"),
        ("tokenizer_config.json", {"tokenize_chinese_chars": False}, "Chinese characters"),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, "not a BertTokenizer"),
        ("tokenizer_config.json", {"cls_token": "<s>"}, "has no <s>: expected"),
    ],
)
def test_tokenizers_that_do_more_are_refused(name, change, message, tmp_path):
    tokenizer.save(make(True), tmp_path)
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        tokenizer.load(tmp_path)
