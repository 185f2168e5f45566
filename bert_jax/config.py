"""Recipes and the command line of the commands that take one: --config=NAME_OR_FILE[:arg] …

A recipe is a Python file with `get_config()` or `get_config(arg)` that returns a ConfigDict. Those
of this project are known by name: bert_base, bert_tiny:laptop, finetune/sst2.
"""

import contextlib
import difflib
import inspect
import math
import pathlib
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from bert_jax.cli import UserError, brief

# The recipes of a clone lie beside the package, those of an installed wheel in it.
_PACKAGE = pathlib.Path(__file__).parent
_INSTALLED = _PACKAGE / "recipes"
RECIPES = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
_INDENT: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}
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


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for numbers that no run can use, whatever their field is for."""
    for name, value in leaves(config):
        # Of a seed JAX uses 32 bits: 0 and 2^32 would be one.
        for seed in value if name == "seeds" else [value] if name == "seed" else []:
            if not 0 <= seed < 2**32:
                raise UserError(f"config.{name}={value}: expected 0 to {2**32 - 1}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{name}={value}: expected a finite number")
        if name.endswith("dropout_prob") and not 0 <= value <= 0.999:
            raise UserError(f"config.{name}={value}: expected 0 to 0.999")
        if name in ("batch_size", "num_steps", "model.vocab_size") and value >= 2**31:
            raise UserError(f"config.{name}={value}: expected less than {2**31}")


# What the fields mean that phases alone have; the others are the run's of that name.
_PHASE_FIELDS = {
    "max_seq_length": "given, data of another length is refused",
    "reset_moments": "start with an empty optimizer; the parameters stay",
}


def phase(**fields: Any) -> ml_collections.ConfigDict:
    """An entry of `config.phases`; fields that are left empty are the run's (training/phases.py).

    `optimizer={…}` gives the phase a schedule of its own, from its start over its steps.
    """
    return ml_collections.ConfigDict(
        {
            "num_steps": 0,  # 0, for the last phase: up to the run's num_steps
            "data_dir": "",
            "eval_data_dir": "",
            "extra_eval_data_dirs": "",
            "max_seq_length": 0,  # given, data of another length is refused
            "batch_size": 0,
            "packing": 0,
            "accumulate_steps": 0,
            "masked_lm_prob": 0.0,
            "reset_moments": False,  # start with an empty optimizer; the parameters stay
            **fields,
        }
    )


def recipe(name: str, /, **overrides: Any) -> ml_collections.ConfigDict:
    """A recipe's config, with some fields changed.

        recipe("bert_base:laptop", batch_size=64, **{"mesh.fsdp": 8})

    Args:
      name: of a recipe of this project, or the path of a file; `:arg` selects a preset.
      **overrides: field -> value; the names are those of the flags without "config.".

    Raises:
      UserError: no such recipe or field, or a value of another type.
    """
    config = load(name)
    for field, value in overrides.items():
        try:
            config_path.get_type(field, config)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            known = [known for known, _ in leaves(config)]
            raise UserError(_no_field(name, field, known)) from None
        try:
            config_path.set_value(field, config, value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {field}={value!r} ({brief(error)})") from None
    check_ranges(config)
    return config


def names() -> list[str]:
    """The names of this project's recipes, sorted."""
    paths = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if path.name not in ("__init__", "base"))


def explanations(source: str) -> dict[str, str]:
    """What the fields of a recipe mean, by name: the comments above and beside them in its file.

    Of a recipe that begins with another one, `config = recipe(…)`, that one's too.

        explanations("bert_tiny")["batch_size"] -> "sequences per optimizer step, over all devices"
    """
    found: dict[str, str] = {}
    above: list[str] = []
    for line in map(str.strip, _locate(_split(source)[0]).read_text().splitlines()):
        if base := re.search(r"= recipe\(f?\"([\w/]+)", line):
            found |= explanations(base[1])
        if line.startswith("# "):
            above.append(line.removeprefix("# "))
            continue
        if field := re.match(r"config\.([\w.]+) = ", line):
            beside = line.partition("  # ")[2]
            if meaning := " ".join([*above, *filter(None, [beside])]):
                found.setdefault(field[1], meaning)
        above = []
    return found


