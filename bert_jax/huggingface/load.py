"""Reads a Hugging Face directory, or a repository of the hub, as parameters of this project.

A sentence-transformers directory is one whose modules.json names where the encoder lies, and what
is done with its states.
"""

import re
from typing import Any, TypedDict

import ml_collections
from etils import epath

from bert_jax import files as file_lib
from bert_jax.cli import UserError
from bert_jax.data import tokenizer
from bert_jax.huggingface import config_json, files, tensorflow, tensors, weights
from bert_jax.models import architectures
from bert_jax.models.architectures import EncoderConfig
from bert_jax.runs import workdir as workdirs


class _SentenceConfig(TypedDict, total=False):
    max_seq_length: int | None
    do_lower_case: bool | None


class _Pooling(TypedDict, total=False):
    pooling_mode: str | list[str]


class _TokenizerLength(TypedDict, total=False):
    model_max_length: float | None


def read_tokenizer(source: str | epath.PathLike) -> tokenizer.Tokenizer:
    """A directory's or hub repository's tokenizer alone."""
    return tokenizer.load(_encoder_of(files.locate(source))[0])


def read_config(source: str | epath.PathLike) -> EncoderConfig:
    """The encoder's config of what `read` reads.

    Raises:
      UserError: see `config_json.read`.
    """
    directory, _ = _encoder_of(files.locate(source))
    return _described(directory).model


def _described(directory: epath.Path) -> config_json.Description:
    name = "bert_config.json" if tensorflow.is_checkpoint(directory) else "config.json"
    return config_json.read(directory / name)


def read(source: str | epath.PathLike, ignore_unexpected: bool = False) -> workdirs.Loaded:
    """Reads a Hugging Face directory (or hub repository), as at step 0 of a run.

    Its `config` has `model`, `task`, `labels` and `imported_from`; of an export of a fine-tuning
    also the settings of `tasks.kinds.MODEL_SETTINGS`; of a sentence-transformers model how it makes
    vectors: `pooling`, `normalize`, `max_seq_length`.

    Args:
      ignore_unexpected: skip arrays of heads that are not known here.

    Raises:
      UserError: see `config_json.read`, `weights.read` and `tensors.from_tensors`.
    """
    directory, embedding = _encoder_of(files.locate(source))
    described = _described(directory)
    vocabulary = tokenizer.load(directory)
    if vocabulary.vocab_size > described.model.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {vocabulary.vocab_size:,} tokens, "
            f"the model only {described.model.vocab_size:,}"
        )
    if embedding.pop("lowercase", False) and not vocabulary.lowercase:
        raise UserError(
            f"{source}: sentence-transformers lowercases the text of a cased tokenizer here "
            "(do_lower_case in sentence_bert_config.json), which no tokenizer says: write "
            '"do_lower_case": true into tokenizer_config.json'
        )
    if tensorflow.is_checkpoint(directory):
        stored = tensorflow.read(directory)
    else:
        stored = weights.read(directory, lambda: tensors.most_bytes(described.model))
    try:
        params = tensors.from_tensors(
            stored, described.model, described.class_name, ignore_unexpected
        )
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    config = {
        "model": architectures.fields_of(described.model),
        "task": described.task,
        "labels": list(_labels(source, described, params)),
        "imported_from": str(source),
        **described.settings,
    }
    if embedding:
        longest = described.model.max_length
        length = min(int(embedding["max_seq_length"] or longest), longest)
        config |= embedding | {"max_seq_length": length}
    return workdirs.Loaded(params, ml_collections.ConfigDict(config), 0, vocabulary)


def _labels(
    source: str | epath.PathLike, described: config_json.Description, params: Any
) -> tuple[str, ...]:
    """The names of a classifier's outputs; () where there is none."""
    if "classifier" not in params or described.task == "multiple_choice":
        return ()
    count = params["classifier"]["bias"].shape[0]
    if described.task == "text_regression" and count != 1:
        raise UserError(
            f"{source}: a regression head with {count} outputs; those with one are known here"
        )
    labels = described.labels or tuple(f"LABEL_{i}" for i in range(count))
    if len(labels) != count:
        raise UserError(f"{source}: config.json names {len(labels)} labels, the head has {count}")
    return labels


def _encoder_of(directory: epath.Path) -> tuple[epath.Path, dict[str, Any]]:
    """Where the encoder of a directory lies, and what sentence-transformers does with its states.

    Raises:
      UserError: a module that this project does not compute.
    """
    if not (directory / "modules.json").exists():
        return directory, {}
    path = directory / "modules.json"
    modules = file_lib.read_shaped_list(path)
    # Before 6: sentence_transformers.models.Pooling, since then …modules.pooling.Pooling.
    named = [(str(module.get("type", "")).rpartition(".")[2], module) for module in modules]
    kinds = [kind for kind, _ in named]
    if not kinds or kinds != ["Transformer", "Pooling", "Normalize"][: len(kinds)]:
        raise UserError(
            f"{path}: the modules {', '.join(kinds) or '(none)'}, of which only a Transformer, "
            "Pooling and Normalize are computed here, in this order"
        )
    folders = {kind: str(module.get("path") or "") for kind, module in named}
    if outside := [x for x in folders.values() if not re.fullmatch(r"(\w[\w.-]*)?", x)]:
        raise UserError(f"{path} names {outside[0]!r}, expected a folder of its directory")
    encoder = directory / folders["Transformer"]
    if "Pooling" not in folders:
        return encoder, {}
    sentence = file_lib.read_shaped(encoder / "sentence_bert_config.json", _SentenceConfig)
    lengths = file_lib.read_shaped(encoder / "tokenizer_config.json", _TokenizerLength)
    pooling_file = directory / folders["Pooling"] / "config.json"
    pooling: dict[str, Any] = {**file_lib.read_shaped(pooling_file, _Pooling)}
    modes = pooling.get("pooling_mode") or [
        mode
        for name, mode in (("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max"))
        if pooling.get(f"pooling_mode_{name}")
    ]
    modes = [modes] if isinstance(modes, str) else modes
    others = [x for x in pooling if x.startswith("pooling_mode_") and pooling[x] is True]
    if len(modes) != 1 or modes[0] not in ("cls", "mean", "max") or len(others) > 1:
        raise UserError(
            f"{pooling_file}: the pooling {', '.join(modes + others) or 'of no kind'}, of which "
            "cls, mean and max are computed here, one at a time"
        )
    return encoder, {
        "pooling": modes[0],
        "normalize": "Normalize" in folders,
        "max_seq_length": sentence.get("max_seq_length") or lengths.get("model_max_length"),
        "lowercase": bool(sentence.get("do_lower_case")),
    }
