"""Reading, joining, batching and scoring, against transformers and scikit-learn where they can."""

import functools
import json
import sys
import types

import datasets
import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics
import transformers

from bert_jax.cli import UserError
from bert_jax.data import batching, tokenizer
from bert_jax.tasks import answers as question_answering
from bert_jax.tasks import base, classes, kinds, scores, tables
from bert_jax.tasks import tokens as token_classification
from bert_jax.tasks.text import TextClassification, TextExample
from configs.finetune import squad2 as squad2_recipe
from configs.finetune import text_classification as text_classification_recipe
from configs.finetune import token_classification as token_classification_recipe

TOKENIZER = tokenizer.Tokenizer((*tokenizer.SPECIAL_TOKENS, *(f"w{i}" for i in range(50))))


def test_join_cuts_as_transformers_does(tmp_path):
    tokenizer.save(TOKENIZER, tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    words = [f"w{i}" for i in range(50)]
    for first in (0, 1, 4, 9, 20):
        for second in (None, 1, 4, 5, 9, 20):
            for limit in (8, 9, 12, 64):
                texts = [" ".join(words[:first])]
                if second is not None:
                    texts.append(" ".join(words[20 : 20 + second]))
                wanted = reference(*texts, truncation=True, max_length=limit)
                encoded = [TOKENIZER.encode(text) for text in texts]
                ids, segments = base.join(
                    TOKENIZER, encoded[0], encoded[1] if second is not None else None, limit
                )
                assert ids == wanted["input_ids"], (first, second, limit)
                assert segments == wanted["token_type_ids"]


@pytest.mark.parametrize("num_labels", [2, 5])
def test_scores_against_sklearn(num_labels):
    rng = np.random.default_rng(0)
    for size in (1, 10, 300):
        labels = rng.integers(0, num_labels, size)
        predictions = np.where(rng.random(size) < 0.6, labels, rng.integers(0, num_labels, size))
        assert scores.accuracy(labels, predictions) == pytest.approx(
            sklearn.metrics.accuracy_score(labels, predictions)
        )
        average = "binary" if num_labels == 2 else "macro"
        assert scores.f1(labels, predictions, num_labels) == pytest.approx(
            sklearn.metrics.f1_score(labels, predictions, average=average, zero_division=0.0)
        )
        if size > 1:
            assert scores.matthews(labels, predictions) == pytest.approx(
                sklearn.metrics.matthews_corrcoef(labels, predictions)
            )
    assert scores.matthews([0, 1], [1, 1]) == 0.0


def test_correlations_against_scipy():
    rng = np.random.default_rng(0)
    for digits in (6, 0):  # without and with ties
        x = np.round(rng.normal(0, 2, 50), digits)
        y = np.round(x + rng.normal(0, 1, 50), digits)
        assert scores.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
        assert scores.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert scores.pearson([1, 2, 3], [5, 5, 5]) == 0.0


def test_tables_read_the_same_rows(tmp_path):
    rows = [("a, b\nc", "x"), ("é ; 中", "y")]
    csv = tmp_path / "rows.csv"
    csv.write_text('text,other,label\n"a, b\nc",1,x\n\né ; 中,2,y\n')
    bom = tmp_path / "bom.csv"
    bom.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes().replace(b"\n\xc3", b"\r\n\xc3"))
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("\n".join(json.dumps({"label": y, "text": x}) for x, y in rows) + "\n")
    for path in (csv, bom, jsonl):
        read = tables.read(str(path), ["text", "label"])
        assert [(row.values["text"], row.values["label"]) for row in read] == rows, path
    # A quotation mark opens nothing in a TSV, as in GLUE's files.
    tsv = tmp_path / "rows.tsv"
    tsv.write_text('text\tlabel\n"she said\t1\nplain "\t0\n')
    read = tables.read(str(tsv), ["text", "label"])
    assert [row.values for row in read] == [
        {"text": '"she said', "label": "1"},
        {"text": 'plain "', "label": "0"},
    ]
    assert read[1].place == f"{tsv}:3"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,stars\nx,1\n", r"no column 'label'; its columns are 'text', 'stars'"),
        ("a.csv", b"text,label\nx\n", r"a\.csv:2 has 1 cells, the header has 2"),
        ("a.csv", b'text,label\n"x,1\n', r"is not valid CSV"),
        ("a.csv", b"text,label\n", r"has no rows"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", r"is not UTF-8"),
        ("a.jsonl", b'{"text": 1}\n', r"a\.jsonl:1 has no column 'label'"),
        ("a.jsonl", b'{"text": \n', r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1 is not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "x", "label": ["1", "2"], "other": [1]}\n',
            r"a\.jsonl:1: column 'label' has a list, expected one text or number: \['1', '2'\]",
        ),
        ("a.txt", b"x", r"expected a file that ends in \.csv"),
    ],
)
def test_bad_tables(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        tables.read(str(path), ["text", "label"])


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        tables.read(str(tmp_path / "none.csv"), ["text"])


def test_labels_of_the_data_may_be_merged(tmp_path):
    path = tmp_path / "stars.csv"
    path.write_text("text,label\nw1,1\nw2,2\nw3,3\nw4,3\n")
    config = text_classification_recipe.get_config()
    config.labels = "1=bad,2=bad,3=good"
    task = TextClassification(config, TOKENIZER)
    examples = task.read(str(path))
    task.set_labels(examples)
    assert task.labels == ("bad", "good")
    features = task.features(examples)
    assert [feature.arrays["labels"] for feature in features] == [0, 0, 1, 1]


def test_labels_argument():
    assert classes.parse_labels("0=no, 1=yes") == {"0": "no", "1": "yes"}
    assert classes.parse_labels("b,a") == {"b": "b", "a": "a"}
    with pytest.raises(UserError, match="twice"):
        classes.parse_labels("a,a")


def test_buckets_have_the_least_padding():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(3, 20, 200), rng.integers(90, 128, 50)])
    rounded = np.minimum(-(-lengths // 2) * 2, 127)

    def padded(buckets):
        return sum(min(b for b in buckets if b >= n) for n in rounded)

    sizes = sorted(set(rounded.tolist()))
    assert batching.bucket_lengths(lengths, 1, 127) == (sizes[-1],)
    two = batching.bucket_lengths(lengths, 2, 127)
    assert padded(two) == min(padded((size, sizes[-1])) for size in sizes)
    assert batching.bucket_lengths(lengths, 99, 127) == tuple(sizes)
    assert batching.bucket_lengths([3, 5, 30], 2, 128) == (6, 30)


def test_a_bucket_saves_what_it_costs():
    # A bucket of 40 beside 8 and 100 saves 6 × 60 tokens.
    lengths = [8] * 990 + [40] * 6 + [100] * 4

    def buckets(least_saving):
        return batching.bucket_lengths(lengths, 9, 128, least_saving)

    assert buckets(0) == buckets(360) == (8, 40, 100)
    assert buckets(361) == (8, 100)
    assert buckets(99_999) == (100,)


def test_epochs_hold_every_example_once_in_another_order():
    lengths = np.random.default_rng(0).integers(3, 100, 1003)
    buckets = (20, 60, 100)
    epochs = [batching.epoch_batches(lengths, buckets, 8, seed=1, epoch=epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert [len(batch) for batch in batches].count(8) == 125 and len(batches) == 126
        assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    together = [{frozenset(batch.tolist()) for batch in batches} for batches in epochs]
    assert not together[0] & together[1]  # other batches, not the same in another order
    again = batching.epoch_batches(lengths, buckets, 8, seed=1, epoch=1)
    assert all(np.array_equal(x, y) for x, y in zip(epochs[1], again, strict=True))


def test_a_batch_holds_examples_of_one_bucket_and_what_was_left_over():
    lengths = np.array([5] * 10 + [30] * 10 + [90] * 5)
    buckets = (20, 60, 100)
    batches = batching.epoch_batches(lengths, buckets, 8, seed=0, epoch=0)
    its_lengths = sorted(np.unique(lengths[batch]).tolist() for batch in batches)
    assert its_lengths == [[5], [5, 30], [30, 90], [90]]
    assert batching.used_buckets(lengths, batches, buckets) == [20, 60, 100]
    # Too few for a batch each: one, as long as the longest.
    (batch,) = batching.epoch_batches([5, 90, 30], buckets, 8, seed=0, epoch=0)
    assert batching.used_buckets([5, 90, 30], [batch], buckets) == [100]


def test_collate():
    names = ("input_ids", "token_type_ids", "token_labels", "labels")
    features = [
        dict(zip(names, values, strict=True))
        for values in (([2, 9, 3], [0, 0, 0], [-1, 4, -1], 1), ([2, 3], [0, 1], [-1, -1], 0))
    ]
    batch = batching.collate(features, buckets=(2, 5, 8), batch_size=3)
    expected = {
        "input_ids": [[2, 9, 3, 0, 0], [2, 3, 0, 0, 0], [2, 9, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]],
        "token_labels": [[-1, 4, -1, -1, -1], [-1, -1, -1, -1, -1], [-1, 4, -1, -1, -1]],
        "labels": [1, 0, 1],
        "weights": [1.0, 1.0, 0.0],
    }
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


def test_entity_scores_against_seqeval():
    rng = np.random.default_rng(0)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC"]  # any order: IOB1, IOB2, nonsense
    truth = [rng.choice(tags, rng.integers(1, 20)).tolist() for _ in range(200)]
    guess = [
        np.where(rng.random(len(x)) < 0.7, x, rng.choice(tags, len(x))).tolist() for x in truth
    ]
    ours = scores.entity_scores(truth, guess)
    for name, value in ours.items():
        oracle = getattr(seqeval.metrics, f"{name}_score")(truth, guess)
        assert value == pytest.approx(oracle), name
    converted = [token_classification.to_iob2(x) for x in truth]
    assert seqeval.metrics.f1_score(converted, truth) == 1.0  # the same entities, spelt otherwise
    nothing = scores.entity_scores([["O"]], [["O"]])
    assert nothing == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_iob2():
    to_iob2 = token_classification.to_iob2
    assert to_iob2(["I-A", "I-A", "B-A", "O", "I-B", "I-A"]) == [
        "B-A", "I-A", "B-A", "O", "B-B", "B-A"
    ]  # fmt: skip
    assert to_iob2(["B-A", "I-A", "O"]) == ["B-A", "I-A", "O"]
    assert to_iob2(["NN", "VB"]) == ["NN", "VB"]
    assert to_iob2(["S-A", "B-A", "E-A"]) == ["S-A", "B-A", "E-A"]


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
        assert token_classification.read_sentences(str(path), "tokens", "tags", -1) == [
            token_classification.TaggedSentence(
                f"{path}:{places[0]}", ("EU", "backs"), ("I-ORG", "O")
            ),
            token_classification.TaggedSentence(f"{path}:{places[1]}", ("Berlin",), ("I-LOC",)),
        ]
    # A no-break space belongs to its word: a number as French writes it.
    conll_of_numbers = tmp_path / "numbers.conll"
    conll_of_numbers.write_text("10\u00a0000\tQUANTITY \r\n")
    (number,) = token_classification.read_sentences(str(conll_of_numbers), "", "", 1)
    assert (number.words, number.labels) == (("10\u00a0000",), ("QUANTITY",))
    parts = token_classification.read_sentences(str(conll), "", "", 1)
    assert parts[0].labels == ("NNP", "VBZ")


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
        ("x.jsonl", '{"tokens": ["a"], "tags": [""]}\n', r"x\.jsonl:1 has words without a label"),
        # Not a word of class I-NP.
        (
            "x.conll",
            "EU NNP I-NP I-ORG\nbacks VBZ I-VP\n",
            r"x\.conll:2 has 3 columns \('backs VBZ I-VP'\), the lines above have 4",
        ),
    ],
)
def test_bad_sentences(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        token_classification.read_sentences(str(tmp_path / name), "tokens", "tags", -1)


def test_squad_scores():
    """Values worked out by the definitions of the official evaluate-v1.1.py and -v2.0.py."""
    qa = question_answering
    assert qa.normalize("The  Cat's, hat!") == "cats hat"
    assert qa.normalize("an A-team") == "ateam"
    assert qa.exact_match("the Cat", "cat.") == 1.0
    assert qa.token_f1("the big cat", "big dog") == 0.5
    assert qa.token_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert qa.token_f1("", "cat") == 0.0
    assert qa.best_score(qa.token_f1, "cat", ("dog", "a cat")) == 1.0
    assert qa.best_score(qa.exact_match, "", ()) == 1.0
    assert qa.best_score(qa.token_f1, "cat", ()) == 0.0


@pytest.mark.parametrize("max_answer_length", [1, 3, 99])
@pytest.mark.parametrize("n_best", [1, 4, 99])
def test_best_spans_are_those_of_all_pairs(n_best, max_answer_length):
    logits = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    offsets = tuple((3 * i, 3 * i + 2) for i in range(7))
    window = question_answering.Window(2, 0, offsets)
    scores, seen = question_answering.span_scores([(window, logits)], max_answer_length)
    assert seen == [*offsets]
    spans = question_answering.best_spans(scores, seen, n_best)
    logits = logits[2:]
    of_all = sorted(
        (
            (float(logits[i, 0] + logits[j, 1]), 3 * i, 3 * j + 2)
            for i in range(7)
            for j in range(i, min(7, i + max_answer_length))
        ),
        reverse=True,
    )
    assert spans == of_all[:n_best]
    empty = question_answering.Window(2, 0, ())
    scores, seen = question_answering.span_scores([(empty, logits)], max_answer_length)
    assert question_answering.best_spans(scores, seen, n_best) == []


def test_a_span_that_two_windows_see_is_one_answer():
    config = squad2_recipe.get_config()
    config.n_best = 2
    task = question_answering.QuestionAnswering(config, TOKENIZER)
    example = question_answering.Question("1", "w40", "w0 w1 w2", (), 0)
    offsets = ((0, 2), (3, 5), (6, 8))
    features = [
        base.Feature({}, 0, question_answering.Window(1, 0, offsets[:2])),
        base.Feature({}, 0, question_answering.Window(1, 1, offsets[1:])),
    ]
    # "w1" scores 4 + 4 in the first window and 3 + 3 in the second, "w0" 2 + 0, "w2" 1 + 1.
    outputs = [
        np.array([[0, 0], [2, 0], [4, 4]], "f4"),
        np.array([[0, 0], [3, 3], [1, 1]], "f4"),
    ]
    (line,) = task.answers([example], features, outputs)
    assert line["prediction"] == "w1"
    assert [(x["text"], x["start"]) for x in line["n_best"]] == [("w1", 3), ("w0 w1", 0)]
    # All spans: w0 2, w0 w1 6, w1 8, w1 w2 4, w2 2; of the three together no window has all.
    shares = np.exp([8.0, 6, 2, 4, 2]) / np.exp([8.0, 6, 2, 4, 2]).sum()
    assert [x["score"] for x in line["n_best"]] == pytest.approx(shares[:2], abs=1e-6)
    task.may_have_none = True
    (line,) = task.answers([example], features, outputs)
    total = np.exp([8.0, 6, 2, 4, 2, 0]).sum()
    assert line["n_best"][2]["text"] == ""
    assert [x["score"] for x in line["n_best"]] == pytest.approx(
        np.exp([8.0, 6, 0]) / total, abs=1e-6
    )


def test_windows_cover_a_long_context():
    import ml_collections

    config = ml_collections.ConfigDict(
        {"max_seq_length": 12, "max_question_length": 4, "doc_stride": 3}
    )
    words = [f"w{i}" for i in range(10)]
    context = " ".join(words)
    example = question_answering.Question("1", "w40 w41", context, ("w6 w7",), context.index("w6"))
    task = question_answering.QuestionAnswering(config, TOKENIZER)
    features = task.features([example])
    firsts = [feature.origin.offsets[0][0] for feature in features]
    assert firsts == [context.index("w0"), context.index("w3")]  # 7 tokens fit, 10 are there
    assert [(f.arrays["starts"], f.arrays["ends"]) for f in features] == [(0, 0), (7, 8)]
    ids = [TOKENIZER.vocab[i] for i in features[1].arrays["input_ids"]]
    assert ids == ["[CLS]", "w40", "w41", "[SEP]", *words[3:10], "[SEP]"]
    assert features[1].arrays["token_type_ids"] == [0] * 4 + [1] * 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not JSON"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', r"is not a SQuAD file.*'answers'"),
        ('{"data": []}', r"has no questions"),
        (
            '{"data": [{"paragraphs": [{"context": " ", "qas": '
            '[{"id": 1, "question": "q", "answers": []}]}]}]}',
            r"question '1' has an empty context",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": '
            '[{"id": 1, "question": null, "answers": []}]}]}]}',
            r"question '1' has an empty question, or none that is text",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 1, "question": "q", '
            '"answers": [{"text": "c", "answer_start": "0"}]}]}]}]}',
            r"question '1': expected an answer's text and the number .* found 'c' and '0'",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": ["x"]}]}]}',
            r"is not a SQuAD file.*wrong or missing",
        ),
    ],
)
def test_bad_squad_files(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message):
        question_answering.read_squad(str(tmp_path / "x.json"))


def test_class_weights_as_torch_weighs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    config = text_classification_recipe.get_config()
    config.class_weights = "1,4,0.5"
    task = TextClassification(config, TOKENIZER)
    task.set_labels([TextExample("", ("w1",), label) for label in "abc"])
    logits = rng.normal(0, 1, (5, 3)).astype("f4")
    labels = np.array([0, 1, 2, 2, 1])
    batch = {"labels": labels, "weights": np.array([1, 1, 1, 1, 0], "f4")}  # the last is padding
    ours = task.loss_sum(logits, batch) / task.loss_weight(batch)
    weights = torch.tensor([1, 4, 0.5])
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits[:4]), torch.tensor(labels[:4]), weight=weights
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)

    config = token_classification_recipe.get_config()
    config.class_weights = "1,4,0.5"
    task = token_classification.TokenClassification(config, TOKENIZER)
    task.set_labels([token_classification.TaggedSentence("", ("w",) * 3, ("a", "b", "c"))])
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


