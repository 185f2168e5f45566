"""What an encoder computes on the way: hidden states of every layer, attention probabilities.

Modules `sow` both, which does nothing, and compiles to nothing, unless one of these collections is
asked for. Layers must not be scanned (`architectures.make_config(fields, dtype)` leaves them so).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

HIDDEN_STATES = "hidden_states"  # [B, L, D]: the embeddings', then each layer's
ATTENTIONS = "attentions"  # [B, H, L, L]: each layer's probabilities, queries before keys


def apply(
    module: nn.Module, params: Any, *inputs: jax.Array, collections: Collection[str]
) -> tuple[Any, dict[str, tuple[jax.Array, ...]]]:
    """`module.apply` and what the encoder in it computed on the way, as transformers has it.

        encoder = architectures.of(config).encoder(config)
        (hidden_BLD, pooled_BD), captured = capture.apply(
            encoder, params, ids_BL, mask_BL, types_BL, collections=("hidden_states", "attentions")
        )
        captured["hidden_states"][-1]  # hidden_BLD

    Args:
      collections: HIDDEN_STATES, ATTENTIONS, both or none. Attention is computed by plain
        operations where its probabilities are asked for, in memory of batch × heads × length².
        An encoder without one of them has () for it.
    """
    output, state = module.apply({"params": params}, *inputs, mutable=list(collections))
    return output, {name: _in_order(state.get(name, {})) for name in collections}


def wants(module: nn.Module, collection: str) -> bool:
    """Whether `module`, which is being called, is to sow into this collection."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def _in_order(collection: Mapping[str, Any]) -> tuple[jax.Array, ...]:
    """All that was sown into a collection, layer_2 before layer_10."""

    def numbers(path: tuple[str, ...]) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", "/".join(path))]

    flat = flax.traverse_util.flatten_dict(collection)
    return tuple(x for path in sorted(flat, key=numbers) for x in flat[path])
