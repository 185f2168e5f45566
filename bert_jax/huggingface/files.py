"""The Hugging Face directory format: config.json, weight files, model card. No torch to write it.

A directory that transformers 4 and 5 load alike has safetensors with the metadata
`{"format": "pt"}`, and `architectures`, `dtype` and `tie_word_embeddings` in its config.json.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from bert_jax import __version__, files
from bert_jax.cli import UserError, brief
from bert_jax.huggingface.keys import PRETRAINING, TABLES
from bert_jax.models import architectures
from bert_jax.models.architectures import COMPUTE_FIELDS, EncoderConfig
from bert_jax.models.layers.activations import ACTIVATIONS
from bert_jax.runs import workdir as workdirs

# Tasks of one class -> the problem_type by which transformers tells them apart.
PROBLEM_TYPES = {
    "text_regression": "regression",
    "multi_label_classification": "multi_label_classification",
}

_ACTIVATION_ALIASES = {"gelu_new": "gelu_pytorch_tanh"}  # one formula, two names
_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}
_WRITTEN = re.compile(
    r"(config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|vocab\.txt|README\.md)"
)
_MARK = "exported_by"  # in config.json: this directory may be replaced by the next export


@dataclasses.dataclass(frozen=True)
class Description:
    """What a config.json says: the encoder, the task of its head, and the head's label names.

    task is PRETRAINING for everything without a fine-tuned head; class_name is transformers'.
    """

    class_name: str
    model: EncoderConfig
    task: str
    labels: tuple[str, ...]


def config_json(
    class_name: str,
    model: EncoderConfig,
    dtype: str,
    pad_token_id: int,
    task: str,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """The config.json of `model` under a transformers class name."""
    shared = set(dataclasses.asdict(model)) - set(COMPUTE_FIELDS)
    table = TABLES["bert"]
    config = {
        "architectures": [class_name],
        "model_type": table.model_type,
        "dtype": dtype,
        **table.settings,
        "classifier_dropout": None,
        "pad_token_id": pad_token_id,
        **{name: value for name, value in dataclasses.asdict(model).items() if name in shared},
        _MARK: f"bert_jax {__version__}",
    }
    if task in PROBLEM_TYPES:
        config["problem_type"] = PROBLEM_TYPES[task]
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    return config


def read_config(directory: epath.Path) -> Description:
    """Reads config.json.

    Raises:
      UserError: not there, not BERT, or a variant of BERT that this project does not compute.
    """
    path = directory / "config.json"
    if not path.exists():
        raise UserError(
            f"{directory} is not a Hugging Face model directory: it has no config.json"
            f"{workdirs.hint(directory)}"
        )
    config = files.read_json(path)
    problems = []
    table = TABLES["bert"]
    for field, expected in {"model_type": table.model_type, **table.settings}.items():
        if config.get(field, expected) != expected:
            problems.append(f"{field} is {config[field]!r}, only {expected!r} is known here")
    config_class = architectures.named("bert").config_class
    # Its own defaults are transformers' too, but for the GELU's form.
    sizes = {"hidden_act": "gelu"} | {
        field.name: config[field.name]
        for field in dataclasses.fields(config_class)
        if field.name in config and field.name not in COMPUTE_FIELDS
    }
    for name, value in sizes.items():
        default = getattr(config_class, name)
        kinds = (float, int) if isinstance(default, float) else type(default)
        if isinstance(value, bool) or not isinstance(value, kinds):
            problems.append(f"{name} is {value!r}, expected one like {default!r}")
        elif name == "hidden_act":
            sizes[name] = _ACTIVATION_ALIASES.get(value, value)
            if sizes[name] not in ACTIVATIONS:
                problems.append(f"{name} is {value!r}, expected one of {[*ACTIVATIONS]}")
    if problems:
        raise UserError(f"{path}: this is not a BERT this project computes: {'; '.join(problems)}")
    bare = next(row.name for row in table.classes if not row.parts)
    class_name = (config.get("architectures") or [bare])[0]
    head_class = table.head_class(class_name)
    names = config.get("id2label") or {}
    task = head_class.tasks[0] if head_class else PRETRAINING
    if task == "text_classification":
        # One output without a problem_type is a score, as in transformers.
        kind = config.get("problem_type") or ("regression" if len(names) == 1 else None)
        task = {name: task for task, name in PROBLEM_TYPES.items()}.get(kind, task)
    return Description(
        class_name=class_name,
        model=config_class(**sizes),
        task=task,
        labels=tuple(names[key] for key in sorted(names, key=int)),
    )


def locate(source: str | epath.PathLike) -> epath.Path:
    """The directory itself, or the local snapshot of a hub repository's BERT files."""
    path = epath.Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source} is a file; expected a Hugging Face model directory")
    if path.parent.is_dir() and path.parent != epath.Path("."):
        raise UserError(
            f"{source} does not exist, though {path.parent} does, so it is no name on the Hugging "
            "Face hub: expected a workdir or a Hugging Face model directory"
        )
    explanation = (
        f"{source}: no such directory here, and it could not be had from the Hugging Face hub"
    )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{explanation} (pip install 'bert_jax[hf]' for hub names)") from None
    small = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
    try:
        names = huggingface_hub.list_repo_files(str(source))
        safe = any(re.fullmatch(r"model.*\.safetensors", name) for name in names)
        weights = ["model*.safetensors*"] if safe else ["pytorch_model*.bin*"]
        return epath.Path(
            huggingface_hub.snapshot_download(str(source), allow_patterns=[*small, *weights])
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        # Offline (HF_HUB_OFFLINE=1 on a compute node), an earlier download does.
        if cached := _downloaded_before(str(source)):
            logging.warning(f"{source}: taken from the earlier download {cached} ({brief(error)})")
            return cached
        raise UserError(f"{explanation} ({brief(error)})") from None


def _downloaded_before(name: str) -> epath.Path | None:
    """The snapshot of a hub repository in the local cache, if it has weights."""
    import huggingface_hub

    try:
        snapshot = epath.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # as above
        return None
    names = [path.name for path in snapshot.iterdir()]
    weights = re.compile(r"model.*\.safetensors|pytorch_model.*\.bin")
    return snapshot if any(map(weights.fullmatch, names)) else None


def read_tensors(directory: epath.Path) -> dict[str, np.ndarray]:
    """All tensors of a model directory, floating ones as float32.

    Reads model.safetensors or pytorch_model.bin (through torch's weights-only loader), one file or
    the shards that an index lists.

    Raises:
      UserError: no weight file, or a damaged one; torch missing for a .bin file.
    """
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        index = directory / f"{name}.index.json"
        if index.exists():
            weight_map = files.read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index} has no weight_map: which file holds which weights")
            shards = sorted(set(map(str, weight_map.values())))
            lacking = [shard for shard in shards if not (directory / shard).exists()]
            if lacking:
                raise UserError(f"{index} lists files that are not there: {', '.join(lacking)}")
        elif (directory / name).exists():
            shards = [name]
        else:
            continue
        tensors = {}
        for shard in shards:
            tensors |= read(directory / shard)
        return tensors
    present = sorted(path.name for path in directory.iterdir())
    raise UserError(
        f"{directory} has no weights: expected model.safetensors or pytorch_model.bin, "
        f"found {', '.join(present) or 'nothing'}"
    )


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error})") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {name} is stored as {entry['dtype']}, which no BERT here is")
        stored = np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]])
        tensors[name] = _float32(stored.reshape(entry["shape"]))
    return tensors


