"""Reports label by label, against scikit-learn and seqeval."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
from etils import epath

from bert_jax.runs import curves, telemetry
from bert_jax.tasks import classes, reports


@pytest.mark.parametrize("num_labels", [2, 5])
def test_labels_against_sklearn(num_labels):
    labels = [f"label {i}" for i in range(num_labels)]
    unseen = [*labels, "neither labelled nor predicted"]
    rng = np.random.default_rng(0)
    truth = rng.choice(labels[:-1], 200)  # nothing is of the last label
    guesses = np.where(rng.random(200) < 0.6, truth, rng.choice(labels, 200))
    matrix = reports.confusion_matrix(truth, guesses, unseen)
    expected = sklearn.metrics.confusion_matrix(truth, guesses, labels=unseen)
    np.testing.assert_array_equal(matrix, expected)
    lines = reports.scores_by_label(matrix, unseen)
    oracle = sklearn.metrics.classification_report(
        truth, guesses, output_dict=True, zero_division=0.0
    )
    names = [*labels, "macro avg", "weighted avg"]
    for name, line in zip(names, [*lines, *reports.means(lines)], strict=True):
        assert line[1:] == pytest.approx(tuple(oracle[name].values())), name


def test_entities_against_seqeval():
    rng = np.random.default_rng(0)
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    truth = [list(rng.choice(labels, 12)) for _ in range(40)]
    guesses = [[x if rng.random() < 0.8 else "O" for x in sentence] for sentence in truth]
    oracle = seqeval.metrics.classification_report(truth, guesses, output_dict=True)
    for line in reports.scores_by_type(labels, truth, guesses):
        name = "micro avg" if line.label == "all (micro)" else line.label
        assert line[1:] == pytest.approx(tuple(oracle[name].values())), name


def test_confusion_as_text():
    matrix = np.array([[1_200, 3], [40, 5]])
    assert reports.confusion_text(matrix, ["no", "maybe"]).splitlines()[1:] == [
        "          no  maybe",
        "no     1,200      3",
        "maybe     40      5",
    ]
    many = [f"c{i}" for i in range(40)]
    matrix = np.diag(np.full(40, 9))
    matrix[3, 7], matrix[8, 1] = 2, 6
    assert reports.confusion_text(matrix, many).splitlines()[1:] == [
        "      6  c8 -> c1",
        "      2  c3 -> c7",
    ]


def test_labels_may_look_like_mathematics(tmp_path):
    target = epath.Path(tmp_path / "x.png")
    reports.draw_confusion(np.eye(2, dtype=int), ["$10_$20", "$5-$9"], target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_labels_of_words_that_are_no_entities(tmp_path):
    lines = [{"labels": ["NN", "VB"], "predictions": ["NN", "NN"]}] * 3
    reports.write(tmp_path, "token_classification", ["NN", "VB"], lines)
    table = (tmp_path / "report.txt").read_text().splitlines()
    assert table[1].split() == ["NN", "0.5000", "1.0000", "0.6667", "3"]
    assert table[-2:] == ["NN   3   0", "VB   3   0"]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    reports.write(tmp_path / "nothing", "question_answering", [], [])
    assert not (tmp_path / "nothing").exists()


def test_class_weights_are_sklearns():
    labels = ["a", "b", "c"]
    examples = ["a"] * 6 + ["b"] * 3 + ["c"]
    ours = classes.class_weights("balanced", labels, examples)
    theirs = sklearn.utils.class_weight.compute_class_weight(
        "balanced", classes=np.array(labels), y=examples
    )
    np.testing.assert_allclose(ours / ours.sum(), theirs / theirs.sum(), rtol=1e-6)
    np.testing.assert_allclose(classes.class_weights("0.5,1,4", labels, examples), [1, 2, 8])


def test_long_names_and_counts_have_room_in_the_picture(tmp_path):
    """No label runs into its neighbour, and no count out of its cell."""
    labels = [f"a class with a rather long name, number {i}" for i in range(9)]
    figure = reports.draw_confusion(
        np.full((9, 9), 1_234_567), labels, epath.Path(tmp_path / "confusion.png")
    )
    axis = figure.axes[0]
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        boxes = [tick.get_window_extent() for tick in ticks]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert all(box.width > 0 and box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    cell = axis.get_window_extent().width / 9
    assert len(axis.texts) == 81
    assert all(text.get_window_extent().width <= cell for text in axis.texts)


def test_a_picture_leaves_the_caller_s_backend_alone(tmp_path, monkeypatch):
    """As a notebook's, whose pictures would be gone after a fine-tuning."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import would fail
    monkeypatch.setattr(matplotlib, "use", lambda backend: pytest.fail(backend))
    reports.draw_confusion(np.eye(2, dtype=int), ["a", "b"], epath.Path(tmp_path / "x.png"))
    writer = telemetry.MetricWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert curves.plot([str(tmp_path)], tmp_path / "y.png", 1) == ["training loss"]


def test_f1_of_each_label_is_logged_where_there_are_few():
    lines = [{"label": "a", "prediction": p} for p in "ab"]
    found = reports.label_f1("text_classification", ["a", "b"], lines)
    assert found == {"f1_of_a": pytest.approx(2 / 3), "f1_of_b": 0.0}
    entities = [{"labels": ["B-X", "O"], "predictions": ["B-X", "O"]}]
    assert reports.label_f1("token_classification", ["O", "B-X"], entities) == {"f1_of_X": 1.0}
    several = [{"labels": ["a"], "predictions": ["a", "b"]}]
    found = reports.label_f1("multi_label_classification", ["a", "b"], several)
    assert found == {"f1_of_a": 1.0, "f1_of_b": 0.0}
    assert reports.label_f1("text_regression", [], [{"prediction": 0.5}]) == {}
    many = [f"{i}" for i in range(50)]
    lines = [{"label": x, "prediction": x} for x in many]
    assert reports.label_f1("text_classification", many, lines) == {}
