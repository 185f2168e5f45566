"""Reads a Hugging Face directory, or a repository of the hub, as parameters of this project."""

import ml_collections
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import files, tensors
from bert_jax.models import architectures
from bert_jax.runs import workdir as workdirs


def read(source: str | epath.PathLike) -> workdirs.Loaded:
    """Reads a Hugging Face directory (or hub repository), as at step 0 of a run.

    Its `config` has `model`, `task`, `labels` and `imported_from`.

    Raises:
      UserError: see `files.read_config`, `files.read_tensors` and `tensors.from_tensors`.
    """
    directory = files.locate(source)
    described = files.read_config(directory)
    vocabulary = tokenizer.load(directory)
    if vocabulary.vocab_size > described.model.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {vocabulary.vocab_size:,} tokens, "
            f"the model only {described.model.vocab_size:,}"
        )
    stored = files.read_tensors(directory)
    try:
        params = tensors.from_tensors(stored, described.model, described.class_name)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    labels: tuple[str, ...] = ()
    if "classifier" in params and described.task != "multiple_choice":
        count = params["classifier"]["bias"].shape[0]
        if described.task == "text_regression" and count != 1:
            raise UserError(
                f"{source}: a regression head with {count} outputs; those with one are known here"
            )
        labels = described.labels or tuple(f"LABEL_{i}" for i in range(count))
        if len(labels) != count:
            raise UserError(
                f"{source}: config.json names {len(labels)} labels, the head has {count}"
            )
    config = {
        "model": architectures.fields_of(described.model),
        "task": described.task,
        "labels": list(labels),
        "imported_from": str(source),
    }
    return workdirs.Loaded(params, ml_collections.ConfigDict(config), 0, vocabulary)
