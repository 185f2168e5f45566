"""Parameters of this project as the arrays of a transformers class, and back, by `keys.TABLES`."""

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from bert_jax.cli import UserError
from bert_jax.huggingface.keys import (
    PRETRAINING,
    SAME,
    TABLES,
    TRANSPOSE,
    UNPAD,
    HeadClass,
    KeyTable,
    Slice,
    Transform,
)
from bert_jax.models import architectures, heads

Tensors = dict[str, np.ndarray]


def table_of(model: Any) -> KeyTable:
    """The names that transformers has for the encoder of a model config.

    Raises:
      UserError: it has none.
    """
    name = architectures.of(model).name
    if name not in TABLES:
        raise UserError(f"transformers has no class for the architecture {name!r}")
    return TABLES[name]


def rows(
    model: Any, parts: Collection[str] | None = None
) -> Iterator[tuple[str, str, str, Transform]]:
    """(part, our path, Hugging Face's key, transform) of every parameter of `model`'s size.

    Args:
      parts: of these alone. No two parts of one class have a parameter in common.
    """
    for part, modules in table_of(model).parts.items():
        if parts is not None and part not in parts:
            continue
        for ours, theirs, kind in modules:
            for i in range(model.num_hidden_layers if "{i}" in ours else 1):
                for our_name, their_name, transform in kind:
                    yield (
                        part,
                        ours.format(i=i) + our_name,
                        theirs.format(i=i) + their_name,
                        transform,
                    )


