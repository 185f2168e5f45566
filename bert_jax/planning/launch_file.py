"""The file of a launch: TOML that says what runs where; command: the same for the shell scripts.

    python -m bert_jax.planning.launch_file launch/bert_base_v5e.toml

prints NAME=… lines that launch/*.sh evaluate, after checking the config and its overrides: a typo
should not cost a slice. The examples in launch/ explain every key.
"""

import dataclasses
import difflib
import pathlib
import re
import shlex
import sys
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bert_jax import config as config_lib
from bert_jax import files
from bert_jax.cli import UserError, run

# Chips of a slice -> the topology that Cloud TPU gives it.
# fmt: off
_FLAT = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}
_CUBIC = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
}
# fmt: on
# Prefix of the accelerator type -> (generation, what its number counts a chip, topologies, the
# software version of its VMs). v4 and v5p count TensorCores, two a chip.
_TPUS = {
    "v4": ("v4", 2, _CUBIC, "tpu-ubuntu2204-base"),
    "v5litepod": ("v5e", 1, _FLAT, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, _CUBIC, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, _FLAT, "v2-alpha-tpuv6e"),
}

_EVERY = {"target", "name", "data_dir"}
_TRAINED = {"config", "workdir"}
_TRAINING = {
    *("commit", "overrides", "env", "extras"),
    *("secrets_file", "max_restarts", "create_flags"),
}
_SLICE = {"project", "zone", "accelerator_type"}
_SLICES = {"num_slices", "spot"}
# Target -> extras of setup.py that its workers have, and those that `extras` may add.
_EXTRAS = {"tpu": ("tpu", "gcs"), "gke": ("tpu", "gcs"), "slurm": ("cuda12", "gcs")}
_MORE_EXTRAS = ("hf", "tensorboard", "wandb")
# Target -> (keys it must have, keys it may have).
_KEYS = {
    "tpu": (
        _EVERY | _TRAINED | _SLICE,
        _TRAINING | _SLICES | {"provisioning", "runtime_version", "service_account"},
    ),
    "gke": (_EVERY | _TRAINED | _SLICE | {"cluster", "image"}, _TRAINING | _SLICES),
    "slurm": (
        _EVERY | _TRAINED | {"nodes", "gpus_per_node", "cpus_per_node", "time", "install_dir"},
        _TRAINING,
    ),
    "dataflow": (
        _EVERY | {"project", "region", "input", "tokenizer"},
        {"build_flags", "max_workers", "service_account", "create_flags"},
    ),
}


@dataclasses.dataclass(frozen=True)
class LaunchFile:
    """What a launch file says, with defaults for what it leaves out.

    Attributes:
      target: what it runs on: "tpu", "gke", "slurm" or "dataflow".
      name: of the run's resources and jobs.
      data_dir: DATA_DIR of the run; of dataflow, where it is written.
      config: file of the config, relative to the project: configs/bert_base.py.
      workdir: WORKDIR of the run, seen by all hosts.
      overrides: fields of the config with dots, {"mesh.fsdp": 8}.
      commit: of this project, what git understands.
      env: variables of the workers' environment; not for secrets.
      extras: more extras of setup.py for the workers: ("wandb",).
      secrets_file: local file of NAME=value lines that are set on the workers.
      max_restarts: after preemptions and crashes, all together.
      create_flags: added to the command that creates the resource or submits the job.
      accelerator_type: as Cloud TPU names a slice: "v5litepod-16".
      provisioning: "queued" waits for capacity, "direct" fails when there is none.
      runtime_version: software of the VMs.
      install_dir: directory on the cluster's shared file system for the project and its packages.
      time: limit of a Slurm job, "24:00:00".
      input, tokenizer, build_flags: of data_prep.build.
    """

    target: str
    name: str
    data_dir: str
    config: str = ""
    workdir: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    commit: str = "HEAD"
    env: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extras: tuple[str, ...] = ()
    secrets_file: str = ""
    max_restarts: int = 10
    create_flags: tuple[str, ...] = ()
    project: str = ""
    zone: str = ""
    region: str = ""
    accelerator_type: str = ""
    num_slices: int = 1
    spot: bool = False
    provisioning: str = "queued"
    runtime_version: str = ""
    service_account: str = ""
    cluster: str = ""
    image: str = ""
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int = 0
    time: str = ""
    install_dir: str = ""
    input: str = ""
    tokenizer: str = ""
    build_flags: tuple[str, ...] = ()
    max_workers: int = 32

    @property
    def topology(self) -> str:
        """Of one slice, as `bert_jax.plan --topology` takes it: "v5e:4x4"; "" off TPUs."""
        return _slice(self.accelerator_type)[0] if self.accelerator_type else ""

    @property
    def config_flags(self) -> tuple[str, ...]:
        """("--config=…", "--config.data_dir=…", …) without the workdir."""
        overrides = {"data_dir": self.data_dir} | dict(self.overrides)
        fields = (f"--config.{name}={value}" for name, value in overrides.items())
        return (f"--config={self.config}", *fields)


