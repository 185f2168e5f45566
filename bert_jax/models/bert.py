"""The BERT encoder (Devlin et al. 2018, https://arxiv.org/abs/1810.04805), in Flax Linen.

Shapes live in names: B batch, L sequence length, D hidden width, H heads, K head size,
F feed-forward width, V vocabulary (padded), M masked positions, E examples packed into a row,
R positions that a head reads: the last layer computes no others (`gather_positions`), N shards of
the batch.

`dropout_keys_B` are one key per example (models/layers/dropout.py); None turns dropout off.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import capture
from bert_jax.models.errors import ModelError, not_among, out_of_range
from bert_jax.models.layers.activations import ACTIVATIONS
from bert_jax.models.layers.attention import IMPLEMENTATIONS, attend, platform_of, probabilities
from bert_jax.models.layers.dropout import dropout
from bert_jax.models.layers.layer_norm import LayerNorm
from bert_jax.models.layers.linear import Dense
from bert_jax.models.layers.positions import gather_positions, per_shard
from bert_jax.models.layers.tables import (
    lookup,
    padded_rows,
    per_shard_tables,
    select_rows,
    tied_scores,
    zero_rows_from,
)
from bert_jax.parallel.sharding import constrain

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and arithmetic of a BERT encoder; names as in Hugging Face's `BertConfig`.

    Defaults are BERT-base, uncased (paper, section 3).

    Attributes:
      dtype: of the activations and matmuls ("float32" or "bfloat16"). Parameters, softmax,
        LayerNorm statistics and losses are float32 always.
      scan_layers: run the layers as one compiled loop over stacked parameters: compiles faster,
        runs slower.
      dropout_rng: where dropout's bits come from: "hash", a mixing of key and position, which runs
        inside the operations that use the bits; "threefry", JAX's own generator.
      attention: "xla", plain operations; "splash" or "fused", kernels for TPU, without and with
        dropout on the probabilities; "cudnn", for GPU; "auto": by device, length and dropout (see
        models/layers/attention.py).
      remat: what the backward pass recomputes instead of storing: "none"; "dots", all but
        matmuls with a kernel; "full", each layer from its input.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    dtype: str = "float32"
    dropout_rng: str = "hash"
    attention: str = "auto"
    scan_layers: bool = False
    remat: str = "none"

    def __post_init__(self):
        rates = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
        if self.classifier_dropout is not None:
            rates.append("classifier_dropout")
        problems = [*out_of_range(self, SIZES, rates)]
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        choices = {
            "hidden_act": tuple(ACTIVATIONS),
            "dtype": ("float32", "bfloat16"),
            "dropout_rng": ("threefry", "hash"),
            "attention": IMPLEMENTATIONS,
            "remat": ("none", "dots", "full"),
        }
        problems += not_among(self, choices)
        if problems:
            raise ModelError("config.model: " + "; ".join(problems))

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table on the device; the surplus is never predicted or exported."""
        return padded_rows(self.vocab_size)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return self.max_position_embeddings

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Embeddings(nn.Module):
    """Sum of token, position and segment embeddings, then LayerNorm and dropout."""

    config: BertConfig

    def setup(self):
        config = self.config
        init = nn.initializers.truncated_normal(config.initializer_range)
        embed = functools.partial(nn.Embed, features=config.hidden_size)
        self.word_embeddings = embed(
            config.padded_vocab_size, embedding_init=zero_rows_from(config.vocab_size, init)
        )
        self.position_embeddings = embed(config.max_position_embeddings, embedding_init=init)
        self.token_type_embeddings = embed(config.type_vocab_size, embedding_init=init)
        self.layer_norm = LayerNorm(config)

    def __call__(
        self,
        input_ids_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None,
        positions: jax.Array,
        tables_NVD: jax.Array | None = None,
    ) -> jax.Array:
        """`positions`: rows of the position embeddings, int[B, L], or [L] where all are alike."""
        config = self.config
        if tables_NVD is None:
            tables_NVD = self.token_tables(len(input_ids_BL))
        # In float32, and so are their gradients: sums over thousands of tokens.
        x_BLD = (
            per_shard(lookup, tables_NVD, input_ids_BL)
            + self.position_embeddings(positions)
            + select_rows(self.token_type_embeddings.embedding, token_type_ids_BL)
        ).astype(config.dtype)
        x_BLD = constrain(x_BLD, "batch", None, None)
        x_BLD = self.layer_norm(x_BLD)
        return dropout(x_BLD, dropout_keys_B, config.hidden_dropout_prob, 0, config.dropout_rng)

    def token_tables(self, batch: int) -> jax.Array:
        """See `tables.per_shard_tables`."""
        return per_shard_tables(self.word_embeddings.embedding.astype(self.config.dtype), batch)


