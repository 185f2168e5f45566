"""What a fine-tuning starts from: the pretrained model and the task's data, read and checked."""

import dataclasses
import functools
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from flax import traverse_util

from bert_jax import loading
from bert_jax.cli import UserError
from bert_jax.data import batching
from bert_jax.finetuning import lengths
from bert_jax.finetuning.settings import check_config
from bert_jax.models import architectures
from bert_jax.models.architectures import EncoderConfig
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import classes, kinds
from bert_jax.tasks.answers import Question
from bert_jax.tasks.base import Feature, Task
from bert_jax.tasks.text import TextExample

# Settings that a run's metrics do not depend on, and those that fingerprints stand for.
FREE_FIELDS = (
    *("mesh", "log_every", "checkpoint_every", "train_file", "validation_file"),
    *("max_skipped", "word_index", "wandb_project"),
    *("seed", "seeds", "learning_rates"),  # `seed` is one of workdirs.FIXED_FIELDS
)
# Settings that came later, and what runs did before: they can be resumed. Of other tasks, "" was
# never a metric.
LATER_FIELDS = {"metric": "", "max_steps": 0, "validation_fraction": 0.0}


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a file, and the rows of batches that they become.

    Attributes:
      padded_lengths: that batches of these rows are padded to.
    """

    examples: list[Any]
    features: list[Feature]
    padded_lengths: tuple[int, ...]

    @functools.cached_property
    def arrays(self) -> list[dict[str, Any]]:
        return [feature.arrays for feature in self.features]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [np.shape(arrays["input_ids"])[-1] for arrays in self.arrays]

    def collated(
        self, batches: Sequence[np.ndarray], batch_size: int
    ) -> Iterator[tuple[np.ndarray, batching.Batch]]:
        """(indices, batch) over the batches that list them."""
        return batching.iterate(self.arrays, batches, self.padded_lengths, batch_size)

    def one_of_each(
        self, batches: Sequence[np.ndarray], batch_size: int
    ) -> Iterator[batching.Batch]:
        """A batch of every padded length that `batches` come to."""
        shortest = self.arrays[int(np.argmin(self.lengths))]
        for length in batching.used_buckets(self.lengths, batches, self.padded_lengths):
            yield batching.collate([shortest], (length,), batch_size)


def make_split(
    task: Task, examples: list[Any], config: ml_collections.ConfigDict, model: EncoderConfig
) -> Split:
    """The rows of `examples`, and the lengths that suit them."""
    split = Split(examples, task.features(examples), ())
    chosen = lengths.padded_lengths(split.lengths, config, model)
    return dataclasses.replace(split, padded_lengths=chosen)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the runs of a sweep share.

    Attributes:
      loaded: the model to start from.
      model: its sizes, as it is fine-tuned.
    """

    loaded: workdirs.Loaded
    model: EncoderConfig
    task: Task
    train: Split
    validation: Split

    def identity(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """What must not change when a run is resumed: with other data it would be another run.

        And with other settings, but for those of FREE_FIELDS: its metrics would be of neither.
        """
        settings = json.loads(config.to_json())
        return {
            "tokenizer": self.loaded.tokenizer.fingerprint,
            "model to start from": self._initial_params,
            "data": self._fingerprints[0],
            "validation data": self._fingerprints[1],
            **{
                name: value
                for name, value in settings.items()
                if name not in FREE_FIELDS and LATER_FIELDS.get(name) != value
            },
        }

    @functools.cached_property
    def _initial_params(self) -> str:
        """SHA-256 of the parameters to start from."""
        digest = hashlib.sha256()
        for path, x in sorted(traverse_util.flatten_dict(self.loaded.params, sep="/").items()):
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(x).data)
        return digest.hexdigest()

    @functools.cached_property
    def _fingerprints(self) -> list[str]:
        """SHA-256 of rows and labels, of training and of validation."""
        labels = list(self.task.labels)
        splits = (
            [labels, [sorted(arrays.items()) for arrays in split.arrays]]
            for split in (self.train, self.validation)
        )
        return [hashlib.sha256(json.dumps(x, default=str).encode()).hexdigest() for x in splits]

    def resolved(
        self, config: ml_collections.ConfigDict, init: str | epath.PathLike
    ) -> ml_collections.ConfigDict:
        """`config` with what follows from model and data: WORKDIR/config.json."""
        return ml_collections.ConfigDict(
            config.to_dict()
            | {
                "init": str(init),
                "model": architectures.fields_of(self.model),
                "labels": list(self.task.labels),
                # What `labels` was: what the data calls them.
                "label_names": config.get("labels", ""),
                # Of question answering: whether the answer may be "".
                "may_have_none": getattr(self.task, "may_have_none", False),
                "keep_checkpoints": config.num_epochs if config.select == "best" else 1,
            }
        )


