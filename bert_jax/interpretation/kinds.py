"""The kinds of explanations, by name: what `bert_jax.explain` offers from Python.

Every function takes a loaded model, and returns plain data that a page shows.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_jax.inference.model import Model

# JAX, and what imports it, is imported inside the functions: --help must answer at once.
Texts = Sequence[str | dict[str, Any]]


def attention(model: "Model", texts: Texts, *, name: str = "") -> dict[str, Any]:
    """The attention probabilities of every layer and head.

    Returns:
      "descriptions" of every head by "shares" of "patterns"; of each of "texts" its "tokens" and
      "levels": uint8[layers, heads, L, L] in steps of 1/255, compressed with zlib, as base64.
    """
    from bert_jax.interpretation import attention

    return attention.report(model, _records(texts), name)


def attribution(model: "Model", texts: Texts, *, name: str = "", **options: Any) -> dict[str, Any]:
    """How much each word adds to an output: integrated gradients and gradient × input.

        data = bert_jax.explain.attribution(bert_jax.load("runs/sst2"), ["A fine film."])
        data["texts"][0]["outputs"][0]["scores"]["integrated_gradients"]  # one number per word

    Args:
      texts: of a pretraining model with [MASK]; or records with the fields that `predict` reads
        for this head: "text" and "text_pair", "tokens", "question" and "context".
      name: of the model, for the page's title.
      options: `target`, the class, label of words or token to explain (the predicted one);
        `steps` (64) of integrated gradients, by Gauss-Legendre quadrature; `baseline` ("mask" or
        "pad"), what stands in place of words where nothing is said; `checks` (True), whether
        deletion and insertion curves, agreement of methods and scores of randomised parameters are
        computed; `seeds` (3), random orders that the curves are compared with.

    Raises:
      UserError: a text, target or baseline that does not fit the model.
    """
    from bert_jax.interpretation import reports

    return reports.attribution(model, _records(texts), name, **options)


def lime(model: "Model", texts: Texts, *, name: str = "", **options: Any) -> dict[str, Any]:
    """How much each word's presence adds to a probability, by a linear model around the text.

    Args:
      options: `samples` (500) of the text with words as [MASK]; their `seed` (0); `target`,
        `checks` and `seeds` as `attribution`'s.
    """
    from bert_jax.interpretation import reports

    return reports.lime(model, _records(texts), name, **options)


def probabilities(model: "Model", file: str, *, name: str = "", **options: Any) -> dict[str, Any]:
    """Calibration of a classifier, or a tagger, on a labelled file.

    Args:
      options: `fit`, a labelled file that a temperature is fitted on; `bins` (10).

    Returns:
      "before", and with `fit` "temperature" and "after": "accuracy", "log_loss", "ece" and "bins";
      "mistakes", the most confident ones.
    """
    from bert_jax.interpretation import probabilities

    return probabilities.report(model, file, name, **options)


def layers(model: "Model", file: str, *, name: str = "", **options: Any) -> dict[str, Any]:
    """Which layer knows a label, by a linear probe of each with a control task; the logit lens.

    Args:
      file: labelled texts or words.
      options: `test`, a labelled file to test on (else a fifth of the examples); `task`
        ("text_classification", "token_classification"; by default as the model or the file is);
        `limit` (2,000) of examples, 0 for all; `seed` (0) of the control's labels; `lens` (True),
        whether a pretraining model says what its MLM head predicts after each layer; and what
        columns are called, as in the recipe of that task: `text_column`, `label_column`, …

    Returns:
      "layers", from the embeddings' (0) on: "accuracy" of the probe on test examples, that on a
      random label per word ("control", Hewitt and Liang 2019) and "selectivity", their difference;
      "majority", the share of the commonest label; "lens", see `interpretation.layers.logit_lens`.
    """
    from bert_jax.interpretation import layers

    return layers.report(model, file, name, **options)


def checkpoints(model: str, texts: Texts, *, name: str = "", **settings: Any) -> dict[str, Any]:
    """Where checkpoints part: predictions, attention and states of the same texts.

    Args:
      model: the WORKDIR of a run, for all checkpoints that it kept; or models by commas, compared
        with the last one.
      settings: further arguments of `bert_jax.load`.

    Returns:
      "checkpoints": of each its "name"; linear "cka" of its states with those of the "last" and of
      the "previous" one, by layer from the embeddings (0) on; the Jensen-Shannon divergence of
      "attention", in bits; what it says of each of "texts", and the share that it says "as_last".
    """
    from bert_jax.interpretation import checkpoints

    return checkpoints.report(model, _records(texts), name or model, **settings)


def _records(texts: Iterable[str | dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": x} if isinstance(x, str) else dict(x) for x in texts]


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "attention": attention,
    "attribution": attribution,
    "lime": lime,
    "probabilities": probabilities,
    "layers": layers,
    "checkpoints": checkpoints,
}
