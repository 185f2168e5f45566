"""Writes a checkpoint as a Hugging Face directory, compared with transformers before it appears."""

import json
import logging
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import files, parity, tensors
from bert_jax.huggingface.keys import PRETRAINING
from bert_jax.models import architectures
from bert_jax.runs import telemetry
from bert_jax.runs import workdir as workdirs

# Of a run's config, what its model card says.
CARD_FIELDS = (
    *("imported_from", "data_dir", "train_file", "validation_file", "init"),
    *("batch_size", "num_steps", "num_epochs", "max_seq_length", "seed"),
)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def write(
    loaded: workdirs.Loaded,
    source: str | epath.PathLike,
    output: str | epath.PathLike,
    dtype: str = "float32",
    max_shard_size: int = 5 * 10**9,
) -> parity.ParityReport:
    """Exports parameters in memory as a Hugging Face directory; `source` is named in its card.

    Args:
      dtype: of the stored weights, "float32" or "bfloat16".
      max_shard_size: bytes above which the weights are split over files.

    Raises:
      UserError: `output` holds something else; or transformers computes something else from what
        was written, in which case `output` is left as it was.
    """
    output = epath.Path(output)
    files.check_replaceable(output)
    model = architectures.make_config(loaded.config.model)
    task = loaded.config.get("task", PRETRAINING)  # pretraining configs have no such field
    labels = tuple(loaded.config.get("labels", ()))
    head_class = tensors.class_of(loaded.params, model, task)
    kept = {"encoder", *head_class.parts, *head_class.optional}
    # Such as the pooler that came along when a model was made from a larger one.
    if skipped := [part for part in tensors.parts_of(loaded.params, model) if part not in kept]:
        logging.warning(f"{output}: a {head_class.name} has no {', no '.join(skipped)}: skipped")
    part_of = {key: part for part, _, key, _ in tensors.rows(model)}
    stored = {
        key: x.astype(DTYPES[dtype], copy=False)
        for key, x in tensors.to_tensors(loaded.params, model).items()
        if part_of[key] in kept
    }
    config = files.config_json(head_class.name, model, dtype, loaded.tokenizer.pad_id, task, labels)
    with files.replace_directory(output) as scratch:
        files.write_tensors(scratch, stored, max_shard_size)
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save(loaded.tokenizer, scratch, model.max_position_embeddings)
        report = parity.compare(loaded, head_class, scratch, dtype)
        if not report.passed:
            raise UserError(f"{output} was not written: {report}")
        card = files.model_card(
            f"A {head_class.name}, exported by bert_jax from `{source}`.",
            card_facts(loaded, source),
            str(report),
            head_class.pipeline,
        )
        (scratch / "README.md").write_text(card)
    return report


def card_facts(loaded: workdirs.Loaded, source: str | epath.PathLike) -> list[tuple[str, str]]:
    """(name, value) rows of the model card: sizes, recipe, and the last metrics of the run."""
    model = loaded.config.model
    facts = [
        ("layers / width / heads", f"{model.num_hidden_layers} / {model.hidden_size} / "
         f"{model.num_attention_heads}"),
        ("vocabulary", f"{model.vocab_size:,} {'un' if loaded.tokenizer.lowercase else ''}cased"),
        ("steps", f"{loaded.step:,}"),
    ]  # fmt: skip
    for name in CARD_FIELDS:
        if loaded.config.get(name) not in (None, "", ()):
            facts.append((name, str(loaded.config[name])))
    for number, phase in enumerate(loaded.config.get("phases", ())):
        facts += [
            (f"phase {number} {name}", ", ".join(str(value).splitlines()))
            for name, value in phase.items()
            if value  # fields left empty are the run's
        ]
    for name, value in loaded.config.get("optimizer", {}).items():
        facts.append((f"optimizer {name}", str(value)))
    workdir, _, _ = workdirs.path_parts(source)
    last: dict[str, Any] = {}
    for line in telemetry.read(workdir):
        if line["step"] <= loaded.step:
            last |= line
    facts += [
        (name, f"{value:.4g}")
        for name, value in last.items()
        if name != "step" and isinstance(value, (int, float))
    ]
    return facts
