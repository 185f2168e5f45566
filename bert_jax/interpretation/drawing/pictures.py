"""What `explain` writes as PNG, drawn with matplotlib (the extra `plot`)."""

import base64
import importlib.util
import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from bert_jax.cli import UserError

_OUTPUTS = 6  # drawn of attributions
_WORDS = 40  # shown of a text


def check() -> None:
    """Raises UserError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("a .png needs matplotlib: pip install 'bert_jax[plot]'")


def draw(data: dict[str, Any]) -> bytes:
    """The PNG of what a function of `bert_jax.explain` returned."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # A text may hold "$", which is no formula.
    with pyplot.rc_context({"text.parse_math": False}):
        figure = _DRAWINGS[data["kind"]](pyplot, data)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        pyplot.close(figure)
    return content.getvalue()


def _attribution(pyplot: Any, data: dict[str, Any]) -> Any:
    """Bars of the words' scores, for the first outputs."""
    method = data["methods"][0]
    shown = [(text, output) for text in data["texts"] for output in text["outputs"]][:_OUTPUTS]
    figure, axes = pyplot.subplots(
        max(len(shown), 1), figsize=(12, 2.6 * max(len(shown), 1)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, (text, output) in zip(axes[:, 0], shown, strict=False):
        values = output["scores"][method][:_WORDS]
        axis.bar(range(len(values)), values, color=["C2" if x >= 0 else "C3" for x in values])
        axis.set_xticks(range(len(values)), text["words"][:_WORDS], rotation=60, ha="right")
        axis.set_title(f"{output['name']}, probability {output['probability']:.3f} ({method})")
    return figure


def _attention(pyplot: Any, data: dict[str, Any]) -> Any:
    """All heads of the first text."""
    text = data["texts"][0]
    length = len(text["tokens"])
    levels = np.frombuffer(zlib.decompress(base64.b64decode(text["levels"])), np.uint8)
    levels_NHLL = levels.reshape(data["layers"], data["heads"], length, length)
    figure, axes = pyplot.subplots(
        *(data["layers"], data["heads"]),
        figsize=(1.3 * data["heads"] + 1, 1.4 * data["layers"] + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for layer, row in enumerate(axes):
        for head, axis in enumerate(row):
            axis.imshow(np.sqrt(levels_NHLL[layer, head]), cmap="Blues", vmin=0, vmax=16)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(data["descriptions"][layer][head], fontsize=6)
    return figure


def _probabilities(pyplot: Any, data: dict[str, Any]) -> Any:
    """The reliability diagram."""
    figure, axis = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.7")
    for name in ("before", "after"):
        if found := data.get(name):
            bins = found["bins"]
            label = name if name == "before" else f"temperature {data['temperature']:.2f}"
            axis.plot(
                [x["confidence"] for x in bins],
                [x["accuracy"] for x in bins],
                marker="o",
                label=f"{label}: ECE {found['ece']:.3f}",
            )
    axis.set(xlabel="probability of the prediction", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.legend()
    return figure


def _layers(pyplot: Any, data: dict[str, Any]) -> Any:
    """The probes' accuracy by layer."""
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, mark in (("accuracy", "o"), ("control", "x")):
        axis.plot([x[name] for x in data["layers"]], marker=mark, label=name)
    axis.axhline(data["majority"], color="0.7", label="commonest label")
    axis.set(xlabel="layer (0: embeddings)", ylabel="accuracy of a linear probe", ylim=(0, 1))
    axis.legend()
    return figure


def _checkpoints(pyplot: Any, data: dict[str, Any]) -> Any:
    """Of every checkpoint and layer how near it is to the last one."""
    points = data["checkpoints"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.3 * len(points) + 2), layout="constrained")
    kinds = (("cka", "similarity of states (CKA)"), ("attention", "divergence of attention, bits"))
    for axis, (kind, title) in zip(axes, kinds, strict=True):
        image = axis.imshow([x[kind]["last"] for x in points], vmin=0, vmax=1, aspect="auto")
        axis.set_yticks(range(len(points)), [x["name"] for x in points])
        axis.set(xlabel="layer", title=title)
        figure.colorbar(image, ax=axis)
    return figure


_DRAWINGS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "attention": _attention,
    "attribution": _attribution,
    "lime": _attribution,
    "probabilities": _probabilities,
    "layers": _layers,
    "checkpoints": _checkpoints,
}
