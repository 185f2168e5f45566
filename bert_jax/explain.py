"""Command: shows what a trained model goes by, as a page (.html), a picture (.png) or .json.

  attention      what each head attends to, and what it does
  attribution    how much each word adds to an output, by gradients, and whether to believe it
  lime           the same by leaving words out
  probabilities  whether probabilities are to be believed, on a labelled file
  layers         which layer knows a label, and what the MLM head would say after each
  checkpoints    where the checkpoints of a run, or several models, part

Inputs are those of bert_jax.predict for the model's head: lines of text (for a pretraining model
with [MASK]), or JSON, tables and data sets with its fields; attention takes any text, and so do
checkpoints of a pretraining.
"""

from collections.abc import Sequence
from typing import Any

from bert_jax import cli as cli_lib
from bert_jax.cli import print_lines
from bert_jax.interpretation import flags
from bert_jax.interpretation.kinds import (
    KINDS,
    attention,
    attribution,
    checkpoints,
    layers,
    lime,
    probabilities,
)

__all__ = ["attention", "attribution", "checkpoints", "layers", "lime", "probabilities", "run"]
LABELLED = ("probabilities", "layers")  # kinds that read a labelled file


def run(
    kind: str,
    model: str,
    input: str,
    output: str,
    *,
    limit: int | None = None,
    jsonl: bool = False,
    columns: str = "",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    show: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Writes a page, picture or JSON on a model and a file; arguments as the flags.

    Args:
      show: whether progress is printed.

    Returns:
      what the function of that name returns.

    Raises:
      UserError: output, model and inputs do not go together; before anything is computed.
    """
    from bert_jax.inference import model as models
    from bert_jax.interpretation import checkpoints, inputs
    from bert_jax.interpretation.drawing import pages

    pages.check(output)
    settings: dict[str, Any] = {"batch_size": batch_size, "max_seq_length": max_seq_length}
    last = checkpoints.sources(model)[-1][1] if kind == "checkpoints" else model
    loaded = models.load(last, **settings, progress=show)
    if kind == "layers":
        options |= {"progress": show, "limit": flags.LIMITS[kind] if limit is None else limit}
    if kind in LABELLED:
        data = KINDS[kind](loaded, input, name=model, **options)
    else:
        most = flags.LIMITS[kind] if limit is None else limit
        records = inputs.read(loaded, kind, input, jsonl, columns, most)
        if kind == "checkpoints":
            data = checkpoints.report(model, records, model, progress=show, **settings)
        else:
            data = KINDS[kind](loaded, records, name=model, **options)
    pages.write(output, data)
    return data


def main(argv: Sequence[str]) -> None:
    arguments = vars(flags.parser(KINDS, __doc__.removeprefix("Command: ")).parse_args(argv))
    data = run(**arguments, show=True)
    from bert_jax.interpretation import reports

    print_lines([*reports.LINES[data["kind"]](data), f"wrote {arguments['output']}"])


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
