"""Label schemes of entities, against seqeval on random sequences of each."""

import warnings

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme

from bert_jax.tasks import schemes, scores

SCHEMES = {
    "IO": ("I", {}),
    "BIO": ("BI", {}),
    "IOE": ("IE", {}),
    "BIOES": ("BIES", {}),
    # By default seqeval does not know L and U.
    "BILOU": ("BILU", {"mode": "strict", "scheme": seqeval.scheme.BILOU}),
}


def random_labels(prefixes, types, rng, count=200):
    labels = ["O", *(prefix + kind for prefix in prefixes for kind in types)]
    truth = [rng.choice(labels, rng.integers(1, 20)).tolist() for _ in range(count)]
    guesses = [
        np.where(rng.random(len(x)) < 0.7, x, rng.choice(labels, len(x))).tolist() for x in truth
    ]
    return labels, truth, guesses


@pytest.mark.parametrize("types", [("-PER", "-LOC-X"), ("",)])
@pytest.mark.parametrize("name", SCHEMES)
def test_entity_scores_against_seqeval(name, types):
    prefixes, mode = SCHEMES[name]
    labels, truth, guesses = random_labels(prefixes, types, np.random.default_rng(0))
    assert schemes.are_entities(labels)
    ours = scores.entity_scores(
        schemes.find_entities(labels, truth), schemes.find_entities(labels, guesses)
    )
    assert 0.1 < ours["f1"] < 0.9
    for score, value in ours.items():
        oracle = getattr(seqeval.metrics, f"{score}_score")(truth, guesses, **mode)
        assert value == pytest.approx(oracle, abs=1e-12), score
    nothing = scores.entity_scores([[]], [[]])
    assert nothing == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize("name", SCHEMES)
def test_conversion_keeps_entities(name):
    _, truth, _ = random_labels(SCHEMES[name][0], ("-PER", "-LOC"), np.random.default_rng(1))
    iob2 = [schemes.convert(x) for x in truth]
    if name != "BILOU":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert seqeval.metrics.f1_score(truth, iob2) == 1.0
    for target in ("BIOES", "BILOU"):
        converted = [schemes.convert(x, target) for x in iob2]
        assert [schemes.convert(x) for x in converted] == iob2
        strict = getattr(seqeval.scheme, target.replace("BIOES", "IOBES"))
        found = seqeval.scheme.Entities(converted, strict).entities
        assert [[(e.tag, e.start, e.end) for e in x] for x in found] == [
            schemes.entities(x) for x in truth
        ]


def test_conversion():
    convert = schemes.convert
    assert convert(["I-A", "I-A", "B-A", "O", "I-B", "I-A"]) == [
        "B-A", "I-A", "B-A", "O", "B-B", "B-A"
    ]  # fmt: skip
    assert convert(["B-A", "I-A", "O"]) == ["B-A", "I-A", "O"]
    assert convert(["S-A", "B-A", "I-A", "E-A"]) == ["B-A", "B-A", "I-A", "I-A"]
    assert convert(["U-A", "B-A", "I-A", "L-A"]) == ["B-A", "B-A", "I-A", "I-A"]
    assert convert(["I", "O", "B", "I"]) == ["B", "O", "B", "I"]
    assert convert(["B-A", "B-A", "I-A", "I-A"], "BIOES") == ["S-A", "B-A", "I-A", "E-A"]
    assert convert(["B-A", "B-A", "I-A"], "IO") == ["I-A", "I-A", "I-A"]
    assert convert(["NN", "VB"]) == ["NN", "VB"]


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        ({"O", "I-A"}, "IO"),
        ({"O", "B", "I"}, "BIO"),
        ({"O", "B-A", "I-A", "S-B"}, "BIOES"),
        ({"O", "B-A", "U-A"}, "BILOU"),
        ({"O", "B-A", "B"}, None),  # with types and without
        ({"O", "NN", "B-A"}, None),
        ({"S", "L", "O"}, None),  # parts of speech, perhaps
    ],
)
def test_schemes_are_told_from_labels(labels, scheme):
    assert schemes.are_entities(labels) is bool(scheme)
    if scheme:
        assert schemes.scheme_of(labels) == scheme


def test_all_labels():
    assert schemes.all_labels({"O", "I-A"}) == {"O", "B-A", "I-A"}
    assert schemes.all_labels({"S-A", "B-B"}, "BIOES") == {
        "O", *(f"{p}-{t}" for p in "BIES" for t in "AB")
    }  # fmt: skip
    assert schemes.all_labels({"B"}) == {"O", "B", "I"}
