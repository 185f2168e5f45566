"""Whether a checkpoint is what was written: checksums; unfinished and corrupted ones make room."""

import hashlib
import json
import logging
from collections.abc import Iterator

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.runs import workdir as workdirs

CHECKSUMS = "checksums.json"
ORBAX_NOTE = "_CHECKPOINT_METADATA"
# What says that a save has come to its end: the name where directories can be renamed, an object
# of this name on gs:// and the like.
UNFINISHED = ".orbax-checkpoint-tmp"
ORBAX_COMMIT = "commit_success.txt"
# Written, or written once more, after the checksums.
LATER = (CHECKSUMS, ORBAX_NOTE, ORBAX_COMMIT)
ASIDE = ".damaged"


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files below `directory`."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def write_checksums(directory: epath.Path) -> None:
    """Writes STEP/checksums.json: each file's size and SHA-256."""
    covered = [path for path in _files(directory) if path.name not in LATER]
    sums = {
        str(p.relative_to(directory)): {"bytes": files.size_and_time(p)[0], "sha256": _sha256(p)}
        for p in sorted(covered)
    }
    files.write_whole(directory / CHECKSUMS, json.dumps(sums, indent=1) + "\n")


def damage(directory: epath.Path, item: str = "") -> str:
    """What is wrong with the checkpoint in `directory`, or with one item of it; "" if nothing.

    Orbax restores a file with flipped bits without an error, hence the checksums.
    """
    if not (directory / CHECKSUMS).exists():
        return f"{CHECKSUMS} is missing, so it was not written to its end"
    try:
        listed = files.read_json(directory / CHECKSUMS)
        written = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except (files.DamagedError, LookupError, TypeError):
        return f"{CHECKSUMS} is cut short or garbled"
    folder = directory / item
    paths = _files(folder) if folder.exists() else ()
    there = {str(path.relative_to(directory)): path for path in paths}
    if unknown := sorted(
        name for name in there if name not in written and not name.endswith(LATER)
    ):
        return f"{unknown[0]} is not in {CHECKSUMS}"
    for name, (size, sha256) in written.items():
        if not name.startswith(item):
            continue
        if name not in there:
            return f"{name} is missing"
        found, _ = files.size_and_time(there[name])
        if found != size:
            return f"{name} has {found} bytes, {size} were written"
        if _sha256(there[name]) != sha256:
            return f"{name} is not what was written (other SHA-256)"
    return ""


def remove_unfinished(directory: epath.Path) -> None:
    """Deletes what saves have left that were killed before their end."""
    for path in list(directory.iterdir()) if directory.exists() else []:
        is_step = path.name.isdigit() and files.is_remote(path)
        if UNFINISHED in path.name or (is_step and not (path / ORBAX_COMMIT).exists()):
            path.rmtree()
            logging.info(f"removed {path}, a save that was killed before its end")


def set_damaged_aside(directory: epath.Path, start_from: str) -> None:
    """Renames the newest checkpoint to STEP.damaged if it is corrupted; removes further such ones.

    Checkpoints are looked at down to the first whole one. One at most is kept aside.

    Raises:
      UserError: there are checkpoints, and not one is whole; all are left as they are.
    """
    damaged: dict[int, str] = {}
    for step in reversed(workdirs.steps_in(directory)):
        if not (reason := damage(directory / str(step))):
            break
        damaged[step] = reason
    else:
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            best = directory.parent / workdirs.BEST
            perhaps = f", perhaps from the parameters in {start_from}={best}"
            raise UserError(
                f"every checkpoint in {directory} is corrupted ({reasons}). Restore a copy of "
                f"one, or start a new run with --workdir=NEW{perhaps if best.exists() else ''}"
            )
    if not damaged:
        return
    for former in directory.glob(f"*{ASIDE}"):
        former.rmtree()
    newest = max(damaged)
    for number, reason in damaged.items():
        path = directory / str(number)
        if number == newest:
            path.rename(directory / f"{number}{ASIDE}")
            kept = f"renamed to {directory.name}/{number}{ASIDE}"
        else:
            path.rmtree()
            kept = "removed"
        logging.warning(
            f"checkpoint {number} is corrupted: {reason}; {kept}; taking that of step {step}"
        )
