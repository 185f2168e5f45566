"""What XPK makes of launch/gke.sh's commands, against the published schemas of Kubernetes."""

import json
import os
import shlex
import subprocess
import sys
import venv

import pytest
import yaml
from standins import ROOT

pytestmark = pytest.mark.slow
PACKAGES = ("xpk==1.16.0", "kubernetes-validate==1.37.0")
# The oldest and the newest version of GKE's release channels in 2026-11 that the schemas have.
VERSIONS = ("1.31", "1.37")


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> str:
    """The programs of an environment with XPK and the schemas, whose packages are no one else's."""
    directory = tmp_path_factory.mktemp("xpk")
    venv.create(directory, with_pip=True)
    command = [directory / "bin" / "pip", "install", "--quiet", *PACKAGES]
    subprocess.run(command, check=True, timeout=600)
    return str(directory / "bin")


def dry_run(tools: str, path: str, command: str, code: int = 0) -> str:
    """What XPK says to the command that launch/gke.sh prints, in its own dry run."""
    printed = subprocess.run(
        ["launch/gke.sh", path, command, "--dry_run"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("xpk ")]
    result = subprocess.run(
        [*shlex.split(line), "--dry-run"],
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("slices", [1, 8])
def test_the_job_set_is_what_kubernetes_takes(tools, launch_file, slices, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.write_text("HF_TOKEN=x\n")
    secrets.chmod(0o600)
    path = launch_file("gke", num_slices=slices, env={"A": "1 2"}, secrets_file=str(secrets))
    said = dry_run(tools, path, "start")
    manifest = yaml.safe_load(said.partition(") content: \n")[2].partition("\n[XPK]")[0])
    assert manifest["kind"] == "JobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 2
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == slices
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    job |= replicated["template"]
    for version in VERSIONS:
        program = (
            "import json, sys, kubernetes_validate as k\n"
            f"k.validate(json.load(sys.stdin), {version!r}, strict=True)"
        )
        command = [f"{tools}/python", "-c", program]
        result = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    # A user error ends the job set, everything else restarts it.
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    restarting = rule["onExitCodes"]["values"]
    assert rule["onExitCodes"]["operator"] == "NotIn" and rule["action"] == "FailJob"
    assert 2 not in restarting and {1, 75, 137, 143} <= {*restarting}
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert "exec env 'A=1 2' bash /bert_jax/launch/worker.sh run" in container["command"][-1]


@pytest.mark.parametrize("command", ["create", "stop", "delete"])
def test_xpk_takes_the_other_commands(tools, launch_file, command):
    assert "Exiting XPK cleanly" in dry_run(tools, launch_file("gke"), command)


def test_xpk_takes_watch(tools, launch_file):
    """Its dry run asks no cluster, and then misses the workload that it was to wait for."""
    said = dry_run(tools, launch_file("gke"), "watch", code=1)
    assert "Workload named bert-base does not exist" in said
