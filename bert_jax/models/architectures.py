"""The encoders there are, and what the rest of the project may ask of one.

`config.model.architecture` names a row of `ARCHITECTURES`; all that is particular to an encoder is
in its row, its module, and, if transformers has it too, its row of `TABLES` in
bert_jax/huggingface/keys.py. Everything else speaks of "the encoder", by the two protocols below.
Heads: models/heads.py.

Shapes live in names, as in `bert_jax/models/bert.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import ml_collections

from bert_jax.models import bert, modernbert, roberta
from bert_jax.models.errors import ModelError

DEFAULT = "bert"  # of runs and checkpoints whose config names none
# Fields that say how an encoder is computed, and not what it computes. A config class may lack
# some, never `dtype`.
COMPUTE_FIELDS = ("dtype", "attention", "scan_layers", "remat")


class EncoderConfig(Protocol):
    """What any encoder's config has, a frozen dataclass with defaults; names as Hugging Face's.

    Fields besides these are its own. It raises `ModelError` for values that make no model.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    hidden_act: str
    hidden_dropout_prob: float
    classifier_dropout: float | None  # in front of a head; None: as hidden_dropout_prob
    initializer_range: float
    layer_norm_eps: float
    dtype: str
    dropout_rng: str

    @property
    def type_vocab_size(self) -> int:
        """Segments that it tells apart; a field where there is a table of them."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model reads."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table on the device; the surplus is never predicted or exported."""


class Encoder(Protocol):
    """A Linen module, made as `encoder(config, name=prefix)`; arguments as in `BertModel`.

    Parameters that are stacked for `scan_layers` are called layer_0, layer_1, …; their names are
    those that sharding.RULES and optimizer.NO_DECAY know.
    """

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
        """(hidden states [B, L, D] or those read [B, M, D], pooled state [B, D] or [B, E, D])."""

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
        """The last hidden states alone, [B, L, D], or those of R positions, [B, R, D]."""

    def pooled(
        self,
        input_ids_BL: jax.Array,
        attention_mask_BL: jax.Array,
        token_type_ids_BL: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """The one state of a text alone, [B, D], that heads of whole texts read."""

    def token_tables(self, batch: int) -> jax.Array:
        """The token embeddings [N, V, D] as `__call__` and `token_scores` take them."""

    def token_scores(self, x_BMD: jax.Array, tables_NVD: jax.Array, bias_V: jax.Array) -> jax.Array:
        """Scores of every token, the output matrix being the embeddings, float32[B, M, V]."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
      name: what `config.model.architecture` says.
      config_class: see `EncoderConfig`; no other row has the same.
      encoder: see `Encoder`.
      prefix: the encoder's key in the parameters of a model with a head.
      dropout_sites: config -> number of dropouts in the encoder; a head's is the next.
      multiplications: (config, positions, positions read) -> those of the matmuls in a forward
        pass over one sequence.
      batch_fields: the arrays of a batch that the encoder is called with, in this order.
      mlm_states: (config, hidden states [B, M, D]) -> what the output matrix is multiplied with.
      text_state: (encoder, inputs, drop) -> [B, D], the state of a text that a classifier's last
        layer reads; `inputs` are the encoder's, `drop(x, n)` the dropout number n of
        the head, from 1; 0 is the last layer's own.
      choice_state: the same for multiple choice.
      token_states: (config, hidden states [B, L, D]) -> what the last layer of heads of tokens
        reads.
      next_sentence: whether it is pretrained on pairs, too, by the pooled state.
      phase_fields: of its config, those that a phase of a run may have otherwise.
    """

    name: str
    config_class: type
    encoder: Callable[..., nn.Module]
    prefix: str
    dropout_sites: Callable[[Any], int]
    multiplications: Callable[[Any, int, int], int]
    batch_fields: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    mlm_states: Callable[[Any, jax.Array], jax.Array] = bert.mlm_states
    text_state: Callable[..., jax.Array] = bert.pooled_state
    choice_state: Callable[..., jax.Array] = bert.pooled_state
    token_states: Callable[[Any, jax.Array], jax.Array] = lambda config, x_BLD: x_BLD
    next_sentence: bool = True
    phase_fields: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        name="bert",
        config_class=bert.BertConfig,
        encoder=bert.BertModel,
        prefix="bert",
        dropout_sites=bert.dropout_sites,
        multiplications=bert.multiplications,
    ),
    "roberta": Architecture(
        name="roberta",
        config_class=roberta.RobertaConfig,
        encoder=roberta.RobertaModel,
        prefix="roberta",
        dropout_sites=bert.dropout_sites,
        multiplications=bert.multiplications,
        mlm_states=roberta.mlm_states,
        text_state=roberta.text_state,
        next_sentence=False,
    ),
    "modernbert": Architecture(
        name="modernbert",
        config_class=modernbert.ModernBertConfig,
        encoder=modernbert.ModernBertModel,
        prefix="modernbert",
        dropout_sites=modernbert.dropout_sites,
        multiplications=modernbert.multiplications,
        mlm_states=modernbert.head_states,
        text_state=modernbert.text_state,
        choice_state=modernbert.choice_state,
        token_states=modernbert.head_states,
        next_sentence=False,
        phase_fields=("global_rope_theta", "local_rope_theta"),
    ),
}


def of(config: EncoderConfig) -> Architecture:
    """The row that a config belongs to."""
    for architecture in ARCHITECTURES.values():
        if type(config) is architecture.config_class:
            return architecture
    raise ModelError(f"{type(config).__name__} is no encoder's config: see ARCHITECTURES")


def named(name: str) -> Architecture:
    """The row of that name.

    Raises:
      ModelError: there is none.
    """
    if name not in ARCHITECTURES:
        raise ModelError(
            f"config.model.architecture={name!r} is not one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def make_config(
    fields: Mapping[str, Any] | ml_collections.ConfigDict, dtype: str | None = None
) -> Any:
    """The encoder's config that `fields`, those of `config.model`, describe.

    Fields that are not there have the class's defaults, `architecture` that of older runs.

    Args:
      dtype: given, the encoder is computed in it, and else by the defaults of COMPUTE_FIELDS,
        whatever `fields` say: fine-tuning and prediction run on other machines than pretraining.

    Raises:
      ModelError: an unknown architecture or field, or values that make no model.
    """
    values = dict(fields)
    architecture = named(values.pop("architecture", DEFAULT))
    known = {field.name for field in dataclasses.fields(architecture.config_class)}
    if unknown := sorted(values.keys() - known - set(COMPUTE_FIELDS)):
        raise ModelError(
            f"config.model has the field(s) {', '.join(unknown)}, which {architecture.name!r} has "
            f"not; it has {', '.join(sorted(known))}"
        )
    if dtype is not None:
        values = {name: x for name, x in values.items() if name not in COMPUTE_FIELDS}
        values["dtype"] = dtype
    return architecture.config_class(**{name: x for name, x in values.items() if name in known})


def fields_of(config: Any) -> dict[str, Any]:
    """What `make_config` makes `config` of again: all its fields, and its architecture's name."""
    return {"architecture": of(config).name, **dataclasses.asdict(config)}


def computed_as(config: Any, **fields: Any) -> Any:
    """`config` with some of COMPUTE_FIELDS changed; those that its class lacks are skipped."""
    known = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: x for name, x in fields.items() if name in known})
