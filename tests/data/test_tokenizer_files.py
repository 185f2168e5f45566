"""Directories as users have them: the ids are transformers', or the directory is refused."""

import itertools
import json
import shutil

import pytest
import transformers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer

WORDS = (
    *("the", "river", "##s", "sun", "drug", "##1", "[unused1]", "[unused2]", "naive", "naïve"),
    *("e", "The", "River", "s", "x", "##the", "##x", "[", "]", "1", "tail", "!"),
)
VOCAB = (*tokenizer.SPECIAL_TOKENS, *WORDS)
TEXTS = (
    "the rivers sun",
    "The Rivers naïve NAÏVE, naive!",
    "the drug1 sun [DRUG] drug1s xdrug1x DRUG1 [drug] [DRUG]the",
    "x [unused1] the [unused2]sun [UNUSED1] tail tails Tail xtail",
    "[MASK] the[MASK] [CLS] 1  [ unused1 ]\t北京 the",
)


def edit(path, **fields):
    """Changes fields of a JSON file; None removes one."""
    value = json.loads(path.read_text()) if path.exists() else {}
    value = {name: x for name, x in (value | fields).items() if x is not ...}
    path.write_text(json.dumps(value))


def added(content, index, **flags):
    return {"id": index, "content": content, "special": False, "normalized": True} | {
        **{"lstrip": False, "rstrip": False, "single_word": False},
        **flags,
    }


def decoder(*tokens):
    return {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in tokens}


def edit_json(directory, change):
    """Changes tokenizer.json by a function, if the directory has one."""
    path = directory / "tokenizer.json"
    if path.exists():
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))


def gap(directory):
    edit_json(directory, lambda value: value["model"]["vocab"].pop("drug"))


def other_vocab_txt(directory):
    if (directory / "tokenizer.json").exists():
        (directory / "vocab.txt").write_text("\n".join(token for token in VOCAB if token != "drug"))


def added_tokens_json(directory):
    edit(directory / "added_tokens.json", **{"[DRUG]": len(VOCAB), "drug1": len(VOCAB) + 1})
    edit(directory / "special_tokens_map.json", additional_special_tokens=["[DRUG]"])


def marks_of_entities(directory):
    edit(directory / "tokenizer_config.json", additional_special_tokens=["[unused1]", "[unused2]"])


def words_that_are_there(directory):
    extra = [added("tail", VOCAB.index("tail")), added("[DRUG]", len(VOCAB), special=True)]
    edit_json(directory, lambda value: value["added_tokens"].extend(extra))


def only_words(directory):
    extra = [added("tail", VOCAB.index("tail"), single_word=True)]
    edit_json(directory, lambda value: value["added_tokens"].extend(extra))


def added_tokens_decoder(directory):
    own = [
        added(token, i, special=True, normalized=False)
        for i, token in enumerate(tokenizer.SPECIAL_TOKENS)
    ]
    marks = [added("[DRUG]", len(VOCAB), special=True, normalized=False, lstrip=True)]
    edit(directory / "tokenizer_config.json", added_tokens_decoder=decoder(*own, *marks))


def cased(directory):
    edit(directory / "tokenizer_config.json", do_lower_case=False)


def silent(directory):
    edit(directory / "tokenizer_config.json", do_lower_case=...)


def cased_inside(directory):
    edit_json(directory, lambda value: value["normalizer"].update(lowercase=False))


def blank_lines(directory):
    if not (directory / "tokenizer.json").exists():
        text = (directory / "vocab.txt").read_text()
        (directory / "vocab.txt").write_text(text.replace("river\n", "\nriver\n\n"))


def accents(directory):
    edit(directory / "tokenizer_config.json", strip_accents=False)


def plain_class(directory):
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def model_config_alone(directory):
    edit(directory / "config.json", model_type="bert")
    edit(directory / "tokenizer_config.json", tokenizer_class=...)