def _read_bin(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} needs torch to be read: pip install 'bert_jax[hf]'") from None
    import io

    try:
        # weights_only: a pickle from elsewhere must not run code.
        state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch's own errors
        raise UserError(f"{path} cannot be read as torch weights ({brief(error)})") from None
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise UserError(
            f"{path} holds more than a model's weights (a training checkpoint?): save its "
            "state_dict alone"
        )
    return {
        name: _float32((x.float() if x.is_floating_point() else x).numpy())
        for name, x in state.items()
    }


def _float32(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.int64 else np.asarray(x, np.float32)


def write_tensors(
    directory: pathlib.Path, tensors: dict[str, np.ndarray], max_shard_size: int
) -> list[str]:
    """Writes model.safetensors, or shards of at most `max_shard_size` bytes and their index.

    Returns:
      the names of the files written.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, x in tensors.items():
        if shards[-1] and size + x.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = x
        size += x.nbytes
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        count = len(shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        # safetensors writes the memory behind an array, whatever its strides: a transposed kernel
        # would come out wrong, without an error.
        contiguous = {key: np.ascontiguousarray(x) for key, x in shard.items()}
        safetensors.numpy.save_file(contiguous, directory / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {key: name for name, x in zip(names, shards, strict=True) for key in x}
        total = sum(x.nbytes for x in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        names = [*names, "model.safetensors.index.json"]
    return names


def check_replaceable(output: epath.Path) -> None:
    """Raises UserError unless `output` is absent, empty, or an earlier export of this project."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} is a file; expected a directory to write, or none")
    names = sorted(path.name for path in output.iterdir())
    foreign = [name for name in names if not _WRITTEN.fullmatch(name)]
    ours = False
    if not foreign and "config.json" in names:
        with contextlib.suppress(UserError):
            ours = _MARK in files.read_json(output / "config.json")
    if names and not ours:
        raise UserError(
            f"{output} is not empty and not an earlier export (it holds "
            f"{', '.join((foreign or names)[:5])}): name another --output or remove it"
        )


def _upload_order(path: pathlib.Path) -> tuple[bool, bool, bool]:
    return (
        path.name != "config.json",
        "safetensors" in path.name,
        path.name.endswith(".index.json"),
    )


@contextlib.contextmanager
def replace_directory(output: epath.Path) -> Iterator[pathlib.Path]:
    """Yields a local scratch directory that becomes `output` when the block ends without error.

    On a local disk `output` appears by a rename, complete or not at all. Elsewhere config.json is
    written first, so that an export that was cut off may be replaced, and the weights and their
    index last: without them it does not look whole.
    """
    local = not files.is_remote(output)
    if local:
        parent = pathlib.Path(files.absolute(output)).parent
        parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=f".{output.name}."))
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the export from others
    else:
        scratch = pathlib.Path(tempfile.mkdtemp())
    try:
        yield scratch
        if output.exists():
            output.rmtree()
        if local:
            scratch.rename(output)
        else:
            output.mkdir(parents=True)
            for path in sorted(scratch.iterdir(), key=_upload_order):
                (output / path.name).write_bytes(path.read_bytes())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def model_card(
    description: str, facts: Sequence[tuple[str, str]], parity: str, pipeline_tag: str
) -> str:
    """README.md with the metadata the hub reads, a table of facts, and the parity report."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    return f"""---
library_name: transformers
pipeline_tag: {pipeline_tag}
tags:
- bert
- bert_jax
---

{description}

| | |
|---|---|
{rows}

{parity}
"""
