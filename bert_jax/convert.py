"""Command: turns checkpoints into Hugging Face directories, and back, and into larger models."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from etils import epath
from ml_collections import ConfigDict

from bert_jax import config as config_lib
from bert_jax.cli import run, size
from bert_jax.huggingface import hub, keys

if TYPE_CHECKING:
    from bert_jax.huggingface.parity import ParityReport
Path: TypeAlias = str | epath.PathLike


def to_hugging_face(
    checkpoint: Path, output: Path, ema: bool = False, **options: Any
) -> "ParityReport":
    """Exports a checkpoint as a Hugging Face directory, compared with transformers.

    Args:
      checkpoint: WORKDIR, WORKDIR/checkpoints/STEP or WORKDIR/best.
      output: the directory to write; an earlier export there is replaced.
      ema: export the parameters' moving average (`config.ema_decay`).
      options: dtype, max_shard_size, license_name, languages: see `huggingface.export.write`.

    Raises:
      UserError: nothing to export; `output` holds something else; or transformers computes
        something else, in which case `output` is left as it was.
    """
    from bert_jax.huggingface import export
    from bert_jax.runs import checkpoint as checkpoint_lib

    return export.write(checkpoint_lib.load(checkpoint, ema), checkpoint, output, **options)


def from_hugging_face(
    model: Path, output: Path, ignore_unexpected: bool = False
) -> tuple[str, ...]:
    """Imports a Hugging Face directory, or a model of the hub, as a WORKDIR of parameters.

    Args:
      model: a directory of transformers, of sentence-transformers or of google-research/bert, or a
        name on the hub.
      ignore_unexpected: skip arrays of heads that are not known here.

    Returns:
      the parts that the model has; the others are skipped, not initialised.

    Raises:
      UserError: nothing to read; a model not computed here; or `output` holds a run already.
    """
    from bert_jax.huggingface import load, tensors
    from bert_jax.models import architectures
    from bert_jax.runs import checkpoint

    loaded = load.read(model, ignore_unexpected)
    checkpoint.save_params(output, loaded.params, loaded.config, loaded.tokenizer, loaded.step)
    return tensors.parts_of(loaded.params, architectures.make_config(loaded.config.model))


def tile(model: Path, config: str, output: Path) -> None:
    """Makes a WORKDIR of the parameters with which a larger model begins: `models.tiling`.

    `model` is the smaller one, as `loading.load_parts` takes it; `config` is the larger one's
    recipe, except for its vocabulary.

    Raises:
      UserError: the recipe's model is not a larger one of the same kind; or as `load_parts`.
    """
    from bert_jax import loading
    from bert_jax.models import architectures, tiling
    from bert_jax.runs import checkpoint

    loaded = loading.load_parts(model)
    small = architectures.make_config(loaded.config.model)
    wanted = {**config_lib.load(config).model, "vocab_size": small.vocab_size}
    large = architectures.make_config(wanted)
    fields = {"model": architectures.fields_of(large), "imported_from": str(model)}
    params = tiling.tile(loaded.params, small, large)
    checkpoint.save_params(output, params, ConfigDict(fields), loaded.tokenizer, 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bert_jax.convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("to-hf", help="export a checkpoint for transformers").add_argument
    add("--checkpoint", required=True, help="WORKDIR, WORKDIR/checkpoints/STEP or WORKDIR/best")
    add("--output", required=True, help="directory to write")
    add("--ema", action="store_true", help="the parameters' moving average (config.ema_decay)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--max_shard_size", type=size, default="5GB", help="split larger weights over files")
    add("--push_to_hub", default="", metavar="REPO", help="upload it to that repository")
    add("--public", action="store_true", help="all can read a new repository, not you alone")
    add("--license", default="", help='of the model card, such as "apache-2.0"')
    add("--language", default="", help='of the model card, such as "en" or "en,de"')
    add = commands.add_parser("from-hf", help="import a model of transformers").add_argument
    add("--model", required=True, help="directory or hub name")
    add("--output", required=True, help="WORKDIR to write")
    add("--ignore_unexpected", action="store_true", help="skip arrays of heads not known here")
    add = commands.add_parser("tile", help="begin a larger model with a smaller one").add_argument
    add("--model", required=True, help="the smaller one: WORKDIR, directory or hub name")
    add("--config", required=True, help="the larger one's recipe")
    add("--output", required=True, help="WORKDIR to write, for --config.init_from")
    return parser


def _export(flags: argparse.Namespace) -> None:
    client = hub.client(flags.push_to_hub, flags.output) if flags.push_to_hub else None
    report = to_hugging_face(
        flags.checkpoint,
        flags.output,
        flags.ema,
        dtype=flags.dtype,
        max_shard_size=flags.max_shard_size,
        license_name=flags.license,
        languages=[name for name in flags.language.replace(" ", "").split(",") if name],
    )
    print(f"{report}\nwrote {flags.output}")
    if client:
        print(hub.push(client, report, flags.output, flags.push_to_hub, flags.public))


def _import(flags: argparse.Namespace) -> None:
    parts = from_hugging_face(flags.model, flags.output, flags.ignore_unexpected)
    every = dict.fromkeys(part for table in keys.TABLES.values() for part in table.parts)
    absent = ", ".join(part for part in every if part not in parts)
    print(f"read {', '.join(parts)}; not in {flags.model}: {absent}\nwrote {flags.output}")


def _tile(flags: argparse.Namespace) -> None:
    tile(flags.model, flags.config, flags.output)
    print(f"wrote {flags.output}")


def main(argv: Sequence[str]) -> None:
    flags = _parser().parse_args(argv)
    {"to-hf": _export, "from-hf": _import, "tile": _tile}[flags.command](flags)


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
