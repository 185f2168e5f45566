"""The ModernBERT encoder (Warner et al. 2024, https://arxiv.org/abs/2412.13663), in Flax Linen.

Layers are pre-norm and without biases, with gated feed-forward (GeGLU) and rotary positions. Every
third layer attends to the whole sequence, the others to a window around each token.

Shapes: see `bert_jax/models/bert.py`.
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
from bert_jax.models.layers import rope
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
    tied_scores,
    zero_rows_from,
)
from bert_jax.parallel.sharding import constrain

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "local_attention"),
    "global_attn_every_n_layers",
)
WHOLE_SEQUENCES = ("fused", "cudnn")  # kernels without a window: not of local layers
RATES = ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout")


@dataclasses.dataclass(frozen=True)
class ModernBertConfig:
    """Sizes and arithmetic of a ModernBERT encoder; defaults are the published ModernBERT-base's.

    Attributes:
      max_position_embeddings: tokens of the longest sequence; no table has that size.
      local_attention: width of the window, of which half lies to each side, both ends included.
      global_attn_every_n_layers: layers 0, n, 2n, … attend to the whole sequence.
      global_rope_theta, local_rope_theta: the base of the rotary positions in either kind.
      attention_dropout: of what attention adds to the states, not of its probabilities.
      classifier_pooling: what a text's classifier reads: "cls", the first token's state, or "mean",
        that of all tokens.
      dtype, dropout_rng, attention, remat: see `BertConfig`.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    max_position_embeddings: int = 8192
    local_attention: int = 128
    global_attn_every_n_layers: int = 3
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    hidden_act: str = "gelu"
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    classifier_dropout: float = 0.0
    classifier_pooling: str = "mean"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    dtype: str = "float32"
    dropout_rng: str = "hash"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        problems = [*out_of_range(self, SIZES, RATES)]
        problems += [
            f"{name} {getattr(self, name)!r} is not more than 0"
            for name in ("global_rope_theta", "local_rope_theta")
            if not getattr(self, name) > 0
        ]
        if self.num_attention_heads > 0 and self.hidden_size % (2 * self.num_attention_heads):
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of twice "
                f"num_attention_heads {self.num_attention_heads}"
            )
        choices = {
            "hidden_act": tuple(ACTIVATIONS),
            "classifier_pooling": ("cls", "mean"),
            "dtype": ("float32", "bfloat16"),
            "dropout_rng": ("threefry", "hash"),
            "attention": IMPLEMENTATIONS,
            "remat": ("none", "dots", "full"),
        }
        problems += not_among(self, choices)
        if problems:
            raise ModelError("config.model: " + "; ".join(problems))

    @property
    def type_vocab_size(self) -> int:
        """Segments are not distinguished: any are taken for one."""
        return 2

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return self.max_position_embeddings

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table on the device; the surplus is never predicted or exported."""
        return padded_rows(self.vocab_size)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def output_scale(self) -> float:
        """Matrices that add to the states begin smaller (Megatron's initialisation)."""
        return (2 * self.num_hidden_layers) ** -0.5

    def is_global(self, layer: int) -> bool:
        """Whether a layer attends to the whole sequence."""
        return layer % self.global_attn_every_n_layers == 0


class Embeddings(nn.Module):
    """Token embeddings, LayerNorm and dropout; positions are the layers' matter."""

    config: ModernBertConfig

    def setup(self):
        config = self.config
        init = nn.initializers.truncated_normal(config.initializer_range)
        self.word_embeddings = nn.Embed(
            config.padded_vocab_size,
            config.hidden_size,
            embedding_init=zero_rows_from(config.vocab_size, init),
        )
        self.layer_norm = LayerNorm(config, use_bias=False)

    def __call__(
        self, input_ids_BL: jax.Array, dropout_keys_B: jax.Array | None, tables_NVD: jax.Array
    ) -> jax.Array:
        config = self.config
        x_BLD = per_shard(lookup, tables_NVD, input_ids_BL).astype(config.dtype)
        x_BLD = self.layer_norm(constrain(x_BLD, "batch", None, None))
        return dropout(x_BLD, dropout_keys_B, config.embedding_dropout, 0, config.dropout_rng)


class Attention(nn.Module):
    """Multi-head attention with rotary positions, over the sequence or a window of it.

    With `packed`, the mask numbers a row's examples and each attends to itself alone.
    """

    config: ModernBertConfig
    is_global: bool
    packed: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        attention_mask_BL: jax.Array,
        positions: jax.Array,
        rows_BR: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        theta = config.global_rope_theta if self.is_global else config.local_rope_theta
        window = None if self.is_global else config.local_attention // 2
        angles = rope.angles(positions, config.head_size, theta)
        read_BLD, read_angles = gather_positions(x_BLD, rows_BR), angles
        if rows_BR is not None:
            all_BLK = jnp.broadcast_to(angles, (len(x_BLD), *angles.shape[-2:]))
            read_angles = gather_positions(all_BLK, rows_BR)

        def project(name: str, x_BLD: jax.Array) -> jax.Array:
            x_BLHK = Dense(config, config.hidden_size, use_bias=False, name=name)(x_BLD).reshape(
                *x_BLD.shape[:2], config.num_attention_heads, config.head_size
            )
            return constrain(x_BLHK, "batch", None, "tensor", None)

        q_BLHK = rope.rotate(project("query", read_BLD), read_angles)
        k_BLHK = rope.rotate(project("key", x_BLD), angles)
        v_BLHK = project("value", x_BLD)
        implementation = config.attention
        if window is not None and implementation in WHOLE_SEQUENCES:
            implementation = "xla"
        if self.is_initializing():
            # Parameters do not depend on it, and are made at a length that no kernel takes.
            implementation = "xla"
        elif capture.wants(self, capture.ATTENTIONS):
            probs_BHLL = probabilities(q_BLHK, k_BLHK, attention_mask_BL, self.packed, window)
            self.sow(capture.ATTENTIONS, "probabilities", probs_BHLL)
            implementation = "xla"
        y_BLHK = attend(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            attention_mask_BL,
            implementation=implementation,
            packed=self.packed,
            rows_BR=rows_BR,
            window=window,
        )
        output = Dense(
            config,
            config.hidden_size,
            use_bias=False,
            init_scale=config.output_scale,
            name="output",
        )
        return output(y_BLHK.reshape(read_BLD.shape))


class Layer(nn.Module):
    """One pre-LayerNorm transformer layer; the first has the embeddings' LayerNorm for its own.

    Given `rows_BR`, what it gives is [B, R, D]: its output at these positions alone.
    """

    config: ModernBertConfig
    is_first: bool
    is_global: bool
    packed: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        index: int | jax.Array,
        attention_mask_BL: jax.Array,
        positions: jax.Array,
        dropout_keys_B: jax.Array | None,
        rows_BR: jax.Array | None = None,
    ) -> jax.Array:
        config, length = self.config, x_BLD.shape[1]

        def drop(y_BLD: jax.Array, rate: float, site: int | jax.Array) -> jax.Array:
            return dropout(y_BLD, dropout_keys_B, rate, site, config.dropout_rng, rows_BR, length)

        site = 2 * index + 1  # site 0 is the embeddings'
        normed_BLD = x_BLD
        if not self.is_first:
            normed_BLD = LayerNorm(config, use_bias=False, name="attention_layer_norm")(x_BLD)
        attention = Attention(config, self.is_global, self.packed, name="attention")
        y_BLD = attention(normed_BLD, attention_mask_BL, positions, rows_BR)
        x_BLD = gather_positions(x_BLD, rows_BR) + drop(y_BLD, config.attention_dropout, site)

        normed_BLD = LayerNorm(config, use_bias=False, name="mlp_layer_norm")(x_BLD)
        wide = functools.partial(Dense, config, config.intermediate_size, use_bias=False)
        up_BLF = constrain(wide(name="intermediate")(normed_BLD), "batch", None, "tensor")
        gate_BLF = constrain(wide(name="gate")(normed_BLD), "batch", None, "tensor")
        y_BLF = drop(
            ACTIVATIONS[config.hidden_act](up_BLF) * gate_BLF, config.mlp_dropout, site + 1
        )
        output = Dense(
            config,
            config.hidden_size,
            use_bias=False,
            init_scale=config.output_scale,
            name="output",
        )
        return constrain(x_BLD + output(y_BLF), "batch", None, None)