class SelfAttention(nn.Module):
    """Multi-head attention over the sequence, both directions.

    With `packed`, the mask numbers a row's examples and each attends to itself alone.
    """

    config: BertConfig
    packed: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        attention_mask_BL: jax.Array,
        dropout_keys_B: jax.Array | None,
        site: int | jax.Array,
        rows_BR: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config

        def project(name: str, x_BLD: jax.Array) -> jax.Array:
            x_BLHK = Dense(config, config.hidden_size, name=name)(x_BLD).reshape(
                *x_BLD.shape[:2], config.num_attention_heads, config.head_size
            )
            return constrain(x_BLHK, "batch", None, "tensor", None)

        # Three matmuls, not one fused: faster on CPU and TPU (no slicing of the result).
        read_BLD = gather_positions(x_BLD, rows_BR)
        q_BLHK, k_BLHK, v_BLHK = (
            project("query", read_BLD),
            project("key", x_BLD),
            project("value", x_BLD),
        )
        implementation = config.attention
        if self.is_initializing():
            # Parameters do not depend on it, and are made at a length that no kernel takes.
            implementation = "xla"
        elif capture.wants(self, capture.ATTENTIONS):
            probs_BHLL = probabilities(q_BLHK, k_BLHK, attention_mask_BL, self.packed)
            self.sow(capture.ATTENTIONS, "probabilities", probs_BHLL)
            implementation = "xla"
        y_BLHK = attend(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            attention_mask_BL,
            dropout_keys_B,
            implementation=implementation,
            packed=self.packed,
            dropout_rate=config.attention_probs_dropout_prob,
            site=site,
            rng=config.dropout_rng,
            rows_BR=rows_BR,
        )
        return Dense(config, config.hidden_size, name="output")(y_BLHK.reshape(read_BLD.shape))


class Layer(nn.Module):
    """One post-LayerNorm transformer layer (Vaswani et al. 2017, as BERT uses it).

    Given `rows_BR`, what it gives is [B, R, D]: its output at these positions alone.
    """

    config: BertConfig
    packed: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        index: int | jax.Array,
        attention_mask_BL: jax.Array,
        dropout_keys_B: jax.Array | None,
        rows_BR: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        config = self.config
        length = x_BLD.shape[1]

        def drop(y_BLD: jax.Array, site: int | jax.Array) -> jax.Array:
            rate, rng = config.hidden_dropout_prob, config.dropout_rng
            return dropout(y_BLD, dropout_keys_B, rate, site, rng, rows_BR, length)

        site = 3 * index + 1  # site 0 is the embeddings'
        attention = SelfAttention(config, self.packed, name="attention")
        y_BLD = drop(attention(x_BLD, attention_mask_BL, dropout_keys_B, site, rows_BR), site + 1)
        x_BLD = LayerNorm(config, name="attention_layer_norm")(
            gather_positions(x_BLD, rows_BR) + y_BLD
        )
        y_BLF = Dense(config, config.intermediate_size, name="intermediate")(x_BLD)
        y_BLF = ACTIVATIONS[config.hidden_act](constrain(y_BLF, "batch", None, "tensor"))
        y_BLD = drop(Dense(config, config.hidden_size, name="output")(y_BLF), site + 2)
        x_BLD = LayerNorm(config, name="output_layer_norm")(x_BLD + y_BLD)
        return constrain(x_BLD, "batch", None, None), None  # None: nothing collected by a scan


