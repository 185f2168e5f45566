"""The states of an encoder, as arrays under Hugging Face's names.

N texts, B rows per batch, L length, D hidden width, H heads.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.inference.forward import Forward
from bert_jax.inference.predictions import Record, text_rows
from bert_jax.models import capture, heads
from bert_jax.models.capture import ATTENTIONS, HIDDEN_STATES


class Encoded(dict[str, Any]):
    """Arrays by name; also as attributes, as transformers has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def encode(
    model: Forward, records: Sequence[Record], hidden_states: bool, attentions: bool
) -> Encoded:
    """The encoder's states of all records at once, padded to the longest; 0 at padding.

    Returns:
      "input_ids", "attention_mask", "token_type_ids" int32[N, L]; "last_hidden_state"
      float32[N, L, D]; "pooler_output" float32[N, D] if the model has a pooler; where asked for
      "hidden_states", a tuple of float32[N, L, D], first the embeddings and then each layer, and
      "attentions", a tuple of each layer's probabilities, float32[N, H, L, L].
    """
    rows = text_rows(model, records)
    lengths = [len(row["input_ids"]) for row in rows]
    encoder = model.encoder.encoder(model.config)
    collections = [HIDDEN_STATES] * hidden_states + [ATTENTIONS] * attentions

    def apply(params: Any, *inputs: jax.Array) -> dict[str, Any]:
        (hidden_BLD, pooled_BD), captured = capture.apply(
            encoder, params, *inputs, collections=collections
        )
        states = {"last_hidden_state": hidden_BLD, "pooler_output": pooled_BD, **captured}
        return jax.tree.map(lambda x: x.astype(jnp.float32), states)

    program = model.compiled(("encode", *collections), apply)
    # An encoder without a pooler is computed with one of zeros, whose output is not returned.
    params = heads.with_zeros(model.encoder_params, encoder)
    outputs = model.outputs(program, params, rows)
    arrays = [
        {name: np.array(row[name], np.int32) for name in ("input_ids", "token_type_ids")}
        | {"attention_mask": np.ones(length, np.int32)}
        for row, length in zip(rows, lengths, strict=True)
    ]
    longest = max(lengths, default=0)
    result = Encoded(_padded(arrays, lengths, longest, axes=1))
    pooled = [output.pop("pooler_output") for output in outputs]
    probabilities = [output.pop(ATTENTIONS, ()) for output in outputs]
    result |= _padded(outputs, lengths, longest, axes=1)
    if pooled and "pooler" in model.encoder_params:
        result["pooler_output"] = np.stack(pooled)
    if attentions:
        result[ATTENTIONS] = _padded(probabilities, lengths, longest, axes=2)
    return result


def _padded(trees: Sequence[Any], lengths: Sequence[int], longest: int, axes: int) -> Any:
    """Arrays of each text as one of all, zeros behind a text's end.

    Args:
      trees: of arrays, one tree per text.
      axes: how many count tokens: the first, or the two behind the first.
    """

    def of_all(*arrays: np.ndarray) -> np.ndarray:
        shape = arrays[0].shape
        shape = (longest, *shape[1:]) if axes == 1 else (shape[0], longest, longest)
        padded = np.zeros((len(arrays), *shape), arrays[0].dtype)
        for i, (x, length) in enumerate(zip(arrays, lengths, strict=True)):
            index = (slice(length),) if axes == 1 else (slice(None), slice(length), slice(length))
            padded[i][index] = x[index]
        return padded

    return jax.tree.map(of_all, *trees)