def load(source: str) -> ml_collections.ConfigDict:
    """The config that NAME[:arg] or FILE[:arg] describes.

    Raises:
      UserError: there is none of that name, or its file does not give a config.
    """
    named, colon, arg = _split(source)
    path = _locate(named)
    try:
        text = path.read_text()
        code = compile(text, str(path), "exec")
    except (OSError, ValueError) as error:  # no UTF-8, or a NUL in it
        raise UserError(f"config {named} cannot be read as Python ({brief(error)})") from None
    except SyntaxError as error:
        raise UserError(f"config {named}, line {error.lineno}: not Python ({error.msg})") from None
    module = types.ModuleType(f"config_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look themselves up
    with _mistakes_of(named, path):
        exec(code, module.__dict__)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config {named} has no function get_config() that returns a ConfigDict")
    arguments = [arg] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        raise UserError(
            f"config {named} has no presets: expected --config={named} without ':{arg}'"
            if arguments
            else f"config {named} needs an argument: --config={named}:ARG"
        ) from None
    with _mistakes_of(named, path):
        config = get_config(*arguments)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"config {named}: get_config() returns a {type(config).__name__}, expected an "
            "ml_collections.ConfigDict"
        )
    return config


@contextlib.contextmanager
def _mistakes_of(named: str, path: epath.Path) -> Iterator[None]:
    """Turns whatever a config file raises into one line that says where."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except UserError as error:
        raise UserError(f"config {named}: {error}") from None
    except BaseException as error:  # sys.exit() too: a config has nothing to end
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"config {named}{line}: {brief(error)}") from None


def _split(source: str) -> tuple[str, str, str]:
    """'gs://b/x.py:laptop' -> ('gs://b/x.py', ':', 'laptop'); not at a scheme's colon."""
    scheme, slashes, rest = source.rpartition("://")
    name, colon, arg = rest.partition(":")
    return f"{scheme}{slashes}{name}", colon, arg


def _locate(named: str) -> epath.Path:
    """The file of a recipe: a path as it is given, else this project's recipe of that name."""
    path = epath.Path(named)
    if not named.endswith(".py"):
        of_project = RECIPES / f"{named}.py"
        if ".." not in path.parts and of_project.is_file():
            return epath.Path(of_project)
    if path.is_dir():
        raise UserError(f"config {named} is a directory, expected a Python file or a recipe's name")
    if path.exists():
        return path
    near = difflib.get_close_matches(re.sub(r"^configs/|\.py$", "", named), names(), n=1)
    hint = f": did you mean --config={near[0]}?" if near else ""
    raise UserError(
        f"config {named} does not exist{hint or '; the recipes are ' + ', '.join(names())}"
    )


def parse(
    argv: Sequence[str],
    usage: str,
    *,
    like: str = "bert_base",
    optional: Mapping[str, str] = types.MappingProxyType({}),
    **required: str,
) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """Parses the flags of a config-driven command.

    Args:
      argv: the arguments, without the program's name.
      usage: printed on --help.
      like: the recipe whose fields a config must have.
      optional: further string flags: name -> help text; "" where one is not given.
      **required: string flags that must be given, besides --config: name -> help text.

    Returns:
      The config with its overrides applied, and the values of the other flags.

    Raises:
      UserError: a missing or unknown flag, config file, config field, or a value of another type.
    """
    source = next((value for flag, value in _pairs(argv) if flag in ("--config", "-config")), "")
    if not argv or "--help" in argv or "-h" in argv:
        print(usage)
        for name, text in {**required, **optional}.items():
            print(f"  --{name}: {text}")
        print("  --config.FIELD=VALUE: overrides a field of the config, e.g. --config.seed=1")
        if source:
            print(f"\nFields of {source} and their values:")
            meanings = explanations(source)
            for name, value in leaves(load(source)):
                print(f"  --config.{name}={value}")
                field, in_phase = re.subn(r"^phases\[\d+\]\.", "", name)
                meaning = _PHASE_FIELDS.get(field) if in_phase else None
                meaning = meaning or meanings.get(field)
                if meaning:
                    own = "; of this phase, if given" if in_phase else ""
                    print(textwrap.fill(meaning.rstrip(".") + own, 80, **_INDENT))
        else:
            print(f"\nRecipes, by name: {', '.join(names())}")
        raise SystemExit(0)
    if not source:
        raise UserError(
            "missing --config=NAME_OR_FILE[:argument], e.g. --config=bert_base or "
            "--config=configs/bert_base.py"
        )
    config = load(source)
    if lacking := sorted(_lacking(config, load(like))):
        raise UserError(
            f"config {source} has no field {', '.join(lacking[:5])}"
            f"{f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''}, which "
            f"{like} has: is it a config for another command? (a config of your own begins with "
            f"bert_jax.recipe({like!r}))"
        )
    values = _parse(argv, source, config, {**required, **optional})
    missing = [f"--{name} ({text})" for name, text in required.items() if not values[name]]
    if missing:
        raise UserError(f"missing {', '.join(missing)}; see --help")
    check_ranges(config)
    return config, values


