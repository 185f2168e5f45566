"""Writes a checkpoint as a Hugging Face directory, compared with transformers before it appears."""

import json
import logging
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import card, config_json, files, parity, tensors, weights
from bert_jax.huggingface.keys import PRETRAINING
from bert_jax.models import architectures
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import kinds

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def write(
    loaded: workdirs.Loaded,
    source: str | epath.PathLike,
    output: str | epath.PathLike,
    dtype: str = "float32",
    max_shard_size: int = 5 * 10**9,
    license_name: str = "",
    languages: Sequence[str] = (),
) -> parity.ParityReport:
    """Exports parameters in memory as a Hugging Face directory.

    Args:
      source: the run that they are of, for its metrics.
      dtype: of the stored weights, "float32" or "bfloat16".
      max_shard_size: bytes above which the weights are split over files.
      license_name, languages: for the model card.

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
    # Two parts may have a key in common, of which a class has one.
    part_of = {key: part for part, _, key, _ in tensors.rows(model, kept)}
    stored = {
        key: x.astype(DTYPES[dtype], copy=False)
        for key, x in tensors.to_tensors(loaded.params, model).items()
        if key in part_of
    }
    config = config_json.make(head_class.name, model, dtype, loaded.tokenizer.pad_id, task, labels)
    settings = kinds.model_settings(loaded.config)
    if task != PRETRAINING or "pooling" in settings:
        config["bert_jax"] = settings
    with files.replace_directory(output) as scratch:
        weights.write(scratch, stored, max_shard_size)
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save(loaded.tokenizer, scratch, model.max_length)
        report = parity.compare(loaded, head_class, scratch, dtype)
        if not report.passed:
            raise UserError(f"{output} was not written: {report}")
        text = card.make(loaded, head_class, source, str(report), license_name, languages)
        (scratch / "README.md").write_text(text)
    return report
