"""Attributions beside the same computed in torch on the exported model, and beside captum's."""

import numpy as np
import pytest
from small_models import generated_texts, random_model

import bert_jax
from bert_jax.interpretation import attribution, targets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS = 6
TEXTS = generated_texts(50, 3)
TASKS = {
    "text_classification": (["no", "perhaps", "yes"], "AutoModelForSequenceClassification"),
    "token_classification": (["O", "B-PER", "I-PER"], "AutoModelForTokenClassification"),
    "question_answering": ([], "AutoModelForQuestionAnswering"),
    "pretraining": ([], "AutoModelForMaskedLM"),
}
MODERNBERT = {"architecture": "modernbert", "global_attn_every_n_layers": 1}


def records_of(task, count):
    if task == "question_answering":
        return [{"question": x, "context": y} for x, y in zip(TEXTS[1:count], TEXTS, strict=False)]
    return [{"text": f"{x} [MASK]" if task == "pretraining" else x} for x in TEXTS[:count]]


class Theirs:
    """The exported model in torch; `logit` takes what its embeddings put out."""

    def __init__(self, export, task):
        self.task = task
        auto = getattr(transformers, TASKS[task][1])
        self.model = auto.from_pretrained(export, attn_implementation="eager").eval()
        self.embeddings = self.model.base_model.embeddings

    def arrays(self, row):
        ids = torch.tensor([row["input_ids"]])
        arrays = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.model.config.model_type == "bert":
            arrays["token_type_ids"] = torch.tensor([row["token_type_ids"]])
        return arrays

    def output(self, arrays, output):
        found = self.model(**arrays)
        if self.task == "question_answering":
            return (found.start_logits, found.end_logits)[output.place][:, output.index]
        if self.task == "text_classification":
            return found.logits[:, output.index]
        return found.logits[:, output.place, output.index]

    def embedded(self, arrays):
        kept = []
        hook = self.embeddings.register_forward_hook(lambda *x: kept.append(x[2].detach()))
        self.model(**arrays)
        hook.remove()
        return kept[0]

    def gradient(self, arrays, output, x):
        x = x.clone().requires_grad_()
        hook = self.embeddings.register_forward_hook(lambda *_: x)
        (gradient,) = torch.autograd.grad(self.output(arrays, output).sum(), x)
        hook.remove()
        return gradient

    def without_words(self, model, arrays):
        kept = torch.tensor(targets.kept_ids(model))
        ids = arrays["input_ids"]
        return arrays | {
            "input_ids": torch.where(torch.isin(ids, kept), ids, model.tokenizer.mask_id)
        }

    def attributions(self, model, row, output):
        """(integrated gradients, gradient × input) of the tokens."""
        arrays = self.arrays(row)
        x, base = self.embedded(arrays), self.embedded(self.without_words(model, arrays))
        points, weights = np.polynomial.legendre.leggauss(STEPS)
        total = sum(
            w / 2 * self.gradient(arrays, output, base + (p + 1) / 2 * (x - base))
            for p, w in zip(points, weights, strict=True)
        )
        product = self.gradient(arrays, output, x) * x
        return [y[0].sum(-1).numpy() for y in (total * (x - base), product)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(task, architecture) -> (our model, theirs)."""
    made = {}

    def get(task, fields=None):
        key = (task, bool(fields))
        if key not in made:
            directory = tmp_path_factory.mktemp(task)
            workdir, export = random_model(
                directory, task, TASKS[task][0], 0.3, seed=2, fields=fields or {}
            )
            made[key] = bert_jax.load(workdir), Theirs(export, task)
        return made[key]

    return get


def check_against_torch(model, theirs, records):
    texts = targets.texts(model, records)
    for k, method in enumerate(attribution.METHODS):
        found = attribution.attribute(model, texts, method, STEPS)
        assert sum(map(len, found)) >= len(records) / 2
        for text, ours in zip(texts, found, strict=True):
            for output, one in zip(text.outputs, ours, strict=True):
                expected = theirs.attributions(model, text.row, output)[k]
                scale = np.abs(expected).max()
                np.testing.assert_allclose(one.tokens_L, expected, atol=1e-4 * scale)


@pytest.mark.parametrize("task", TASKS)
def test_attributions_equal_torch_s(task, both, one_thread):
    check_against_torch(*both(task), records_of(task, 3))


@pytest.mark.slow
@pytest.mark.parametrize("fields", [None, MODERNBERT], ids=["bert", "modernbert"])
@pytest.mark.parametrize("task", TASKS)
def test_attributions_equal_torch_s_on_50_texts(task, fields, both, one_thread):
    check_against_torch(*both(task, fields), records_of(task, 50))


def test_integrated_gradients_add_up(both):
    model, _ = both("text_classification")
    texts = targets.texts(model, [{"text": x} for x in TEXTS[:8]], "yes")
    few, many = (attribution.attribute(model, texts, steps=steps) for steps in (2, 64))
    assert np.median([x.error for [x] in many]) < 0.01
    assert np.median([x.error for [x] in few]) > np.median([x.error for [x] in many])
    logits = model.logits([text.row for text in texts])
    np.testing.assert_allclose([x.logit for [x] in many], [x[2] for x in logits], rtol=1e-5)
    # Pieces are summed to words, special tokens are in none.
    for text, [one] in zip(texts, many, strict=True):
        assert len(text.names) == len(one.words_W) and "[CLS]" not in text.names
        assert one.tokens_L[[0, -1]] == pytest.approx(0, abs=1e-6)
        assert one.words_W.sum() == pytest.approx(one.tokens_L.sum(), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_classification", "token_classification"])
def test_attributions_equal_captum_s(task, both):
    attr = pytest.importorskip("captum.attr")
    model, theirs = both(task)
    texts = targets.texts(model, records_of(task, 50))
    found = attribution.attribute(model, texts, steps=16)
    for text, ours in zip(texts, found, strict=True):
        for output, one in zip(text.outputs, ours, strict=True):
            arrays = theirs.arrays(text.row)

            def forward(ids, arrays=arrays, output=output):
                repeated = {name: x.expand(len(ids), -1) for name, x in arrays.items()}
                return theirs.output(repeated | {"input_ids": ids}, output)

            explained = attr.LayerIntegratedGradients(forward, theirs.embeddings)
            empty = theirs.without_words(model, arrays)["input_ids"]
            expected = explained.attribute(
                arrays["input_ids"], empty, n_steps=16, method="gausslegendre"
            )
            expected = expected[0].sum(-1).detach().numpy()
            scale = np.abs(expected).max()
            np.testing.assert_allclose(one.tokens_L, expected, atol=1e-4 * scale)
