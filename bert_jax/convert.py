"""Command: turns checkpoints into Hugging Face directories, and back, and into larger models."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath
from ml_collections import ConfigDict

from bert_jax import config as config_lib
from bert_jax.cli import UserError, run, size
from bert_jax.huggingface import hub, keys

if TYPE_CHECKING:
    from bert_jax.huggingface.parity import ParityReport

# Imported where used, so that --help answers at once: what imports JAX.


def to_hugging_face(
    checkpoint: str | epath.PathLike,
    output: str | epath.PathLike,
    ema: bool = False,
    **options: Any,
) -> "ParityReport":
    """Exports a checkpoint as a Hugging Face directory, compared with transformers.

    Args:
      checkpoint: WORKDIR, WORKDIR/checkpoints/STEP or WORKDIR/best.
      output: the directory to write; an earlier export there is replaced.
      ema: export the parameters' moving average (`config.ema_decay`).
      options: dtype, max_shard_size, license_name, languages: see `huggingface.export.write`.

    Raises:
      UserError: nothing to export; `output` holds something else; or transformers computes
        something else from what was written, in which case `output` is left as it was.
    """
    from bert_jax.huggingface import export
    from bert_jax.huggingface import files as hf_files
    from bert_jax.runs import checkpoint as checkpoint_lib

    hf_files.check_replaceable(epath.Path(output))
    loaded = checkpoint_lib.load(checkpoint, ema)
    return export.write(loaded, checkpoint, output, **options)


def from_hugging_face(
    model: str | epath.PathLike, output: str | epath.PathLike, ignore_unexpected: bool = False
) -> tuple[str, ...]:
    """Imports a Hugging Face directory, or a model of the hub, as a WORKDIR of parameters.

    Args:
      model: a directory of transformers, of sentence-transformers or of google-research/bert, or a
        name on the hub.
      ignore_unexpected: skip arrays of heads that are not known here.

    Returns:
      the parts that the model has; the others are skipped, not initialised.

    Raises:
      UserError: nothing to read, or a model that this project does not compute; or `output` holds a
        run already.
    """
    from bert_jax.huggingface import load, tensors
    from bert_jax.models import architectures
    from bert_jax.runs import checkpoint

    loaded = load.read(model, ignore_unexpected)
    checkpoint.save_params(output, loaded.params, loaded.config, loaded.tokenizer, loaded.step)
    return tensors.parts_of(loaded.params, architectures.make_config(loaded.config.model))


def tile(model: str | epath.PathLike, config: str, output: str | epath.PathLike) -> None:
    """Makes a WORKDIR of the parameters with which a larger model begins: `models.tiling`.

    Args:
      model: the smaller one, as of `loading.load_parts`.
      config: the larger one's recipe; its vocabulary is the smaller one's.

    Raises:
      UserError: the recipe's model is not a larger one of the same kind; or as `load_parts`.
    """
    from bert_jax import loading
    from bert_jax.models import architectures, tiling
    from bert_jax.runs import checkpoint

    loaded = loading.load_parts(model)
    small = architectures.make_config(loaded.config.model)
    fields = {**config_lib.load(config).model, "vocab_size": small.vocab_size}
    large = architectures.make_config(fields)
    settings = {"model": architectures.fields_of(large), "imported_from": str(model)}
    params = tiling.tile(loaded.params, small, large)
    checkpoint.save_params(output, params, ConfigDict(settings), loaded.tokenizer, 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.convert",
        description="Turns checkpoints of this project into Hugging Face directories, and back.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to = commands.add_parser("to-hf", help="export a checkpoint as a Hugging Face directory")
    to.add_argument(
        "--checkpoint",
        required=True,
        help="WORKDIR (its last checkpoint, or the one that fine-tuning selected), "
        "WORKDIR/checkpoints/STEP or WORKDIR/best",
    )
    to.add_argument("--output", required=True, help="directory to write")
    to.add_argument(
        "--ema",
        action="store_true",
        help="export the moving average of the parameters (config.ema_decay)",
    )
    to.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    to.add_argument(
        "--max_shard_size", type=size, default="5GB", help="split larger weights over files"
    )
    to.add_argument(
        "--push_to_hub", default="", metavar="REPO", help="upload it to that repository of the hub"
    )
    to.add_argument(
        "--public",
        action="store_true",
        help="a new repository can be read by all, not by you alone",
    )
    to.add_argument("--license", default="", help='of the model card, such as "apache-2.0"')
    to.add_argument("--language", default="", help='of the model card, such as "en" or "en,de"')
    back = commands.add_parser("from-hf", help="import a Hugging Face model as a WORKDIR")
    back.add_argument("--model", required=True, help="directory or hub name")
    back.add_argument("--output", required=True, help="WORKDIR to write")
    back.add_argument(
        "--ignore_unexpected", action="store_true", help="skip arrays of heads not known here"
    )
    larger = commands.add_parser("tile", help="begin a larger model with a smaller one's weights")
    larger.add_argument("--model", required=True, help="WORKDIR, directory or hub name")
    larger.add_argument("--config", required=True, help="the larger model's recipe")
    larger.add_argument("--output", required=True, help="WORKDIR to write, for --config.init_from")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    repository, output = arguments.push_to_hub, arguments.output
    # Before the export, which takes minutes for a large model.
    client = hub.client(repository, output) if repository else None
    report = to_hugging_face(
        arguments.checkpoint,
        output,
        arguments.ema,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        license_name=arguments.license,
        languages=arguments.language.replace(" ", "").split(",") if arguments.language else (),
    )
    print(f"{report}\nwrote {output}")
    if client:
        if not report.verified:
            raise UserError(
                f"{output} was not compared with transformers, so it is not uploaded: "
                "pip install 'bert_jax[hf]'"
            )
        print(f"uploading {', '.join(sorted(path.name for path in epath.Path(output).iterdir()))}")
        print(f"uploaded to {hub.push(client, output, repository, arguments.public)}")


def _import(arguments: argparse.Namespace) -> None:
    parts = from_hugging_face(arguments.model, arguments.output, arguments.ignore_unexpected)
    every = [*dict.fromkeys(part for table in keys.TABLES.values() for part in table.parts)]
    absent = ", ".join(part for part in every if part not in parts)
    print(f"read {', '.join(parts)}; not in {arguments.model}: {absent}")
    print(f"wrote {arguments.output}")


def _tile(arguments: argparse.Namespace) -> None:
    tile(arguments.model, arguments.config, arguments.output)
    print(f"wrote {arguments.output}")


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    {"to-hf": _export, "from-hf": _import, "tile": _tile}[arguments.command](arguments)


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
