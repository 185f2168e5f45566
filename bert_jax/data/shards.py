"""Random access to the records of a split's shards, on a disk or in a bucket."""

import concurrent.futures
import logging
import resource
import threading
import time
from collections.abc import Sequence

import numpy as np
from array_record.python import array_record_module
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError

LOG = logging.getLogger(__name__)
PARALLEL_READS = 64  # shards of a bucket that are read at once
# Files that a process needs besides the shards: checkpoints, logs, sockets, held-out data.
OTHER_FILES = 256
# A bucket that does not answer: array_record tries for seconds, a run should wait for minutes.
MAX_WAIT = 300.0  # seconds, all together
# What array_record's errors say of damage that waiting does not heal.
_LASTING = ("corrupt", "mismatch", "at least 64KB", "No such file")
# What they say where a bucket has refused: 401, 403, 404. The reason is in no fixed words.
_REFUSED = "Permanent error"


class Shards:
    """The records of several ArrayRecord files, numbered one file after the other.

    A file is opened when it is first read, and stays open until `close`. The numbers of records are
    the manifest's, so nothing is read of a shard before one of its records is.
    """

    def __init__(self, data_dir: epath.Path, names: Sequence[str], num_records: Sequence[int]):
        """
        Args:
          names: of the files, in order.
          num_records: of each, as the manifest says.

        Raises:
          UserError: they are more files than the process may open.
        """
        self._data_dir, self._names = data_dir, list(names)
        self._ends = np.cumsum(num_records)
        self._is_remote = files.is_remote(data_dir)
        if not self._is_remote:
            allow_open_files(len(self._names), str(data_dir))
        self._lock = threading.Lock()
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def name(self, number: int) -> str:
        """A record as people find it again: 'train-00003-of-00016.array_record#17'."""
        shard, position = self._place(number)
        return f"{self._names[shard]}#{position}"

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, int(number - (self._ends[shard - 1] if shard else 0))

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """The records of these numbers, all in one go: those of a bucket side by side.

        Raises:
          UserError: a shard is corrupted, or is not the one that the manifest describes; or its
            bucket is gone, or forbidden.
        """
        of_shard: dict[int, list[tuple[int, int]]] = {}  # shard -> (place in `numbers`, position)
        for place, number in enumerate(numbers):
            shard, position = self._place(number)
            of_shard.setdefault(shard, []).append((place, position))
        result = [b""] * len(numbers)

        def read_shard(shard: int) -> None:
            places, positions = zip(*of_shard[shard], strict=True)
            for place, record in zip(places, self._read_shard(shard, positions), strict=True):
                result[place] = record

        if self._is_remote and len(of_shard) > 1:
            list(self._threads().map(read_shard, of_shard))
        else:  # of a disk: threads would cost more than they save
            for shard in of_shard:
                read_shard(shard)
        return result

    def close(self) -> None:
        """Closes the files; a later `read` opens them again."""
        with self._lock:
            # Reads of other threads that are under way hold their readers, and close them last.
            self._readers = {}
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown(wait=False)

    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        with self._lock:
            self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(PARALLEL_READS)
            return self._pool

    def _read_shard(self, shard: int, positions: Sequence[int]) -> list[bytes]:
        """Reads with patience where a bucket may not answer for a while."""
        delay, deadline = 1.0, time.monotonic() + MAX_WAIT
        while True:
            try:
                return self._reader(shard).read(list(positions))
            except (RuntimeError, IndexError) as error:
                text = " ".join(str(error).split())
                if not self._is_remote or any(sign in text for sign in _LASTING):
                    raise self._damaged(shard, positions, text) from None
                path = self._data_dir / self._names[shard]
                if _REFUSED in text and not path.exists():  # which names a bucket that refuses
                    raise UserError(
                        f"{path} is missing: restore it, or build the data set again"
                    ) from None
                if time.monotonic() + delay > deadline:
                    raise
                LOG.warning("%s: %s; trying again", path, text)
            with self._lock:
                self._readers.pop(shard, None)
            time.sleep(delay)
            delay = min(2 * delay, 30.0)

    def _damaged(self, shard: int, positions: Sequence[int], text: str) -> UserError:
        path, where = self._data_dir / self._names[shard], ""
        for position in positions if len(positions) > 1 else ():
            try:
                self._reader(shard).read([position])
            except (RuntimeError, IndexError) as error:
                positions, text = [position], " ".join(str(error).split())
                break
        if len(positions) == 1:
            where = f"#{positions[0]}"
        return UserError(
            f"{path}{where} cannot be read ({text}): python -m data_prep.check {self._data_dir} "
            "tells which shards are corrupted; restore them, or build the data set again"
        )

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        with self._lock:
            reader = self._readers.get(shard)
        if reader is not None:
            return reader
        path = self._data_dir / self._names[shard]
        # As ArrayRecordDataSource opens it: nothing is read ahead of random access.
        reader = array_record_module.ArrayRecordReader(
            str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768
        )
        if not reader.ok():
            reader.read([0])  # a missing file opens as an empty one; this says what is wrong
            raise RuntimeError("it cannot be opened")
        first = int(self._ends[shard - 1]) if shard else 0
        expected = int(self._ends[shard]) - first
        if reader.num_records() != expected:
            raise UserError(
                f"{path} holds {reader.num_records()} records, dataset.json says {expected}: it is "
                "another data set's, or cut; restore it, or build the data set again"
            )
        with self._lock:
            return self._readers.setdefault(shard, reader)


def allow_open_files(count: int, what: str) -> None:
    """Makes room for so many open files, so that training does not end in the middle without.

    The soft limit is raised as far as it goes: other splits and phases have shards too.

    Raises:
      UserError: the system allows fewer.
    """
    needed = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and needed > hard:
        raise UserError(
            f"{what} has {count} shards, each an open file in training, but this process may open "
            f"{hard} ({OTHER_FILES} of them for other files): raise the limit (ulimit -Hn), or "
            "build the data set with a smaller --num_shards"
        )
    if soft != unlimited:
        raised = hard if hard != unlimited else max(soft, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
