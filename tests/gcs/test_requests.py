"""Requests of a run to its bucket, by number of shards: the table of docs/guides/launch.md."""

import collections
import pathlib

import pytest
from bucket_server import Server
from small_run import make_data_dir, overrides, run_command, small_config

pytestmark = pytest.mark.slow
RECORDS = 512  # of 64 examples each; a process keeps 256
BATCH = 256  # examples: four records
FEW, MORE, SAVES = 8, 128, 8
Counts = collections.Counter[str]


def requests_of(server: Server, data: str, name: str, steps: int, checkpoint_every: int) -> Counts:
    """What a run asks of the bucket, by kind."""
    config = small_config(pathlib.Path("data"))
    config.data_dir = f"gs://bucket/{data}"
    config.update(batch_size=BATCH, num_steps=steps, eval_every=0)
    config.checkpoint_every = checkpoint_every
    config.keep_checkpoints = 100  # each save takes as many requests: none removes another
    server.requests.clear()
    flags = ("--config=configs/bert_tiny.py:laptop", *overrides(config))
    workdir = f"--workdir=gs://bucket/{name}"
    result = run_command("bert_jax.pretrain", *flags, workdir, **server.environment)
    assert result.returncode == 0, result.stderr
    return collections.Counter(request.kind for request in server.requests)


@pytest.fixture(scope="module")
def table(bucket_server, tmp_path_factory) -> dict[int, dict[str, dict[str, float]]]:
    """Shards -> start, step or save -> kind of request -> how many of them one takes."""
    bucket_server.delete()
    found = {}
    for shards in (2, 16, 64):
        data = f"data-{shards}"
        root = tmp_path_factory.mktemp(data)
        make_data_dir(root, {"train": [RECORDS * 64 // shards] * shards})
        for path in root.rglob("*"):
            if path.is_file():
                bucket_server.write(f"{data}/{path.relative_to(root)}", path.read_bytes())

        def run(steps: int, every: int, data: str = data) -> Counts:
            return requests_of(bucket_server, data, f"{data}-{steps}-{every}", steps, every)

        short, long = run(FEW, 10**6), run(FEW + MORE, 10**6)
        saving = run(FEW + MORE, (FEW + MORE) // (SAVES + 1) + 1)
        rows = found[shards] = {"start": {}, "step": {}, "save": {}}
        for kind in sorted({*short, *long, *saving}):
            rows["step"][kind] = (long[kind] - short[kind]) / MORE
            rows["save"][kind] = (saving[kind] - long[kind]) / SAVES
            rows["start"][kind] = short[kind] - FEW * rows["step"][kind] - rows["save"][kind]
        for stage, counts in rows.items():
            print(shards, stage, {kind: round(count, 2) for kind, count in counts.items()})
    return found


# Counts differ by some tens from run to run, as Orbax looks whether a folder is there until it is.
def test_no_step_lists_or_looks_up_anything_or_reads_a_record_twice(table):
    for rows in table.values():
        for kind in ("list", "stat", "write", "delete"):
            assert rows["step"].get(kind, 0) < 0.5, (kind, rows)
        assert rows["step"]["read"] < BATCH / 64 + 0.5


def test_nothing_is_listed_or_looked_up_for_each_shard(table):
    for stage in ("start", "save"):
        for kind in ("list", "stat", "write"):
            counts = {shards: rows[stage][kind] for shards, rows in table.items()}
            assert abs(counts[64] - counts[2]) < 62 / 2, (stage, kind, counts)
