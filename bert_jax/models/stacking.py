"""The two forms of an encoder's layers: layer_0, layer_1, … side by side, or stacked in `layers`.

An encoder that runs its layers as one scanned loop (`scan_layers`) has them stacked. Both functions
take any pytree with such dictionaries in it: parameters, gradients, the moments of an optimizer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

STACKED = "layers"


def stack_layers(tree: Any) -> Any:
    """{layer_0: x, layer_1: y} -> {layers: [x, y]}, wherever in `tree` there is such a dict."""

    def stack(layers: dict[str, Any]) -> dict[str, Any]:
        if "layer_0" not in layers:
            return layers
        in_order = [layers[f"layer_{i}"] for i in range(len(layers))]
        return {STACKED: jax.tree.map(lambda *xs: jnp.stack(xs), *in_order)}

    return _map_dicts(stack, tree)


def unstack_layers(tree: Any) -> Any:
    """The inverse of `stack_layers`; a tree without stacked layers is returned as it is."""

    def unstack(layers: dict[str, Any]) -> dict[str, Any]:
        if layers.keys() != {STACKED}:
            return layers
        count = jax.tree.leaves(layers)[0].shape[0]
        return {
            f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], layers[STACKED]) for i in range(count)
        }

    return _map_dicts(unstack, tree)


def is_stacked(tree: Any) -> bool:
    """Whether there are stacked layers in `tree`."""
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(tree))
    return any(getattr(key, "key", None) == STACKED for path in paths for key in path)


def _map_dicts(function: Callable[[dict[str, Any]], Any], tree: Any) -> Any:
    """Applies `function` to every dictionary in `tree`, outer ones first."""

    def visit(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {name: _map_dicts(function, child) for name, child in function(node).items()}

    return jax.tree.map(visit, tree, is_leaf=lambda x: isinstance(x, dict))
