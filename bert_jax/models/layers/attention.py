"""Attention over whole sequences: XLA's, and kernels for TPU and GPU that equal it.

"xla": plain operations, on any device, and what the others are tested against. "splash": JAX's
Pallas kernel for TPU, which has no dropout on the probabilities. "fused": our Pallas kernel for
TPU, which has the published dropout with the same bits as "xla". "cudnn": cuDNN's, through JAX.
`choose` has the rule of "auto".

Shapes live in names, as in `bert_jax/models/bert.py`; Q are positions of queries, S of keys, G
groups of heads. `attention_mask_BL` is int32, 0 for padding. If `packed`, several texts share a row
and a position attends to those with its own number; else to all whose number is positive. What
comes out at padding is not used, and differs between implementations.
"""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bert_jax.models.errors import ModelError
from bert_jax.models.layers import dropout as dropout_lib
from bert_jax.models.layers import fused_attention
from bert_jax.parallel.sharding import BATCH_AXES

IMPLEMENTATIONS = ("auto", "xla", "splash", "fused", "cudnn")
KERNEL_LENGTH = 256  # from here on the TPU's kernels are faster than XLA's attention


def choose(
    implementation: str,
    *,
    platform: str,
    length: int,
    heads: int,
    head_size: int,
    dtype: jnp.dtype,
    dropping: bool,
    rng: str,
    window: int | None = None,
) -> str:
    """The implementation to run; `implementation` itself unless that is "auto".

    Args:
      platform: of the devices that the program is compiled for: "cpu", "tpu", "gpu" ("old gpu" for
        those without cuDNN's attention).
      heads: on one device.
      dropping: whether probabilities are dropped here, that is in training at a rate above 0.
      rng: see `BertConfig.dropout_rng`.
      window: as of `attend`.

    Raises:
      ModelError: the one asked for cannot do this.
    """
    tiled = length % fused_attention.LANES == 0
    unsupported = {
        "splash": {
            "runs on TPUs alone (and, to be tested, slowly on CPUs)": "gpu" in platform,
            "needs lengths that are multiples of 128": not tiled,
            "has no dropout on the probabilities (config.model.attention_probs_dropout_prob=0)": (
                dropping
            ),
        },
        "fused": {
            "runs on TPUs alone (and, to be tested, slowly on CPUs)": "gpu" in platform,
            f"needs lengths of 128, 256, 384 or {fused_attention.MAX_LENGTH}": (
                length > fused_attention.MAX_LENGTH or not (tiled or platform == "cpu")
            ),
            "has the dropout of config.model.dropout_rng=hash alone": dropping and rng != "hash",
            "attends to whole sequences alone": window is not None,
            "has too little on-chip memory for heads of this size, type and length": (
                fused_attention.block_of(head_size, heads) * length * jnp.dtype(dtype).itemsize
                > fused_attention.MAX_BLOCK_BYTES
            ),
        },
        "cudnn": {
            "runs on NVIDIA GPUs from Ampere on alone": platform != "gpu",
            "attends to whole sequences alone": window is not None,
            "needs config.model.dtype=bfloat16": jnp.dtype(dtype).itemsize != 2,
            "needs an even length and a head size that is a multiple of 8, up to 128": (
                length % 2 != 0 or head_size % 8 != 0 or head_size > 128
            ),
            "has no dropout on the probabilities (config.model.attention_probs_dropout_prob=0)": (
                dropping
            ),
        },
    }
    possible = {name: not any(reasons.values()) for name, reasons in unsupported.items()}
    if implementation == "auto":
        wanted = {"tpu": ("splash", "fused") if length >= KERNEL_LENGTH else (), "gpu": ("cudnn",)}
        kernels = wanted.get(platform, ())
        chosen = next((name for name in kernels if possible[name]), "xla")
        if kernels and chosen == "xla":
            why = (
                f"{name} {next(text for text, holds in unsupported[name].items() if holds)}"
                for name in kernels
            )
            _say_once(f"config.model.attention=auto takes xla: {'; '.join(why)}")
        return chosen
    if implementation != "xla" and not possible[implementation]:
        reason = next(text for text, holds in unsupported[implementation].items() if holds)
        raise ModelError(
            f"config.model.attention={implementation} {reason}; here: {platform}, length {length}, "
            f"{heads} heads of {head_size} per device, {jnp.dtype(dtype).name}. "
            "config.model.attention=auto takes what fits"
        )
    return implementation


@functools.cache
def _say_once(message: str) -> None:
    logging.info(message)


