"""bert_jax.load: every method beside transformers' eager outputs, on a workdir and an export."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_models import TASKS, generated_texts, random_model
from small_run import ROOT

import bert_jax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = generated_texts(50, 0)
OTHERS = generated_texts(50, 1)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """task -> (WORKDIR, its export); the weights are such that results depend on the texts."""
    return {
        task: random_model(
            tmp_path_factory.mktemp(task), task, labels, 0.5, seed=7, num_hidden_layers=2
        )
        for task, labels in TASKS
    }


@pytest.fixture(scope="module", params=[0, 1], ids=["workdir", "export"])
def models(request, directories):
    """task -> the model, loaded from either."""
    return {task: bert_jax.load(both[request.param]) for task, both in directories.items()}


@pytest.fixture(scope="module")
def theirs(directories):
    """(class of transformers, task) -> a function of texts and their pairs to its outputs."""

    def outputs_of(auto, task, texts, pairs=None, **options):
        export = directories[task][1]
        read = transformers.AutoTokenizer.from_pretrained(export)
        model = auto.from_pretrained(export, attn_implementation="eager").eval()
        batch = read(
            texts, pairs, padding=True, truncation=True, max_length=40, return_tensors="pt"
        )
        with torch.no_grad():
            return batch, model(**batch, **options)

    return outputs_of


@pytest.mark.parametrize("pairs", [None, OTHERS], ids=["texts", "pairs"])
def test_encode(pairs, models, theirs):
    batch, expected = theirs(
        transformers.AutoModel,
        "pretraining",
        TEXTS,
        pairs,
        output_hidden_states=True,
        output_attentions=True,
    )
    found = models["pretraining"].encode(
        TEXTS, pairs, output_hidden_states=True, output_attentions=True
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(found[name], batch[name])
    mask_NL = found.attention_mask.astype(bool)
    np.testing.assert_allclose(found.pooler_output, expected.pooler_output, atol=1e-5)
    assert len(found.hidden_states) == 3 and len(found.attentions) == 2
    for ours, other in zip(
        [found.last_hidden_state, *found.hidden_states],
        [expected.last_hidden_state, *expected.hidden_states],
        strict=True,
    ):
        np.testing.assert_allclose(ours[mask_NL], other.numpy()[mask_NL], atol=1e-5)
        assert not ours[~mask_NL].any()
    for ours, other in zip(found.attentions, expected.attentions, strict=True):
        ours, other = ours.swapaxes(1, 2), other.numpy().swapaxes(1, 2)
        np.testing.assert_allclose(ours[mask_NL], other[mask_NL], atol=1e-5)
    plain = models["pretraining"].encode(TEXTS, pairs)
    assert "hidden_states" not in plain and "attentions" not in plain
    np.testing.assert_allclose(plain.last_hidden_state, found.last_hidden_state, atol=1e-6)


def test_encode_without_a_pooler(models):
    assert "pooler_output" not in models["token_classification"].encode(TEXTS[:2])


def test_embed(models, theirs):
    batch, expected = theirs(transformers.AutoModel, "pretraining", TEXTS)
    mask = batch["attention_mask"][..., None]
    mean = (expected.last_hidden_state * mask).sum(1) / mask.sum(1)
    model = models["pretraining"]
    np.testing.assert_allclose(model.embed(TEXTS), mean, atol=1e-5)
    unit = torch.nn.functional.normalize(expected.last_hidden_state[:, 0])
    np.testing.assert_allclose(model.embed(TEXTS, "cls", normalize=True), unit, atol=1e-5)
    assert model.embed([]).shape == (0, 32)


def test_classify(models, theirs):
    auto = transformers.AutoModelForSequenceClassification
    for pairs in (None, OTHERS):
        _, expected = theirs(auto, "text_classification", TEXTS, pairs)
        found = models["text_classification"].classify(TEXTS, pairs)
        shares = [list(x["scores"].values()) for x in found]
        np.testing.assert_allclose(shares, expected.logits.softmax(-1), atol=1e-5)
        labels = [models["text_classification"].labels[i] for i in expected.logits.argmax(-1)]
        assert [x["prediction"] for x in found] == labels


def test_zero_shot(models, theirs):
    labels = ["good", "bad", "plot"]
    _, expected = theirs(
        transformers.AutoModelForSequenceClassification,
        "text_classification",
        [text for text in TEXTS for _ in labels],
        [f"the film was {label} ." for _ in TEXTS for label in labels],
    )
    shares = expected.logits[:, 2].reshape(-1, 3).softmax(-1)
    found = models["text_classification"].zero_shot(TEXTS, labels, "the film was {} .")
    np.testing.assert_allclose([list(x["scores"].values()) for x in found], shares, atol=1e-5)
    assert list(found[0]["scores"]) == labels


def test_fill_mask(models, theirs):
    words = [text.split() for text in TEXTS]
    masked = [" ".join([*x[: len(x) // 2], "[MASK]", *x[len(x) // 2 :]]) for x in words]
    masked[3] += " [MASK] and [MASK] [MASK]"
    batch, expected = theirs(transformers.AutoModelForMaskedLM, "pretraining", masked)
    found = models["pretraining"].fill_mask(masked, top_k=4)
    vocab = models["pretraining"].tokenizer.vocab
    assert [len(x["masks"]) for x in found] == [1, 1, 1, 4, *[1] * 46]
    for ids, logits, ours in zip(batch["input_ids"], expected.logits, found, strict=True):
        best = logits[ids == vocab.index("[MASK]")].softmax(-1).topk(4)
        assert [[vocab[i] for i in row] for row in best.indices] == [
            [x["token"] for x in mask] for mask in ours["masks"]
        ]
        scores = [[x["score"] for x in mask] for mask in ours["masks"]]
        np.testing.assert_allclose(scores, best.values, atol=1e-5)


def test_tag(models, directories):
    texts = [f"{text[:-1]}, {text[-1]}." if i % 3 else text for i, text in enumerate(TEXTS)]
    pipeline = transformers.pipeline(
        "token-classification",
        model=str(directories["token_classification"][1]),
        aggregation_strategy="first",
    )
    found = models["token_classification"].tag(texts)
    assert sum(len(x["entities"]) for x in found) >= 50
    for text, ours, expected in zip(texts, found, pipeline(texts), strict=True):
        assert [(x["type"], x["start"], x["end"]) for x in ours["entities"]] == [
            (x["entity_group"], x["start"], x["end"]) for x in expected
        ]
        scores = [float(x["score"]) for x in expected]
        assert [x["score"] for x in ours["entities"]] == pytest.approx(scores, abs=1e-5)
        assert [x["text"] for x in ours["entities"]] == [
            text[x["start"] : x["end"]] for x in expected
        ]
        assert ours["tokens"] == [text[start:end] for start, end in ours["offsets"]]
    # The same words as a list: places are of words.
    again = models["token_classification"].tag([x["tokens"] for x in found])
    for words, ours in zip(again, found, strict=True):
        assert words["labels"] == ours["labels"]
        for entity, other in zip(words["entities"], ours["entities"], strict=True):
            assert ours["offsets"][entity["start"]][0] == other["start"]
            assert ours["offsets"][entity["end"] - 1][1] == other["end"]


def test_answer(models, theirs):
    questions = [" ".join(text.split()[:4]) for text in OTHERS]
    batch, expected = theirs(
        transformers.AutoModelForQuestionAnswering, "question_answering", questions, TEXTS
    )
    found = models["question_answering"].answer(questions, TEXTS, top_k=3, max_answer_length=6)
    for i, ours in enumerate(found):
        inside = (batch["token_type_ids"][i] * batch["attention_mask"][i]).nonzero()[:-1, 0]
        start, end = expected.start_logits[i], expected.end_logits[i]
        spans = [(start[a] + end[b]).item() for a in inside for b in inside if a <= b < a + 6]
        probs = np.exp(np.sort(spans)[::-1] - np.logaddexp.reduce(spans))
        scores = [x["score"] for x in ours["n_best"]]
        np.testing.assert_allclose(scores, probs[: len(scores)], atol=1e-5)
        best = ours["n_best"][0]
        assert ours["prediction"] == best["text"] == TEXTS[i][best["start"] : best["end"]]


def test_choose(models, directories):
    export = directories["multiple_choice"][1]
    read = transformers.AutoTokenizer.from_pretrained(export)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(export).eval()
    # Not all have as many.
    choices = [OTHERS[i : i + 2 + i % 2] or OTHERS[:2] for i in range(48)] + [OTHERS[:2]] * 2
    found = models["multiple_choice"].choose(TEXTS, choices, ["the"] * 50)
    for text, ends, ours in zip(TEXTS, choices, found, strict=True):
        texts = [[text] * len(ends), [f"the {end}" for end in ends]]
        batch = read(*texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: x[None] for name, x in batch.items()}).logits[0]
        np.testing.assert_allclose(ours["scores"], logits.softmax(-1), atol=1e-5)
        assert ours["prediction"] == int(logits.argmax())


def test_what_a_model_is_made_of(models):
    model = models["text_classification"]
    assert model.architecture == "bert" and model.config.hidden_size == 32
    ids = np.array([[2, 5, 3]], np.int32)
    logits = model.module.apply({"params": model.params}, ids, np.ones_like(ids), ids * 0)
    shares = model.classify([model.tokenizer.vocab[5]])[0]["scores"]
    exp = np.exp(np.asarray(logits[0]))
    np.testing.assert_allclose(list(shares.values()), exp / exp.sum(), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("classify", (["a"],), "no head to classify with .it is a pretraining model"),
        ("tag", (["a"],), "no head to tag"),
        ("fill_mask", ("a [MASK]",), "text is 'a .MASK.', expected a list of them"),
        ("fill_mask", (["good"],), "no .MASK. in 'good'"),
        ("embed", (["a", None],), "text number 1 is None, expected a text"),
        ("encode", (["a", "b"], ["c"]), "lists of one length, found 2 of text, 1 of text_pair"),
    ],
)
def test_mistakes(method, arguments, message, models):
    with pytest.raises(bert_jax.UserError, match=message):
        getattr(models["pretraining"], method)(*arguments)


def test_a_length_beyond_the_positions_is_refused(directories):
    with pytest.raises(bert_jax.UserError, match="max_seq_length=41 is more than the model's 40"):
        bert_jax.load(directories["pretraining"][0], max_seq_length=41)
    assert bert_jax.load(directories["pretraining"][0], max_seq_length=8).max_seq_length == 8


def test_importing_the_package_imports_nothing_of_weight():
    code = """
