"""Our attention kernel for TPU, with the published dropout on the probabilities.

A program works on one example and a block of heads, whose scores lie in on-chip memory. Shapes live
in names, as in `bert_jax/models/layers/attention.py`; W are the lanes of a block.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.models.layers import dropout as dropout_lib

MAX_LENGTH = 512  # a head's scores, several times over, lie in on-chip memory
LANES = 128  # of a TPU's vector registers
MAX_BLOCK_BYTES = 400_000  # of an array's block: 655,000 (heads of 80) are too many on chip


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the kernel is compiled for; `drop`: of 65,536 probabilities, so many go."""

    head_size: int
    length: int
    drop: int
    packed: bool
    interpret: bool

    @property
    def kept(self) -> float:
        return 1 - self.drop / 2**16


def seeds_of(dropout_keys_B: jax.Array, site: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32[B, H, 2]: what an example and a head bring into the hash of a probability."""
    _, length, heads, _ = shape
    words_B2 = jax.random.key_data(dropout_lib.fold_site(dropout_keys_B, site))
    stride = jnp.uint32(dropout_lib.strides((heads, length, length))[0])
    first_BH = words_B2[:, :1] + jnp.arange(heads, dtype=jnp.uint32) * stride
    second_BH = jnp.broadcast_to(words_B2[:, 1:], first_BH.shape)
    return jnp.stack([first_BH, second_BH], axis=-1)


def attend(
    settings: Settings,
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    attention_mask_BL: jax.Array,
    seeds_BH2: jax.Array | None = None,
) -> jax.Array:
    """As attention.attend has it, `q` scaled; seeds by `seeds_of`, if it drops.

    Heads stay side by side, as the projections leave them.
    """
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
    block, groups, heads = blocks_of(settings, width)
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
        blocks=blocks_of(settings, q_BLD.shape[-1]),
        inputs=(q_BLD, k_BLD, v_BLD, mask_B1L, y_BLD, lse_BGHL, dy_BLD),
        seeds=seeds,
        outputs=(jax.ShapeDtypeStruct(q_BLD.shape, q_BLD.dtype),) * 3,
    )
    return (*gradients, None, None)


_fused_attention.defvjp(_fused_forward, _fused_backward)


def block_of(head_size: int, heads: int) -> int:
    """Lanes of a block: as wide as vector registers are, so heads of 64 go by two."""
    block = math.lcm(head_size, LANES)
    return head_size * heads if head_size * heads % block else block


def blocks_of(settings: Settings, width: int) -> tuple[int, int, int]:
    """How `width` is cut: lanes of a block, number of blocks, heads of a block."""
    block = block_of(settings.head_size, width // settings.head_size)
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


def _of_head(settings: Settings, head: int, x_ref) -> jax.Array:
    """The block [L, W] with zeros for the other heads: a matmul over W is then over one head."""
    x = x_ref[...]
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    inside = (lane >= head * settings.head_size) & (lane < (head + 1) * settings.head_size)
    return jnp.where(inside, x, jnp.zeros_like(x))


def _scores(settings: Settings, head: int, q_ref, k_ref, mask_ref) -> jax.Array:
    """float32[S, Q], -1e30 where a query may not attend."""
    scores_SQ = _matmul(k_ref[...], _of_head(settings, head, q_ref), transposed=True)
    mask_1Q = mask_ref[...].astype(jnp.float32)
    mask_S1 = jnp.broadcast_to(mask_1Q, (8, settings.length)).T[:, :1]
    if settings.packed:
        return jnp.where(mask_S1 == jnp.where(mask_1Q > 0, mask_1Q, -1.0), scores_SQ, -1e30)
    return jnp.where(mask_S1 > 0, scores_SQ, -1e30)


def _kept(settings: Settings, heads: int, head: int, seeds) -> jax.Array:
    """bool[S, Q]: the probabilities that dropout keeps, as models/dropout.py draws them."""
    length = settings.length
    program = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
    first, second = (seeds[2 * (program * heads + head) + i] for i in (0, 1))
    along_q, along_s = dropout_lib.strides((length, length))
    x_1Q = jax.lax.broadcasted_iota(jnp.int32, (1, length), 1).astype(jnp.uint32)
    x_S1 = jax.lax.broadcasted_iota(jnp.int32, (length, 1), 0).astype(jnp.uint32)
    x_SQ = x_S1 * jnp.uint32(along_s) + (x_1Q * jnp.uint32(along_q) + first)
    return dropout_lib.mix(x_SQ, second) >= jnp.uint32(settings.drop << 16)
