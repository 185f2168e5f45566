"""Reading words with labels: columns, lists, schemes, rows that cannot be used."""

import json

import numpy as np
import pytest
import subword_tokenizers as made
import transformers

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.tasks.tokens import TaggedSentence, TokenClassification, read_sentences
from configs.finetune import token_classification as recipe

TOKENIZER = tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *(f"w{i}" for i in range(50))))


def settings(**fields):
    config = recipe.get_config()
    config.update(fields)
    return config


def read_training(path, text, **fields):
    """(task, examples) of a training file of this text."""
    path.write_text(text)
    task = TokenClassification(settings(**fields), TOKENIZER)
    return task, task.read(str(path), training=True)


def columns(*sentences, separator=" "):
    """Lines of "word label" pairs, an empty line behind each sentence."""
    return "".join(
        "".join(f"{word}{separator}{label}\n" for word, label in sentence) + "\n"
        for sentence in sentences
    )


def test_sentences_of_conll_and_jsonl(tmp_path):
    conll = tmp_path / "x.conll"
    conll.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nbacks VBZ I-VP O\n\n\nBerlin NNP I-NP I-LOC"
    )
    jsonl = tmp_path / "x.jsonl"
    jsonl.write_text(
        '{"tokens": ["EU", "backs"], "tags": ["I-ORG", "O"]}\n'
        '{"tokens": ["Berlin"], "tags": ["I-LOC"]}\n'
    )
    for path, places in ((conll, (3, 7)), (jsonl, (1, 2))):
        assert read_sentences(str(path), settings()) == [
            TaggedSentence(f"{path}:{places[0]}", ("EU", "backs"), ("I-ORG", "O")),
            TaggedSentence(f"{path}:{places[1]}", ("Berlin",), ("I-LOC",)),
        ]
    # A no-break space belongs to its word: a number as French writes it.
    conll_of_numbers = tmp_path / "numbers.conll"
    conll_of_numbers.write_text("10\u00a0000\tQUANTITY \r\n")
    (number,) = read_sentences(str(conll_of_numbers), settings(tag_index=1))
    assert (number.words, number.labels) == (("10\u00a0000",), ("QUANTITY",))
    parts = read_sentences(str(conll), settings(tag_index=1))
    assert parts[0].labels == ("NNP", "VBZ")


