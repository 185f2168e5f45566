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

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from bert_jax.cli import UserError
from bert_jax.models.layers import dropout as dropout_lib
from bert_jax.parallel.sharding import BATCH_AXES

IMPLEMENTATIONS = ("auto", "xla", "splash", "fused", "cudnn")
KERNEL_LENGTH = 256  # from here on the TPU's kernels are faster than XLA's attention
FUSED_MAX_LENGTH = 512  # a head's scores, several times over, lie in on-chip memory
LANES = 128  # of a TPU's vector registers


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
) -> str:
    """The implementation to run; `implementation` itself unless that is "auto".

    Args:
      platform: of the devices that the program is compiled for: "cpu", "tpu", "gpu" ("old gpu" for
        those without cuDNN's attention).
      heads: on one device; 0 if they do not divide among the devices.
      dropping: whether probabilities are dropped here, that is in training at a rate above 0.
      rng: see `BertConfig.dropout_rng`.

    Raises:
      UserError: the one asked for cannot do this.
    """
    tiled = length % LANES == 0
    unsupported = {
        "splash": {
            "runs on TPUs alone (and, to be tested, slowly on CPUs)": "gpu" in platform,
            "needs config.mesh.tensor to divide the heads": not heads,
            "needs lengths that are multiples of 128": not tiled,
            "has no dropout on the probabilities (config.model.attention_probs_dropout_prob=0)": (
                dropping
            ),
        },
        "fused": {
            "runs on TPUs alone (and, to be tested, slowly on CPUs)": "gpu" in platform,
            "needs config.mesh.tensor to divide the heads": not heads,
            f"needs lengths of 128, 256, 384 or {FUSED_MAX_LENGTH}": (
                length > FUSED_MAX_LENGTH or not (tiled or platform == "cpu")
            ),
            "has the dropout of config.model.dropout_rng=hash alone": dropping and rng != "hash",
        },
        "cudnn": {
            "runs on NVIDIA GPUs from Ampere on alone": platform != "gpu",
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
        return next((name for name in wanted.get(platform, ()) if possible[name]), "xla")
    if implementation != "xla" and not possible[implementation]:
        reason = next(text for text, holds in unsupported[implementation].items() if holds)
        raise UserError(
            f"config.model.attention={implementation} {reason}; here: {platform}, length {length}, "
            f"{heads} heads of {head_size} per device, {jnp.dtype(dtype).name}. "
            "config.model.attention=auto takes what fits"
        )
    return implementation


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
) -> jax.Array:
    """softmax(q·kᵀ / √K)·v, [B, L, H, K] in the inputs' dtype; softmax in float32.

    Args:
      dropout_keys_B, dropout_rate, site, rng: of the dropout on the probabilities.
      implementation: one of `IMPLEMENTATIONS`.
      rows_BR: given, the queries are those of these positions alone, [B, R, H, K], and so is what
        comes out; by plain operations, since a kernel would save nothing.

    Raises:
      UserError: see `choose`.
    """
    _, length, heads, head_size = k_BLHK.shape
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    drop = 0 if dropout_keys_B is None else dropout_lib.threshold(dropout_rate)
    platform = platform_of(mesh)
    implementation = choose(
        implementation,
        platform=platform,
        length=length,
        heads=0 if heads % parts else heads // parts,
        head_size=head_size,
        dtype=q_BLHK.dtype,
        dropping=drop > 0,
        rng=rng,
    )
    if rows_BR is not None:
        implementation = "xla"
    if implementation == "cudnn":
        return _library(q_BLHK, k_BLHK, v_BLHK, attention_mask_BL, packed, "cudnn")
    q_BLHK = q_BLHK * head_size**-0.5
    if implementation == "xla":
        allowed = _allowed(attention_mask_BL, packed, rows_BR)
        probs_BHLL = _probabilities(q_BLHK, k_BLHK, allowed).astype(q_BLHK.dtype)
        probs_BHLL = dropout_lib.dropout(
            probs_BHLL, dropout_keys_B, dropout_rate, site, rng, rows_BR, length
        )
        return jnp.einsum("BHQS,BSHK->BQHK", probs_BHLL, v_BLHK)

    interpret = platform == "cpu"
    if implementation == "splash":
        kernel = functools.partial(_splash, packed=packed, interpret=interpret)
        arguments = (q_BLHK, k_BLHK, v_BLHK, attention_mask_BL)
    else:
        settings = _Settings(head_size, length, drop, packed, interpret)
        kernel = functools.partial(_fused, settings)
        seeds_BH2 = _seeds(dropout_keys_B, site, q_BLHK.shape) if drop else None
        arguments = (q_BLHK, k_BLHK, v_BLHK, attention_mask_BL, seeds_BH2)
    if mesh.empty:
        return kernel(*arguments)
    # XLA does not know how to split a kernel over devices: each runs it on its rows and heads.
    rows_and_heads = P(BATCH_AXES, None, "tensor", None)
    specs = (rows_and_heads,) * 3 + (P(BATCH_AXES), P(BATCH_AXES, "tensor"))
    return jax.shard_map(
        kernel, in_specs=specs[: len(arguments)], out_specs=rows_and_heads, check_vma=False
    )(*arguments)


def probabilities(
    q_BLHK: jax.Array, k_BLHK: jax.Array, attention_mask_BL: jax.Array, packed: bool = False
) -> jax.Array:
    """softmax(q·kᵀ / √K), float32[B, H, L, L], before dropout."""
    scaled_BLHK = q_BLHK * q_BLHK.shape[-1] ** -0.5
    return _probabilities(scaled_BLHK, k_BLHK, _allowed(attention_mask_BL, packed))


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
    attention_mask_BL: jax.Array, packed: bool, rows_BR: jax.Array | None = None
) -> jax.Array:
    """bool[B, 1, L, R or 1, L]: which keys (last) a query may attend to."""
    keys_B11L = attention_mask_BL[:, None, None, :]
    if not packed:
        return keys_B11L > 0
    queries_BL = attention_mask_BL
    if rows_BR is not None:
        queries_BL = jnp.take_along_axis(attention_mask_BL, rows_BR, axis=1)
    return (keys_B11L > 0) & (queries_BL[:, None, :, None] == keys_B11L)