def _slice(accelerator_type: str) -> tuple[str, str]:
    """'v5litepod-16' -> ('v5e:4x4', 'v2-alpha-tpuv5-lite')."""
    prefix, _, number = accelerator_type.rpartition("-")
    if prefix not in _TPUS:
        kinds = ", ".join(f"{kind}-N" for kind in _TPUS)
        raise UserError(f"accelerator_type {accelerator_type!r} is unknown: expected {kinds}")
    generation, per_chip, topologies, runtime_version = _TPUS[prefix]
    sizes = {str(chips * per_chip): shape for chips, shape in topologies.items()}
    if number not in sizes:
        raise UserError(
            f"there is no slice {accelerator_type!r}: expected {prefix}- and one of "
            f"{', '.join(sizes)}"
        )
    return f"{generation}:{sizes[number]}", runtime_version


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"mesh": {"fsdp": 8}} -> ("mesh.fsdp", 8)."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def read(path: str) -> LaunchFile:
    """Reads and checks a launch file.

    Raises:
      UserError: no such file, not TOML, a missing or unknown key, an impossible value.
    """
    try:
        table = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"launch file {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"launch file {path} is not TOML: {error}") from None
    try:
        return _checked(table)
    except UserError as error:
        raise UserError(f"launch file {path}: {error}") from None


def _checked(table: dict[str, Any]) -> LaunchFile:
    target = table.get("target")
    if target not in _KEYS:
        found = "has no target" if target is None else f"has target {target!r}"
        raise UserError(f"it {found}: expected one of {', '.join(_KEYS)}")
    required, optional = _KEYS[target]
    known = required | optional
    faults = []
    for key in sorted(table.keys() - known):
        near = difflib.get_close_matches(key, known, n=1)
        faults.append(f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    faults += [f"missing key {key!r}" for key in sorted(required - table.keys())]
    if faults:
        raise UserError(
            f"{', '.join(faults)}; a file with target {target!r} has the keys "
            f"{', '.join(sorted(known))}"
        )
    kinds = typing.get_type_hints(LaunchFile)
    launch = LaunchFile(**{key: _value(key, value, kinds[key]) for key, value in table.items()})
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", launch.name):
        raise UserError(
            f"name is {launch.name!r}: expected up to 40 of a-z, 0-9 and -, a letter first"
        )
    if launch.provisioning not in ("queued", "direct"):
        raise UserError(f'provisioning is {launch.provisioning!r}: expected "queued" or "direct"')
    if launch.provisioning == "direct" and launch.num_slices > 1:
        raise UserError(f'{launch.num_slices} slices need provisioning = "queued"')
    if unknown := sorted({*launch.extras} - {*_MORE_EXTRAS}):
        raise UserError(
            f"extras has {', '.join(unknown)}: expected one of {', '.join(_MORE_EXTRAS)}"
        )
    for name in launch.env:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"env: {name!r} is not the name of a variable")
    if launch.accelerator_type:
        default = _slice(launch.accelerator_type)[1]
        launch = dataclasses.replace(launch, runtime_version=launch.runtime_version or default)
    return launch


def _value(key: str, value: Any, kind: Any) -> Any:
    """A TOML value as the field's type; tables become flat, lists tuples."""
    kind = typing.get_origin(kind) or kind
    least = 0 if key == "max_restarts" else 1
    if kind is Mapping and isinstance(value, dict):
        return dict(_flat(value))
    if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    # Not isinstance: true is an int.
    if type(value) is kind and value != "" and not (kind is int and value < least):
        return value
    expected = {
        str: "text that is not empty",
        int: f"a whole number, at least {least}",
        bool: "true or false",
        tuple: "a list of texts",
        Mapping: "a table",
    }[kind]
    raise UserError(f"{key} is {value!r}: expected {expected}")


def shell_variables(launch: LaunchFile) -> str:
    """The fields in capitals as quoted shell assignments, and PRETRAIN, the flags of pretrain."""

    def words(values: Sequence[str]) -> str:
        return f"({shlex.join(values)})"

    lines = []
    for field in dataclasses.fields(launch):
        value = getattr(launch, field.name)
        if field.name == "extras":
            value = ",".join((*_EXTRAS.get(launch.target, ()), *value))
        elif field.name == "env":
            value = words([f"{name}={item}" for name, item in value.items()])
        elif isinstance(value, tuple):
            value = words(value)
        elif isinstance(value, bool):
            value = "1" if value else "''"
        elif field.name == "overrides":
            continue
        else:
            value = shlex.quote(str(value))
        lines.append(f"{field.name.upper()}={value}")
    lines.append(f"PRETRAIN={words([*launch.config_flags, f'--workdir={launch.workdir}'])}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("usage: python -m bert_jax.planning.launch_file FILE.toml")
    launch = read(argv[0])
    if launch.config:
        # A wrong field is found here, not on a slice.
        config, _ = config_lib.parse(launch.config_flags, "")
        if config.wandb_project and "wandb" not in launch.extras:
            raise UserError('wandb_project needs wandb on the workers: add extras = ["wandb"]')
    if launch.secrets_file:
        path = pathlib.Path(launch.secrets_file).expanduser()
        if not path.is_file():
            raise UserError(f"secrets_file {path} does not exist")
        if path.stat().st_mode & 0o077:
            raise UserError(
                f"others may read secrets_file {path}: chmod 600 {shlex.quote(str(path))}"
            )
        launch = dataclasses.replace(launch, secrets_file=str(files.absolute(path)))
    sys.stdout.write(shell_variables(launch) + "\n")


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