def test_tabs_before_blanks(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("Ada\tB-PER\nlives\tO\nin\tO\nNew York\tB-LOC\n.\tO\n\n")
    for tag_index in (-1, 1):
        (sentence,) = read_sentences(str(path), settings(tag_index=tag_index))
        assert sentence.words == ("Ada", "lives", "in", "New York", ".")
        assert sentence.labels == ("B-PER", "O", "O", "B-LOC", "O")
    # A stray tab among blanks separates as they do.
    path.write_text("Ada NNP\tB-PER\nlives VBZ O\n")
    assert read_sentences(str(path), settings())[0].words == ("Ada", "lives")


CONLLU = """\
# sent_id = 1
# text = Vámonos al mar # ya
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
5.1\tvamos\tir\tVERB\t_\t_\t_\t_\t0:root\t_
6\t#\t#\tSYM\t_\t_\t1\tpunct\t_\t_
7\tya\tya\tADV\t_\t_\t1\tadvmod\t_\t_

# newpar
1\tSí\tsí\tINTJ\t_\t_\t0\troot\t_\t_

"""


def test_conllu(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_text(CONLLU)
    sentences = read_sentences(str(path), settings(word_index=1, tag_index=3))
    assert [x.words for x in sentences] == [
        ("Vamos", "nos", "a", "el", "mar", "#", "ya"), ("Sí",)
    ]  # fmt: skip
    assert sentences[0].labels == ("VERB", "PRON", "ADP", "DET", "NOUN", "SYM", "ADV")
    with pytest.raises(UserError, match=r"holds the words' numbers.*'1-2', 'Vámonos', .*index=1"):
        read_sentences(str(path), settings())


def test_comments_and_words_that_are_one(tmp_path):
    path = tmp_path / "x.conll"
    # As MultiCoNER: a comment with a tab before sentences of blanks.
    path.write_text(
        "# id 4a-7\tdomain=en\n# _ _ O\neins _ _ B-A\n\n# id 4a-8\tdomain=en\nzwei _ _ O\n"
    )
    sentences = read_sentences(str(path), settings())
    assert [x.words for x in sentences] == [("#", "eins"), ("zwei",)]
    # Further on in a sentence it is a word, and a line too short is said to be one.
    path.write_text("eins _ B-A\n# O\n")
    with pytest.raises(UserError, match=r"x\.conll:2 has 2 column\(s\) \('# O'\), the lines above"):
        read_sentences(str(path), settings())


def test_numbers_may_be_words(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text(columns([("1", "O"), ("2", "O")], [("7", "O"), ("films", "B-A")]))
    assert read_sentences(str(path), settings())[0].words == ("1", "2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.conll", "EU I-ORG\nbacks\n", r"x\.conll:2 has 1 column\(s\)"),
        ("x.conll", "\n\n", r"has no sentences"),
        ("x.jsonl", '{"tokens": ["a"]}\n', r"x\.jsonl:1 has no list 'tags', it has 'tokens'"),
        ("x.jsonl", '{"tokens": ["a"], "tags": []}\n', r"x\.jsonl:1 has 1 words and 0 labels"),
        (
            "x.jsonl",
            '{"tokens": ["a"], "tags": [null]}\n',
            r"x\.jsonl:1: the list 'tags' holds null",
        ),
        ("x.jsonl", '{"tokens": [NaN], "tags": ["O"]}\n', r"the list 'tokens' holds null"),
        ("x.jsonl", '{"tokens": NaN, "tags": ["O"]}\n', r"x\.jsonl:1 has nothing in 'tokens'"),
        ("x.jsonl", '{"tokens": ["a"], "tags": [""]}\n', r"x\.jsonl:1 has words without a label"),
        ("x.jsonl", '{"tokens": ["a"], "tags": [[1]]}\n', r"the list 'tags' holds a list or an"),
        # Not a word of class I-NP.
        (
            "x.conll",
            "EU NNP I-NP I-ORG\nbacks VBZ I-VP\n",
            r"x\.conll:2 has 3 column\(s\) \('backs VBZ I-VP'\), the lines above have 4",
        ),
        ("x.conll", "New York\tB-LOC\nis B-O\n", r"the lines above have 3.* by tabs only if every"),
    ],
)
@pytest.mark.parametrize("tag_index", [-1, 1])
def test_bad_sentences(name, content, message, tag_index, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_sentences(str(tmp_path / name), settings(tag_index=tag_index))


def test_sentences_without_a_label_are_skipped(tmp_path, caplog):
    rows = [{"tokens": ["w1", "w2"], "tags": ["B-A", "O"]} for _ in range(30)]
    rows[4]["tags"][1] = float("nan")  # json.dumps writes NaN
    rows[7] = {"tokens": [], "tags": []}
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_sentences(str(path), settings())) == 28
    assert "skipping 2 of 30 rows" in caplog.text and "x.jsonl:5: the list 'tags'" in caplog.text
    assert "x.jsonl:8 has no words" in caplog.text
    with pytest.raises(UserError, match=r"2 of 30 rows cannot be used, more than .*max_skipped"):
        read_sentences(str(path), settings(max_skipped=0.05))


PLAIN = [("the", "O"), ("skin", "B"), ("tumour", "I"), ("of", "O"), ("asthma", "B"), (".", "O")]
BIOES = [("Ada", "S-PER"), ("in", "O"), ("New", "B-LOC"), ("York", "E-LOC"), (".", "O")]


@pytest.mark.parametrize(
    ("sentence", "scheme", "labels", "read"),
    [
        (PLAIN, "BIO", ("O", "B", "I"), ("O", "B", "I", "O", "B", "O")),
        (
            BIOES,
            "BIOES, converted to BIO",
            ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"),
            ("B-PER", "O", "B-LOC", "I-LOC", "O"),
        ),
        (
            [("Ada", "U-PER"), ("New", "B-LOC"), ("York", "L-LOC")],
            "BILOU, converted to BIO",
            ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"),
            ("B-PER", "B-LOC", "I-LOC"),
        ),
        (
            [("Ada", "I-PER"), ("New", "I-LOC"), ("York", "I-LOC")],
            "IO, converted to BIO",
            ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"),
            ("B-PER", "B-LOC", "I-LOC"),
        ),
    ],
)
def test_schemes_become_bio(sentence, scheme, labels, read, tmp_path):
    task, examples = read_training(tmp_path / "x.conll", columns(sentence))
    assert (task.metric, task.scheme, task.labels) == ("f1", scheme, labels)
    assert examples[0].labels == read
    task, examples = read_training(tmp_path / "x.conll", columns(sentence), metric="accuracy")
    assert (task.metric, task.scheme) == ("accuracy", "")
    assert examples[0].labels == tuple(label for _, label in sentence)


def test_a_scheme_that_config_labels_names_is_kept(tmp_path):
    names = "O,B-LOC,I-LOC,E-LOC,S-LOC,B-PER,I-PER,E-PER,S-PER"
    task, examples = read_training(tmp_path / "x.conll", columns(BIOES), labels=names)
    assert (task.metric, task.scheme, ",".join(task.labels)) == ("f1", "BIOES", names)
    assert examples[0].labels == tuple(label for _, label in BIOES)
    # So is that of a model; the file may have another.
    task = TokenClassification(settings(), TOKENIZER)
    task.labels = tuple(names.split(","))
    (tmp_path / "y.conll").write_text(
        columns([("New", "B-LOC"), ("York", "I-LOC"), ("Ada", "I-PER")])
    )
    assert task.read(str(tmp_path / "y.conll"))[0].labels == ("B-LOC", "E-LOC", "S-PER")
    assert task.metric == "f1"


def test_labels_of_no_scheme(tmp_path):
    task, _ = read_training(tmp_path / "x.conll", columns([("a", "DT"), ("b", "NN")]))
    assert (task.metric, task.scheme, task.labels) == ("accuracy", "", ("DT", "NN"))
    with pytest.raises(UserError, match=r"word 1 \('a'\) has the label 'DT', which breaks"):
        read_training(tmp_path / "x.conll", columns([("a", "DT"), ("b", "NN")]), metric="f1")
    with pytest.raises(UserError, match=r"config\.metric='auc' is not one of '', 'accuracy', 'f1'"):
        read_training(tmp_path / "x.conll", columns([("a", "DT"), ("b", "NN")]), metric="auc")


@pytest.mark.parametrize("label", ["B_PER", "PER", "b-PER", "M-PER", "B", "o"])
def test_a_rare_label_that_breaks_the_scheme_is_named(label, tmp_path):
    sentences = [[("Ada", "B-PER"), ("sings", "O")]] * 20 + [[("so", "O"), ("Bob", label)]]
    with pytest.raises(
        UserError, match=rf"x\.conll:61, word 2 \('Bob'\) has the label '{label}'.*metric=accuracy"
    ):
        read_training(tmp_path / "x.conll", columns(*sentences))
    task, _ = read_training(
        tmp_path / "x.conll", columns(*sentences), labels=f"O,B-PER,{label}=B-PER,I-PER"
    )
    assert task.metric == "f1"


def test_class_weights_as_torch_weighs(tmp_path):
    torch = pytest.importorskip("torch")
    sentence = [("w1", "a"), ("w2", "b"), ("w3", "c")]
    task, _ = read_training(tmp_path / "x.conll", columns(sentence), class_weights="1,4,0.5")
    rng = np.random.default_rng(0)
    weights = torch.tensor([1, 4, 0.5])
    logits = rng.normal(0, 1, (3, 4, 3)).astype("f4")
    labels = np.array([[-1, 0, 1, -1], [-1, 2, 2, -1], [-1, 1, 1, -1]])
    batch = {"token_labels": labels, "weights": np.array([1, 1, 0], "f4")}
    ours = task.loss_sum(logits, batch) / task.loss_weight(batch)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits[:2]).flatten(0, 1),
        torch.tensor(labels[:2]).flatten(),
        weight=weights,
        ignore_index=-1,
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("maker", [made.byte_level, made.unigram])
def test_words_of_other_tokenizers_are_cut_as_within_a_text(maker, tmp_path):
    """As transformers does, which asks for add_prefix_space where words are given."""
    directory = maker(tmp_path)
    words = ["the", "river's", "café", ",", "Über"]
    task = TokenClassification(settings(max_seq_length=64), tokenizer.load(directory))
    (feature,) = task.windows([words])
    fields = {"add_prefix_space": True} if maker is made.byte_level else {}
    theirs = transformers.AutoTokenizer.from_pretrained(directory, **fields)
    read = theirs(words, is_split_into_words=True, return_token_type_ids=True)
    assert feature.arrays["input_ids"] == read["input_ids"]
    assert feature.arrays["token_type_ids"] == read["token_type_ids"]
    assert feature.origin == [read.word_ids().index(i) for i in range(len(words))]
