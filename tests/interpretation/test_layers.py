"""Probes, the logit lens and the comparison of checkpoints, against other libraries' numbers."""

import json

import numpy as np
import pytest
from small_models import generated_texts, random_model
from small_run import make_data_dir, small_config

import bert_jax
from bert_jax import pretrain
from bert_jax.interpretation import checkpoints, layers
from bert_jax.objectives import probe

TEXTS = generated_texts(12, 5)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """(WORKDIR, export) of a random model with three layers and an MLM head."""
    directory = tmp_path_factory.mktemp("masked")
    return random_model(directory, "pretraining", [], 0.3, seed=2, num_hidden_layers=3)


@pytest.fixture(scope="module")
def words_file(tmp_path_factory):
    """Labels of words that are a function of the word."""
    path = tmp_path_factory.mktemp("words") / "words.conll"
    sentences = [[f"{w}\t{'V' if len(w) % 2 else 'N'}" for w in text.split()] for text in TEXTS]
    path.write_text("\n\n".join("\n".join(lines) for lines in sentences) + "\n")
    return path


def test_a_probe_is_scikit_learn_s_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (300, 6)).astype(np.float32)
    x[:, 3] = 1  # tells nothing
    labels = (x @ rng.normal(size=(6, 3)) + rng.gumbel(size=(300, 3))).argmax(1)
    found = probe.fit(x, labels, 3, 2.0)
    standard = preprocessing.StandardScaler().fit_transform(x)
    expected = linear_model.LogisticRegression(C=0.5, tol=1e-8, max_iter=1000)
    expected.fit(standard, labels)
    np.testing.assert_allclose(found.weights_DC.T, expected.coef_, atol=2e-3)
    np.testing.assert_array_equal(found.predict(x), expected.predict(standard))


def test_every_layer_is_probed_with_a_control(masked, words_file, tmp_path):
    output = tmp_path / "layers.json"
    options = {"tag_index": 1, "limit": 8, "test": str(words_file)}
    data = bert_jax.explain.run("layers", str(masked[0]), str(words_file), str(output), **options)
    assert json.loads(output.read_text()) == data
    assert data["task"] == "token_classification" and data["labels"] == ["N", "V"]
    assert len(data["layers"]) == 4  # the embeddings' and three
    assert data["train_examples"] == sum(len(text.split()) for text in TEXTS[:8])
    # The label is a function of the word, and so is its embedding, but for the position.
    assert data["layers"][0]["accuracy"] > 0.8 > data["majority"]
    for x in data["layers"]:
        assert x["selectivity"] == pytest.approx(x["accuracy"] - x["control"])


def test_the_control_gives_a_word_one_label():
    split = layers.Split(np.zeros((1, 6, 2)), np.array([0, 1, 2, 0, 1, 2]), list("abcabd"))
    train, test = layers.control_labels(split, split, 3)
    np.testing.assert_array_equal(train, test)
    assert train[0] == train[3] and train[1] == train[4]
    labels = [tuple(layers.control_labels(split, split, seed)[0]) for seed in range(4)]
    assert len({*labels}) > 1


