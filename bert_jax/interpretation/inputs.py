"""The records that are explained: those that `predict` reads for the model's head."""

import itertools

from bert_jax.cli import UserError
from bert_jax.inference import inputs
from bert_jax.inference.forward import Forward
from bert_jax.inference.predictions import Record
from bert_jax.interpretation import targets


def read(
    model: Forward, kind: str, source: str, jsonl: bool, columns: str, limit: int
) -> list[Record]:
    """The first `limit` records of a source; 0: all.

    Args:
      kind: of the explanation, which may read other records than the head.

    Raises:
      UserError: there are none, or they do not fit the model.
    """
    command = "embed"  # any text
    if kind != "attention" and not (kind == "checkpoints" and model.task == "pretraining"):
        targets.check(model)
        command = targets.COMMANDS[model.task]
    names = {**inputs.columns(model.settings), **inputs.parse_columns(columns)}
    mask = model.tokenizer.vocab[model.tokenizer.mask_id] if command == "fill-mask" else ""
    records = inputs.read(source, command, jsonl, lambda: names, mask)
    found = [fields for _, fields in itertools.islice(records, limit or None)]
    if not found:
        raise UserError(f"{source} has no texts")
    return found
