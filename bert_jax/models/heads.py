"""Task heads, on any encoder: those of pretraining and those of fine-tuning.

A module's parameters have the encoder's under its architecture's `prefix`, so they move between
heads by name.
Shapes: see `bert_jax/models/bert.py`; C is the number of classes.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from bert_jax.models import architectures
from bert_jax.models.architectures import EncoderConfig
from bert_jax.models.layers.dropout import dropout
from bert_jax.models.layers.linear import Dense
from bert_jax.models.stacking import stack_layers


def make_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder as a part of the module that is being called (see `architectures.Encoder`)."""
    architecture = architectures.of(config)
    return architecture.encoder(config, name=architecture.prefix)


def _drop(
    config: EncoderConfig, x: jax.Array, dropout_keys_B: jax.Array | None, number: int = 0
) -> jax.Array:
    """A head's dropouts, behind the encoder's; 0 is that in front of the last layer."""
    site = architectures.of(config).dropout_sites(config) + number
    rate = config.classifier_dropout
    if rate is None:
        rate = config.hidden_dropout_prob
    return dropout(x, dropout_keys_B, rate, site, config.dropout_rng)


class PretrainingOutput(NamedTuple):
    """What PretrainingModel computes.

    mlm_logits_BMV: float32, -inf for the padding of the vocabulary.
    nsp_logits_B2: float32, index 0 for "B follows A" (IsNext), 1 for "B is random"; packed, of each
      example of a row: [B, E, 2]. None of an encoder that is not pretrained on pairs.
    pooled_BD, hidden_BLD: the encoder's outputs, in the compute dtype; packed, pooled [B, E, D];
      None with nsp_logits_B2. With masked positions given, hidden states are of those alone,
      [B, M, D].
    """

    mlm_logits_BMV: jax.Array
    nsp_logits_B2: jax.Array | None
    pooled_BD: jax.Array | None
    hidden_BLD: jax.Array


class PretrainingModel(nn.Module):
    """The masked-language-model head, and BERT's next-sentence head (its paper, section 3.1)."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        masked_lm_positions_BM: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        position_ids_BL: jax.Array | None = None,
        first_token_positions_BE: jax.Array | None = None,
    ) -> PretrainingOutput:
        """Scores the vocabulary at `masked_lm_positions_BM`, or at every position if None.

        The other arguments are the encoder's (`architectures.Encoder`).
        """
        config = self.config
        architecture = architectures.of(config)
        encoder = make_encoder(config)
        tables_NVD = encoder.token_tables(len(input_ids_BL))
        inputs = (
            input_ids_BL,
            attention_mask_BL,
            token_type_ids_BL,
            dropout_keys_B,
            position_ids_BL,
        )
        pooled_BD = None
        if architecture.next_sentence:
            hidden_BLD, pooled_BD = encoder(
                *inputs, first_token_positions_BE, masked_lm_positions_BM, tables_NVD
            )
        else:
            hidden_BLD = encoder.encode(*inputs, masked_lm_positions_BM, tables_NVD)
        x_BMD = architecture.mlm_states(config, hidden_BLD)
        rows = config.padded_vocab_size
        bias_V = self.param("mlm_bias", nn.initializers.zeros, (rows,), jnp.float32)
        bias_V = jnp.where(jnp.arange(rows) < config.vocab_size, bias_V, -jnp.inf)
        nsp_logits_B2 = None
        if pooled_BD is not None:
            nsp_logits_B2 = Dense(config, 2, wide=True, name="nsp_classifier")(pooled_BD)
        return PretrainingOutput(
            mlm_logits_BMV=encoder.token_scores(x_BMD, tables_NVD, bias_V),
            nsp_logits_B2=nsp_logits_B2,
            pooled_BD=pooled_BD,
            hidden_BLD=hidden_BLD,
        )


def make_model(config: ml_collections.ConfigDict) -> PretrainingModel:
    """The pretraining model that `config.model` describes.

    Raises:
      ModelError: it describes none.
    """
    return PretrainingModel(architectures.make_config(config.model))


def init_params(module: nn.Module, key: jax.Array) -> Any:
    """Fresh parameters; the same numbers whether the layers are scanned or not."""
    unrolled = module.clone(config=architectures.computed_as(module.config, scan_layers=False))
    params = unrolled.init(key, *[jnp.zeros((1, 8), jnp.int32)] * 3)["params"]
    return stack_layers(params) if getattr(module.config, "scan_layers", False) else params


def with_zeros(params: Any, module: nn.Module) -> Any:
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


class SequenceClassifier(nn.Module):
    """A linear layer over a text's state (BERT's paper, section 4.1): logits float32[B, C]."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        state_BD = architectures.of(config).text_state(
            make_encoder(config),
            (input_ids_BL, attention_mask_BL, token_type_ids_BL, dropout_keys_B),
            lambda x, number: _drop(config, x, dropout_keys_B, number),
        )
        state_BD = _drop(config, state_BD, dropout_keys_B)
        return Dense(config, self.num_labels, wide=True, name="classifier")(state_BD)


