"""What an encoder computes on the way: embeddings, hidden states, attention probabilities.

Modules `sow` the last two, which does nothing, and compiles to nothing, unless one of these
collections is asked for. Layers must not be scanned (`architectures.make_config(fields, dtype)`
leaves them so).
"""

import re
from collections.abc import Callable, Collection, Mapping
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


def embeddings(module: nn.Module, params: Any, *inputs: jax.Array) -> jax.Array:
    """What the encoder in `module` makes of its inputs before the first layer, [B, L, D].

    The output of the encoder's submodule `embeddings`: with positions, segments and LayerNorm.
    """
    found = []

    def keep(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if _is_embedding(context):
            found.append(output)
        return output

    with nn.intercept_methods(keep):
        module.apply({"params": params}, *inputs)
    return found[0]


def apply_to_embeddings(
    module: nn.Module, params: Any, x_BLD: jax.Array, *inputs: jax.Array
) -> Any:
    """`module.apply` with `x_BLD` in place of the embeddings of its inputs: to differentiate by."""

    def replace(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return x_BLD if _is_embedding(context) else call(*args, **kwargs)

    with nn.intercept_methods(replace):
        return module.apply({"params": params}, *inputs)


def _is_embedding(context: nn.module.InterceptorContext) -> bool:
    return context.module.name == "embeddings" and context.method_name == "__call__"


def wants(module: nn.Module, collection: str) -> bool:
    """Whether `module`, which is being called, is to sow into this collection."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def _in_order(collection: Mapping[str, Any]) -> tuple[jax.Array, ...]:
    """All that was sown into a collection, layer_2 before layer_10."""

    def numbers(path: tuple[str, ...]) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", "/".join(path))]

    flat = flax.traverse_util.flatten_dict(collection)
    return tuple(x for path in sorted(flat, key=numbers) for x in flat[path])
