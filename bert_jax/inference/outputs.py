"""Files of results: written as they come, resumed by the same command, there whole or not at all.

Of OUTPUT, results lie in OUTPUT.partial until all are there; OUTPUT.partial.json says whose they
are. On gs:// and the like, and in pipes, nothing is resumed: OUTPUT is written at the end.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, saying_when_interrupted

_BLOCK = 1 << 20  # bytes


def check(output: str) -> None:
    """Makes the directory of a file to be written.

    Raises:
      UserError: it cannot be written; before anything is computed.
    """
    path = epath.Path(output)
    if path.is_dir():
        raise UserError(f"--output={output} is a directory, expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({error})") from None
    is_local = os.path.isdir(path.parent)
    if is_local and not files.is_stream(path) and not os.access(path.parent, os.W_OK):
        raise UserError(f"--output={output} cannot be written ({path.parent} is read-only)")


@dataclasses.dataclass(frozen=True)
class Partial:
    """Results on their way; `done` is the number of those that are in the file already."""

    path: pathlib.Path
    file: IO[bytes]
    done: int

    def write(self, results: Iterable[bytes]) -> None:
        """Writes the results behind those that are there."""
        for result in results:
            self.file.write(result)
        self.file.flush()


@contextlib.contextmanager
def whole(
    output: str, identity: dict[str, Any], header: bytes = b"", row_bytes: int = 0
) -> Iterator[Partial]:
    """A file of results that becomes `output` when the block ends without error.

    Args:
      identity: all that the results depend on: those of another one are not resumed.
      header: what the file begins with.
      row_bytes: of each result; 0 if each is a line.

    Raises:
      UserError: another process is writing it.
    """
    target = epath.Path(output)
    if files.is_remote(target) or files.is_stream(target):
        with tempfile.TemporaryDirectory() as scratch:
            path = pathlib.Path(scratch, "partial")
            with _opened(path, identity, header, row_bytes) as partial:
                yield partial
            with path.open("rb") as written, target.open("wb") as file:
                shutil.copyfileobj(written, file, _BLOCK)
        return
    final = pathlib.Path(files.absolute(target))
    path = final.with_name(f"{final.name}.partial")
    resumable = f"interrupted: {path} has what is done; the same command resumes"
    with (
        saying_when_interrupted(resumable),
        _opened(path, identity, header, row_bytes) as partial,
    ):
        yield partial
        files.sync(path)
        path.replace(final)
        _note(path).unlink()


def _note(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.json")


@contextlib.contextmanager
def _opened(
    path: pathlib.Path, identity: dict[str, Any], header: bytes, row_bytes: int
) -> Iterator[Partial]:
    identity = json.loads(json.dumps(identity))  # as it is read back
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            in_use = not path.exists() or not os.path.samestat(
                os.fstat(file.fileno()), os.stat(path)
            )  # it has just become the output
        except BlockingIOError:
            in_use = True
        if in_use:
            raise UserError(
                f"{path} is being written by another process: wait for it, or give another --output"
            )
        done = 0
        if _read(_note(path)) == identity:
            done = _keep_results(file, header, row_bytes)
        if done:
            logging.info(f"resuming: {done:,} results are in {path}")
        else:
            file.truncate(0)
            _note(path).write_text(json.dumps(identity, indent=2) + "\n")
            file.write(header)
        yield Partial(path, file, done)


def _read(note: pathlib.Path) -> Any:
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError):  # none there, or cut off
        return None


def _keep_results(file: IO[bytes], header: bytes, row_bytes: int) -> int:
    """The number of whole results in a file; cuts off what is behind them."""
    file.seek(0)
    if file.read(len(header)) != header:
        return 0
    if row_bytes:
        count = (os.fstat(file.fileno()).st_size - len(header)) // row_bytes
        end = len(header) + count * row_bytes
    else:
        count, position, end = 0, len(header), len(header)
        while block := file.read(_BLOCK):
            count += block.count(b"\n")
            if b"\n" in block:
                end = position + block.rindex(b"\n") + 1
            position += len(block)
    file.truncate(end)
    return count
