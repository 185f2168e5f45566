"""The Dockerfiles, as far as that goes without building them."""

import re

import pytest
from standins import ROOT

from bert_jax.planning import launch_file


@pytest.mark.parametrize(("name", "target"), [("tpu", "gke"), ("cuda", "slurm")])
def test_images_install_what_the_workers_install(name, target):
    extras = ",".join(launch_file._EXTRAS[target])
    text = (ROOT / "launch" / f"{name}.Dockerfile").read_text()
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in instructions]
    assert [word for word, _ in words] == ["FROM", "WORKDIR", "COPY", "ARG", "RUN", "ENV", "CMD"]
    values = dict(words)
    assert values["ARG"] == f"EXTRAS={extras}"
    assert (
        values["RUN"] == 'python -m pip install --no-cache-dir -c constraints.txt -e ".[$EXTRAS]"'
    )
    worker = (ROOT / "launch" / "worker.sh").read_text()
    assert '-m pip install --quiet -c constraints.txt -e ".[$1]"' in worker
    # gke.sh runs worker.sh by this path, with the image's own Python.
    assert values["WORKDIR"] == "/bert_jax"
    assert "PYTHON=python" in values["ENV"].split()
    # The versions in constraints.txt are for this Python.
    python = re.search(r"python:(3\.\d+)", values["FROM"])[1]
    assert f"(Python {python}," in (ROOT / "constraints.txt").read_text()
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{extra}": [' in setup for extra in extras.split(","))