class Encoder(nn.Module):
    """The layers and the last LayerNorm; they differ in kind, so no loop is scanned over them.

    Given `rows_BR`, it gives the hidden states [B, R, D] at these positions alone, and the last
    layer computes no others.
    """

    config: ModernBertConfig

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        attention_mask_BL: jax.Array,
        positions: jax.Array,
        dropout_keys_B: jax.Array | None,
        packed: bool,
        rows_BR: jax.Array | None,
    ) -> jax.Array:
        config = self.config
        layer_class: Any = Layer
        if config.remat != "none":
            # Without those of attention: scores are larger than all else that a layer computes.
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            layer_class = nn.remat(Layer, policy=dots if config.remat == "dots" else None)
        if platform_of(jax.sharding.get_abstract_mesh()) == "cpu":
            # Layers of one shape are traced once. XLA for TPU would leave kernels in calls.
            layer_class = nn.jit(layer_class)
        states = [x_BLD]
        for i in range(config.num_hidden_layers):
            layer = layer_class(config, i == 0, config.is_global(i), packed, name=f"layer_{i}")
            is_last = i == config.num_hidden_layers - 1
            rows = rows_BR if is_last else None
            x_BLD = layer(x_BLD, i, attention_mask_BL, positions, dropout_keys_B, rows)
            states.append(x_BLD)
        states[-1] = x_BLD = LayerNorm(config, use_bias=False, name="final_layer_norm")(x_BLD)
        if capture.wants(self, capture.HIDDEN_STATES):
            for state_BLD in states:
                self.sow(capture.HIDDEN_STATES, "states", state_BLD)
        return x_BLD