def _lacking(
    config: ml_collections.ConfigDict, expected: ml_collections.ConfigDict
) -> Iterator[str]:
    """Fields, nested ones as 'optimizer.b1', that `expected` has and `config` has not.

    Those of the model are skipped: every architecture has its own, with defaults.
    """
    for name, value in expected.items():
        if name not in config:
            yield name
        elif isinstance(value, ml_collections.ConfigDict) and name != "model":
            own = config[name]
            if not isinstance(own, ml_collections.ConfigDict):
                yield f"{name}.{next(iter(value))}"
            else:
                yield from (f"{name}.{field}" for field in _lacking(own, value))


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of --flag=value and of --flag value."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        yield flag, value if equals else (argv[i + 1] if i + 1 < len(argv) else "")


def _without_config(argv: Sequence[str]) -> Iterator[str]:
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--config", "-config"):
            next(arguments, None)
        elif not argument.startswith(("--config=", "-config=")):
            yield argument


def _joined(argv: Iterable[str]) -> Iterator[str]:
    """--flag value as --flag=value, of truth values too, which absl itself reads alone.

    list(_joined(["--a", "1", "--b=2"])) -> ["--a=1", "--b=2"]
    """
    waiting = ""
    for argument in argv:
        is_flag = argument.startswith("-") and not re.match(r"-[\d.]", argument)
        if waiting:
            yield waiting if is_flag else f"{waiting}={argument}"
            waiting = ""
            if not is_flag:
                continue
        if is_flag and "=" not in argument:
            waiting = argument
        else:
            yield argument
    if waiting:
        yield waiting


def _parse(
    argv: Sequence[str], source: str, config: ml_collections.ConfigDict, texts: Mapping[str, str]
) -> dict[str, str]:
    """Applies the overrides of `argv` to `config`; the values of the other flags."""
    # absl takes the first for the program's name. The file is loaded: its flag goes no further.
    argv = ["", *_joined(_without_config(argv))]
    # Flags live in an object of this call: nothing global, nothing at import.
    values = flags.FlagValues()
    for name, text in texts.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        unparsed = values(argv)[1:]
    except (flags.Error, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(_explain(error, source, config, argv)) from None
    if unparsed:
        raise UserError(f"unexpected argument {unparsed[0]!r}: flags are written --name=value")
    return {name: str(values[name].value) for name in texts}


def _explain(
    error: Exception, source: str, config: ml_collections.ConfigDict, argv: Sequence[str]
) -> str:
    """Says which field or value of the command line is wrong, with the nearest known field."""
    known = [name for name, _ in leaves(config)]
    for argument in argv:
        field = argument.lstrip("-").partition("=")[0]
        if (match := _FIELD.fullmatch(field)) and match[1] not in known:
            return _no_field(source, match[1], known)
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} (see --help)"


def _no_field(source: str, field: str, known: Sequence[str]) -> str:
    inner = [name for name in known if name.endswith(f".{field}")]
    near = inner or difflib.get_close_matches(field, known, n=1, cutoff=0.5)
    hint = f"; did you mean --config.{near[0]}?" if near else ""
    if field.startswith("phases[") and "phases" in known:
        hint = ": its run is one phase"
    return f"config {source} has no field {field!r}{hint} (--help --config={source} lists them)"
