"""The model card of an export: README.md with the sections of Hugging Face's, and no local names.

An export may be uploaded, so paths, buckets and user names stay out of it: of the config only
numbers and names that are public anyway are written.
"""

import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from bert_jax.huggingface.keys import HeadClass
from bert_jax.models import architectures
from bert_jax.runs import telemetry
from bert_jax.runs import workdir as workdirs

# (field of the config, what the card calls it)
_RECIPE = (
    ("num_steps", "steps"),
    ("num_epochs", "epochs"),
    ("batch_size", "batch size"),
    ("max_seq_length", "tokens per sequence, at most"),
    ("seed", "seed"),
)
_OPTIMIZER = (
    ("name", "optimizer"),
    ("learning_rate", "peak learning rate"),
    ("weight_decay", "weight decay"),
)
_LIMITS = {
    "fill-mask": "It predicts masked words. It is no model of facts, and without fine-tuning it "
    "classifies nothing.",
    "feature-extraction": "Its states are features: without fine-tuning it classifies nothing.",
}
_LIMITS_OF_HEADS = (
    "It knows the labels and texts of its training data alone, and is as good on other texts as "
    "they resemble those."
)


def make(
    loaded: workdirs.Loaded,
    head_class: HeadClass,
    source: str | epath.PathLike,
    parity: str,
    license_name: str,
    languages: Sequence[str],
) -> str:
    """README.md with the metadata that the hub reads.

    Args:
      source: the run, of whose metrics the last ones are written; not itself named.
      license_name: a licence by the hub's name, or "".
      languages: codes such as "en".
    """
    config = loaded.config
    base = config.get("imported_from", "")
    is_public = bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)) and not epath.Path(base).exists()
    metadata = ["library_name: transformers", f"pipeline_tag: {head_class.pipeline}"]
    metadata.append(f"license: {license_name or 'unknown'}")
    if languages:
        metadata += ["language:", *(f"- {language}" for language in languages)]
    if is_public:
        metadata.append(f"base_model: {base}")
    metadata += ["tags:", "- bert_jax"]
    model = architectures.make_config(config.model)
    labels = tuple(config.get("labels", ()))
    case = "lowercased" if loaded.tokenizer.lowercase else "cased"
    sections = [
        f"# {head_class.name}",
        f"A `{head_class.name}` of {model.num_hidden_layers} layers, width {model.hidden_size}, "
        f"{model.num_attention_heads} attention heads and a {case} vocabulary of "
        f"{model.vocab_size:,} tokens; it reads up to {model.max_length} tokens. "
        "Trained and exported with bert_jax.",
        "## How to use it",
        _usage(head_class),
        "## Training data",
        _data(config, labels, base if is_public else ""),
        "## Training procedure",
        _table(_recipe(loaded)) or "Not recorded.",
        "## Evaluation",
        _table(results(loaded, source)) or "Not recorded.",
        "## Limits",
        _LIMITS.get(head_class.pipeline, _LIMITS_OF_HEADS),
        "## Conversion",
        f"{parity}.",
    ]
    return "\n".join(["---", *metadata, "---", "", *(f"{text}\n" for text in sections)])


def _usage(head_class: HeadClass) -> str:
    inputs = '"Some text."'
    if "multiple_choice" in head_class.tasks:
        inputs = '["A question."] * 2, ["One answer.", "Another answer."], padding=True'
    elif "question_answering" in head_class.tasks:
        inputs = '"A question?", "A text with the answer."'
    batch = (
        "{name: x[None] for name, x in batch.items()}"
        if "multiple_choice" in head_class.tasks
        else "batch"
    )
    return (
        "```python\n"
        f"from transformers import AutoTokenizer, {head_class.name}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME_OF_THIS_MODEL")\n'
        f'model = {head_class.name}.from_pretrained("PATH_OR_NAME_OF_THIS_MODEL")\n'
        f'batch = tokenizer({inputs}, return_tensors="pt")\n'
        f"outputs = model(**{batch})\n"
        "```"
    )


def _data(config: Any, labels: Sequence[str], base: str) -> str:
    sentences = [f"It began as `{base}`." if base else ""]
    if labels:
        shown = ", ".join(f"`{label}`" for label in labels[:50])
        more = f" and {len(labels) - 50} more" if len(labels) > 50 else ""
        sentences.append(f"Labels: {shown}{more}.")
    sentences.append("The texts themselves are not named here: add where they come from.")
    return " ".join(filter(None, sentences))


def _recipe(loaded: workdirs.Loaded) -> list[tuple[str, str]]:
    rows = [("steps of this checkpoint", f"{loaded.step:,}")]
    optimizer = loaded.config.get("optimizer", {})
    for fields, names in ((loaded.config, _RECIPE), (optimizer, _OPTIMIZER)):
        for field, name in names:
            value = fields.get(field)
            if isinstance(value, int | float) and not isinstance(value, bool):
                rows.append((name, f"{value:,}" if isinstance(value, int) else f"{value:g}"))
            elif isinstance(value, str) and re.fullmatch(r"\w+", value):
                rows.append((name, value))
    phases = [phase.get("num_steps") for phase in loaded.config.get("phases", ())]
    if phases:
        rows.append(("phases", f"{len(phases)}"))
    return rows


def results(loaded: workdirs.Loaded, source: str | epath.PathLike) -> list[tuple[str, str]]:
    """The last value of each metric that the run wrote down until this checkpoint."""
    workdir, _, _ = workdirs.path_parts(source)
    last: dict[str, Any] = {}
    for line in telemetry.read(workdir):
        if line["step"] <= loaded.step:
            last |= line
    return [
        (name, f"{value:.4g}")
        for name, value in last.items()
        if name != "step" and isinstance(value, int | float)
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""
