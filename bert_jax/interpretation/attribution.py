"""How much each word adds to an output of the model, by gradients at the embeddings.

Gradient × input (Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713) and integrated gradients
(Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365) of a logit. N rows, B rows per batch,
L length, D hidden width, S steps, K steps per pass.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.cli import UserError
from bert_jax.inference.forward import Forward
from bert_jax.interpretation import targets
from bert_jax.interpretation.targets import Text
from bert_jax.models import capture

METHODS = ("integrated_gradients", "gradient_x_input")
BASELINES = ("mask", "pad")
# Sequences that pass through the model together: several steps of a short batch.
_SEQUENCES = 64


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Scores of one output.

    Attributes:
      tokens_L: float32, of each token; they add up to `total` for integrated gradients.
      words_W: float32, the sums over the words' tokens.
      logit: of the text; `baseline`: of the text whose words are all [MASK] or [PAD].
    """

    tokens_L: np.ndarray
    words_W: np.ndarray
    logit: float
    baseline: float

    @property
    def total(self) -> float:
        """What integrated gradients distribute: the difference of the logits."""
        return self.logit - self.baseline

    @property
    def error(self) -> float:
        """|sum of the scores - total| / |total|: how far completeness is missed."""
        difference = abs(float(self.tokens_L.sum(dtype=np.float64)) - self.total)
        return difference / max(abs(self.total), 1e-12)


def attribute(
    model: Forward,
    texts: Sequence[Text],
    method: str = "integrated_gradients",
    steps: int = 64,
    baseline: str = "mask",
    params: Any = None,
) -> list[list[Attribution]]:
    """The attributions of every output of every text.

    Args:
      method: of METHODS.
      steps: points at which the gradient is taken between baseline and text, by Gauss-Legendre
        quadrature; gradient × input takes one, at the text.
      baseline: what words are replaced by; [CLS], [SEP] and [MASK] stay as they are.
      params: given, they replace the model's.

    Raises:
      UserError: an unknown method or baseline, or no step.
    """
    for name, value, known in (("method", method, METHODS), ("baseline", baseline, BASELINES)):
        if value not in known:
            raise UserError(f"{name}={value!r} is not one of {', '.join(known)}")
    if steps < 1:
        raise UserError(f"steps={steps}: expected at least 1")
    nodes_S, weights_S = _quadrature(method, steps)
    tokenizer, encoder = model.tokenizer, model.encoder
    replacement = tokenizer.mask_id if baseline == "mask" else tokenizer.pad_id
    kept = np.array(targets.kept_ids(model))
    ids_at = encoder.batch_fields.index("input_ids")

    def apply(params: Any, *arrays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        *inputs, place_B, index_B = arrays
        ids_BL = inputs[ids_at]
        empty = list(inputs)
        empty[ids_at] = jnp.where(jnp.isin(ids_BL, kept), ids_BL, replacement)
        x_BLD = capture.embeddings(model.module, params, *inputs).astype(jnp.float32)
        base_BLD = capture.embeddings(model.module, params, *empty).astype(jnp.float32)
        passes = max(1, min(_SEQUENCES // len(ids_BL), len(nodes_S)))
        # The points fill up whole passes; those beyond the last one weigh nothing.
        rest = -len(nodes_S) % passes
        nodes_SK = np.pad(nodes_S, (0, rest)).reshape(-1, passes)
        weights_SK = np.pad(weights_S, (0, rest)).reshape(-1, passes)

        def logits(x_BLD: jax.Array) -> jax.Array:
            """The outputs' logits, of one or several copies of the batch."""
            copies = len(x_BLD) // len(ids_BL)
            several = [jnp.tile(x, (copies, *[1] * (x.ndim - 1))) for x in (*inputs, place_B)]
            x_BLD = x_BLD.astype(model.config.dtype)
            scores_BC = targets.scores(model, params, x_BLD, several[:-1], several[-1])
            return jnp.take_along_axis(scores_BC, jnp.tile(index_B, copies)[:, None], 1)[:, 0]

        def add(sum_BLD: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            node_K111, weight_K111 = (x[:, None, None, None] for x in step)
            points = base_BLD + node_K111 * (x_BLD - base_BLD)
            points = points.reshape(-1, *x_BLD.shape[1:])
            gradients = jax.grad(lambda x: logits(x).sum())(points)
            return sum_BLD + (weight_K111 * gradients.reshape(-1, *x_BLD.shape)).sum(0), None

        steps_SK = (jnp.asarray(nodes_SK, jnp.float32), jnp.asarray(weights_SK, jnp.float32))
        gradient_BLD, _ = jax.lax.scan(add, jnp.zeros_like(x_BLD), steps_SK)
        factor_BLD = x_BLD if method == "gradient_x_input" else x_BLD - base_BLD
        return (gradient_BLD * factor_BLD).sum(-1), logits(x_BLD), logits(base_BLD)

    program = model.compiled(("attribute", method, steps, baseline), apply)
    rows = [targets.with_output(text.row, output) for text in texts for output in text.outputs]
    params = targets.params_of(model) if params is None else params
    found = iter(model.outputs(program, params, rows, ("place", "index")))
    return [[_attribution(text, *next(found)) for _ in text.outputs] for text in texts]


def _quadrature(method: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points from 0 (baseline) to 1 (text), and their weights, which add up to 1."""
    if method == "gradient_x_input":
        return np.ones(1), np.ones(1)
    points_S, weights_S = np.polynomial.legendre.leggauss(steps)
    return (points_S + 1) / 2, weights_S / 2


def _attribution(text: Text, tokens_L: np.ndarray, logit: Any, baseline: Any) -> Attribution:
    tokens_L = tokens_L[: len(text.row["input_ids"])]
    words_W = np.array([tokens_L[first:end].sum() for first, end in text.words], np.float32)
    return Attribution(tokens_L, words_W, float(logit), float(baseline))


def randomised(model: Forward, seed: int) -> Any:
    """Parameters of the model's shapes, normal with each array's own mean and deviation.

    For the check of Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292): what explains the model
    must change with its parameters.
    """
    leaves, structure = jax.tree.flatten(targets.params_of(model))
    rng = np.random.default_rng(seed)
    drawn = [
        rng.normal(np.mean(leaf), np.std(leaf), np.shape(leaf)).astype(np.float32)
        for leaf in map(np.asarray, leaves)
    ]
    return jax.device_put(jax.tree.unflatten(structure, drawn))
