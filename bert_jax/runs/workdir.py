"""A WORKDIR: where its files lie, what config.json says, and whether it is the same run's."""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.config import leaves
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models import architectures
from bert_jax.models.architectures import COMPUTE_FIELDS
from bert_jax.parallel import distributed

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
BEST = "best"
RESULTS_FILE = "results.json"  # of a finished fine-tuning
SUMMARY_FILE = "summary.json"  # of several fine-tunings, each in a WORKDIR below
TOKENIZER = "tokenizer"
# Fields that the numbers of a run depend on and that must not change under it: model sizes, what
# a step draws from the data. Of pretraining, lengths, intervals, mesh and learning rate may change;
# of fine-tuning, `identity` has nearly all settings.
FIXED_FIELDS = ("model", "seed", "identity")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters on the host, and what is needed to use them.

    Attributes:
      params: numpy float32 arrays, layers unrolled, vocabulary padded as the model pads it.
      config: the run's config; `config.model` are the fields of the encoder's config.
    """

    params: Any
    config: ml_collections.ConfigDict
    step: int
    tokenizer: Tokenizer


def path_parts(path: epath.PathLike) -> tuple[epath.Path, epath.Path, int | None]:
    """(WORKDIR, directory of checkpoints, step) that `path` names; no step: one of that directory.

    Args:
      path: WORKDIR, WORKDIR/checkpoints/STEP, WORKDIR/best or WORKDIR/best/STEP.
    """
    path = epath.Path(path)
    if path.parent.name in (CHECKPOINTS, BEST) and re.fullmatch(r"\d+", path.name):
        return path.parent.parent, path.parent, int(path.name)
    if path.name == BEST and not (path / CHECKPOINTS).exists():  # a workdir may have that name
        return path.parent, path, None
    return path, path / CHECKPOINTS, None


def is_workdir(path: epath.PathLike) -> bool:
    """Whether `path` is a WORKDIR or a checkpoint in one (otherwise: a Hugging Face model)."""
    workdir, _, _ = path_parts(path)
    return (workdir / CHECKPOINTS).exists()


def steps_in(directory: epath.Path) -> list[int]:
    """The steps of the finished checkpoints in `directory`, ascending."""
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def is_finished(workdir: epath.Path) -> bool:
    """Whether a fine-tuning has come to its end, and its model and results are still there.

    Corrupted results are none: the fine-tuning evaluates and exports its checkpoint again.
    """
    try:
        return bool(read_results(workdir)) and (workdir / "hf").exists()
    except files.DamagedError as error:
        logging.warning(str(error))
        return False


def read_results(workdir: epath.Path) -> dict[str, Any]:
    """What WORKDIR/results.json holds; {} as long as a fine-tuning is not finished.

    Raises:
      files.DamagedError: it is corrupted.
    """
    path = workdir / RESULTS_FILE
    if not path.exists():
        return {}
    try:
        return files.read_json(path)
    except files.DamagedError:
        raise files.DamagedError(
            f"{path} is corrupted: run the same fine-tuning command again, which evaluates and "
            "exports the model again"
        ) from None


def best_run(path: epath.Path) -> epath.Path | None:
    """The best run's WORKDIR in a directory of several fine-tunings; None if it is none.

    Raises:
      files.DamagedError: summary.json is damaged.
    """
    summary = path / SUMMARY_FILE
    if not summary.exists():
        return None
    try:
        name = files.read_json(summary).get("best")
    except files.DamagedError:
        name = None
    if not isinstance(name, str):
        raise files.DamagedError(
            f"{summary} is corrupted: run the same fine-tuning command again, which rewrites it"
        )
    return path / name


def hint(path: epath.Path) -> str:
    """What to give instead of a directory of several runs, for a message; "" if it is none."""
    if not (best := best_run(path)):
        return ""
    return (
        f". It holds several fine-tunings: give one of them, such as the best, {best}, or "
        f"that one's model, {path / 'hf'}"
    )


def write_config(workdir: epath.PathLike, config: dict[str, Any]) -> None:
    """Writes WORKDIR/config.json durably (on the first host)."""
    if distributed.is_first():
        files.write_json(epath.Path(workdir) / CONFIG_FILE, config)


def read_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """Reads WORKDIR/config.json.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        found = "has no config.json" if path.parent.exists() else "does not exist"
        raise UserError(
            f"{workdir} {found}: expected the workdir of a pretraining or fine-tuning"
            f"{hint(path.parent)}"
        )
    return ml_collections.ConfigDict(_read_config(path))