class ModernBertModel(nn.Module):
    """Embeddings and encoder: what every head builds upon. Arguments are as `BertModel`'s."""

    config: ModernBertConfig

    def setup(self):
        self.embeddings = Embeddings(self.config)
        self.encoder = Encoder(self.config)

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
        """Returns (last hidden states [B, L, D], the first token's [B, D]): there is no pooler."""
        x_BLD = self.encode(
            input_ids_BL,
            attention_mask_BL,
            token_type_ids_BL,
            dropout_keys_B,
            position_ids_BL,
            token_tables_NVD=token_tables_NVD,
        )
        if first_token_positions_BE is None:
            first = x_BLD[:, 0]
        else:
            first = gather_positions(x_BLD, first_token_positions_BE)
        return gather_positions(x_BLD, read_positions_BM), first

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
        """The last hidden states, [B, L, D], or those of R positions, [B, R, D]."""
        del token_type_ids_BL
        if token_tables_NVD is None:
            token_tables_NVD = self.token_tables(len(input_ids_BL))
        packed, positions = position_ids_BL is not None, position_ids_BL
        if positions is None:
            positions = jnp.arange(input_ids_BL.shape[1])
        x_BLD = self.embeddings(input_ids_BL, dropout_keys_B, token_tables_NVD)
        return self.encoder(x_BLD, attention_mask_BL, positions, dropout_keys_B, packed, rows_BR)

    def token_tables(self, batch: int) -> jax.Array:
        """See `tables.per_shard_tables`."""
        table_VD = self.embeddings.word_embeddings.embedding
        return per_shard_tables(table_VD.astype(self.config.dtype), batch)

    def token_scores(self, x_BMD: jax.Array, tables_NVD: jax.Array, bias_V: jax.Array) -> jax.Array:
        """See `tables.tied_scores`."""
        return tied_scores(x_BMD, tables_NVD, bias_V)


def head_states(config: ModernBertConfig, x: jax.Array) -> jax.Array:
    """What all heads read: LayerNorm(gelu(x·kernel)), without biases; called in a head's module."""
    dense = Dense(
        config,
        config.hidden_size,
        use_bias=False,
        init_scale=config.output_scale,
        name="mlm_transform",
    )
    return LayerNorm(config, use_bias=False, name="mlm_layer_norm")(ACTIVATIONS["gelu"](dense(x)))


def text_state(encoder: Any, inputs: Sequence[Any], drop: Callable[..., jax.Array]) -> jax.Array:
    """The state of a text that a classifier reads, [B, D]: see `architectures.Architecture`."""
    del drop
    return _pooled(encoder, inputs, jnp.zeros((inputs[0].shape[0], 1), jnp.int32))


def choice_state(encoder: Any, inputs: Sequence[Any], drop: Callable[..., jax.Array]) -> jax.Array:
    """The same for multiple choice: "cls" is the first token behind padding, as in transformers."""
    del drop
    return _pooled(encoder, inputs, jnp.argmax(inputs[1] > 0, axis=1)[:, None])


def _pooled(encoder: Any, inputs: Sequence[Any], first_B1: jax.Array) -> jax.Array:
    config = encoder.config
    if config.classifier_pooling == "cls":
        return head_states(config, encoder.encode(*inputs, rows_BR=first_B1)[:, 0])
    hidden_BLD = encoder.encode(*inputs).astype(jnp.float32)
    is_token_BL1 = (inputs[1] > 0)[..., None]
    mean_BD = (hidden_BLD * is_token_BL1).sum(1) / jnp.maximum(is_token_BL1.sum(1), 1)
    return head_states(config, mean_BD.astype(config.dtype))


def dropout_sites(config: ModernBertConfig) -> int:
    """How many dropouts there are: the embeddings' and, in each layer, two."""
    return 2 * config.num_hidden_layers + 1


def multiplications(config: ModernBertConfig, length: int, read: int) -> int:
    """Multiplications in the matmuls of a forward pass, `read` of whose positions are read.

    Local layers are counted by their window, whatever a kernel computes beyond it.
    """
    width, total = config.hidden_size, 0
    for i in range(config.num_hidden_layers):
        rows = read if i == config.num_hidden_layers - 1 else length
        window = 2 * (config.local_attention // 2) + 1
        seen = length if config.is_global(i) else min(window, length)
        projections = 2 * (length + rows) * width**2  # key and value; query and output
        feed_forward = 3 * rows * width * config.intermediate_size
        total += projections + 2 * rows * seen * width + feed_forward
    return total