def test_hugging_face_data_sets(monkeypatch):
    """hf: sources, with the hub replaced by data sets of the same structure."""
    names = datasets.ClassLabel(names=["negative", "positive"])
    sst2 = datasets.Dataset.from_dict(
        {"sentence": ["good", "bad", "?"], "label": [1, 0, -1]},
        features=datasets.Features({"sentence": datasets.Value("string"), "label": names}),
    )
    tags = datasets.ClassLabel(names=["O", "B-PER"])
    conll = datasets.Dataset.from_dict(
        {"tokens": [["Ann", "sings"]], "ner_tags": [[1, 0]]},
        features=datasets.Features(
            {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(tags)}
        ),
    )
    squad = datasets.Dataset.from_dict(
        {
            "id": ["x"],
            "question": ["who sings?"],
            "context": ["Ann sings."],
            "answers": [{"text": ["Ann"], "answer_start": [0]}],
        }
    )
    unlabelled = conll.map(lambda row: {"ner_tags": [1, -1]})
    uneven = squad.map(lambda row: {"answers": {"text": ["Ann"], "answer_start": [0, 4]}})
    hub = {("glue", "sst2"): sst2, ("someone/conll",): conll, ("squad",): squad}
    hub |= {("unlabelled",): unlabelled, ("uneven",): uneven}

    def load_dataset(*arguments, split):
        assert split == "train"
        if arguments not in hub:
            raise FileNotFoundError(f"no {arguments}")
        return hub[arguments]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = tables.read("hf:glue/sst2:train", ["sentence", "label"])
    assert [tuple(row.values.values()) for row in rows] == [
        ("good", "positive"), ("bad", "negative"), ("?", "")
    ]  # fmt: skip
    sentences = token_classification.read_sentences(
        "hf:someone/conll:train", "tokens", "ner_tags", -1
    )
    assert [(x.words, x.labels) for x in sentences] == [(("Ann", "sings"), ("B-PER", "O"))]
    with pytest.raises(UserError, match=r"unlabelled:train row 0 has words without a label"):
        token_classification.read_sentences("hf:unlabelled:train", "tokens", "ner_tags", -1)
    for name, wrong in (("glue/sst2", "'id'"), ("uneven", "zip")):
        with pytest.raises(UserError, match=rf"has not SQuAD's columns .*; wrong: {wrong}"):
            question_answering.read_squad(f"hf:{name}:train")
    question = question_answering.read_squad("hf:squad:train")[0]
    assert (question.id, question.answers, question.start) == ("x", ("Ann",), 0)
    with pytest.raises(UserError, match=r"could not be loaded \(FileNotFoundError: no"):
        tables.read("hf:nowhere:train", ["x"])
    with pytest.raises(UserError, match=r"no \('some', 'where'\); or .*no \('some/where',\)"):
        tables.read("hf:some/where:train", ["x"])
    with pytest.raises(UserError, match=r"name a split, e\.g\. hf:squad:train"):
        tables.read("hf:squad", ["x"])


