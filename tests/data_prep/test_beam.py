"""The pipeline on runners with several processes: the same bytes as without Beam."""

import ast
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from corpora import make_documents, write_jsonl

from bert_jax.cli import UserError
from bert_jax.data.records import Manifest
from data_prep.build import BuildOptions, run
from data_prep.running import beam

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNNERS = {
    "processes": "FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=2",
    "dask": "DaskRunner",
}


def test_short_names():
    assert beam._with_runner([]) == ["--runner=FnApiRunner"]
    long = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
    for flags in (["--runner=DaskRunner"], ["--runner", "dask"]):
        assert beam._with_runner([*flags, "--dask_client_address=x"]) == [
            long,
            "--dask_client_address=x",
        ]
    assert beam._with_runner(["--runner=a.B", "--x", "y"]) == ["--runner=a.B", "--x", "y"]


@pytest.mark.parametrize("flags", ["--runner=NoSuchRunner", "--runner=no.such.Runner", "'x"])
def test_unknown_runners(tmp_path, corpus_file, tokenizer_dir, flags):
    pytest.importorskip("apache_beam")
    options = BuildOptions((corpus_file,), tokenizer_dir)
    with pytest.raises(UserError, match=r"^--beam_options=.* cannot be used \([^\n]*$"):
        run(options, tmp_path / "data", runner="beam", beam_options=flags)
    assert not (tmp_path / "data").exists()


def test_nothing_that_dask_computes_wrongly():
    """Beam 2.77's DaskRunner gives wrong results for these, without an error."""
    source = (ROOT / "data_prep" / "running" / "beam.py").read_text()
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    assert "Reshuffle" in used and not used & {
        *("with_outputs", "TaggedOutput", "Partition", "Top", "start_bundle", "finish_bundle"),
        *("BatchElements", "GroupIntoBatches", "WindowInto", "window", "GroupByKey"),
        *("CoGroupByKey", "CombinePerKey"),
    }
    users = [p for p in (ROOT / "data_prep").rglob("*.py") if "apache_beam" in p.read_text()]
    assert [path.name for path in users] == ["beam.py"]


def command(source, tokenizer_dir, output, *flags):
    """Every file is a unit, and none waits for others to fill it."""
    program = (
        "from data_prep.sources import corpus\n"
        "corpus.UNIT_BYTES = 20_000\n"
        "from data_prep.build import main\n"
        "import sys\n"
        "if __name__ == '__main__': main(sys.argv[1:])\n"
    )
    flags = [f"--input={source}", f"--tokenizer={tokenizer_dir}", f"--output={output}", *flags]
    return [sys.executable, "-c", program, *flags, "--num_shards=4", "--workers=1"]


def start(arguments):
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def shas(directory):
    manifest = Manifest.read(directory)
    shards = {s.name: s.sha256 for shards in manifest.splits.values() for s in shards}
    return shards | manifest.statistics["files"]


def beam_flags(runner):
    pytest.importorskip("apache_beam")
    if runner == "dask":
        pytest.importorskip("distributed")
    return ["--runner=beam", f"--beam_options=--runner={RUNNERS[runner]}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer_dir):
    """A source, and the hashes of the data set that is built of it without Beam."""
    directory = tmp_path_factory.mktemp("beam")
    for i in range(12):
        write_jsonl(directory / f"{i:02}.jsonl", make_documents(400, seed=i))
    source = str(directory / "*.jsonl")
    process = start(command(source, tokenizer_dir, directory / "data"))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return source, shas(directory / "data")


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_same_bytes_in_several_processes(tmp_path, tokenizer_dir, whole, runner):
    source, expected = whole
    process = start(command(source, tokenizer_dir, tmp_path / "data", *beam_flags(runner)))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert shas(tmp_path / "data") == expected


def children(pid):
    """The processes below one, the deepest last."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found + [below for child in found for below in children(child)]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks processes up in /proc")
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_worker_is_killed_and_the_build_resumed(tmp_path, tokenizer_dir, whole, runner):
    source, expected = whole
    data = tmp_path / "data"
    arguments = command(source, tokenizer_dir, data, *beam_flags(runner))
    process = start(arguments)
    deadline = time.monotonic() + 120
    while len(list((data / ".build" / "units").glob("*.npz"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "nothing was built"
        time.sleep(0.01)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    try:  # Dask starts another worker; Beam's own runner may wait for the lost one for ever
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    for _ in range(2):
        process = start(arguments)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    assert shas(data) == expected
    assert not (data / ".build").exists()
