"""BPE and Unigram directories: the ids are transformers', or the directory is refused."""

import json

import numpy as np
import pytest
import subword_tokenizers as made
import transformers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.data.masking import MaskingConfig, mask_tokens

PAIR = ("the river <mask> [MASK] x<mask>", "a sun")


def same_ids(directory, ours, texts=made.ODD_TEXTS):
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in (*texts, *PAIR):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
    for segments in (PAIR[:1], PAIR):
        read = theirs(*segments, return_token_type_ids=True)
        ids, types = ours.lay_out(*map(ours.encode, segments))
        assert (read["input_ids"], read["token_type_ids"]) == (ids, types)
    roles = (theirs.pad_token, theirs.unk_token, theirs.cls_token, theirs.sep_token)
    assert tuple(ours.roles) == (*roles, theirs.mask_token)


MAKERS = {
    "roberta": lambda path: made.byte_level(path),
    "plain bpe": lambda path: made.byte_level(path, "PreTrainedTokenizerFast"),
    "prefix": lambda path: made.byte_level(path, add_prefix_space=False),
    "plain unigram": lambda path: made.unigram(path),
    "albert": lambda path: made.unigram(path, "AlbertTokenizer"),
    "xlnet": lambda path: made.unigram(path, "XLNetTokenizer", do_lower_case=False),
}


@pytest.mark.parametrize("name", MAKERS)
def test_ids_and_layouts_are_those_of_transformers(name, tmp_path):
    ours = tokenizer.load(MAKERS[name](tmp_path / "theirs"))
    same_ids(tmp_path / "theirs", ours)
    tokenizer.save(ours, tmp_path / "ours")
    again = tokenizer.load(tmp_path / "ours")
    assert again.fingerprint == ours.fingerprint
    same_ids(tmp_path / "ours", again)


def test_what_roberta_and_xlnet_write_around_segments(tmp_path):
    roberta = tokenizer.load(made.byte_level(tmp_path / "bpe"))
    assert roberta.kind == "bpe" and not roberta.writes_token_types
    assert roberta.lay_out([9], [8, 7]) == ([0, 9, 2, 2, 8, 7, 2], [0] * 7)
    assert (roberta.num_special(1), roberta.num_special(2)) == (2, 4)
    assert (roberta.start_id, roberta.end_id, roberta.pad_id, roberta.unknown_id) == (0, 2, 1, 3)
    xlnet = tokenizer.load(made.unigram(tmp_path / "xlnet", "XLNetTokenizer"))
    assert xlnet.kind == "unigram" and xlnet.writes_token_types
    assert xlnet.lay_out([9], [10, 11]) == ([9, 4, 10, 11, 4, 3], [0, 0, 1, 1, 1, 2])
    assert xlnet.lay_out([9]) == ([9, 4, 3], [0, 0, 2])


def test_text_of_others_holds_no_special_tokens(tmp_path):
    for directory in (made.byte_level(tmp_path / "bpe"), made.unigram(tmp_path / "unigram")):
        ours = tokenizer.load(directory)
        text = " ".join(ours.roles)
        assert {ours.ids[token] for token in ours.roles} <= {*ours.encode(text)}
        ids = ours.text_backend.encode(text, add_special_tokens=False).ids
        unknown = {ours.unknown_id}  # a letter may be
        assert not ours.is_special_V[[i for i in ids if i not in unknown]].any()


def test_words_begin_where_albert_and_xlnet_say(tmp_path):
    ours = tokenizer.load(made.byte_level(tmp_path / "bpe"))
    starts = {x for x, c in zip(ours.vocab, ours.is_continuation_V, strict=True) if not c}
    assert {"Ġthe", "Ġ", ",", ".", "<s>", "<mask>"} <= starts
    assert not {"e", "é", "5", "Ã", "iver"} & starts
    unigram = tokenizer.load(made.unigram(tmp_path / "unigram"))
    starts = {x for x, c in zip(unigram.vocab, unigram.is_continuation_V, strict=True) if not c}
    assert {"▁the", "▁", ",", "“", "北"} <= starts and not {"e", "ing", "5"} & starts