def mask_with_blanks(directory):
    mask = {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False}
    edit(directory / "special_tokens_map.json", mask_token=mask)


KINDS = (
    *(gap, other_vocab_txt, added_tokens_json, marks_of_entities, words_that_are_there),
    *(only_words, added_tokens_decoder, cased, silent, cased_inside, blank_lines, accents),
    *(plain_class, model_config_alone, mask_with_blanks),
)


def theirs_of(directory, ours):
    """transformers' tokenizer; told the case where nothing in the directory tells it."""
    if (directory / "tokenizer.json").exists():
        return transformers.AutoTokenizer.from_pretrained(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    told = {} if "do_lower_case" in config else {"do_lower_case": ours.lowercase}
    return transformers.BertTokenizer.from_pretrained(directory, **told)


@pytest.mark.parametrize("with_json", [False, True])
def test_ids_are_those_of_transformers_or_refused(with_json, tmp_path):
    """Every kind, and every pair of kinds: 120 directories of each form."""
    read, refused = [], []
    tokenizer.save(tokenizer.WordPieceTokenizer(VOCAB), tmp_path / "base")
    (tmp_path / "base" / ("vocab.txt" if with_json else "tokenizer.json")).unlink()
    pairs = [(kind,) for kind in KINDS] + [*itertools.combinations(KINDS, 2)]
    for pair in pairs:
        name = "-".join(kind.__name__ for kind in pair)
        directory = tmp_path / name
        shutil.copytree(tmp_path / "base", directory)
        for kind in pair:
            kind(directory)
        try:
            ours = tokenizer.load(directory)
        except UserError:
            refused.append(name)
            continue
        read.append(name)
        theirs = theirs_of(directory, ours)
        for text in TEXTS:
            expected = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text) == expected, (name, text, ours.added)
        assert len(ours.vocab) == max(theirs.get_vocab().values()) + 1, name
        # What we write is the same tokenizer, to us and to transformers.
        tokenizer.save(ours, directory / "again")
        assert tokenizer.load(directory / "again") == ours, name
        theirs = transformers.AutoTokenizer.from_pretrained(directory / "again")
        for text in TEXTS:
            assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), name
    assert len(read) >= 60, refused
    print(len(read), refused)