class TokenClassifier(nn.Module):
    """A linear layer over every hidden state (paper, section 5.3): logits float32[B, L, C]."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        x_BLD = make_encoder(config).encode(
            input_ids_BL, attention_mask_BL, token_type_ids_BL, dropout_keys_B
        )
        x_BLD = architectures.of(config).token_states(config, x_BLD)
        x_BLD = _drop(config, x_BLD, dropout_keys_B)
        return Dense(config, self.num_labels, wide=True, name="classifier")(x_BLD)


class SpanClassifier(nn.Module):
    """Scores of every token as start and as end of the answer (paper, section 4.2).

    Returns logits float32[B, L, 2]: start, end.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        x_BLD = make_encoder(config).encode(
            input_ids_BL, attention_mask_BL, token_type_ids_BL, dropout_keys_B
        )
        x_BLD = architectures.of(config).token_states(config, x_BLD)
        return Dense(config, 2, wide=True, name="span_classifier")(x_BLD)


class MultipleChoice(nn.Module):
    """One score per choice over its text's state (BERT's paper, section 4.4); N is choices.

    Takes int[B, N, L], returns logits float32[B, N].
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids_BNL: jax.Array,
        attention_mask_BNL: jax.Array,
        token_type_ids_BNL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        batch, choices, length = input_ids_BNL.shape
        if dropout_keys_B is not None:
            # One key per choice: each is a sequence of its own to the encoder.
            dropout_keys_B = jax.vmap(lambda key: jax.random.split(key, choices))(
                dropout_keys_B
            ).reshape(-1)
        arrays = (input_ids_BNL, attention_mask_BNL, token_type_ids_BNL)
        state_BD = architectures.of(config).choice_state(
            make_encoder(config),
            (*(x_BNL.reshape(batch * choices, length) for x_BNL in arrays), dropout_keys_B),
            lambda x, number: _drop(config, x, dropout_keys_B, number),
        )
        state_BD = _drop(config, state_BD, dropout_keys_B)
        logits = Dense(config, 1, wide=True, name="classifier")(state_BD)
        return logits.reshape(batch, choices)


def pool(hidden_BLD: jax.Array, attention_mask_BL: jax.Array, pooling: str) -> jax.Array:
    """float32[B, D], a vector per text: "cls" its first state, "mean" or "max" over its tokens."""
    hidden_BLD = hidden_BLD.astype(jnp.float32)
    mask_BL1 = attention_mask_BL[..., None] > 0
    if pooling == "cls":
        return hidden_BLD[:, 0]
    if pooling == "max":
        return jnp.where(mask_BL1, hidden_BLD, -jnp.inf).max(1)
    if pooling == "mean":
        return (hidden_BLD * mask_BL1).sum(1) / jnp.maximum(mask_BL1.sum(1), 1)
    raise ValueError(pooling)