def _library(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    packed: bool,
    implementation: str,
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
    interpret: bool,
) -> jax.Array:
    """JAX's splash attention; `q` scaled. Padding attends to padding."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads = q_BLHK.shape[1:3]
    block = next(size for size in (512, 384, 256, 128) if length % size == 0)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([splash_attention.FullMask((length, length))] * heads),
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


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What the fused kernel is compiled for; `drop`: of 65,536 probabilities, so many go."""

    head_size: int
    length: int
    drop: int
    packed: bool
    interpret: bool

    @property
    def kept(self) -> float:
        return 1 - self.drop / 2**16


def _seeds(dropout_keys_B: jax.Array, site: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32[B, H, 2]: what an example and a head bring into the hash of a probability."""
    _, length, heads, _ = shape
    words_B2 = jax.random.key_data(dropout_lib.fold_site(dropout_keys_B, site))
    stride = jnp.uint32(dropout_lib.strides((heads, length, length))[0])
    first_BH = words_B2[:, :1] + jnp.arange(heads, dtype=jnp.uint32) * stride
    second_BH = jnp.broadcast_to(words_B2[:, 1:], first_BH.shape)
    return jnp.stack([first_BH, second_BH], axis=-1)


def _fused(
    settings: _Settings,
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    seeds_BH2: jax.Array | None,
) -> jax.Array:
    """Our kernel; `q` scaled. Heads stay side by side, as the projections leave them."""
    batch, length, heads, _ = q_BLHK.shape
    if seeds_BH2 is None:
        seeds_BH2 = jnp.zeros((batch, heads, 2), jnp.uint32)
    q_BLD, k_BLD, v_BLD = (x.reshape(batch, length, -1) for x in (q_BLHK, k_BLHK, v_BLHK))
    y_BLD = _fused_attention(
        settings, q_BLD, k_BLD, v_BLD, attention_mask_BL[:, None, :], seeds_BH2.reshape(-1)
    )
    return y_BLD.reshape(q_BLHK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused_attention(settings, q_BLD, k_BLD, v_BLD, mask_B1L, seeds):
    return _fused_forward(settings, q_BLD, k_BLD, v_BLD, mask_B1L, seeds)[0]


def _fused_forward(settings, q_BLD, k_BLD, v_BLD, mask_B1L, seeds):
    batch, length, width = q_BLD.shape
    block, groups, heads = _blocks(settings, width)
    y_BLD, lse_BGHL = _call(
        settings,
        _forward_kernel,
        "forward",
        matmuls=2,
        blocks=(block, groups, heads),
        inputs=(q_BLD, k_BLD, v_BLD, mask_B1L),
        seeds=seeds,
        outputs=(
            jax.ShapeDtypeStruct(q_BLD.shape, q_BLD.dtype),
            jax.ShapeDtypeStruct((batch, groups, heads, length), jnp.float32),
        ),
    )
    return y_BLD, (q_BLD, k_BLD, v_BLD, mask_B1L, seeds, y_BLD, lse_BGHL)


def _fused_backward(settings, residuals, dy_BLD):
    q_BLD, k_BLD, v_BLD, mask_B1L, seeds, y_BLD, lse_BGHL = residuals
    gradients = _call(
        settings,
        _backward_kernel,
        "backward",
        matmuls=5,
        blocks=_blocks(settings, q_BLD.shape[-1]),
        inputs=(q_BLD, k_BLD, v_BLD, mask_B1L, y_BLD, lse_BGHL, dy_BLD),
        seeds=seeds,
        outputs=(jax.ShapeDtypeStruct(q_BLD.shape, q_BLD.dtype),) * 3,
    )
    return (*gradients, None, None)


_fused_attention.defvjp(_fused_forward, _fused_backward)


def _blocks(settings: _Settings, width: int) -> tuple[int, int, int]:
    """How `width` is cut: lanes of a block, number of blocks, heads of a block.

    Blocks are as wide as a vector register, so heads of 64 go by two.
    """
    block = math.lcm(settings.head_size, LANES)
    if width % block:
        block = width
    return block, width // block, block // settings.head_size


def _call(settings, kernel, direction, *, matmuls, blocks, inputs, seeds, outputs):
    """Runs `kernel` once for each example and block of heads."""
    block, groups, heads = blocks
    batch, length, width = inputs[0].shape
    whole = {
        (batch, length, width): pl.BlockSpec((None, length, block), lambda b, g, _: (b, 0, g)),
        (batch, 1, length): pl.BlockSpec((None, 1, length), lambda b, g, _: (b, 0, 0)),
        (batch, groups, heads, length): pl.BlockSpec(
            (None, None, heads, length), lambda b, g, _: (b, g, 0, 0)
        ),
    }
    scores = batch * (width // settings.head_size) * length**2
    return pl.pallas_call(
        functools.partial(kernel, settings, heads),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, groups),
            in_specs=[whole[x.shape] for x in inputs],
            out_specs=[whole[x.shape] for x in outputs],
        ),
        out_shape=outputs,
        # The planner knows kernels by these names (bert_jax/planning/hlo.py).
        name=f"fused_attention_{direction}" + ("_dropout" if settings.drop else ""),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=2 * matmuls * scores * settings.head_size,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        ),
        interpret=settings.interpret,
    )(seeds, *inputs)


# Inside the kernels scores lie as [S, Q]: sums over keys then run along sublanes, which is cheap,
# and no matmul's operand of the size of the scores needs transposing.


def _forward_kernel(settings, heads, seeds, q_ref, k_ref, v_ref, mask_ref, y_ref, lse_ref):
    """y [L, W] and the logarithm of each softmax's denominator [H, L]."""
    v_WS = v_ref[...].T
    y_WQ = []
    for head in range(heads):
        rows = slice(head * settings.head_size, (head + 1) * settings.head_size)
        scores_SQ = _scores(settings, head, q_ref, k_ref, mask_ref)
        top_1Q = scores_SQ.max(0, keepdims=True)
        weights_SQ = jnp.exp(scores_SQ - top_1Q)
        sum_1Q = weights_SQ.sum(0, keepdims=True)
        lse_ref[head : head + 1, :] = top_1Q + jnp.log(sum_1Q)
        if settings.drop:
            weights_SQ = jnp.where(_kept(settings, heads, head, seeds), weights_SQ, 0.0)
        y_KQ = _matmul(v_WS[rows], weights_SQ.astype(v_WS.dtype))
        y_WQ.append(y_KQ / (sum_1Q * settings.kept))
    y_ref[...] = jnp.concatenate(y_WQ).T.astype(y_ref.dtype)


def _backward_kernel(
    settings,
    heads,
    seeds,
    q_ref,
    k_ref,
    v_ref,
    mask_ref,
    y_ref,
    lse_ref,
    dy_ref,
    dq_ref,
    dk_ref,
    dv_ref,
):
    """Gradients of q, k and v [L, W]; probabilities and bits are recomputed."""
    size, dtype = settings.head_size, q_ref.dtype
    q_WQ, k_WS, dy_WQ = q_ref[...].T, k_ref[...].T, dy_ref[...].T
    y_dy_WQ = y_ref[...].T.astype(jnp.float32) * dy_WQ.astype(jnp.float32)
    dq_WQ, dk_WS, dv_WS = [], [], []
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        scores_SQ = _scores(settings, head, q_ref, k_ref, mask_ref)
        probs_SQ = jnp.exp(scores_SQ - lse_ref[head : head + 1, :])
        dprobs_SQ = _matmul(v_ref[...], _of_head(settings, head, dy_ref), transposed=True)
        delta_1Q = y_dy_WQ[rows].sum(0, keepdims=True)
        if settings.drop:
            kept_SQ = _kept(settings, heads, head, seeds)
            dropped_SQ = jnp.where(kept_SQ, probs_SQ, 0.0)
            dprobs_SQ = jnp.where(kept_SQ, dprobs_SQ, 0.0)
            # Both lack the factor 1 / kept, which the gradients get at the end.
            delta_1Q *= settings.kept
        else:
            dropped_SQ = probs_SQ
        dscores_SQ = (probs_SQ * (dprobs_SQ - delta_1Q)).astype(dtype)
        dv_WS.append(_matmul(dy_WQ[rows], dropped_SQ.astype(dtype), transposed=True))
        dk_WS.append(_matmul(q_WQ[rows], dscores_SQ, transposed=True))
        dq_WQ.append(_matmul(k_WS[rows], dscores_SQ))
    for ref, parts in ((dq_ref, dq_WQ), (dk_ref, dk_WS), (dv_ref, dv_WS)):
        ref[...] = (jnp.concatenate(parts).T / settings.kept).astype(dtype)


def _matmul(x: jax.Array, y: jax.Array, transposed: bool = False) -> jax.Array:
    """x·y, or x·yᵀ, in float32."""
    contracted = ((1,), (1 if transposed else 0,))
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _of_head(settings: _Settings, head: int, x_ref) -> jax.Array:
    """The block [L, W] with zeros for the other heads: a matmul over W is then over one head."""
    x = x_ref[...]
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    inside = (lane >= head * settings.head_size) & (lane < (head + 1) * settings.head_size)
    return jnp.where(inside, x, jnp.zeros_like(x))


def _scores(settings: _Settings, head: int, q_ref, k_ref, mask_ref) -> jax.Array:
    """float32[S, Q], -1e30 where a query may not attend."""
    scores_SQ = _matmul(k_ref[...], _of_head(settings, head, q_ref), transposed=True)
    mask_1Q = mask_ref[...].astype(jnp.float32)
    mask_S1 = jnp.broadcast_to(mask_1Q, (8, settings.length)).T[:, :1]
    if settings.packed:
        return jnp.where(mask_S1 == jnp.where(mask_1Q > 0, mask_1Q, -1.0), scores_SQ, -1e30)
    return jnp.where(mask_S1 > 0, scores_SQ, -1e30)


def _kept(settings: _Settings, heads: int, head: int, seeds) -> jax.Array:
    """bool[S, Q]: the probabilities that dropout keeps, as models/dropout.py draws them."""
    length = settings.length
    program = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
    first, second = (seeds[2 * (program * heads + head) + i] for i in (0, 1))
    along_q, along_s = dropout_lib.strides((length, length))
    x_1Q = jax.lax.broadcasted_iota(jnp.int32, (1, length), 1).astype(jnp.uint32)
    x_S1 = jax.lax.broadcasted_iota(jnp.int32, (length, 1), 0).astype(jnp.uint32)
    x_SQ = x_S1 * jnp.uint32(along_s) + (x_1Q * jnp.uint32(along_q) + first)
    return dropout_lib.mix(x_SQ, second) >= jnp.uint32(settings.drop << 16)