def write(directory, **texts):
    directory.mkdir()
    for name, text in texts.items():
        text = text if isinstance(text, str) else json.dumps(text)
        (directory / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(text)


BERT = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


@pytest.mark.parametrize(
    ("words", "config", "text", "expected"),
    [
        # Two blank lines: ids are line numbers.
        (("the", "", "", "sun", "river", "##s"), BERT, "the rivers sun", [5, 9, 10, 8]),
        # Nothing is said of case: the vocabulary has capitals.
        (("the", "The", "River", "river"), {"model_max_length": 512}, "The River", [6, 7]),
    ],
)
def test_vocabularies(words, config, text, expected, tmp_path, caplog):
    vocab = "\n".join([*tokenizer.SPECIAL_TOKENS, *words])
    write(tmp_path / "dir", vocab_txt=vocab, tokenizer_config_json=config)
    assert tokenizer.load(tmp_path / "dir").encode(text) == expected


def test_added_tokens_beside_a_vocabulary(tmp_path):
    vocab = "\n".join([*tokenizer.SPECIAL_TOKENS, "the", "sun", "river", "##s", "drug", "##1"])
    write(
        tmp_path / "dir",
        vocab_txt=vocab,
        tokenizer_config_json=BERT,
        added_tokens_json={"[DRUG]": 11, "drug1": 12},
        special_tokens_map_json={"additional_special_tokens": ["[DRUG]"]},
    )
    ours = tokenizer.load(tmp_path / "dir")
    assert ours.encode("the drug1 sun [DRUG]") == [5, 12, 6, 11]
    assert (
        ours.vocab_size == 13
        and ours.fingerprint != tokenizer.WordPieceTokenizer(ours.vocab).fingerprint
    )
    # Text of others has marks of entities, and no masks.
    assert ours.text_backend.encode("[MASK] [DRUG]").ids == [1, 1, 1, 11]


def test_a_gap_and_another_vocab_txt(tmp_path, caplog):
    whole = tokenizer.WordPieceTokenizer(
        (*tokenizer.SPECIAL_TOKENS, "the", "sun", "hole", "river", "##s")
    )
    tokenizer.save(whole, tmp_path)
    edit_json(tmp_path, lambda value: value["model"]["vocab"].pop("hole"))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(token for token in whole.vocab if token != "hole")
    )
    ours = tokenizer.load(tmp_path)
    assert ours.encode("the rivers sun") == [5, 8, 9, 6] and ours.vocab[7] == ""
    assert "vocab.txt has other ids than tokenizer.json" in caplog.text
    assert ours.is_special_V.tolist() == [True] * 5 + [False, False, True, False, False]
    assert tokenizer.load(tmp_path / "tokenizer.json") == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": {"[PAD]": -1}}, r"'\[PAD\]' has id -1"),
        ({"vocab": {"[PAD]": 2**40}}, "has id 1099511627776"),
        ({"vocab": {"[PAD]": 10**30}}, "beyond 64 bits"),
        ({"vocab": {"[PAD]": 5, "the": 5}}, r"'\[PAD\]' and 'the' both have id 5"),
        ({"vocab": {"[PAD]": "0"}}, r"'model.vocab.\[PAD\]' is '0', expected a whole number"),
        ({"vocab": ["[PAD]"]}, "expected an object"),
        ({"max_input_chars_per_word": "x"}, "cannot be read as a tokenizer .*expected usize"),
    ],
)
def test_crafted_vocabularies_are_refused(change, message, tmp_path):
    tokenizer.save(tokenizer.WordPieceTokenizer(VOCAB), tmp_path)
    edit_json(tmp_path, lambda value: value["model"].update(change))
    with pytest.raises(UserError, match=message):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": 90, "content": "[E1]"}]}, "single_word"),
        ("tokenizer.json", {"added_tokens": {"a": 1}}, "'added_tokens' is .* expected a list"),
        ("tokenizer.json", {"normalizer": 7}, "'normalizer' is 7, expected an object"),
        ("tokenizer_config.json", {"do_lower_case": "no"}, "'do_lower_case' is 'no', expected"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "has the id 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": {}}}, "3 has no content"),
        ("tokenizer_config.json", {"mask_token": ["[MASK]"]}, "'mask_token' is"),
        ("added_tokens.json", {"[DRUG]": "7"}, "'.*DRUG.*' is '7', expected a whole number"),
        ("added_tokens.json", {"[DRUG]": 90}, "said to have id 90, and transformers gives it 27"),
    ],
)
def test_crafted_files_are_refused(file, fields, message, tmp_path):
    tokenizer.save(tokenizer.WordPieceTokenizer(VOCAB), tmp_path)
    edit(tmp_path / file, **fields)
    with pytest.raises(UserError, match=message):
        tokenizer.load(tmp_path)


def test_a_length_of_words_of_its_own(tmp_path):
    """Its class is one of which transformers takes tokenizer.json as it is."""
    ours = tokenizer.WordPieceTokenizer(
        (*tokenizer.SPECIAL_TOKENS, "a", "##a"), max_word_length=120
    )
    tokenizer.save(ours, tmp_path)
    assert tokenizer.load(tmp_path) == ours and ours.encode("a" * 121) == [ours.unknown_id]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a" * 110)["input_ids"][1:-1] == ours.encode("a" * 110)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    with pytest.raises(UserError, match="words of up to 100 and 120 characters"):
        tokenizer.load(tmp_path)


def test_what_is_no_file_is_not_read(tmp_path):
    (tmp_path / "vocab.txt").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is not a regular file"):
        tokenizer.load(tmp_path)