def shapes(
    model: Any, num_labels: int, parts: Collection[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Hugging Face's key -> its shape there, over these parts, read off our own modules."""
    model = architectures.computed_as(model, scan_layers=False)
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    modules = (
        heads.PretrainingModel(model),
        heads.MultipleChoice(model),  # with the pooler, which not every pretraining has
        heads.SequenceClassifier(model, num_labels),
        heads.SpanClassifier(model),
    )
    ours: dict[str, tuple[int, ...]] = {}
    for module in modules:
        inputs = [ids] * 3
        if isinstance(module, heads.MultipleChoice):
            inputs = [jax.ShapeDtypeStruct((1, 1, 8), np.int32)] * 3
        tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        ours |= {path: x.shape for path, x in flat.items()}
    theirs = {}
    for _, path, key, transform in rows(model, parts):
        shape = ours.get(path)
        if shape is None:  # a first layer without the LayerNorm that the others have
            continue
        if transform == TRANSPOSE:
            shape = shape[::-1]
        elif isinstance(transform, Slice):
            shape = (transform.n * shape[1], shape[0])
        elif transform == UNPAD:
            shape = (model.vocab_size, *shape[1:])
        theirs[key] = shape
    return theirs


def to_tensors(params: Any, model: Any) -> Tensors:
    """Parameters of an unrolled encoder -> Hugging Face's tensors, in the table's order.

    Args:
      params: nested dict of host arrays.
      model: the model config of `params`.

    Raises:
      UserError: `params` are not those of a `model` of this project; lists every difference.
    """
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    parts = {"encoder", *parts_of(params, model)}
    tensors: Tensors = {}
    sliced: dict[str, list[np.ndarray]] = {}
    for _, path, key, transform in rows(model, parts):
        if path not in ours:
            continue
        x = np.asarray(ours.pop(path))
        if isinstance(transform, Slice):
            sliced.setdefault(key, []).append(x.T)
            if len(sliced[key]) == transform.n:
                tensors[key] = np.concatenate(sliced[key])
        else:
            tensors[key] = {SAME: x, TRANSPOSE: x.T, UNPAD: x[: model.vocab_size]}[transform]
    problems = [f"unknown parameter {path}" for path in ours]
    problems += _differences(tensors, model, parts, parts)
    _raise(problems, "the checkpoint does not fit its config.json")
    return tensors


def most_bytes(model: Any) -> int:
    """More bytes than the weights of a `model` can have, whatever their heads and their dtype."""
    one = dataclasses.replace(model, num_hidden_layers=1)
    layered = {
        f"{key.format(i=0)}{name}"
        for part in table_of(model).parts.values()
        for _, key, kind in part
        for _, name, _ in kind
        if "{i}" in key
    }
    total = sum(
        math.prod(shape) * (model.num_hidden_layers if key in layered else 1)
        for key, shape in shapes(one, 1).items()
    )
    return 3 * 8 * total + 2**30


def from_tensors(
    tensors: Tensors, model: Any, class_name: str, ignore_unexpected: bool = False
) -> Any:
    """Hugging Face's tensors -> our parameters. Parts that are not there are skipped.

    Args:
      ignore_unexpected: skip arrays of heads that are not known here, and say which.

    Raises:
      UserError: keys missing from a part that is there or that the class has, keys that are not in
        the table, shapes other than config.json's: all of them in one message.
    """
    table = table_of(model)
    theirs = _normalised(tensors, table)
    _check_layers(theirs, table, model.num_hidden_layers)
    problems = _fold_tied(theirs, table)
    head_class = table.head_class(class_name)
    # Of fine-tuned heads the class's alone: what an unknown class computes is not known.
    classes = [row for row in table.classes if PRETRAINING in row.tasks or row is head_class]
    parts = {part for row in classes for part in (*row.parts, *row.optional)} | {"encoder"}
    known = {key for _, _, key, _ in rows(model, parts)}
    unexpected = [f"{key} {list(theirs[key].shape)}" for key in sorted(theirs.keys() - known)]
    theirs = {key: x for key, x in theirs.items() if key in known}
    problems += _differences(theirs, model, parts, head_class.parts if head_class else ())
    if problems:
        problems = [f"unknown key {text}" for text in unexpected] + problems
        verdict = f"these are not the weights of a {class_name} with the sizes in config.json"
        _raise(problems, verdict)
    if unexpected:
        more = f" and {len(unexpected) - 10} more" if len(unexpected) > 10 else ""
        found = (
            f"{len(unexpected)} array(s) of a head that is not known here: "
            f"{', '.join(unexpected[:10])}{more}"
        )
        if not ignore_unexpected:
            raise UserError(
                f"{found}. To read the encoder and the heads that are known: python -m "
                "bert_jax.convert from-hf --ignore_unexpected --model=… --output=WORKDIR"
            )
        logging.warning(f"skipped {found}")
    flat = {}
    for _, path, key, transform in rows(model, parts):
        if key in theirs:
            x = theirs[key]
            if transform == TRANSPOSE:
                x = x.T
            elif isinstance(transform, Slice):
                x = np.split(x, transform.n)[transform.i].T
            elif transform == UNPAD:
                surplus = model.padded_vocab_size - model.vocab_size
                x = np.pad(x, [(0, surplus)] + [(0, 0)] * (x.ndim - 1))
            flat[path] = np.ascontiguousarray(x)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _normalised(tensors: Tensors, table: KeyTable) -> Tensors:
    """One spelling of keys: old LayerNorm names, a bare encoder's missing prefix, no buffers."""
    prefix = f"{table.prefix}."
    bare = not any(key.startswith(prefix) for key in tensors)
    modules = {
        theirs.removeprefix(prefix).split(".")[0]
        for part in table.parts.values()
        for _, theirs, _ in part
        if theirs.startswith(prefix)
    }
    theirs = {}
    for key, x in tensors.items():
        if key.endswith("embeddings.position_ids"):  # 0, 1, 2, …: a buffer, not a parameter
            continue
        key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
        key = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)
        if bare and key.split(".")[0] in modules:
            key = f"{prefix}{key}"
        theirs[key] = x
    return theirs


def _fold_tied(theirs: Tensors, table: KeyTable) -> list[str]:
    """Drops the second copy of tied arrays; what differs from its first, as problems."""
    problems = []
    for copy, original in table.tied:
        x = theirs.pop(copy, None)
        if x is None:
            continue
        if copy.endswith(".bias"):  # some directories hold the copy alone
            theirs.setdefault(original, x)
        if original in theirs and not np.array_equal(theirs[original], x):
            problems.append(f"{copy} differs from {original} (they are one array here)")
    return problems


def _check_layers(theirs: Tensors, table: KeyTable, expected: int) -> None:
    """Raises UserError if the weights have another number of layers than config.json says."""
    layered = next(key for part in table.parts.values() for _, key, _ in part if "{i}" in key)
    pattern = re.compile(re.escape(layered.split("{i}")[0]) + r"(\d{1,9})\.")
    found = {match[1] for key in theirs if (match := pattern.match(key))}
    if found and len(found) != expected:
        raise UserError(
            f"config.json has num_hidden_layers {expected:,}, the weights are of {len(found):,}"
        )


def _differences(
    tensors: Tensors, model: Any, parts: Collection[str], required: Collection[str]
) -> list[str]:
    """Incomplete ones of these parts, and wrong shapes."""
    kernels = (key for _, path, key, _ in rows(model, parts) if path == "classifier/kernel")
    kernel = next((tensors[key] for key in kernels if key in tensors), None)
    count = kernel.shape[0] if kernel is not None and kernel.ndim else 1
    part_of = {key: part for part, _, key, _ in rows(model, parts)}
    present = {"encoder", *required, *(part_of[key] for key in tensors)}
    problems = []
    for key, shape in shapes(model, count, parts).items():
        if key not in tensors and part_of[key] in present:
            problems.append(f"missing key {key} {list(shape)} ({part_of[key]})")
        elif key in tensors and tensors[key].shape != shape:
            problems.append(f"{key} is {list(tensors[key].shape)}, expected {list(shape)}")
    return problems


def _raise(problems: Sequence[str], verdict: str) -> None:
    """Raises one UserError if there are problems."""
    if problems:
        listed = "\n  ".join(problems[:40])
        more = f"\n  … and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise UserError(f"{verdict}; {len(problems)} difference(s):\n  {listed}{more}")


def parts_of(params: Any, model: Any) -> tuple[str, ...]:
    """The parts that `params` has, in the table's order.

    A module belongs to the first part that it is in, and that is there.
    """
    modules = {
        path.rpartition("/")[0] or path for path in flax.traverse_util.flatten_dict(params, sep="/")
    }
    present = []
    for part, rows_of_part in table_of(model).parts.items():
        if rows_of_part[0][0] in modules:
            present.append(part)
            modules -= {ours for ours, _, _ in rows_of_part}
    return tuple(present)


def class_of(params: Any, model: Any, task: str) -> HeadClass:
    """The transformers class that holds `params`: of a pretraining, the largest."""
    classes = [row for row in table_of(model).classes if task in row.tasks]
    if task == PRETRAINING:
        parts = set(parts_of(params, model))
        classes = [row for row in classes if parts >= set(row.parts)]
    return classes[0]
