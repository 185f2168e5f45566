"""Files of weights: safetensors written and read, torch's read. No torch for the former."""

import io
import json
import pathlib
import re
from collections.abc import Callable
from typing import TypedDict

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief

Tensors = dict[str, np.ndarray]
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}
# Found in place of weights -> how to come by some.
_OTHER_FORMATS = {
    "tf_model.h5": "transformers 4.57 with TensorFlow reads it: AutoModelForPreTraining."
    "from_pretrained(DIR, from_tf=True).save_pretrained(NEW)",
}
_SMALL = 2**30  # bytes that any weight file may have, whatever its config.json says
_LARGEST = 2**50


class _Index(TypedDict, total=False):
    weight_map: dict[str, str]


def read(directory: epath.Path, most_bytes: Callable[[], int]) -> Tensors:
    """All tensors of a model directory, floating ones as float32.

    Reads model.safetensors, pytorch_model.bin (through torch's weights-only loader) or
    flax_model.msgpack, one file or the shards that an index lists.

    Args:
      most_bytes: what the weights can need by config.json: a larger file is not read. Called for
        files of more than a GiB, since it traces the model.

    Raises:
      UserError: no weight file, a damaged one, or several that contradict each other; torch missing
        for a .bin file.
    """
    for name, read_file in READERS.items():
        if shards := _shards(directory, name):
            tensors: Tensors = {}
            for shard in shards:
                path = directory / shard
                files.check_regular(path, _LARGEST)
                if files.size_and_time(path)[0] > _SMALL:
                    files.check_regular(path, most_bytes())
                tensors |= read_file(path)
            return tensors
    present = sorted(path.name for path in directory.iterdir())
    advice = "; ".join(f"{x}: {how}" for x, how in _OTHER_FORMATS.items() if x in present)
    raise UserError(
        f"{directory} has no weights: expected {', '.join(READERS)}, "
        f"found {', '.join(present) or 'nothing'}{f' ({advice})' if advice else ''}"
    )


def _shards(directory: epath.Path, name: str) -> list[str]:
    """The files that hold the weights of a format; [] if there are none of it.

    Raises:
      UserError: an index beside a single file, or one that leads out of the directory.
    """
    index = directory / f"{name}.index.json"
    is_single = (directory / name).exists()
    if not index.exists():
        return [name] if is_single else []
    weight_map = files.read_shaped(index, _Index).get("weight_map")
    if weight_map is None:
        raise UserError(f"{index} has no weight_map: which file holds which weights")
    shards = sorted(set(weight_map.values()))
    # Another file of this machine must not be read, whoever made the index.
    if outside := [shard for shard in shards if not re.fullmatch(r"\w[\w.-]*", shard)]:
        raise UserError(f"{index} lists {outside[0]!r}, expected names of files in its directory")
    if is_single and shards != [name]:
        raise UserError(
            f"{directory} has {name}, which transformers reads, and {index.name} of other files: "
            "remove the one that is out of date"
        )
    if lacking := [shard for shard in shards if not (directory / shard).exists()]:
        raise UserError(f"{index} lists files that are not there: {', '.join(lacking)}")
    return shards


def _read_safetensors(path: epath.Path) -> Tensors:
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error})") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name} is stored as {entry['dtype']}, which no model here is")
        stored = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
        tensors[name] = _float32(stored.reshape(entry["shape"]))
    return tensors


def _read_bin(path: epath.Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} needs torch to be read: pip install 'bert_jax[hf]'") from None

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


def _read_msgpack(path: epath.Path) -> Tensors:
    """The parameters of transformers 4's Flax classes, under the names of its torch classes."""
    import flax.serialization
    import flax.traverse_util

    try:
        state = flax.serialization.msgpack_restore(path.read_bytes())
        flat = flax.traverse_util.flatten_dict(state, sep=".")
    except Exception as error:  # msgpack's own errors, and what a crafted tree leads to
        raise UserError(f"{path} cannot be read as Flax weights ({brief(error)})") from None
    tensors = {}
    for key, x in flat.items():
        if not isinstance(x, np.ndarray):
            raise UserError(f"{path}: {key} is a {type(x).__name__}, expected an array")
        name, _, kind = key.removeprefix("params.").rpartition(".")
        if kind == "kernel":
            x = x.T
        kind = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(kind, kind)
        tensors[f"{name}.{kind}" if name else kind] = _float32(np.ascontiguousarray(x))
    return tensors


READERS: dict[str, Callable[[epath.Path], Tensors]] = {
    "model.safetensors": _read_safetensors,
    "pytorch_model.bin": _read_bin,
    "flax_model.msgpack": _read_msgpack,
}


def _float32(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.int64 else np.asarray(x, np.float32)


def write(directory: pathlib.Path, tensors: Tensors, max_shard_size: int) -> list[str]:
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