def test_a_word_alone_is_cut_as_within_a_text(tmp_path):
    for directory in (made.byte_level(tmp_path / "bpe"), made.unigram(tmp_path / "unigram")):
        ours = tokenizer.load(directory)
        assert ours.encode("a") + ours.encode_word("river") == ours.encode("a river")
        ((ids, offsets),) = ours.encode_with_offsets(["the river"])
        assert len(ids) == len(offsets) and {start for start, _ in offsets} >= {0, 4}


@pytest.mark.parametrize("maker", [made.byte_level, made.unigram])
def test_whole_words_are_masked(maker, tmp_path):
    ours = tokenizer.load(maker(tmp_path))
    ids, _ = ours.lay_out(ours.encode("Unlikely rivers, the mouths of them and warmth"))
    input_ids_BL = np.array([ids] * 64)
    config = MaskingConfig(0.4, 12, mask_fraction=1.0, random_fraction=0.0, whole_word=True)
    masked = mask_tokens(
        np.random.default_rng(0),
        input_ids_BL,
        np.full(64, len(ids)),
        config,
        mask_id=ours.mask_id,
        is_special_V=ours.is_special_V,
        is_continuation_V=ours.is_continuation_V,
    )
    is_masked_BL = masked.input_ids_BL == ours.mask_id
    continues_L = ours.is_continuation_V[ids]
    assert 0 < is_masked_BL.mean() < 0.5 and continues_L.sum() > 5
    # Behind a special token, <unk> too, a unit begins anew.
    (inside_L,) = np.nonzero(continues_L & np.append(False, ~ours.is_special_V[ids][:-1]))
    np.testing.assert_array_equal(is_masked_BL[:, inside_L], is_masked_BL[:, inside_L - 1])


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", lambda x: x["model"].update(dropout=0.1), "drops merges at random"),
        (
            "tokenizer.json",
            lambda x: x["pre_tokenizer"].update(add_prefix_space=True),
            "contradict",
        ),
        ("tokenizer.json", lambda x: x.update(normalizer={"type": "Lowercase"}), "contradict"),
        ("tokenizer_config.json", lambda x: x.update(tokenizer_class="GPT2Tokenizer"), "is a GPT2"),
        (
            "tokenizer.json",
            lambda x: x["post_processor"].update(sep=["<pad>", 1]),
            "lays out pairs",
        ),
    ],
)
def test_what_transformers_reads_otherwise_is_refused(file, change, message, tmp_path):
    edit(made.byte_level(tmp_path) / file, change)
    with pytest.raises(UserError, match=message):
        tokenizer.load(tmp_path)


def test_a_layout_of_another_form_is_refused(tmp_path):
    made.unigram(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda x: x.update(post_processor=None))
    with pytest.raises(UserError, match="does not say which special tokens"):
        tokenizer.load(tmp_path)


def test_vocab_json_and_merges(tmp_path):
    ours = tokenizer.load(made.byte_level(tmp_path / "whole"))
    tokenizer.save(ours, tmp_path / "parts")
    (tmp_path / "parts" / "tokenizer.json").unlink()
    edit(tmp_path / "parts" / "tokenizer_config.json", lambda x: x.update(tokenizer_class=None))
    with pytest.raises(UserError, match="does not say whose tokenizer it is"):
        tokenizer.load(tmp_path / "parts")
    (tmp_path / "parts" / "config.json").write_text('{"model_type": "roberta"}')
    same_ids(tmp_path / "parts", tokenizer.load(tmp_path / "parts"))


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "CamembertTokenizer", "AlbertTokenizer"])
def test_models_of_sentencepiece(name, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "words.tsv").write_text(
        "".join(f"{word}\t{3}\n" for text in made.TEXTS * 3 for word in text.split())
    )
    special = {"user_defined_symbols": ["(", ".", "<x>"], "control_symbols": ["[CLS]", "[SEP]"]}
    extra = {"unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_id": 0, "pad_piece": "<pad>"}
    is_albert = name == "AlbertTokenizer"
    file = "spiece.model" if is_albert else "sentencepiece.bpe.model"
    with (tmp_path / file).open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "words.tsv"),
            input_format="tsv",
            model_writer=model,
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
            **(
                {**extra, **special, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
                if is_albert
                else {}
            ),
        )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    ours = tokenizer.load(tmp_path)
    same_ids(tmp_path, ours)
    (tmp_path / file).write_bytes(b"no model")
    with pytest.raises(UserError, match="not a model of SentencePiece"):
        tokenizer.load(tmp_path)