def read_inputs(config: ml_collections.ConfigDict, init: str | epath.PathLike) -> Inputs:
    """Reads the model at `init` and the data of `config`; writes nothing.

    Raises:
      UserError: settings, model and data do not fit each other.
    """
    loaded = loading.load_parts(init)
    model = architectures.make_config(loaded.config.model, config.dtype)
    check_config(config, model)
    task = kinds.make_task(config, loaded.tokenizer)
    train_examples = task.read(config.train_file, training=True)
    if config.validation_file:
        validation_examples = task.read(config.validation_file)
    else:
        train_examples, validation_examples = hold_out(train_examples, config.validation_fraction)
    train, validation = (
        make_split(task, examples, config, model)
        for examples in (train_examples, validation_examples)
    )
    for split in (train, validation):
        batching.check_segments(split.arrays, model.type_vocab_size)
    return Inputs(loaded=loaded, model=model, task=task, train=train, validation=validation)


def hold_out(examples: Sequence[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """Parts examples in two, the second having a share of them: of each class, in their order.

    Questions about one context stay together. The parts depend on the examples' number and classes
    alone: runs of several seeds are compared on the same rows.

    Raises:
      UserError: there is too little to part.
    """
    groups: dict[Any, list[int]] = {}  # what stays together
    for i, example in enumerate(examples):
        groups.setdefault(example.context if isinstance(example, Question) else i, []).append(i)
    strata: dict[Any, list[list[int]]] = {}
    for group in groups.values():
        example = examples[group[0]]
        is_class = isinstance(example, TextExample) and example.is_class
        strata.setdefault(example.label if is_class else "", []).append(group)
    rng = np.random.default_rng(0)
    held_out: set[int] = set()
    for stratum in strata.values():
        chosen = rng.permutation(len(stratum))[: round(len(stratum) * fraction)]
        held_out.update(i for place in chosen for i in stratum[place])
    if not 0 < len(held_out) < len(examples):
        raise UserError(
            f"config.validation_fraction={fraction} of {len(examples)} examples leaves none for "
            "training or none for validation: give more of them, or another share"
        )
    parts: tuple[list[Any], list[Any]] = [], []
    for i, example in enumerate(examples):
        parts[i in held_out].append(example)
    return parts


def start_params(
    shapes: Any,
    loaded: workdirs.Loaded,
    task: str,
    labels: Sequence[str],
    new_head: bool,
    label_names: Mapping[str, str],
    prefix: str,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parameters to start from: the checkpoint's encoder, its head if it is the same task's.

    Args:
      shapes: the model's parameters, abstract.
      label_names: config.labels as a dictionary, for the message.
      prefix: the encoder's key in the parameters.

    Returns:
      "path/of/a/parameter" -> loaded array, and the paths of those that are randomly initialised.

    Raises:
      UserError: the checkpoint has a fine-tuned head that does not fit, and `new_head` is not set.
    """
    their_task = loaded.config.get("task", "pretraining")  # pretraining configs have no such field
    their_labels = list(loaded.config.get("labels", []))
    theirs = loaded.params
    if their_task != "pretraining" and not new_head:
        mismatch = keep = ""
        if their_task != task:
            mismatch = f"a {their_task} head, this is {task}"
        elif task != "text_regression" and their_labels != list(labels):  # that has one output
            mismatch = f"a head for the labels {their_labels}, the data has {list(labels)}"
            keep = how_to_keep_head(their_labels, labels, label_names)
        if mismatch:
            raise UserError(
                f"the checkpoint to start from has {mismatch}: {keep}set --config.new_head=True to "
                "keep its encoder and randomly initialise the head"
            )
    else:
        theirs = {prefix: theirs[prefix]}
    found = traverse_util.flatten_dict(theirs, sep="/")
    needed = traverse_util.flatten_dict(shapes, sep="/").keys()
    return {path: found[path] for path in needed & found.keys()}, sorted(needed - found.keys())


def how_to_keep_head(
    theirs: Sequence[str], labels: Sequence[str], label_names: Mapping[str, str]
) -> str:
    """Which --config.labels gives the data's labels the names and the order of a head, if any does.

    Args:
      theirs: the labels of the head.
      labels: those of the data, of which `label_names` are the config's names.
    """
    if len(theirs) != len(labels):
        return ""
    values: dict[str, list[str]] = {}  # class -> what the data calls it
    for value, name in (label_names or dict(zip(labels, labels, strict=True))).items():
        values.setdefault(name, []).append(value)
    same = {label.casefold(): label for label in labels}
    by_name = same.keys() == {label.casefold() for label in theirs}
    ours = [same[label.casefold()] for label in theirs] if by_name else labels
    line = classes.format_labels(
        {value: name for own, name in zip(ours, theirs, strict=True) for value in values[own]}
    )
    flag = shlex.quote(f"--config.labels={line}")
    if by_name:
        return f"the names differ in case or order alone: {flag} keeps the head; or "
    return f"if they mean the same, in this order, {flag} keeps the head; or "
