"""Questions and answers in a text: files, windows, spans and scores."""

import json

import ml_collections
import numpy as np
import pytest

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.tasks import answers as qa
from bert_jax.tasks.base import Feature
from configs.finetune import squad, squad2

TOKENIZER = tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *(f"w{i}" for i in range(50))))


def test_squad_scores():
    """Values worked out by the definitions of the official evaluate-v1.1.py and -v2.0.py."""
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
    window = qa.Window(2, 0, offsets)
    scores, seen = qa.span_scores([(window, logits)], max_answer_length)
    assert seen == [*offsets]
    spans = qa.best_spans(scores, seen, n_best)
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
    empty = qa.Window(2, 0, ())
    scores, seen = qa.span_scores([(empty, logits)], max_answer_length)
    assert qa.best_spans(scores, seen, n_best) == []


def test_a_span_that_two_windows_see_is_one_answer():
    config = squad2.get_config()
    config.n_best = 2
    task = qa.QuestionAnswering(config, TOKENIZER)
    example = qa.Question("1", "w40", "w0 w1 w2", (), 0)
    offsets = ((0, 2), (3, 5), (6, 8))
    features = [
        Feature({}, 0, qa.Window(1, 0, offsets[:2])),
        Feature({}, 0, qa.Window(1, 1, offsets[1:])),
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
    config = ml_collections.ConfigDict(
        {"max_seq_length": 12, "max_question_length": 4, "doc_stride": 3}
    )
    words = [f"w{i}" for i in range(10)]
    context = " ".join(words)
    example = qa.Question("1", "w40 w41", context, ("w6 w7",), context.index("w6"))
    task = qa.QuestionAnswering(config, TOKENIZER)
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
            '"answers": [{"text": "c", "answer_start": "x"}]}]}]}]}',
            r"question '1': expected an answer's text and the number .* found 'c' and None",
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
        qa.read_squad(str(tmp_path / "x.json"), 0.1, training=True)


CONTEXT = "w0 w1 w2 w3"


def write_squad(path, *questions):
    """A file of questions on CONTEXT: lists of (text, answer_start), or whole objects."""
    qas = [
        {"id": str(i), "question": "w9", "answers": []}
        | (
            question
            if isinstance(question, dict)
            else {"answers": [{"text": text, "answer_start": at} for text, at in question]}
        )
        for i, question in enumerate(questions)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    return str(path)


GOOD = [("w1", 3)]


@pytest.mark.parametrize(
    ("answers", "start"),
    [
        ([("w1", "3")], 3),
        ([("w1", 3.0)], 3),
        ([("w2", 5), ("w1", 3)], 3),  # the first is off by a character
        ([("w1", 3), ("w2", 5)], 3),
        ([("w2", -1), ("w1", 3)], 3),
    ],
)
def test_answers_that_can_be_used(answers, start, tmp_path):
    path = write_squad(tmp_path / "x.json", answers)
    (question,) = qa.read_squad(path, 0.0, training=True)
    assert question.answers[0] == "w1" and question.start == start
    # For scoring all of them count, in the file's order.
    (question,) = qa.read_squad(path, 0.0, training=False)
    assert question.answers == tuple(text for text, _ in answers)
    task = qa.QuestionAnswering(squad.get_config(), TOKENIZER)
    (feature,) = task.features([question])
    placed = CONTEXT[question.start :].startswith(question.answers[0]) and question.start >= 0
    assert (feature.arrays["starts"] > 0) is placed


@pytest.mark.parametrize(
    "bad",
    [
        [("w2", 5)],
        [("w1", -1)],
        [("w1", None)],
        [("w1", True)],
        [(float("nan"), 3)],
        [("", 0)],
        {"question": " "},
        {"question": None},
    ],
)
def test_questions_that_cannot_be_learned_from_are_skipped(bad, tmp_path, caplog):
    path = write_squad(tmp_path / "x.json", *[GOOD] * 19, bad)
    assert len(qa.read_squad(path, 0.1, training=True)) == 19
    assert "skipping 1 of 20 rows" in caplog.text and "question '19'" in caplog.text
    with pytest.raises(UserError, match=r"question '19'"):
        qa.read_squad(path, 0.01, training=True)
    # An answer to compare with needs no place.
    is_answer = isinstance(bad, list) and bad[0][0] in ("w1", "w2")
    assert len(qa.read_squad(path, 0.1, training=False)) == 19 + is_answer


@pytest.mark.parametrize(
    ("value", "impossible"),
    [(True, True), ("true", True), (1, True), (False, False), ("false", False), (None, False)],
)
def test_is_impossible_is_read_as_a_truth_value(value, impossible, tmp_path):
    answers = [{"text": "w1", "answer_start": 3}]
    path = write_squad(tmp_path / "x.json", {"is_impossible": value, "answers": answers})
    (question,) = qa.read_squad(path, 0.0, training=True)
    assert (not question.answers) is impossible
    task = qa.QuestionAnswering(squad2.get_config(), TOKENIZER)
    task.read(path, training=True)
    assert task.may_have_none is impossible


def test_an_empty_answer_at_minus_one_is_none(tmp_path):
    path = write_squad(tmp_path / "x.json", GOOD, [("", -1)])
    assert [x.answers for x in qa.read_squad(path, 0.0, training=True)] == [("w1",), ()]
    bad = write_squad(tmp_path / "x.json", {"is_impossible": "perhaps", "answers": []})
    with pytest.raises(UserError, match=r"is_impossible is 'perhaps', neither true nor false"):
        qa.read_squad(bad, 0.0, training=True)
