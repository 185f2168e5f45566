"""Whether scores of words say what the model goes by.

Deletion and insertion (Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421): words are replaced
by [MASK], or appear in a text of [MASK], in the order of their scores; what moves the model most
must come first. W words, F shares of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.inference.forward import Forward
from bert_jax.interpretation import targets
from bert_jax.interpretation.targets import Output, Text
from bert_jax.tasks import scores

SHARES = tuple(i / 10 for i in range(11))  # of a text's words


def curves(
    model: Forward, chosen: Sequence[tuple[Text, Output]], orders: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The probability of each output as words go, or come, in the order given.

    Args:
      chosen: texts and outputs.
      orders: of each the indices of its words, the most important first.

    Returns:
      "deletion" and "insertion", float32[N, F]: at each of SHARES.
    """
    rows, outputs = [], []
    for (text, output), order in zip(chosen, orders, strict=True):
        for inserts in (False, True):
            for share in SHARES:
                count = round(share * len(order))
                hidden = order[count:] if inserts else order[:count]
                rows.append(without(model, text, hidden))
                outputs.append(output)
    found = targets.probabilities(model, rows, outputs).reshape(len(chosen), 2, len(SHARES))
    return {"deletion": found[:, 0], "insertion": found[:, 1]}


def without(model: Forward, text: Text, hidden: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """The row of a text whose words of these indices are [MASK], piece by piece."""
    ids = list(text.row["input_ids"])
    for word in hidden:
        first, end = text.words[word]
        ids[first:end] = [model.tokenizer.mask_id] * (end - first)
    return {**text.row, "input_ids": ids}


def area(curve_F: np.ndarray) -> float:
    """The mean height of a curve over SHARES, by the trapezoidal rule."""
    return float(np.mean((curve_F[1:] + curve_F[:-1]) / 2))


def check(
    model: Forward,
    chosen: Sequence[tuple[Text, Output]],
    found: Mapping[str, Sequence[np.ndarray]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """What tells whether scores are to be believed.

    Args:
      chosen: texts and outputs; those of fewer than two words are skipped.
      found: method -> the scores of the words of each.
      seeds: of the random orders that methods are compared with.

    Returns:
      "texts": how many count; "shares"; "curves" and "areas" by method and "random SEED", each with
      "deletion" and "insertion": a good deletion area is low, a good insertion area high;
      "agreement": {"METHOD, METHOD": the mean rank correlation of the words' scores}.
    """
    used = [i for i, (text, _) in enumerate(chosen) if len(text.words) > 1]
    kept = [chosen[i] for i in used]
    orders = {
        method: [np.argsort(-values[i], kind="stable") for i in used]
        for method, values in found.items()
    }
    for seed in seeds:
        rng = np.random.default_rng(seed)
        orders[f"random {seed}"] = [rng.permutation(len(text.words)) for text, _ in kept]
    means: dict[str, dict[str, list[float]]] = {}
    for name, order in orders.items() if kept else ():
        both = curves(model, kept, order)
        means[name] = {kind: both[kind].mean(0).tolist() for kind in both}
    methods = [*found]
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    return {
        "texts": len(kept),
        "shares": list(SHARES),
        "curves": means,
        "areas": {
            name: {kind: area(np.array(curve)) for kind, curve in both.items()}
            for name, both in means.items()
        },
        "agreement": {
            f"{a}, {b}": float(np.mean([scores.spearman(found[a][i], found[b][i]) for i in used]))
            for a, b in pairs
            if used
        },
    }
