"""Command line of the config-driven commands: --config=FILE[:arg] --workdir=DIR --config.field=…"""

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from bert_jax.cli import UserError

# An override's name without its dashes: config.mesh.data -> mesh.data
_FIELD = re.compile(r"config\.([\w.\[\]]+)")


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a config by the names that their flags have: ('optimizer.b1', 0.9), …

    Lists of configs are walked too: ('phases[0].num_steps', 900000).
    """
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(
            isinstance(item, Mapping | ml_collections.ConfigDict) for item in value
        ):
            for i, item in enumerate(value):
                yield from leaves(item, f"{prefix}{name}[{i}].")
        else:
            yield prefix + name, value


def parse(
    argv: Sequence[str],
    usage: str,
    *,
    optional: Mapping[str, str] = types.MappingProxyType({}),
    **required: str,
) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """Parses the flags of a config-driven command.

    Args:
      argv: the arguments, without the program's name.
      usage: printed on --help.
      optional: further string flags: name -> help text; "" where one is not given.
      **required: string flags that must be given, besides --config: name -> help text.

    Returns:
      The config with its overrides applied, and the values of the other flags.

    Raises:
      UserError: a missing or unknown flag, config file, config field, or a value of another type.
    """
    if not argv or "--help" in argv or "-h" in argv:
        print(usage)
        for name, text in {**required, **optional}.items():
            print(f"  --{name}: {text}")
        print("  --config.FIELD=VALUE: overrides a field of the config, e.g. --config.seed=1")
        config_path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), "")
        if config_path:
            config = _parse([f"--config={config_path}"], {})[0]
            print(f"\nFields of {config_path} and their values:")
            for name, value in leaves(config):
                print(f"  --config.{name}={value}")
        raise SystemExit(0)
    config, values = _parse(argv, {**required, **optional})
    missing = [f"--{name} ({text})" for name, text in required.items() if not values[name]]
    if missing:
        raise UserError(f"missing {', '.join(missing)}; see --help")
    return config, values


def _parse(
    argv: Sequence[str], flag_texts: Mapping[str, str]
) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    argv = ["", *argv]  # absl takes the first for the program's name
    # Flags live in an object of this call: nothing global, nothing at import.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    for name, text in flag_texts.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    config_file = next((a for a in argv if a.startswith("--config=")), "").partition("=")[2]
    if not config_file:
        raise UserError("missing --config=FILE[:argument], e.g. --config=configs/bert_base.py")
    if not epath.Path(config_file.partition(":")[0]).exists():
        raise UserError(f"config file {config_file.partition(':')[0]} does not exist")
    try:
        unparsed = values(argv)[1:]
    except (flags.Error, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(_explain(error, config_file, argv)) from None
    if unparsed:
        raise UserError(f"unexpected argument {unparsed[0]!r}: flags are written --name=value")
    return values["config"].value, {name: values[name].value for name in flag_texts}


def _explain(error: Exception, config_file: str, argv: Sequence[str]) -> str:
    """Says which field or value of the command line is wrong, with the nearest known field."""
    text = " ".join(str(error).split()) or type(error).__name__
    defaults = flags.FlagValues()
    alone = ["", f"--config={config_file}"]
    config_flags.DEFINE_config_file("config", flag_values=defaults, sys_argv=alone)
    try:
        defaults(alone)
    except Exception:  # the config file itself is at fault: its own message says how
        cause = str(error).strip().splitlines()[-1]
        return f"config {config_file} could not be read: {cause}"
    known = [name for name, _ in leaves(defaults["config"].value)]
    for argument in argv:
        field = argument.lstrip("-").partition("=")[0]
        if (match := _FIELD.fullmatch(field)) and match[1] not in known:
            inner = [name for name in known if name.endswith(f".{match[1]}")]
            near = inner or difflib.get_close_matches(match[1], known, n=1, cutoff=0.5)
            hint = f"; did you mean --config.{near[0]}?" if near else ""
            if match[1].startswith("phases[") and "phases" in known:
                hint = ": its run is one phase"
            return (
                f"config {config_file} has no field {match[1]!r}{hint} "
                f"(--help --config={config_file} lists them)"
            )
    return f"{text} (see --help)"
