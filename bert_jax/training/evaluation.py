"""Evaluation: an objective's metrics over held-out batches."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from bert_jax.objectives.base import Objective
from bert_jax.parallel.programs import MeshJit

# Batches that are dispatched before the first of them is waited for: the device is never idle, and
# does not hold many.
AHEAD = 4


def make_eval_step(objective: Objective, mesh: Mesh) -> MeshJit:
    """The jitted (params, batch) -> (sums, weights), to be added up over batches."""
    return MeshJit(
        jax.jit(
            lambda params, batch: (objective.sums(params, batch, None), objective.weights(batch))
        ),
        mesh,
    )


def evaluate(eval_step: Callable, params: Any, batches: Any, losses: tuple[str, ...]) -> dict:
    """Metrics over all of `batches` as Python floats, `loss` included.

    A metric without anything to count, such as that of pairs in text without them, is skipped.
    """
    results: list[Any] = []  # on the device: to read one is to wait for it
    for number, batch in enumerate(batches):
        results.append(eval_step(params, batch))
        if number >= AHEAD:
            jax.block_until_ready(results[number - AHEAD])
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for result in jax.device_get(results):
        for total, part in zip((sums, weights), result, strict=True):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + float(value)
    means = {name: sums[name] / weights[name] for name in sums if weights[name]}
    result = {"loss": sum(means[name] for name in losses if name in means), **means}
    if "mlm_loss" in means:
        result["mlm_perplexity"] = math.exp(min(means["mlm_loss"], 100.0))
    return result
