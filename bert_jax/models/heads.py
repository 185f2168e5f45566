"""What stands on the encoder: the pretraining heads and the fine-tuning heads.

Every model calls its encoder `bert`, so parameters move between heads by name.
Shapes: see `bert_jax/models/bert.py`; C is the number of classes.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.bert import (
    ACTIVATIONS,
    BertConfig,
    BertModel,
    LayerNorm,
    dense,
    dropout,
)


class PretrainingOutput(NamedTuple):
    """What BertForPreTraining computes.

    mlm_logits_BMV: float32, -1e30 for the padding of the vocabulary.
    nsp_logits_B2: float32, index 0 for "B follows A" (IsNext), 1 for "B is random"; packed, of each
      example of a row: [B, E, 2].
    pooled_BD, hidden_BLD: the encoder's outputs, in the compute dtype; packed, pooled [B, E, D].
      With masked positions given, hidden states are of those alone, [B, M, D].
    """

    mlm_logits_BMV: jax.Array
    nsp_logits_B2: jax.Array
    pooled_BD: jax.Array
    hidden_BLD: jax.Array


class BertForPreTraining(nn.Module):
    """Masked-language-model and next-sentence heads (paper, section 3.1)."""

    config: BertConfig

    def setup(self):
        config = self.config
        self.bert = BertModel(config)
        self.mlm_transform = dense(config, config.hidden_size, None)
        self.mlm_layer_norm = LayerNorm(config)
        self.mlm_bias = self.param(
            "mlm_bias", nn.initializers.zeros, (config.padded_vocab_size,), jnp.float32
        )
        self.nsp_classifier = dense(config, 2, None)

    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        masked_lm_positions_BM: jax.Array | None = None,
        keys_B: jax.Array | None = None,
        position_ids_BL: jax.Array | None = None,
        first_token_positions_BE: jax.Array | None = None,
    ) -> PretrainingOutput:
        """Scores the vocabulary at `masked_lm_positions_BM`, or at every position if None.

        The other arguments are `BertModel`'s.
        """
        config = self.config
        token_tables_NVD = self.bert.embeddings.token_tables(len(input_ids_BL))
        hidden_BLD, pooled_BD = self.bert(
            input_ids_BL,
            attention_mask_BL,
            token_type_ids_BL,
            keys_B,
            position_ids_BL,
            first_token_positions_BE,
            masked_lm_positions_BM,
            token_tables_NVD,
        )
        x_BMD = ACTIVATIONS[config.hidden_act](self.mlm_transform(hidden_BLD))
        x_BMD = self.mlm_layer_norm(x_BMD)
        bias_V = jnp.where(
            jnp.arange(config.padded_vocab_size) < config.vocab_size, self.mlm_bias, -1e30
        )
        return PretrainingOutput(
            mlm_logits_BMV=self.bert.embeddings.attend(x_BMD, token_tables_NVD, bias_V),
            nsp_logits_B2=self.nsp_classifier(pooled_BD).astype(jnp.float32),
            pooled_BD=pooled_BD,
            hidden_BLD=hidden_BLD,
        )


def with_zeros(params: Any, module: BertForPreTraining) -> Any:
    """`params` with zeros for the parts they lack (a pooler, a head): for what needs the others."""
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]

    def fill(params: Any, expected: Any) -> Any:
        return {
            name: (
                fill(params.get(name, {}), wanted)
                if isinstance(wanted, dict)
                else params.get(name, jnp.zeros(wanted.shape, wanted.dtype))
            )
            for name, wanted in expected.items()
        }

    return fill(params, expected)


class BertForSequenceClassification(nn.Module):
    """A linear layer over the pooled [CLS] state (paper, section 4.1): logits float32[B, C]."""

    config: BertConfig
    num_labels: int

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        pooled_BD = BertModel(config, name="bert").pooled(
            input_ids_BL, attention_mask_BL, token_type_ids_BL, keys_B
        )
        site = 3 * config.num_hidden_layers + 1
        pooled_BD = dropout(pooled_BD, keys_B, config.hidden_dropout_prob, site, config.dropout_rng)
        return dense(config, self.num_labels, "classifier")(pooled_BD).astype(jnp.float32)


class BertForTokenClassification(nn.Module):
    """A linear layer over every hidden state (paper, section 5.3): logits float32[B, L, C]."""

    config: BertConfig
    num_labels: int

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        x_BLD = BertModel(config, name="bert").encode(
            input_ids_BL, attention_mask_BL, token_type_ids_BL, keys_B
        )
        site = 3 * config.num_hidden_layers + 1
        x_BLD = dropout(x_BLD, keys_B, config.hidden_dropout_prob, site, config.dropout_rng)
        return dense(config, self.num_labels, "classifier")(x_BLD).astype(jnp.float32)


class BertForQuestionAnswering(nn.Module):
    """Scores of every token as start and as end of the answer (paper, section 4.2).

    Returns logits float32[B, L, 2]: start, end.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        x_BLD = BertModel(self.config, name="bert").encode(
            input_ids_BL, attention_mask_BL, token_type_ids_BL, keys_B
        )
        return dense(self.config, 2, "span_classifier")(x_BLD).astype(jnp.float32)


class BertForMultipleChoice(nn.Module):
    """One score a choice over its pooled [CLS] state (paper, section 4.4); N is choices.

    Takes int[B, N, L], returns logits float32[B, N].
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        input_ids_BNL: jax.Array,
        attention_mask_BNL: jax.Array,
        token_type_ids_BNL: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        batch, choices, length = input_ids_BNL.shape
        if keys_B is not None:
            # One key a choice: each choice is a sequence of its own to the encoder.
            keys_B = jax.vmap(lambda key: jax.random.split(key, choices))(keys_B).reshape(-1)
        pooled_BD = BertModel(config, name="bert").pooled(
            *(
                x_BNL.reshape(batch * choices, length)
                for x_BNL in (input_ids_BNL, attention_mask_BNL, token_type_ids_BNL)
            ),
            keys_B,
        )
        site = 3 * config.num_hidden_layers + 1
        pooled_BD = dropout(pooled_BD, keys_B, config.hidden_dropout_prob, site, config.dropout_rng)
        logits = dense(config, 1, "classifier")(pooled_BD).astype(jnp.float32)
        return logits.reshape(batch, choices)


def pool(hidden_BLD: jax.Array, attention_mask_BL: jax.Array, pooling: str) -> jax.Array:
    """One vector a text, float32[B, D]: "cls" its first state, "mean" or "max" over its tokens."""
    hidden_BLD = hidden_BLD.astype(jnp.float32)
    mask_BL1 = attention_mask_BL[..., None] > 0
    if pooling == "cls":
        return hidden_BLD[:, 0]
    if pooling == "max":
        return jnp.where(mask_BL1, hidden_BLD, -jnp.inf).max(1)
    if pooling == "mean":
        return (hidden_BLD * mask_BL1).sum(1) / jnp.maximum(mask_BL1.sum(1), 1)
    raise ValueError(pooling)