import sys, types
import bert_jax
heavy = {"jax", "flax", "numpy", "ml_collections", "etils", "bert_jax.config"} & sys.modules.keys()
assert not heavy, heavy
import bert_jax.pretrain
before = bert_jax.pretrain
bert_jax.load, bert_jax.recipe, bert_jax.UserError
import bert_jax.pretrain
assert bert_jax.pretrain is before and isinstance(before, types.ModuleType)
for name in bert_jax.__all__:
    assert getattr(bert_jax, name) is getattr(bert_jax, name), name
assert set(bert_jax.__all__) <= set(dir(bert_jax))
try:
    bert_jax.nothing
except AttributeError:
    print("fine")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "fine\n", run.stderr


def test_answer_with_the_settings_of_the_fine_tuning(tmp_path):
    settings = {"may_have_none": True, "null_threshold": -1e9, "max_answer_length": 2}
    both = random_model(tmp_path, "question_answering", [], 0.5, seed=7, **settings)
    for directory in both:
        model = bert_jax.load(directory)
        assert {x["prediction"] for x in model.answer(["the film"] * 2, TEXTS[:2])} == {""}
        spans = model.answer(["the film"], TEXTS[:1], top_k=50, null_threshold=float("inf"))[0]
        assert spans["prediction"] and all(x["text"] for x in spans["n_best"])
        assert max(len(x["text"].split()) for x in spans["n_best"]) <= 2


def test_a_model_with_more_rows_than_the_tokenizer_has_tokens(directories, tmp_path):
    """As many published models, padded to a round number: the surplus rows are no answer."""
    export = directories["pretraining"][1]
    theirs = transformers.BertForMaskedLM.from_pretrained(export)
    count = theirs.config.vocab_size
    theirs.resize_token_embeddings(count + 6)
    with torch.no_grad():
        theirs.cls.predictions.bias[count:] = 50.0
    shutil.copytree(export, tmp_path / "padded")
    theirs.save_pretrained(tmp_path / "padded")
    ours = bert_jax.load(tmp_path / "padded")
    assert ours.module.config.vocab_size == count + 6
    batch = transformers.AutoTokenizer.from_pretrained(export)(
        ["the [MASK] was"], return_tensors="pt"
    )
    logits = theirs(**batch).logits[0, 2, :count]
    best = logits.softmax(-1).topk(3)
    (mask,) = ours.fill_mask(["the [MASK] was"], top_k=3)[0]["masks"]
    assert [x["token"] for x in mask] == [ours.tokenizer.vocab[i] for i in best.indices]
    np.testing.assert_allclose([x["score"] for x in mask], best.values.detach(), atol=1e-5)
