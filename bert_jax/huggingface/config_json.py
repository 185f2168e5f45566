"""config.json of transformers: what it says of a model here, and the one of a model from here."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from bert_jax import __version__, files
from bert_jax.cli import UserError, brief
from bert_jax.huggingface.keys import PRETRAINING, TABLES, KeyTable
from bert_jax.models import architectures
from bert_jax.models.architectures import COMPUTE_FIELDS, EncoderConfig
from bert_jax.models.layers.activations import ACTIVATIONS
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import kinds

MARK = "exported_by"  # this directory may be replaced by the next export
# Tasks of one class -> the problem_type by which transformers tells them apart.
PROBLEM_TYPES = {
    "text_regression": "regression",
    "multi_label_classification": "multi_label_classification",
}
_ACTIVATION_ALIASES = {"gelu_new": "gelu_pytorch_tanh"}  # one formula, two names
_MAX_SIZE = 2**24  # of any one size: beyond all models there are, and within all arithmetic


class _ConfigJson(TypedDict, total=False):
    model_type: str | None
    architectures: list[str] | None
    id2label: dict[str, str] | None
    problem_type: str | None
    bert_jax: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Description:
    """What a config.json says: the encoder, the task of its head, and the head's label names.

    task is PRETRAINING for everything without a fine-tuned head; class_name is transformers';
    settings are those of the fine-tuning that an export of this project keeps.
    """

    class_name: str
    model: EncoderConfig
    task: str
    labels: tuple[str, ...]
    settings: dict[str, Any]


def make(
    class_name: str,
    model: EncoderConfig,
    dtype: str,
    pad_token_id: int,
    task: str,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """The config.json of `model` under a transformers class name."""
    fields = architectures.fields_of(model)
    table = TABLES[fields.pop("architecture")]
    config = {
        "architectures": [class_name],
        "model_type": table.model_type,
        "dtype": dtype,
        **table.settings,
        "pad_token_id": pad_token_id,
        **{
            table.renamed.get(name, name): value
            for name, value in fields.items()
            if name not in COMPUTE_FIELDS
        },
        **table.write_fields(fields),
        MARK: f"bert_jax {__version__}",
    }
    if task in PROBLEM_TYPES:
        config["problem_type"] = PROBLEM_TYPES[task]
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    return config


def read(path: epath.Path) -> Description:
    """Reads a config.json (or a bert_config.json of google-research/bert).

    Raises:
      UserError: not there, of another kind of model, or a variant that this project does not
        compute: all that is other in one message.
    """
    if not path.exists():
        raise UserError(
            f"{path.parent} is not a Hugging Face model directory: it has no config.json"
            f"{workdirs.hint(path.parent)}"
        )
    config = files.read_shaped(path, _ConfigJson)
    architecture, table = _row(path, config)
    values: dict[str, Any] = {**config}
    values |= {ours: values[name] for ours, name in table.renamed.items() if name in values}
    problems = [
        f"{field} is {values[field]!r}, only {expected!r} is known here"
        for field, expected in table.settings.items()
        if values.get(field, expected) != expected
    ]
    try:
        values |= table.read_fields(values)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(brief(error))
    config_class = architectures.named(architecture).config_class
    sizes, others = _fields(values, config_class, table.defaults)
    if problems := problems + others:
        raise UserError(
            f"{path}: this is not a {architecture} model that this project computes: "
            f"{'; '.join(problems)}"
        )
    if not sizes.keys() & values.keys():
        raise UserError(f"{path} says nothing of a model: it has no hidden_size, for one")
    bare = next(row.name for row in table.classes if not row.parts)
    class_name = (config.get("architectures") or [bare])[0]
    head_class = table.head_class(class_name)
    labels = _labels(path, config.get("id2label") or {})
    task = head_class.tasks[0] if head_class else PRETRAINING
    if task == "text_classification":
        # One output without a problem_type is a score, as in transformers.
        kind = config.get("problem_type") or ("regression" if len(labels) == 1 else None)
        task = {name: task for task, name in PROBLEM_TYPES.items()}.get(kind or "", task)
    fields = {"architecture": architecture, **sizes}
    settings = kinds.model_settings(config.get("bert_jax") or {})
    return Description(class_name, architectures.make_config(fields), task, labels, settings)


def _row(path: epath.Path, config: _ConfigJson) -> tuple[str, KeyTable]:
    """The architecture that a model_type names; BERT's files of 2019 name none."""
    found = config.get("model_type") or "bert"
    for architecture, table in TABLES.items():
        if found in (table.model_type, *table.aliases):
            return architecture, table
    types = (name for table in TABLES.values() for name in (table.model_type, *table.aliases))
    known = ", ".join(map(repr, types))
    raise UserError(f"{path}: model_type is {found!r}, expected one that is known here: {known}")


def _fields(
    config: Any, config_class: type, defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a config class that a config.json has, and what is wrong with them."""
    values: dict[str, Any] = {**defaults} | {
        field.name: config[field.name]
        for field in dataclasses.fields(config_class)
        if field.name in config and field.name not in COMPUTE_FIELDS
    }
    problems = []
    for name, value in values.items():
        default = getattr(config_class, name)
        if default is None and value is None:
            continue
        kinds = (float, int) if default is None or isinstance(default, float) else type(default)
        if isinstance(value, bool) or not isinstance(value, kinds):
            problems.append(f"{name} is {value!r}, expected one like {default!r}")
        elif name == "hidden_act":
            values[name] = _ACTIVATION_ALIASES.get(str(value), value)
            if values[name] not in ACTIVATIONS:
                problems.append(f"{name} is {value!r}, expected one of {[*ACTIVATIONS]}")
        elif isinstance(default, int):
            least = 0 if name.endswith("_id") else 1
            if not least <= value <= _MAX_SIZE:
                problems.append(f"{name} is {value!r}, expected {least} to {_MAX_SIZE:,}")
    return values, problems


def _labels(path: epath.Path, names: dict[str, str]) -> tuple[str, ...]:
    """{'0': 'no', '1': 'yes'} -> ('no', 'yes').

    Raises:
      UserError: numbers that are not 0, 1, 2, …, or two classes of one name, which would be one
        score.
    """
    if sorted(names) != sorted(map(str, range(len(names)))):
        raise UserError(f"{path}: id2label has the keys {[*names][:9]}, expected '0', '1', …")
    labels = tuple(names[str(i)] for i in range(len(names)))
    for label, count in collections.Counter(labels).items():
        if count > 1:
            which = ", ".join(str(i) for i, name in enumerate(labels) if name == label)
            raise UserError(
                f"{path}: id2label calls {count} classes {label!r} ({which}): give each a name of "
                "its own there"
            )
    return labels