def test_tensorflow_data_sets(monkeypatch):
    """tfds: sources, with the library replaced by data sources of the same structure."""
    label = types.SimpleNamespace(names=["negative", "positive"])
    tags = types.SimpleNamespace(feature=types.SimpleNamespace(names=["O", "B-PER"]))
    text = types.SimpleNamespace()
    bytes_array = functools.partial(np.array, dtype=object)
    data = {
        ("glue/sst2:2.0.0", "train[:1%]"): (
            [
                {"idx": np.int32(0), "sentence": "schön".encode(), "label": np.int64(1)},
                {"idx": np.int32(1), "sentence": b"?", "label": np.int64(-1)},
            ],
            {"idx": text, "sentence": text, "label": label},
        ),
        ("conll", "dev"): (
            [{"tokens": bytes_array([b"Ann", b"sings"]), "ner": np.array([1, 0])}],
            {"tokens": types.SimpleNamespace(feature=text), "ner": tags},
        ),
        ("squad", "train"): (
            [
                {
                    "id": b"x",
                    "question": b"who sings?",
                    "context": b"Ann sings.",
                    "answers": {"text": bytes_array([b"Ann"]), "answer_start": np.array([0])},
                }
            ],
            {name: text for name in ("id", "question", "context", "answers")},
        ),
    }

    class Source(list):
        def __init__(self, rows, features):
            super().__init__(rows)
            self.dataset_info = types.SimpleNamespace(features=features)

    fake = types.SimpleNamespace(data_source=lambda name, split: Source(*data[name, split]))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    rows = tables.read("tfds:glue/sst2:2.0.0:train[:1%]", ["sentence", "label", "idx"])
    assert [tuple(row.values.values()) for row in rows] == [
        ("schön", "positive", "0"), ("?", "", "1")
    ]  # fmt: skip
    sentences = token_classification.read_sentences("tfds:conll:dev", "tokens", "ner", -1)
    assert [(x.words, x.labels) for x in sentences] == [(("Ann", "sings"), ("B-PER", "O"))]
    question = question_answering.read_squad("tfds:squad:train")[0]
    assert (question.id, question.answers, question.start) == ("x", ("Ann",), 0)
    with pytest.raises(UserError, match=r"could not be loaded \(KeyError"):
        tables.read("tfds:nowhere:train", ["x"])
    with pytest.raises(UserError, match=r"name a split, e\.g\. tfds:squad:train"):
        tables.read("tfds:squad", ["x"])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs: pip install 'bert_jax\[tfds\]'"):
        tables.read("tfds:squad:train", ["x"])


def test_every_recipe_reads():
    """Each file of configs/finetune gives a config whose task exists."""
    import importlib
    import pathlib

    import configs.finetune

    for path in sorted(pathlib.Path(configs.finetune.__file__).parent.glob("[!_]*.py")):
        if path.stem == "base":
            continue
        module = importlib.import_module(f"configs.finetune.{path.stem}")
        assert f"configs/finetune/{path.name}" in module.__doc__  # its own command
        for argument in getattr(module, "TASKS", [None]):
            config = module.get_config(argument) if argument else module.get_config()
            assert kinds.make_task(config, TOKENIZER).metric
    # What GLUE's leaderboard goes by.
    glue = {name: configs.finetune.glue.get_config(name) for name in ("cola", "qqp", "mnli")}
    metrics = {name: kinds.make_task(config, TOKENIZER).metric for name, config in glue.items()}
    assert metrics == {"cola": "matthews", "qqp": "f1", "mnli": "accuracy"}
