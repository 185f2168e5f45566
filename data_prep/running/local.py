"""The two stages on this machine's processors."""

from collections.abc import Sequence

from data_prep import parallel
from data_prep.progress import Progress
from data_prep.running.stages import (
    Job,
    has_store,
    list_shards,
    merge,
    read_units,
    tokenize,
    write_shard,
)
from data_prep.running.work_directory import remove
from data_prep.sources import corpus


def run(job: Job, parts: Sequence[corpus.Part], workers: int) -> None:
    """Runs both stages; what is finished already is skipped."""
    if not has_store(job):
        tokenize_units(job, parts, workers)
    write_shards(job, workers)


def tokenize_units(job: Job, parts: Sequence[corpus.Part], workers: int) -> None:
    """Stage 1: all units of the input's parts, then the merged store."""
    units = (unit for part in parts for unit in read_units(part))
    names = []
    with Progress("tokenise", sum(part.num_bytes for part in parts)) as progress:
        for unit, counts in parallel.run(tokenize, job, units, workers):
            names.append(unit.name)
            progress.advance(
                unit.disk_bytes,
                documents=counts["documents"],
                MB=counts["source_bytes"] / 1e6,
            )
    merge(job, names)
    remove(job.units)  # nothing reads them again, and they are as large as the store


def write_shards(job: Job, workers: int) -> None:
    """Stage 2: all shards that are not there yet."""
    tasks = list_shards(job)
    with Progress("write", len(tasks)) as progress:
        for _, summary in parallel.run(write_shard, job, tasks, min(workers, len(tasks))):
            progress.advance(1, examples=summary["examples"])
