"""A larger model that begins with the weights of a smaller one, repeated to fill its own.

As ModernBERT-large began from base (Warner et al. 2024, section 2.2.2): a small array lies in the
centre of a large one and is continued beyond its edges by wrapping around; layers are repeated in
their order (Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix G.3.3).
"""

import re
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from bert_jax.models import architectures, heads
from bert_jax.models.architectures import EncoderConfig
from bert_jax.models.errors import ModelError


def tile(params: Any, small: EncoderConfig, large: EncoderConfig) -> Any:
    """The parameters of `large`, of the parts that `params` has, as numpy arrays.

    Layer i of L is a copy of layer ⌊i · l / L⌋ of l. Attention's heads stay whole where both models
    have heads of one size and their numbers differ by an even one.

    Raises:
      ModelError: another architecture or vocabulary, or a size that is smaller.
    """
    if architectures.of(small) is not architectures.of(large):
        raise ModelError("tiling keeps the architecture: the two models have different ones")
    if small.vocab_size != large.vocab_size:
        raise ModelError(
            f"tiling keeps the vocabulary: it has {small.vocab_size:,} tokens here, "
            f"{large.vocab_size:,} there"
        )
    module = heads.PretrainingModel(architectures.computed_as(large, scan_layers=False))
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    before = flax.traverse_util.flatten_dict(params, sep="/")
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    parts = {path.split("/")[0] for path in before}
    result = {}
    for path, target in wanted.items():
        if path.split("/")[0] in parts:
            source = _source(path, before, small.num_hidden_layers, large.num_hidden_layers)
            result[path] = _tiled(path, np.asarray(before[source]), target.shape)
    return flax.traverse_util.unflatten_dict(result, sep="/")


def _source(path: str, before: dict[str, Any], few: int, many: int) -> str:
    """Where the small model has what goes to `path`."""

    def layer(match: re.Match[str]) -> str:
        return f"layer_{int(match[1]) * few // many}/"

    source = re.sub(r"layer_(\d+)/", layer, path)
    if source not in before and "layer_0/attention_layer_norm" in source:
        # ModernBERT's first layer has the embeddings' LayerNorm for its own.
        source = f"{path.split('/')[0]}/embeddings/layer_norm/scale"
    if source not in before:
        raise ModelError(f"the smaller model has no {source}")
    return source


def _tiled(path: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[1, 2, 3] as 5: [3, 1, 2, 3, 1]."""
    for axis, (size, wanted) in enumerate(zip(x.shape, shape, strict=True)):
        if wanted < size:
            raise ModelError(f"{path} has {size} there and {wanted} here: tiling only enlarges")
        x = x.take((np.arange(wanted) - (wanted - size) // 2) % size, axis=axis)
    return x
