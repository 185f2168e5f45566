"""Command: turns checkpoints of this project into Hugging Face directories, and back."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, run, size
from bert_jax.huggingface import hub, keys

if TYPE_CHECKING:
    from bert_jax.huggingface.parity import ParityReport

# Imported where used, so that --help answers at once: what imports JAX.


def to_hugging_face(
    checkpoint: str | epath.PathLike,
    output: str | epath.PathLike,
    dtype: str = "float32",
    max_shard_size: int = 5 * 10**9,
    license_name: str = "",
    languages: Sequence[str] = (),
    ema: bool = False,
) -> "ParityReport":
    """Exports a checkpoint as a Hugging Face directory, compared with transformers.

    Args:
      checkpoint: WORKDIR, WORKDIR/checkpoints/STEP or WORKDIR/best.
      output: the directory to write; an earlier export there is replaced.
      dtype, max_shard_size, license_name, languages: see `huggingface.export.write`.
      ema: export the parameters' moving average (`config.ema_decay`).

    Raises:
      UserError: nothing to export; `output` holds something else; or transformers computes
        something else from what was written, in which case `output` is left as it was.
    """
    from bert_jax.huggingface import export
    from bert_jax.huggingface import files as hf_files
    from bert_jax.runs import checkpoint as checkpoint_lib

    hf_files.check_replaceable(epath.Path(output))
    loaded = checkpoint_lib.load(checkpoint, ema)
    return export.write(loaded, checkpoint, output, dtype, max_shard_size, license_name, languages)


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
    return parser


def _export(arguments: argparse.Namespace) -> None:
    repository, output = arguments.push_to_hub, arguments.output
    client = None
    if repository:  # before the export, which takes minutes for a large model
        if files.is_remote(output):
            raise UserError(f"--push_to_hub needs a local --output, not {output}")
        client = hub.client(repository)
    languages = arguments.language.replace(" ", "").split(",") if arguments.language else ()
    facts = (arguments.dtype, arguments.max_shard_size, arguments.license, languages)
    report = to_hugging_face(arguments.checkpoint, output, *facts, arguments.ema)
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


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    (_export if arguments.command == "to-hf" else _import)(arguments)


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
