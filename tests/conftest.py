"""The environment of all tests, and a config that trains in seconds on a small data set."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

# XLA's CPU collectives deadlock when virtual devices outnumber the thread pool (2 cores).
os.environ["NPROC"] = "16"
# A quarter of the time to compile, and the same arithmetic.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Most of the suite's time would be compiling the same programs again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir(), "bert_jax_tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import bucket_server as bucket_servers
import pytest
from small_finetune import make_pretrained
from small_run import make_data_dir, small_config

from bert_jax.cli import use_patient_buckets


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("data")
    return make_data_dir(directory, {"train": [150, 100, 70], "validation": [45]})


@pytest.fixture
def config(data_dir):
    return small_config(data_dir)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> pathlib.Path:
    """What small fine-tunings begin with."""
    return make_pretrained(tmp_path_factory.mktemp("pretrained") / "workdir")


@pytest.fixture
def one_thread():
    """torch on one thread: so small a model is fastest so, above all on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory) -> Iterator[bucket_servers.Server]:
    """A real server of the Cloud Storage API on this machine."""
    if reason := bucket_servers.missing():
        pytest.skip(reason)
    server = bucket_servers.Server(tmp_path_factory.mktemp("bucket") / "server.log")
    yield server
    server.close()


@pytest.fixture
def bucket(bucket_server, monkeypatch) -> bucket_servers.Server:
    """The server with its bucket empty: what gs://bucket leads to in this process, and below it."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    use_patient_buckets()
    bucket_server.delete()
    bucket_server.requests.clear()
    return bucket_server