def _read_config(path: epath.Path) -> dict[str, Any]:
    config = files.read_json(path)
    if not isinstance(config.get("model"), Mapping):
        raise files.DamagedError(f"{path} is corrupted (it has no model): restore a copy of it")
    return config


def model_at(config: ml_collections.ConfigDict, step: int) -> ml_collections.ConfigDict:
    """The fields of the encoder's config at a step: a phase may have some of its own."""
    start = 0
    for entry in config.get("phases", ()):
        length = entry.get("num_steps", 0)
        if not length or step <= start + length:
            return ml_collections.ConfigDict({**config.model, **entry.get("model", {})})
        start += length
    return config.model


def start_from(config: Mapping[str, Any]) -> str:
    """The flag that has a run begin with another one's parameters."""
    return "--init" if "init" in config else "--config.init_from"  # fine-tuning, pretraining


def describe(config: ml_collections.ConfigDict, identity: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds."""
    return json.loads(config.to_json()) | {"identity": identity}


def check_same_run(
    workdir: epath.PathLike, config: ml_collections.ConfigDict, identity: dict[str, Any]
) -> list[str]:
    """The settings that differ from those in WORKDIR/config.json, if there is one, and may.

    Where nothing was saved nothing could be mixed: all may differ there, as after running out of
    memory in the first step.

    Raises:
      UserError: settings differ that must not: it is another run's. Or config.json is damaged.
    """
    workdir = epath.Path(workdir)
    saved_steps = [*steps_in(workdir / CHECKPOINTS), *steps_in(workdir / BEST)]
    if not saved_steps or not (workdir / CONFIG_FILE).exists():
        return []
    description = describe(config, identity)
    saved = _read_config(workdir / CONFIG_FILE)
    if differences := _differences(saved, description, max(saved_steps)):
        further = f"; and {len(differences) - 9} more" if len(differences) > 9 else ""
        raise UserError(
            f"workdir {workdir} holds another run: {'; '.join(differences[:9])}{further}. Give a "
            "new --workdir, or the same settings to resume it; to start a new run from that one's "
            f"parameters use {start_from(config)}={workdir}"
        )
    return _changes(saved, description)


def _differences(saved: dict[str, Any], current: dict[str, Any], reached: int) -> list[str]:
    """['model.hidden_size is 128 there, 256 here', …] over the fields that must not change.

    A field of the model that a config does not have, since an older or newer version of this
    program wrote it, has its default. Phases that have not begun by step `reached`, the last
    checkpoint's, may still change.
    """

    def fixed(config: dict[str, Any]) -> dict[str, Any]:
        chosen = {field: config.get(field) for field in FIXED_FIELDS}
        # Runs that were begun before there were versions have the first.
        chosen["sampling"] = config.get("sampling", 1)
        chosen["model"] = architectures.fields_of(architectures.make_config(config["model"]))
        identity = dict(chosen["identity"] or {})
        if "phases" in identity:
            identity["phases"] = {
                start: phase
                for start, phase in identity["phases"].items()
                if int(start) < max(reached, 1)
            }
        return dict(leaves(chosen | {"identity": identity}))

    before, after = fixed(saved), fixed(current)
    free = {f"model.{field}" for field in COMPUTE_FIELDS}
    return [
        f"{_readable(name)} is {_short(before.get(name))} there, {_short(after.get(name))} here"
        for name in sorted((before.keys() | after.keys()) - free)
        if before.get(name) != after.get(name)
    ]


def _changes(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """['optimizer.name was 'lamb', is 'adamw'', …]: settings that may change, and did."""
    before, after = (
        {k: v for k, v in leaves(config) if not k.startswith("identity.")}
        for config in (saved, current)
    )
    return [
        f"{name} was {_short(before.get(name))}, is {_short(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _readable(name: str) -> str:
    """'identity.phases.40.batch_size' -> 'batch_size of the phase from step 40'."""
    if match := re.fullmatch(r"identity\.phases\.(\d+)\.(\w+)", name):
        return f"{match[2]} of the phase from step {match[1]}"
    return name.removeprefix("identity.")


def _short(value: Any) -> str:
    """A value for a message; of a fingerprint, the beginning."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"{value[:8]}…"
    return "missing" if value is None else repr(value)
