"""Command: shows what a trained model goes by, as a page (.html), a picture (.png) or .json.

  attention      what each head attends to, and what it does
  attribution    how much each word adds to an output, by gradients, and whether to believe it
  lime           the same by leaving words out
  probabilities  whether probabilities are to be believed, on a labelled file

Inputs are those of bert_jax.predict for the model's head: lines of text (for a pretraining model
with [MASK]), or JSON, tables and data sets with its fields; attention takes any text.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bert_jax import cli as cli_lib
from bert_jax.cli import print_lines
from bert_jax.interpretation import flags

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


def _records(texts: Iterable[str | dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": x} if isinstance(x, str) else dict(x) for x in texts]


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "attention": attention,
    "attribution": attribution,
    "lime": lime,
    "probabilities": probabilities,
}


def run(
    kind: str,
    model: str,
    input: str,
    output: str,
    *,
    limit: int = 100,
    jsonl: bool = False,
    columns: str = "",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Writes a page, picture or JSON on a model and a file; arguments as the flags.

    Returns:
      what the function of that name returns.

    Raises:
      UserError: output, model and inputs do not go together; before anything is computed.
    """
    from bert_jax.inference import model as models
    from bert_jax.interpretation import inputs, pages

    pages.check(output)
    loaded = models.load(model, batch_size=batch_size, max_seq_length=max_seq_length)
    read: Any = input
    if kind != "probabilities":
        read = inputs.read(loaded, kind, input, jsonl, columns, limit)
    data = KINDS[kind](loaded, read, name=model, **options)
    pages.write(output, data)
    return data


def main(argv: Sequence[str]) -> None:
    arguments = vars(flags.parser(KINDS, __doc__.removeprefix("Command: ")).parse_args(argv))
    data = run(**arguments)
    from bert_jax.interpretation import reports

    print_lines([*reports.LINES[data["kind"]](data), f"wrote {arguments['output']}"])


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