class Encoder(nn.Module):
    """`num_hidden_layers` layers, unrolled or as one scanned loop.

    Given `rows_BR`, it gives the hidden states [B, R, D] at these positions alone, and an unrolled
    last layer computes no others: of its matmuls, only keys' and values' stay whole.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        attention_mask_BL: jax.Array,
        dropout_keys_B: jax.Array | None,
        packed: bool,
        rows_BR: jax.Array | None,
    ) -> jax.Array:
        config = self.config
        layer_class: Any = Layer
        if config.remat != "none":
            # Without those of attention: scores are larger than all else that a layer computes.
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if config.remat == "dots" else None
            layer_class = nn.remat(Layer, policy=policy, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            scanned = nn.scan(
                layer_class,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=config.num_hidden_layers,
            )
            indices = jnp.arange(config.num_hidden_layers)
            layers = scanned(config, packed, name="layers")
            return gather_positions(
                layers(x_BLD, indices, attention_mask_BL, dropout_keys_B)[0], rows_BR
            )
        if platform_of(jax.sharding.get_abstract_mesh()) == "cpu":
            # Layers of one shape are traced once. XLA for TPU would leave kernels in calls.
            layer_class = nn.jit(layer_class)
        states = [x_BLD]
        for i in range(config.num_hidden_layers):
            layer = layer_class(config, packed, name=f"layer_{i}")
            is_last = i == config.num_hidden_layers - 1
            x_BLD, _ = layer(
                x_BLD, i, attention_mask_BL, dropout_keys_B, rows_BR if is_last else None
            )
            states.append(x_BLD)
        if capture.wants(self, capture.HIDDEN_STATES):
            for state_BLD in states:
                self.sow(capture.HIDDEN_STATES, "states", state_BLD)
        return x_BLD


class BertModel(nn.Module):
    """Embeddings, encoder and pooler: what every head builds upon."""

    config: BertConfig

    def setup(self):
        self.embeddings = Embeddings(self.config)
        self.encoder = Encoder(self.config)
        self.pooler = Dense(self.config, self.config.hidden_size, wide=True)

    def __call__(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
        position_ids_BL: jax.Array | None = None,
        first_token_positions_BE: jax.Array | None = None,
        read_positions_BM: jax.Array | None = None,
        token_tables_NVD: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (last hidden states [B, L, D], pooled [CLS] state [B, D], packed [B, E, D]).

        Args:
          input_ids_BL: int[B, L] below `vocab_size` (larger ids read padding or NaN: no error).
          attention_mask_BL: int[B, L], 1 for tokens and 0 for padding; packed, the number of the
            token's example in the row, from 1.
          token_type_ids_BL: int[B, L], 0 for segment A and 1 for segment B.
          dropout_keys_B: one dropout key per example, or None for no dropout; packed, per row.
          position_ids_BL: int[B, L], given for packed rows: from 0 in every example.
          first_token_positions_BE: int[B, E], where each example's [CLS] is in a packed row.
          read_positions_BM: int[B, M], given where a head reads no other hidden states: these
            [B, M, D] are returned, and the last layer computes little else.
          token_tables_NVD: `token_tables`, given where a head reads them too.
        """
        packed = position_ids_BL is not None
        if first_token_positions_BE is None:
            first_token_positions_BE = jnp.zeros((input_ids_BL.shape[0], 1), jnp.int32)
        inputs = (
            input_ids_BL,
            attention_mask_BL,
            token_type_ids_BL,
            dropout_keys_B,
            position_ids_BL,
        )
        if read_positions_BM is None:
            x_BLD = self.encode(*inputs, token_tables_NVD=token_tables_NVD)
            first_BED = gather_positions(x_BLD, first_token_positions_BE)
        else:
            rows_BR = jnp.concatenate([first_token_positions_BE, read_positions_BM], axis=1)
            x_BRD = self.encode(*inputs, rows_BR, token_tables_NVD)
            examples = first_token_positions_BE.shape[1]
            first_BED, x_BLD = x_BRD[:, :examples], x_BRD[:, examples:]
        pooled_BED = jnp.tanh(self.pooler(first_BED)).astype(self.config.dtype)
        return x_BLD, pooled_BED if packed else pooled_BED[:, 0]

    def pooled(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """The pooled [CLS] state alone, [B, D], for heads that read nothing else."""
        none_B0 = jnp.zeros((input_ids_BL.shape[0], 0), jnp.int32)
        inputs = (input_ids_BL, attention_mask_BL, token_type_ids_BL, dropout_keys_B)
        return self(*inputs, read_positions_BM=none_B0)[1]

    def encode(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
        position_ids_BL: jax.Array | None = None,
        rows_BR: jax.Array | None = None,
        token_tables_NVD: jax.Array | None = None,
    ) -> jax.Array:
        """The last hidden states alone, for heads without use for the pooler; of all or R rows."""
        positions = self.positions(input_ids_BL, position_ids_BL)
        x_BLD = self.embeddings(
            input_ids_BL, token_type_ids_BL, dropout_keys_B, positions, token_tables_NVD
        )
        packed = position_ids_BL is not None
        return self.encoder(x_BLD, attention_mask_BL, dropout_keys_B, packed, rows_BR)

    def positions(self, input_ids_BL: jax.Array, position_ids_BL: jax.Array | None) -> jax.Array:
        """The rows of the position embeddings: of a sequence's first token 0."""
        if position_ids_BL is None:
            return jnp.arange(input_ids_BL.shape[1])
        return position_ids_BL

    def token_tables(self, batch: int) -> jax.Array:
        """See `tables.per_shard_tables`."""
        return self.embeddings.token_tables(batch)

    def token_scores(self, x_BMD: jax.Array, tables_NVD: jax.Array, bias_V: jax.Array) -> jax.Array:
        """See `tables.tied_scores`."""
        return tied_scores(x_BMD, tables_NVD, bias_V)


def mlm_states(config: Any, x_BMD: jax.Array) -> jax.Array:
    """What the output matrix of the MLM head reads; called in a head's module."""
    return transformed(config, x_BMD, config.hidden_act)


def transformed(config: Any, x_BMD: jax.Array, activation: str) -> jax.Array:
    """LayerNorm(activation(x·kernel + bias)), the MLM head's parameters."""
    x_BMD = Dense(config, config.hidden_size, name="mlm_transform")(x_BMD)
    return LayerNorm(config, name="mlm_layer_norm")(ACTIVATIONS[activation](x_BMD))


def pooled_state(encoder: Any, inputs: Sequence[Any], drop: Callable[..., jax.Array]) -> jax.Array:
    """The state of a text that a classifier reads, [B, D]: see `architectures.Architecture`."""
    del drop
    return encoder.pooled(*inputs)


def dropout_sites(config: BertConfig) -> int:
    """How many dropouts there are: the embeddings' and, in each layer, three."""
    return 3 * config.num_hidden_layers + 1


def multiplications(config: BertConfig, length: int, read: int) -> int:
    """Multiplications in the matmuls of a forward pass, `read` of whose positions are read.

    Args:
      length: positions of a sequence.
      read: positions at which the last layer gives its output.
    """
    width = config.hidden_size

    def layer(rows: int) -> int:
        projections = 2 * (length + rows) * width**2  # key and value; query and output
        attention = 2 * rows * length * width  # scores, and the weighted sum of values
        return projections + attention + 2 * rows * width * config.intermediate_size

    return (config.num_hidden_layers - 1) * layer(length) + layer(read)
