"""Hugging Face directories: found here or on the hub, and written whole or not at all."""

import contextlib
import glob
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief
from bert_jax.data import tokenizer
from bert_jax.huggingface import config_json

_WRITTEN = re.compile(
    r"(config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.txt|vocab\.json|merges\.txt|README\.md)"
)
# Of a repository on the hub: the files that are read, and of the weights the first kind there is.
_SMALL_FILES = (
    *tokenizer.FILES,
    *("config.json", "modules.json", "sentence_bert_config.json", "*_Pooling/config.json"),
)
_WEIGHTS = {
    r"(.*/)?model.*\.safetensors$": "*model*.safetensors*",
    r"(.*/)?pytorch_model.*\.bin$": "*pytorch_model*.bin*",
    r"flax_model\.msgpack$": "flax_model.msgpack",
}


def locate(source: str | epath.PathLike) -> epath.Path:
    """The directory itself, or the local snapshot of a hub repository's files."""
    path = epath.Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source} is a file; expected a Hugging Face model directory")
    if path.parent.is_dir() and path.parent != epath.Path("."):
        raise UserError(
            f"{source} does not exist, though {path.parent} does, so it is no name on the Hugging "
            "Face hub: expected a workdir or a Hugging Face model directory"
        )
    explanation = (
        f"{source}: no such directory here, and it could not be had from the Hugging Face hub"
    )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{explanation} (pip install 'bert_jax[hf]' for hub names)") from None
    try:
        names = huggingface_hub.list_repo_files(str(source))
        first = [kind for kind in _WEIGHTS if any(re.match(kind, name) for name in names)][:1]
        patterns = [*_SMALL_FILES, *(_WEIGHTS[kind] for kind in first)]
        return epath.Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        # Offline (HF_HUB_OFFLINE=1 on a compute node), an earlier download does.
        if cached := _downloaded_before(str(source)):
            logging.warning(f"{source}: taken from the earlier download {cached} ({brief(error)})")
            return cached
        raise UserError(f"{explanation} ({brief(error)})") from None


def _downloaded_before(name: str) -> epath.Path | None:
    """The snapshot of a hub repository in the local cache, if it has weights."""
    import huggingface_hub

    try:
        snapshot = epath.Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # as above
        return None
    names = [path.name for path in snapshot.iterdir()]
    return snapshot if any(re.match(kind, name) for kind in _WEIGHTS for name in names) else None


def check_replaceable(output: epath.Path) -> None:
    """Raises UserError unless `output` is absent, empty, or an earlier export of this project."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} is a file; expected a directory to write, or none")
    names = sorted(path.name for path in output.iterdir())
    foreign = [name for name in names if not _WRITTEN.fullmatch(name)]
    ours = False
    if not foreign and "config.json" in names:
        with contextlib.suppress(UserError):
            ours = config_json.MARK in files.read_json(output / "config.json")
    if names and not ours:
        raise UserError(
            f"{output} is not empty and not an earlier export (it holds "
            f"{', '.join((foreign or names)[:5])}): name another --output or remove it"
        )


def _upload_order(path: pathlib.Path) -> tuple[bool, bool, bool]:
    return (
        path.name != "config.json",
        "safetensors" in path.name,
        path.name.endswith(".index.json"),
    )


@contextlib.contextmanager
def replace_directory(output: epath.Path) -> Iterator[pathlib.Path]:
    """Yields a local scratch directory that becomes `output` when the block ends without error.

    On a local disk `output` appears by a rename, complete or not at all; what a killed export left
    there is cleared by the next one. Elsewhere config.json is written first, so that an export that
    was cut off may be replaced, and the weights and their index last: without them it does not look
    whole.
    """
    local = not files.is_remote(output)
    parent = pathlib.Path(files.absolute(output)).parent if local else None
    prefix = f".{output.name}.export-"
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
        _clear(parent, prefix)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    in_use = files.lock(scratch / files.LOCK_FILE, f"{scratch} is in use")
    try:
        yield scratch
        (scratch / files.LOCK_FILE).unlink(missing_ok=True)
        _open_to_others(scratch)
        if output.exists():
            output.rmtree()
        if local:
            scratch.rename(output)
        else:
            output.mkdir(parents=True)
            for path in sorted(scratch.iterdir(), key=_upload_order):
                (output / path.name).write_bytes(path.read_bytes())
    finally:
        if in_use:
            in_use.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _clear(parent: pathlib.Path, prefix: str) -> None:
    """Removes the scratch directories of exports that were killed."""
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(UserError):  # in use, or not ours
            if lock := files.lock(left / files.LOCK_FILE, ""):
                lock.close()
                shutil.rmtree(left, ignore_errors=True)


def _open_to_others(directory: pathlib.Path) -> None:
    """Gives files the modes that new files have; temporary folders and safetensors hide theirs."""
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for path in directory.iterdir():
        path.chmod(0o666 & ~mask)
