"""The RoBERTa encoder (Liu et al. 2019, https://arxiv.org/abs/1907.11692), in Flax Linen.

BERT's layers; what differs: positions are counted from behind the padding, there is one segment,
the MLM head's GELU is the exact one whatever the layers', and a classifier has a layer of its own
in place of the pooler. XLM-RoBERTa and CamemBERT are RoBERTa with other vocabularies.

Shapes: see `bert_jax/models/bert.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.models.bert import BertConfig, BertModel, transformed
from bert_jax.models.errors import ModelError
from bert_jax.models.layers.linear import Dense


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Sizes and arithmetic of a RoBERTa encoder; names as in Hugging Face's `RobertaConfig`.

    Defaults are those of the published roberta-base.

    Attributes:
      pad_token_id: the vocabulary's. Padding has this row of the position embeddings, and a
        sequence's first token the next one.
    """

    vocab_size: int = 50265
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ModelError(
                f"config.model: pad_token_id {self.pad_token_id} is not from 0 to below vocab_size "
                f"{self.vocab_size}"
            )
        if self.max_length < 1:
            raise ModelError(
                f"config.model: max_position_embeddings {self.max_position_embeddings} leaves no "
                f"position: the first {self.pad_token_id + 1} (pad_token_id + 1) hold no token"
            )

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return self.max_position_embeddings - self.pad_token_id - 1


class RobertaModel(BertModel):
    """Embeddings, encoder and pooler; arguments and results are `BertModel`'s."""

    config: RobertaConfig

    def positions(self, input_ids_BL: jax.Array, position_ids_BL: jax.Array | None) -> jax.Array:
        """The rows of the position embeddings, int32[B, L]: tokens are counted, padding is not.

        With pad_token_id 1: [<s>, a, <pad>, b, <pad>] -> [2, 3, 1, 4, 1]. A packed row's examples
        are counted each by itself.
        """
        pad_id = self.config.pad_token_id
        is_token_BL = (input_ids_BL != pad_id).astype(jnp.int32)
        count_BL = jnp.cumsum(is_token_BL, axis=1)
        if position_ids_BL is not None:
            first_BL = jnp.arange(input_ids_BL.shape[1]) - position_ids_BL
            before_BL = jnp.take_along_axis(count_BL - is_token_BL, first_BL, axis=1)
            count_BL = count_BL - before_BL
        return count_BL * is_token_BL + pad_id


def mlm_states(config: RobertaConfig, x_BMD: jax.Array) -> jax.Array:
    """What the output matrix of the MLM head reads; called in a head's module."""
    return transformed(config, x_BMD, "gelu")


def text_state(encoder: Any, inputs: Sequence[Any], drop: Callable[..., jax.Array]) -> jax.Array:
    """The state of a text that a classifier reads, [B, D]: see `architectures.Architecture`."""
    config = encoder.config
    first_B1 = jnp.zeros((inputs[0].shape[0], 1), jnp.int32)
    x_BD = drop(encoder.encode(*inputs, rows_BR=first_B1)[:, 0], 1)
    return jnp.tanh(Dense(config, config.hidden_size, name="classifier_dense")(x_BD))
