"""The command: pages, JSON and pictures of each kind, and the measures behind them."""

import base64
import json
import zlib

import numpy as np
import pytest
from small_models import generated_texts, random_model

import bert_jax
from bert_jax.interpretation import attention, lime, probabilities
from bert_jax.interpretation.drawing import pages

TEXTS = generated_texts(6, 5)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    return random_model(directory, "text_classification", ["no", "yes"], 0.3, seed=4)[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(texts, labelled) of the classifier."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    rows = [f"{text},{'yes' if i % 3 else 'no'}" for i, text in enumerate(TEXTS)]
    (directory / "labelled.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return directory / "texts.txt", directory / "labelled.csv"


def data_of(page):
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


KINDS = {
    "attention": {"limit": 2},
    "attribution": {"steps": 4, "seeds": 1},
    "lime": {"samples": 12, "checks": False},
    "probabilities": {"bins": 5},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_and_a_picture_of_each_kind(kind, classifier, files, tmp_path):
    source = str(files[kind == "probabilities"])
    options = KINDS[kind] | ({"fit": source} if kind == "probabilities" else {})
    page = tmp_path / "page.html"
    data = bert_jax.explain.run(kind, str(classifier), source, str(page), **options)
    assert data_of(page.read_text()) == json.loads(json.dumps(data))
    pages.write(str(tmp_path / "picture.png"), data)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_texts_stay_texts():
    text = """</script><script>alert("1")</script><!-- 'x' &amp;"""
    page = pages.page({"kind": "attribution", "model": "<b>", "texts": [{"words": [text]}]})
    assert "alert" in page and "<script>alert" not in page and "<b>" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert data_of(page)["texts"][0]["words"] == [text]


def test_attributions_of_a_file(classifier, files, tmp_path):
    output = tmp_path / "data.json"
    options = {"target": "yes", "steps": 32, "seeds": 2, "limit": 4}
    data = bert_jax.explain.run(
        "attribution", str(classifier), str(files[0]), str(output), **options
    )
    assert json.loads(output.read_text()) == data
    model = bert_jax.load(classifier)
    for text, shown, scores in zip(
        data["texts"], TEXTS[:4], model.classify(TEXTS[:4]), strict=True
    ):
        [found] = text["outputs"]
        assert "".join(text["words"]) == shown.replace(" ", "")
        assert found["probability"] == pytest.approx(scores["scores"]["yes"], abs=1e-5)
        total = found["logit"] - found["baseline"]
        values = found["scores"]["integrated_gradients"]
        missed = abs(sum(values) - total)
        assert missed == pytest.approx(found["error"] * abs(total), abs=1e-3)
    checks = data["checks"]
    methods = {"integrated_gradients", "gradient_x_input", "randomised parameters"}
    assert checks["areas"].keys() == methods | {"random 0", "random 1"}
    starts = {round(x["deletion"][0], 5) for x in checks["curves"].values()}
    ends = {round(x["insertion"][-1], 5) for x in checks["curves"].values()}
    assert len(starts) == 1 and starts == ends  # the whole text
    best = checks["areas"]["integrated_gradients"]
    assert best["deletion"] < np.mean([checks["areas"][f"random {i}"]["deletion"] for i in (0, 1)])


def test_attention_of_a_text(classifier):
    model = bert_jax.load(classifier)
    data = bert_jax.explain.attention(model, TEXTS[:1])
    expected = np.stack([x[0] for x in model.encode(TEXTS[:1], None, False, True).attentions])
    levels = zlib.decompress(base64.b64decode(data["texts"][0]["levels"]))
    found = np.frombuffer(levels, np.uint8).reshape(expected.shape) / 255
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)


def test_heads_are_described_by_what_they_do():
    ids = np.array([2, 7, 8, 7, 9, 3])
    eye = np.eye(6, dtype=np.float32)
    broad = np.full((6, 6), 1 / 6, np.float32)
    separator = np.tile(eye[5], (6, 1))
    heads = np.stack([np.roll(eye, -1, 1), np.roll(eye, 1, 1), separator, eye, broad])[None]
    shares = attention.pattern_shares(heads, ids, 2, 3)
    names = [attention.describe(x) for x in shares[0]]
    assert names == [
        *("previous token 100 %", "next token 100 %", "[SEP] 100 %", "itself 100 %"),
        "broad, entropy 100 %",
    ]
    # Of the words 7, 8, 7, 9, two have another of their kind.
    assert shares[0, 4, attention.PATTERNS.index("same word")] == pytest.approx(2 / 4 / 6)


def test_too_much_attention_is_cut():
    levels = [np.random.default_rng(0).integers(0, 20, 10_000).astype(np.uint8)]
    assert attention.pack(levels, 50_000)[0] == 1
    cut, [content] = attention.pack(levels, 4_000)
    assert len(content) <= 4_000 and cut > 1
    kept = np.frombuffer(zlib.decompress(base64.b64decode(content)), np.uint8)
    np.testing.assert_array_equal(kept, np.where(levels[0] < cut, 0, levels[0]))


def test_lime_finds_a_linear_function():
    weights = np.array([0.3, 0.0, -0.2, 0.1])
    there = lime.sample(4, 400, np.random.default_rng(0))
    assert there[0].all() and not there[1:].all(1).any()
    fit = lime.fit(there, 0.4 + there @ weights)
    np.testing.assert_allclose(fit.words_W, weights, atol=0.02)
    assert fit.r2 > 0.99
    noise = np.random.default_rng(1).random(400)
    assert lime.fit(there, noise).r2 < 0.1


def test_lime_s_fit_is_scikit_learn_s_ridge():
    linear_model = pytest.importorskip("sklearn.linear_model")
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    there = lime.sample(5, 60, np.random.default_rng(0)).astype(float)
    probs = np.random.default_rng(1).random(60)
    # As the package lime has it: distances in percent, kernel width 25, ridge with alpha 1.
    distances = pairwise.cosine_distances(there, there[:1]).ravel() * 100
    weights = np.sqrt(np.exp(-(distances**2) / 25**2))
    expected = linear_model.Ridge(alpha=1).fit(there, probs, sample_weight=weights)
    found = lime.fit(there > 0, probs)
    np.testing.assert_allclose(found.words_W, expected.coef_, atol=1e-9)
    assert found.r2 == pytest.approx(expected.score(there, probs, weights))


def test_calibration_is_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(500, 4))
    labels = np.where(rng.random(500) < 0.6, logits.argmax(1), rng.integers(0, 4, 500))
    found = probabilities.calibration(logits, labels, 10)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    correct = probs.argmax(1) == labels
    accuracy, confidence = metrics.calibration_curve(correct, probs.max(1), n_bins=10)
    np.testing.assert_allclose([x["accuracy"] for x in found["bins"]], accuracy)
    np.testing.assert_allclose([x["confidence"] for x in found["bins"]], confidence)
    counts = np.array([x["count"] for x in found["bins"]])
    assert counts.sum() == 500
    assert found["ece"] == pytest.approx(np.sum(counts * abs(accuracy - confidence)) / 500)


def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 3))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probs.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    assert probabilities.fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.05)


def test_predict_takes_a_temperature(classifier, files):
    model = bert_jax.load(classifier)
    plain, soft = model.classify(TEXTS), model.classify(TEXTS, temperature=2.0)
    for one, other in zip(plain, soft, strict=True):
        odds = [np.log(x["scores"]["yes"] / x["scores"]["no"]) for x in (one, other)]
        assert odds[0] == pytest.approx(2 * odds[1], abs=1e-4)
    with pytest.raises(bert_jax.UserError, match="temperature is 0"):
        model.classify(TEXTS, temperature=0)


@pytest.mark.parametrize(
    "kind, output, options, message",
    [
        ("attribution", "page.pdf", {}, "expected a file that ends in .html, .json, .png"),
        ("attribution", "page.html", {"target": "maybe"}, "'maybe' is not one of .*'no', 'yes'"),
        ("lime", "page.html", {"columns": "txt=a"}, "expected FIELD=COLUMN"),
    ],
)
def test_mistakes(kind, output, options, message, classifier, files, tmp_path):
    with pytest.raises(bert_jax.UserError, match=message):
        bert_jax.explain.run(
            kind, str(classifier), str(files[0]), str(tmp_path / output), **options
        )
    assert not (tmp_path / output).exists()
