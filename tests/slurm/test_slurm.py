"""launch/slurm.sh on a real Slurm of two nodes: two tasks are one run, which survives."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from small_run import ROOT, overrides
from two_processes import free_port

from bert_jax.runs import telemetry
from tests.slurm import cluster as clusters
from tests.slurm.cluster import Cluster, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(clusters.missing()), reason=clusters.missing() or "-"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("slurm"), [free_port() for _ in range(3)])
    yield started
    started.close()


class Job:
    """A run submitted by launch/slurm.sh, and what becomes of it."""

    def __init__(self, cluster: Cluster, directory: pathlib.Path, flags: dict[str, str], **keys):
        self.cluster, self.name = cluster, "job"
        self.workdir, self.log = directory / "run", directory / "job.log"
        self.project = cluster.install(directory)
        keys = {
            "target": "slurm",
            "name": self.name,
            "config": "configs/bert_tiny.py:laptop",
            "data_dir": flags.pop("data_dir"),
            "workdir": str(self.workdir),
            "install_dir": str(directory),
            "nodes": 2,
            "gpus_per_node": 1,
            "cpus_per_node": 2,
            "time": "01:00:00",
            "max_restarts": 1,
        } | keys
        cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
        tables = {
            "env": {"JAX_PLATFORMS": "cpu", "NPROC": "16", "JAX_COMPILATION_CACHE_DIR": cache},
            "overrides": flags,
        }
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for table, values in tables.items():
            text += f"[{table}]\n"
            text += "".join(f'"{key}" = {json.dumps(value)}\n' for key, value in values.items())
        self.file = directory / "launch.toml"
        self.file.write_text(text)

    def launch(self, command: str) -> None:
        result = subprocess.run(
            ["launch/slurm.sh", str(self.file), command],
            cwd=ROOT,
            env=self.cluster.environment | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr

    @property
    def state(self) -> str:
        return self.cluster.job(self.name).get("JobState", "")

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def waits_for(self, condition, seconds: float = 300) -> None:
        pending_since = None

        def done() -> bool:
            nonlocal pending_since
            job = self.cluster.job(self.name)
            if job.get("JobState") != "PENDING":
                pending_since = None
            elif pending_since is None:
                pending_since = time.monotonic()
            elif time.monotonic() > pending_since + 10:
                # A requeued job would wait two minutes; what it was before has ended by now.
                command = ("scontrol", "update", f"jobid={job['JobId']}", "StartTime=now")
                self.cluster.run(*command, check=False)  # it may have started meanwhile
                pending_since = None
            return condition()

        def why() -> str:
            lines = self.said.splitlines()[-40:]
            daemons = [self.cluster.home / f"{name}.log" for name in ("slurmctld", "slurmd-n1")]
            for path in daemons:
                lines += path.read_text().splitlines()[-20:]
            return "\n".join([str(self.cluster.job(self.name)), *lines])

        wait_for(done, seconds, why)

    def waits_for_its_end(self) -> None:
        active = ("RUNNING", "PENDING", "COMPLETING", "REQUEUED")
        wait_for(lambda: self.state not in active, 90, lambda: self.state)

    @property
    def step(self) -> int:
        return max((line["step"] for line in telemetry.read(self.workdir)), default=0)

    def processes(self) -> list[int]:
        """The processes of pretrain, in the order of the tasks."""
        found = {}
        for pid in clusters.processes():
            if "-m bert_jax.pretrain" in clusters.command_of(pid):
                environment = clusters.environment_of(pid)
                if environment.get("SLURM_JOB_NAME") == self.name:
                    found[int(environment["SLURM_PROCID"])] = pid
        return [found[i] for i in sorted(found)]


@pytest.fixture
def job(cluster, config, tmp_path):
    """job(**keys): submits a run of two tasks; keys are of the launch file or the config."""
    config.update(num_steps=10**6, eval_every=0, checkpoint_every=20)
    config.optimizer.end_factor = 1.0
    started = []

    def submit(num_steps: int = 10**6, **keys) -> Job:
        config.num_steps = num_steps
        flags = dict(flag.removeprefix("--config.").split("=", 1) for flag in overrides(config))
        flags = {name: value for name, value in flags.items() if value}
        started.append(Job(cluster, tmp_path, flags, **keys))
        started[-1].launch("start")
        return started[-1]

    yield submit
    for run in started:
        run.launch("stop")
        run.waits_for_its_end()


def starts(workdir: pathlib.Path) -> list[int]:
    """The processes of each start of a run."""
    lines = (workdir / "starts.jsonl").read_text().splitlines()
    return [json.loads(line)["processes"] for line in lines]


def test_two_tasks_are_one_run(job):
    run = job(num_steps=30)
    run.waits_for(lambda: run.state in ("COMPLETED", "FAILED"))
    assert run.state == "COMPLETED", run.said
    assert starts(run.workdir) == [2] and run.step == 30
    assert run.said.count("step 30/30") == 1  # the first task alone speaks
    assert not list(run.project.with_name(f"{run.project.name}-run").glob("slurm-*"))


def test_time_limits_are_no_crashes_and_stop_ends_the_job(job, cluster):
    run = job()
    for number in range(1, 4):  # more often than max_restarts
        begun = run.step
        run.waits_for(lambda begun=begun: run.step > begun + 30)
        # Five minutes before its limit Slurm sends SIGTERM: now.
        number_of_job = cluster.job(run.name)["JobId"]
        cluster.run("scontrol", "update", f"jobid={number_of_job}", "TimeLimit=5")
        run.waits_for(lambda number=number: run.said.count("code 75, the newest") == number)
        cluster.run("scontrol", "update", f"jobid={number_of_job}", "TimeLimit=60")
    assert "restart 2 of" not in run.said
    last = run.step
    run.waits_for(lambda: run.step > last)
    assert starts(run.workdir) == [2] * 4
    run.launch("stop")
    run.waits_for(lambda: run.state == "CANCELLED", 60)
    wait_for(lambda: not run.processes(), 60, lambda: run.said)
    assert run.said.count(", the newest checkpoint is") == 3  # it did not requeue itself


def test_a_task_that_is_killed_restarts_both_until_there_is_no_progress(job):
    run = job()
    run.waits_for(lambda: run.step > 30)
    os.kill(run.processes()[1], signal.SIGKILL)
    run.waits_for(lambda: "restart 1 of 1 since it" in run.said)
    run.waits_for(lambda: len(starts(run.workdir)) == 2)
    assert starts(run.workdir) == [2, 2]
    step = run.step
    run.waits_for(lambda: run.step > step + 45)  # a new checkpoint, so that it counts from zero
    os.kill(run.processes()[0], signal.SIGKILL)
    run.waits_for(lambda: run.said.count("restart 1 of 1 since it") == 2)
    # Without one it does not.
    run.waits_for(lambda: len(run.processes()) == 2)
    os.kill(run.processes()[0], signal.SIGKILL)
    run.waits_for(lambda: run.state == "FAILED")
    assert "given up after 1 restarts in a row without a new checkpoint" in run.said


@pytest.mark.parametrize("attempt", range(3))
def test_a_users_error_is_not_requeued(job, cluster, attempt):
    run = job(data_dir="/nowhere")
    run.waits_for(lambda: run.state in ("FAILED", "COMPLETED"))
    assert cluster.job(run.name)["ExitCode"] == "2:0", run.said
    assert cluster.job(run.name)["Restarts"] == "0"
    assert "exit code 2, a user error: retrying does not help" in run.said


@pytest.mark.parametrize("attempt", range(3))
def test_a_wrong_flag_is_not_requeued(job, cluster, attempt):
    """launch/slurm.sh finds it before it submits; a job submitted by hand finds it on the nodes."""
    run = job(num_steps=1)
    run.launch("stop")
    run.waits_for_its_end()
    before = cluster.job(run.name)["JobId"]
    flags = ("--config=configs/bert_tiny.py:laptop", "--config.batchsize=3")
    cluster.run(
        *("sbatch", "--job-name=job", "--nodes=2", "--cpus-per-task=2", f"--output={run.log}"),
        *(str(run.project / "launch" / "slurm.sbatch"), str(run.project / "launch" / "worker.sh")),
        *("1", *flags, f"--workdir={run.workdir}"),
    )
    run.waits_for(lambda: cluster.job(run.name)["JobId"] != before)
    run.waits_for(lambda: run.state in ("FAILED", "COMPLETED"))
    assert cluster.job(run.name)["ExitCode"] == "2:0", run.said
    assert "batchsize" in run.said and cluster.job(run.name)["Restarts"] == "0"


def test_a_node_that_dies_is_waited_for(job, cluster):
    run = job()
    run.waits_for(lambda: run.step > 30)
    cluster.kill_node("n2")
    run.waits_for(lambda: run.state != "RUNNING")
    cluster.start_node("n2")
    step = run.step
    run.waits_for(lambda: run.step > step)
    assert starts(run.workdir) == [2, 2]
