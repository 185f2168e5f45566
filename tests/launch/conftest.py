"""Launch files, and stand-ins for the programs that launch with them."""

import pytest
from standins import StandIns, write_toml

TRAINING = {
    "name": "bert-base",
    "config": "configs/bert_base.py",
    "data_dir": "gs://bucket/data",
    "workdir": "gs://bucket/run",
    "max_restarts": 2,
}
SLICE = {"project": "my-project", "zone": "us-west4-a", "accelerator_type": "v5litepod-16"}
TARGETS = {
    "tpu": TRAINING | SLICE,
    "gke": TRAINING | SLICE | {"cluster": "bert", "image": "pkg.dev/p/bert"},
    "slurm": TRAINING
    | {"nodes": 2, "gpus_per_node": 8, "cpus_per_node": 32, "time": "12:00:00"}
    | {"data_dir": "/shared/data", "workdir": "/shared/run"},
    "dataflow": {
        "name": "bert-data",
        "project": "my-project",
        "region": "us-west4",
        "input": "gs://bucket/text/*.txt",
        "tokenizer": "bert-base-uncased",
        "data_dir": "gs://bucket/data",
    },
}


@pytest.fixture
def standins(tmp_path) -> StandIns:
    home = tmp_path / "stand-ins"
    home.mkdir()
    return StandIns(home)


@pytest.fixture
def launch_file(tmp_path):
    """launch_file(target, **changes): a file for the target; a change to None drops a key."""

    def write(target: str, /, **changes) -> str:
        keys = {"target": target} | TARGETS[target]
        if target == "slurm":
            keys["install_dir"] = str(tmp_path / "shared")
        keys |= changes
        # A space in the name: whoever forgets quotes notices.
        path = tmp_path / f"launch file {target}.toml"
        return write_toml(path, **{k: v for k, v in keys.items() if v is not None})

    return write