def test_texts_are_probed_by_their_mean(masked, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("review,stars\n" + "".join(f"{x},{len(x) % 2}\n" for x in TEXTS))
    model = bert_jax.load(masked[0])
    data = bert_jax.explain.layers(
        model, str(path), text_column="review", label_column="stars", lens=False
    )
    assert data["task"] == "text_classification" and "lens" not in data
    assert data["train_examples"] + data["test_examples"] == len(TEXTS)
    reader, examples, _ = layers._examples(
        *(model, str(path), "", "text_classification", 0),
        {"text_column": "review", "label_column": "stars"},
    )
    split = layers.states(model, reader, examples, "text_classification")
    found = model.encode([examples[1].texts[0]], output_hidden_states=True)
    for k, x in enumerate(found.hidden_states):
        np.testing.assert_allclose(split.states_KND[k, 1], x[0].mean(0), atol=1e-5)


def test_a_fine_tuned_model_reads_files_as_it_did(tmp_path):
    """Its columns are the defaults; its own labels do not count."""
    model = random_model(
        *(tmp_path / "tuned", "text_classification", ["a", "b"]),
        **{"text_column": "review", "label_column": "stars"},
    )[0]
    path = tmp_path / "texts.csv"
    path.write_text("review,stars\n" + "".join(f"{x},{len(x) % 2}\n" for x in TEXTS))
    data = bert_jax.explain.layers(bert_jax.load(model), str(path))
    assert data["labels"] == ["0", "1"] and len(data["layers"]) == 2 and "lens" not in data


def test_the_lens_is_transformers_model_cut_behind_a_layer(masked):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = bert_jax.load(masked[0])
    found = layers.logit_lens(model, TEXTS[:2])
    names, asked = layers.masked_words(model, TEXTS[0])
    assert names == TEXTS[0].split() and len(asked) == len(names)
    rows = torch.tensor([x.row["input_ids"] for x in asked])
    for number in range(1, 4):
        theirs = transformers.BertForMaskedLM.from_pretrained(masked[1]).eval()
        theirs.bert.encoder.layer = theirs.bert.encoder.layer[:number]
        with torch.no_grad():
            probs = theirs(rows).logits.softmax(-1).numpy()
        for i, ask in enumerate(asked):
            shown = found["texts"][0]["asked"][i]["layers"][number - 1]
            expected = probs[i, ask.place]
            assert shown["token"] == model.tokenizer.surface(int(expected.argmax())).strip()
            assert shown["probability"] == pytest.approx(expected.max(), abs=1e-4)
            assert shown["right"] == pytest.approx(expected[ask.token], abs=1e-4)
    hits = [x["layers"][2]["right"] == x["layers"][2]["probability"]
            for text in found["texts"] for x in text["asked"]]  # fmt: skip
    assert found["layers"][2]["hits"] == pytest.approx(np.mean(hits))


def test_the_masks_of_a_text_are_asked_alone(masked):
    model = bert_jax.load(masked[0])
    words = TEXTS[0].split()
    text = " ".join([words[0], "[MASK]", *words[1:]])
    names, asked = layers.masked_words(model, text)
    assert [(names[x.word], x.token) for x in asked] == [("[MASK]", None)]
    [shown] = layers.logit_lens(model, [text])["texts"]
    best = model.fill_mask([text], 1)[0]["masks"][0][0]
    assert shown["asked"][0]["layers"][-1]["token"] == best["token"]
    assert shown["asked"][0]["layers"][-1]["probability"] == pytest.approx(best["score"], abs=1e-4)
    assert len(layers.masked_words(model, TEXTS[1], 2)[1]) == min(2, len(TEXTS[1].split()))


def test_similarity_and_divergence():
    distance = pytest.importorskip("scipy.spatial.distance")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 6))
    # As an inner product of centred Gram matrices (section 3, equation 3).
    centre = np.eye(50) - 1 / 50
    one, other = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    expected = (one * other).sum() / norms
    assert checkpoints.cka(x, y) == pytest.approx(expected)
    turned = x @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert checkpoints.cka(x, 3 * turned + 1) == pytest.approx(1)
    p, q = rng.dirichlet(np.ones(5), (2, 5)), rng.dirichlet(np.ones(5), (2, 5))
    pairs = zip(p.reshape(-1, 5), q.reshape(-1, 5), strict=True)
    expected = np.mean([distance.jensenshannon(a, b, base=2) ** 2 for a, b in pairs])
    assert checkpoints.jensen_shannon(p, q) == pytest.approx(expected)


def test_the_checkpoints_of_a_run(tmp_path):
    config = small_config(make_data_dir(tmp_path / "data", {"train": [64]}))
    config.update(num_steps=6, checkpoint_every=2, keep_checkpoints=3, eval_every=0)
    config.optimizer.learning_rate = 0.05  # so that six steps show
    run = tmp_path / "run"
    pretrain.run(config, run)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:3]) + "\n")
    output = tmp_path / "page.html"
    data = bert_jax.explain.run("checkpoints", str(run), str(tmp_path / "texts.txt"), str(output))
    assert [x["name"] for x in data["checkpoints"]] == ["step 2", "step 4", "step 6"]
    first, _, last = data["checkpoints"]
    assert last["as_last"] == 1 and last["cka"]["last"] == [1.0] * len(last["cka"]["last"])
    assert last["attention"]["last"] == [0.0] * config.model.num_hidden_layers
    assert all(x < 1 for x in first["cka"]["last"][1:])
    assert all(x > 0 for x in first["attention"]["last"])
    model = bert_jax.load(run / "checkpoints" / "2")
    names, asked = layers.masked_words(model, TEXTS[0])
    assert [x["of"] for x in first["texts"][0]] == [names[ask.word] for ask in asked]
    hidden = model.tokenizer.decode(asked[0].row["input_ids"][1:-1])
    best = model.fill_mask([hidden], 1)[0]["masks"][0][0]
    assert first["texts"][0][0]["prediction"] == best["token"]


def test_mistakes(masked, tmp_path):
    output = str(tmp_path / "page.html")
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n")

    def explain(kind, model, source, **options):
        bert_jax.explain.run(kind, str(model), str(source), output, **options)

    with pytest.raises(bert_jax.UserError, match=r"has 1 checkpoint.* two or more"):
        explain("checkpoints", masked[0], lines)
    with pytest.raises(bert_jax.UserError, match="is one model: expected two"):
        explain("checkpoints", masked[1], lines)
    other = random_model(tmp_path / "other", "pretraining", [], 0.3, num_hidden_layers=1)[0]
    with pytest.raises(bert_jax.UserError, match="cannot be compared with"):
        explain("checkpoints", f"{masked[0]},{other}", lines)
    with pytest.raises(bert_jax.UserError, match="Give --task=text_classification or"):
        explain("layers", masked[0], lines)
    assert not (tmp_path / "page.html").exists()
