"""DATA_DIR/.build: whose it is, what of it is kept, and what a command finds there."""

import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data.records import Manifest
from data_prep.examples import token_store
from data_prep.examples.token_store import SPLITS
from data_prep.options import FORMATS, BuildOptions, arguments
from data_prep.running.stages import Job, has_store, input_files
from data_prep.sources import corpus

ARGUMENTS_FILE = "arguments.json"  # in DATA_DIR/.build
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.({'|'.join(FORMATS)})")
_log = logging.getLogger(__name__)


class WorkDirectory:
    """DATA_DIR/.build: refuses another command's, and leaves nothing where nothing is finished.

    Its lock rejects a second process, which would remove what the first is writing.

    After a user error what is finished stays, since the same command resumes once it is mended, in
    an input file too. Old and new text are never mixed: units are found by what their
    files were (`read_units`), so files that have changed are read again. One that is new or gone
    shifts the numbers of those after it, which are then read again too. Once the store is there,
    input that has changed is refused.
    """

    def __init__(self, job: Job):
        self._job = job

    def __enter__(self) -> "WorkDirectory":
        output = epath.Path(self._job.output)
        self._output_is_new = not output.exists()
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output={output} cannot be made ({error})") from None
        self._lock_path = output / files.LOCK_FILE
        self._lock = files.lock(
            self._lock_path,
            f"another process is building {output}: wait for it, or give another --output",
        )
        self._is_new = not (self._job.work / ARGUMENTS_FILE).exists()
        return self

    def claim(self, parts: Sequence[corpus.Part]) -> None:
        """Makes .build the place of this command, or compares it with the one that made it."""
        job = self._job
        found = input_files(parts)
        if self._is_new:
            _require_no_shards(epath.Path(job.output))
            for directory in (job.units, job.finished):
                directory.mkdir(parents=True, exist_ok=True)
        else:
            started = files.read_json(job.work / ARGUMENTS_FILE)
            _require_same(job, started["arguments"], started["tokenizer_fingerprint"])
            _compare_input(job, started["input_files"], found)
            for directory in (epath.Path(job.output), job.units, job.work, job.finished):
                for leftover in directory.glob("*.partial-*"):
                    remove(leftover)
        now = {
            "arguments": arguments(job.options),
            "tokenizer_fingerprint": job.tokenizer.fingerprint,
            "input_files": found,
        }
        files.write_whole(job.work / ARGUMENTS_FILE, json.dumps(now, indent=1))

    def __exit__(self, kind: type | None, *exception: object) -> None:
        job = self._job
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                _log.warning(
                    f"interrupted: {job.work} keeps what is finished, and the same command resumes"
                )
            if kind is None:
                token_store.remove_copy(job.store)
                remove(job.work)
            elif issubclass(kind, UserError):
                if self._is_new and not _is_worth_keeping(job):
                    remove(job.work)
                    if self._output_is_new:
                        self._unlock()
                        remove(epath.Path(job.output))
                else:
                    _log.warning(
                        f"{job.work} keeps what is finished: once the mistake is mended, the same "
                        "command resumes from there. For another command, give another --output"
                    )
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock:
            self._lock_path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _require_no_shards(output: epath.Path) -> None:
    """Raises UserError for shards beside no .build, of which nobody knows what they were made of.

    They are another program's, or of a build whose .build was removed, and this one would take them
    for its own or write over them.
    """
    entries = output.iterdir() if output.exists() else ()  # gs:// has no empty directories
    shards = sorted(path.name for path in entries if _SHARD.fullmatch(path.name))
    if shards:
        raise UserError(
            f"{output} holds {len(shards)} shards of an unknown build, such as {shards[0]}: remove "
            "them, or give another --output"
        )


def built_already(job: Job) -> Manifest:
    manifest = Manifest.read(job.output)
    _require_same(job, manifest.arguments, manifest.tokenizer_fingerprint)
    _log.info(f"{job.output} is built already")
    return manifest


def _is_worth_keeping(job: Job) -> bool:
    """Whether there is the store, or more than one document: with less, other text is needed."""
    if has_store(job):
        return True
    paths = job.units.iterdir() if job.units.exists() else ()
    documents = (token_store.read_counts(p)["documents"] for p in paths if p.suffix == ".npz")
    return any(total > 1 for total in itertools.accumulate(documents))


def _compare_input(job: Job, before: dict[str, list[int]], now: dict[str, list[int]]) -> None:
    changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    if not changed:
        return
    names = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
    found = f"{len(changed)} of the input's files changed since {job.output} was begun: {names}"
    if has_store(job):
        raise UserError(
            f"{found}. Their old text is in it: remove {job.output} to begin again, or "
            "give another --output"
        )
    _log.warning(f"{found}. They are read again")


def remove(path: epath.Path) -> None:
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def _require_same(job: Job, theirs: dict[str, Any], fingerprint: str) -> None:
    ours = arguments(job.options)
    # A data set that was built before there was an option has its default.
    defaults = {field.name: field.default for field in dataclasses.fields(BuildOptions)}
    theirs = defaults | theirs
    differing = [
        f"--{name} was {theirs.get(name)!r} and is now {ours.get(name)!r}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name != "tokenizer"
    ]
    if fingerprint != job.tokenizer.fingerprint:  # one tokenizer may go by several paths
        before, now = theirs["tokenizer"], ours["tokenizer"]
        differing.append(f"--tokenizer={now} is not what --tokenizer={before} was")
    if differing:
        raise UserError(
            f"{job.output} holds a data set built by another command: {'; '.join(differing)}. "
            "Give another --output, or remove the directory"
        )