def attend(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    dropout_keys_B: jax.Array | None = None,
    *,
    implementation: str = "auto",
    packed: bool = False,
    dropout_rate: float = 0.0,
    site: int | jax.Array = 0,
    rng: str = "hash",
    rows_BR: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """softmax(q·kᵀ / √K)·v, [B, L, H, K] in the inputs' dtype; softmax in float32.

    Args:
      dropout_keys_B, dropout_rate, site, rng: of the dropout on the probabilities.
      implementation: one of `IMPLEMENTATIONS`.
      rows_BR: given, the queries are those of these positions alone, [B, R, H, K], and so is what
        comes out; by plain operations, since a kernel would save nothing.
      window: how many positions to each side a query attends to; None for all. There is no dropout
        on the probabilities then. Plain operations compute a band, in memory linear in the length.

    Raises:
      ModelError: see `choose`; or the mesh's tensor axis does not divide the heads.
    """
    _, length, heads, head_size = k_BLHK.shape
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    if heads % parts:
        works = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ModelError(
            f"config.mesh.tensor={parts} does not divide the {heads} attention heads: it may be "
            f"{works}"
        )
    drop = 0 if dropout_keys_B is None else dropout_lib.threshold(dropout_rate)
    platform = platform_of(mesh)
    implementation = choose(
        implementation,
        platform=platform,
        length=length,
        heads=heads // parts,
        head_size=head_size,
        dtype=q_BLHK.dtype,
        dropping=drop > 0,
        rng=rng,
        window=window,
    )
    if rows_BR is not None:
        implementation = "xla"
    if implementation == "cudnn":
        return _library(q_BLHK, k_BLHK, v_BLHK, attention_mask_BL, packed, "cudnn")
    q_BLHK = q_BLHK * head_size**-0.5
    if implementation == "xla" and window and rows_BR is None and length > 3 * window:
        return _banded(q_BLHK, k_BLHK, v_BLHK, attention_mask_BL, packed, window)
    if implementation == "xla":
        allowed = _allowed(attention_mask_BL, packed, rows_BR, window)
        probs_BHLL = _probabilities(q_BLHK, k_BLHK, allowed).astype(q_BLHK.dtype)
        probs_BHLL = dropout_lib.dropout(
            probs_BHLL, dropout_keys_B, dropout_rate, site, rng, rows_BR, length
        )
        return jnp.einsum("BHQS,BSHK->BQHK", probs_BHLL, v_BLHK)

    interpret = platform == "cpu"
    arguments: tuple[jax.Array, ...] = (q_BLHK, k_BLHK, v_BLHK, attention_mask_BL)
    kernel: Callable[..., jax.Array]
    if implementation == "splash":
        kernel = functools.partial(_splash, packed=packed, window=window, interpret=interpret)
    else:
        settings = fused_attention.Settings(head_size, length, drop, packed, interpret)
        kernel = functools.partial(fused_attention.attend, settings)
        if drop and dropout_keys_B is not None:
            arguments += (fused_attention.seeds_of(dropout_keys_B, site, q_BLHK.shape),)
    if mesh.empty:
        return kernel(*arguments)
    # XLA does not know how to split a kernel over devices: each runs it on its rows and heads.
    rows_and_heads = P(BATCH_AXES, None, "tensor", None)
    specs = (rows_and_heads,) * 3 + (P(BATCH_AXES), P(BATCH_AXES, "tensor"))
    return jax.shard_map(
        kernel, in_specs=specs[: len(arguments)], out_specs=rows_and_heads, check_vma=False
    )(*arguments)


def probabilities(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    packed: bool = False,
    window: int | None = None,
) -> jax.Array:
    """softmax(q·kᵀ / √K), float32[B, H, L, L], before dropout."""
    scaled_BLHK = q_BLHK * q_BLHK.shape[-1] ** -0.5
    return _probabilities(scaled_BLHK, k_BLHK, _allowed(attention_mask_BL, packed, None, window))


def _probabilities(q_BLHK: jax.Array, k_BLHK: jax.Array, allowed: jax.Array) -> jax.Array:
    """Of a `q` that is scaled."""
    scores_BHLL = jnp.einsum("BQHK,BSHK->BHQS", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
    return softmax(jnp.where(allowed, scores_BHLL, -1e30))


@jax.custom_jvp
def softmax(x: jax.Array) -> jax.Array:
    """Over the last axis. One division per row, where `jax.nn.softmax` divides every element."""
    unnormalized = jnp.exp(x - x.max(-1, keepdims=True))
    return unnormalized * (1 / unnormalized.sum(-1, keepdims=True))


@softmax.defjvp
def _softmax_derivative(primals, tangents):
    y, dx = softmax(*primals), tangents[0]
    return y, y * (dx - (y * dx).sum(-1, keepdims=True))


def platform_of(mesh: jax.sharding.AbstractMesh) -> str:
    """The platform that is compiled for: that of the mesh, or where none is set, of this machine.

    The planner compiles for devices that are not here.
    """
    known = not mesh.empty and mesh.abstract_device is not None
    platform = mesh.abstract_device.platform if known else jax.default_backend()
    if platform == "gpu":
        # NVIDIA's are "8.0" and so on, from Ampere on; AMD's have names.
        capabilities = [str(getattr(d, "compute_capability", "")) for d in jax.devices("gpu")]
        if not all(re.fullmatch(r"([89]|\d\d)\.\d", capability) for capability in capabilities):
            return "old gpu"
    return platform


def _allowed(
    attention_mask_BL: jax.Array,
    packed: bool,
    rows_BR: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """bool[B, 1, L, R or 1, L]: which keys (last) a query may attend to."""
    keys_B11L = attention_mask_BL[:, None, None, :]
    if window is not None:
        positions = jnp.arange(attention_mask_BL.shape[1])
        rows = positions[None] if rows_BR is None else rows_BR
        is_near = jnp.abs(rows[:, None, :, None] - positions) <= window
        return is_near & _allowed(attention_mask_BL, packed, rows_BR)
    if not packed:
        return keys_B11L > 0
    queries_BL = attention_mask_BL
    if rows_BR is not None:
        queries_BL = jnp.take_along_axis(attention_mask_BL, rows_BR, axis=1)
    return (keys_B11L > 0) & (queries_BL[:, None, :, None] == keys_B11L)


def _banded(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    packed: bool,
    window: int,
) -> jax.Array:
    """Attention within a window, block by block; `q` scaled.

    The N queries' blocks are as long as the window, so a query's keys lie in its own block and the
    two beside it: three windows of scores are computed, of which two are wanted.
    """
    batch, length = attention_mask_BL.shape
    surplus = -length % window

    def blocks(x: jax.Array) -> jax.Array:
        """[B, L, …] -> [B, N, window, …]"""
        x = jnp.pad(x, [(0, 0), (0, surplus)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, window, *x.shape[2:])

    def with_neighbours(x: jax.Array) -> jax.Array:
        """[B, L, …] -> [B, N, 3 window, …]; zeros before the first and behind the last."""
        x = blocks(x)
        ends = jnp.pad(x, [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2))
        return jnp.concatenate([ends[:, :-2], x, ends[:, 2:]], axis=2)

    keys_BN1S = with_neighbours(attention_mask_BL)[:, :, None]
    distance_QS = jnp.arange(window)[:, None] - (jnp.arange(3 * window) - window)
    allowed_BNQS = (keys_BN1S > 0) & (jnp.abs(distance_QS) <= window)
    if packed:
        allowed_BNQS &= blocks(attention_mask_BL)[..., None] == keys_BN1S
    scores_BNHQS = jnp.einsum(
        "BNQHK,BNSHK->BNHQS",
        *(blocks(q_BLHK), with_neighbours(k_BLHK)),
        preferred_element_type=jnp.float32,
    )
    probs_BNHQS = softmax(jnp.where(allowed_BNQS[:, :, None], scores_BNHQS, -1e30))
    y_BNQHK = jnp.einsum(
        "BNHQS,BNSHK->BNQHK", probs_BNHQS.astype(q_BLHK.dtype), with_neighbours(v_BLHK)
    )
    return y_BNQHK.reshape(batch, -1, *q_BLHK.shape[2:])[:, :length]


def _library(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    packed: bool,
    implementation: Literal["xla", "cudnn"],
) -> jax.Array:
    """`jax.nn.dot_product_attention`, which scales the scores itself."""
    batch, length = attention_mask_BL.shape
    mask = jnp.broadcast_to(_allowed(attention_mask_BL, packed), (batch, 1, length, length))
    return jax.nn.dot_product_attention(
        q_BLHK, k_BLHK, v_BLHK, mask=mask, implementation=implementation
    )


def _splash(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    *,
    packed: bool,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """JAX's splash attention; `q` scaled. Padding attends to padding."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads = q_BLHK.shape[1:3]
    block = next(size for size in (512, 384, 256, 128) if length % size == 0)
    mask: Any = splash_attention.FullMask((length, length))
    if window is not None:
        mask = splash_attention.LocalMask((length, length), (window, window), offset=0)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )
    texts_BL = attention_mask_BL if packed else (attention_mask_BL > 0).astype(jnp.int32)
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    y_BHLK = jax.vmap(kernel)(
        *heads_first, segment_ids=splash_attention.SegmentIds(texts_BL, texts_BL)
    )
    return jnp.swapaxes(y_BHLK, 1, 2)
