"""What `bert_jax.explain` returns of words: plain data for a page, and lines that sum pages up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.inference.forward import Forward
from bert_jax.inference.predictions import Record
from bert_jax.interpretation import attribution as attributions
from bert_jax.interpretation import faithfulness, targets
from bert_jax.interpretation import lime as limes
from bert_jax.interpretation.targets import Output, Text

COMPLETE = 0.01  # the share of the difference that integrated gradients may miss


def attribution(
    model: Forward,
    records: Sequence[Record],
    name: str,
    target: str = "",
    steps: int = 64,
    baseline: str = "mask",
    checks: bool = True,
    seeds: int = 3,
) -> dict[str, Any]:
    """See `bert_jax.explain.attribution`."""
    texts = targets.texts(model, records, target)

    def of(method: str, params: Any = None) -> list[attributions.Attribution]:
        found = attributions.attribute(model, texts, method, steps, baseline, params)
        return [x for of_text in found for x in of_text]

    found = {method: of(method) for method in attributions.METHODS}
    words = {method: [x.words_W for x in values] for method, values in found.items()}
    facts = [
        {"logit": _short(x.logit), "baseline": _short(x.baseline), "error": _short(x.error)}
        for x in found["integrated_gradients"]
    ]
    data = _words(model, name, texts, words, facts)
    data |= {"kind": "attribution", "steps": steps, "without": baseline}
    if checks:
        drawn = of("integrated_gradients", attributions.randomised(model, 0))
        words["randomised parameters"] = [x.words_W for x in drawn]
        data["checks"] = faithfulness.check(model, _chosen(texts), words, range(seeds))
    return data


def lime(
    model: Forward,
    records: Sequence[Record],
    name: str,
    target: str = "",
    samples: int = 500,
    seed: int = 0,
    checks: bool = True,
    seeds: int = 3,
) -> dict[str, Any]:
    """See `bert_jax.explain.lime`."""
    texts = targets.texts(model, records, target)
    chosen = _chosen(texts)
    found = limes.explain(model, chosen, samples, seed)
    words = {"lime": [x.words_W for x in found]}
    data = _words(model, name, texts, words, [{"r2": _short(x.r2)} for x in found])
    data |= {"kind": "lime", "samples": samples, "seed": seed}
    if checks:
        words[f"lime, seed {seed + 1}"] = [
            x.words_W for x in limes.explain(model, chosen, samples, seed + 1)
        ]
        data["checks"] = faithfulness.check(model, chosen, words, range(seeds))
    return data


def _chosen(texts: Sequence[Text]) -> list[tuple[Text, Output]]:
    return [(text, output) for text in texts for output in text.outputs]


def _words(
    model: Forward,
    name: str,
    texts: Sequence[Text],
    words: Mapping[str, Sequence[np.ndarray]],
    facts: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Texts, their outputs and the scores of their words by method."""
    chosen = _chosen(texts)
    probs = targets.probabilities(model, [x.row for x, _ in chosen], [x for _, x in chosen])
    results = iter(
        {
            "name": output.name,
            "probability": _short(prob),
            **fact,
            "scores": {method: [_short(x) for x in values[i]] for method, values in words.items()},
        }
        for i, ((_, output), prob, fact) in enumerate(zip(chosen, probs, facts, strict=True))
    )
    return {
        "model": name,
        "task": model.task,
        "methods": [*words],
        "texts": [
            {"words": list(text.names), "outputs": [next(results) for _ in text.outputs]}
            for text in texts
        ],
    }


def _outputs(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (f"text {i + 1}, {output['name']}", output)
        for i, text in enumerate(data["texts"])
        for output in text["outputs"]
    ]


def _attribution_lines(data: Mapping[str, Any]) -> Iterator[str]:
    outputs = _outputs(data)
    missed = [(name, x["error"]) for name, x in outputs if x["error"] > COMPLETE]
    yield (
        f"integrated gradients, {data['steps']} steps: completeness within {COMPLETE:.0%} for "
        f"{len(outputs) - len(missed)} of {len(outputs)} outputs"
    )
    for name, error in missed:
        yield f"  misses by {error:.1%}: {name} (try more --steps)"
    yield from _check_lines(data)


def _lime_lines(data: Mapping[str, Any]) -> Iterator[str]:
    r2 = [x["r2"] for _, x in _outputs(data)]
    if r2:
        yield f"lime, {data['samples']} samples: R² {min(r2):.2f} to {max(r2):.2f}"
    yield from _check_lines(data)


def _check_lines(data: Mapping[str, Any]) -> Iterator[str]:
    checks = data.get("checks", {})
    if not checks.get("texts"):
        return
    yield f"{'order of words':<24} deletion  insertion   (areas over {checks['texts']} outputs)"
    for name, areas in checks["areas"].items():
        yield f"{name:<24} {areas['deletion']:8.3f} {areas['insertion']:10.3f}"
    for pair, correlation in checks["agreement"].items():
        yield f"rank correlation of {pair}: {correlation:.2f}"


def _attention_lines(data: Mapping[str, Any]) -> Iterator[str]:
    for layer, descriptions in enumerate(data["descriptions"], 1):
        for head, description in enumerate(descriptions, 1):
            yield f"layer {layer:2d}, head {head:2d}: {description}"


def _probability_lines(data: Mapping[str, Any]) -> Iterator[str]:
    for name in ("before", "after"):
        if found := data.get(name):
            scale = f", temperature {data['temperature']:.3f}" if name == "after" else ""
            yield (
                f"{found['examples']} examples{scale}: accuracy {found['accuracy']:.4f}, log loss "
                f"{found['log_loss']:.4f}, expected calibration error {found['ece']:.4f}"
            )
    if "temperature" in data:
        yield f"use it: python -m bert_jax.predict … --temperature={data['temperature']:.3f}"


def _layer_lines(data: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{data['train_examples']} examples, tested on {data['test_examples']}; the commonest "
        f"label has {data['majority']:.4f}"
    )
    yield f"{'layer':<12} accuracy  control  selectivity"
    for number, x in enumerate(data["layers"]):
        name = str(number) if number else "embeddings"
        yield f"{name:<12} {x['accuracy']:8.4f} {x['control']:8.4f} {x['selectivity']:12.4f}"
    found = data.get("lens", {}).get("layers")
    if found:
        yield f"{'logit lens':<12} right  mean log probability of the word"
        for number, x in enumerate(found, 1):
            yield f"{number:<12} {x['hits']:5.3f} {x['log_prob']:10.3f}"


def _checkpoint_lines(data: Mapping[str, Any]) -> Iterator[str]:
    points = data["checkpoints"]
    width = max(len(x["name"]) for x in points)
    yield f"{'':<{width}}  as the last  right  CKA with the last, by layer"
    for x in points:
        right = "    –" if x["right"] is None else f"{x['right']:5.3f}"
        similar = " ".join(f"{y:.2f}" for y in x["cka"]["last"])
        yield f"{x['name']:<{width}}  {x['as_last']:11.3f}  {right}  {similar}"


LINES: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "attention": _attention_lines,
    "attribution": _attribution_lines,
    "lime": _lime_lines,
    "probabilities": _probability_lines,
    "layers": _layer_lines,
    "checkpoints": _checkpoint_lines,
}


def _short(value: Any) -> float:
    """A float of six digits: what a page needs."""
    return float(f"{float(value):.6g}")
