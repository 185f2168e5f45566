"""launch/slurm.sh with stand-ins for Slurm's commands."""

import re
import shutil

import pytest
from standins import ROOT, SHA, archive_in_place


def test_slurm_submits_one_process_a_node(standins, launch_file, tmp_path):
    archive_in_place(standins)
    path = launch_file("slurm", workdir="/shared/my run", create_flags=["--partition=gpu"])
    result = standins.run("launch/slurm.sh", path, "up")
    assert result.returncode == 0, result.stderr
    asked, submit, queue, tail = standins.calls()
    assert asked == ["squeue", "--name=bert-base", "--me", "--noheader"]
    project = f"{tmp_path}/shared/bert_jax-{SHA}"
    assert submit == [
        *["sbatch", "--job-name=bert-base", "--nodes=2", "--gpus-per-node=8"],
        *["--cpus-per-task=32", "--time=12:00:00", f"--output={tmp_path}/shared/bert-base.log"],
        *["--partition=gpu", f"{project}/launch/slurm.sbatch", f"{project}/launch/worker.sh", "2"],
        *["--config=configs/bert_base.py", "--config.data_dir=/shared/data"],
        "--workdir=/shared/my run",
    ]
    assert queue == ["squeue", "--name=bert-base", "--me"]
    assert tail[0] == "tail"
    assert standins.run("launch/slurm.sh", path, "stop").returncode == 0
    assert standins.calls() == [["scancel", "--name=bert-base", "--me"]]


def test_a_slurm_job_takes_the_python_that_was_installed_for_it(standins, launch_file):
    archive_in_place(standins)
    seen = standins.home / "seen"
    (standins.home / "bin" / "sbatch").write_text(
        f'#!/bin/sh\necho "${{PYTHON-none}} $A" >"{seen}"\n'
    )
    result = standins.run("launch/slurm.sh", launch_file("slurm", env={"A": "b"}), "start")
    assert result.returncode == 0, result.stderr
    assert seen.read_text() == "none b\n"  # standins.run sets PYTHON


def test_a_slurm_job_that_is_there_is_not_submitted_again(standins, launch_file):
    standins.reply("^squeue .*--noheader", ("17 gpu bert-base me R 1:00 2 n[1-2]\n", 0))
    result = standins.run("launch/slurm.sh", launch_file("slurm"), "up")
    assert result.returncode == 0, result.stderr
    assert [call[0] for call in standins.calls()] == ["squeue", "squeue", "tail"]
    assert "bert-base is queued or running already" in result.stderr


@pytest.fixture
def slurm_job(standins, tmp_path):
    """slurm_job(code, codes): runs slurm.sbatch once; its tasks end so, and srun with `code`."""
    project = tmp_path / "shared" / "bert_jax-sha"
    worker = project / "launch" / "worker.sh"
    worker.parent.mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "worker.sh", worker)
    shutil.copy(ROOT / "launch" / "slurm.sbatch", worker.parent)

    def run(code: int, codes: tuple[int, ...] = (), max_restarts: int = 2):
        tasks = f"{project}-run/slurm-7/codes"
        write = "".join(f"echo {c} >'{tasks}/{i}'\n" for i, c in enumerate(codes))
        recorder = (standins.home / "bin" / "scancel").read_text()
        if not (standins.home / "bin" / "srun-recorder").exists():
            (standins.home / "bin" / "srun-recorder").write_text(recorder)
            (standins.home / "bin" / "srun-recorder").chmod(0o755)
        (standins.home / "bin" / "srun").write_text(
            f'#!/bin/bash\n"{standins.home}/bin/srun-recorder" "$@"\n{write}exit {code}\n'
        )
        standins.environment = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "32"}
        result = standins.run(
            *("bash", str(worker.parent / "slurm.sbatch"), str(worker), str(max_restarts)),
            f"--workdir={run.workdir}",
        )
        run.requeued = ["scontrol", "requeue", "7"] in standins.calls()
        return result

    run.workdir, run.worker = tmp_path / "my run", worker
    return run


def test_the_slurm_job_runs_one_task_a_node(slurm_job, standins):
    assert slurm_job(0).returncode == 0
    (srun,) = standins.calls()
    assert srun[1:] == [
        *["--cpus-per-task=32", "--kill-on-bad-exit=1", "bash", str(slurm_job.worker), "task"],
        f"--workdir={slurm_job.workdir}",
    ]


@pytest.mark.parametrize(("code", "codes"), [(2, (2, 2)), (143, (2, 143)), (143, (143, 2))])
def test_a_users_error_of_any_slurm_task_ends_the_job(slurm_job, code, codes):
    result = slurm_job(code, codes)
    assert result.returncode == 2 and not slurm_job.requeued
    assert result.stderr.endswith("exit code 2, a user error: retrying does not help, see above\n")
    # Of a run before, a code counts no more.
    slurm_job(137, (137, 143))
    assert slurm_job.requeued


def test_slurm_restarts_without_a_new_checkpoint_between_them_count(slurm_job):
    def checkpoint(step: int) -> None:
        (slurm_job.workdir / "checkpoints" / str(step)).mkdir(parents=True)

    said = []
    for code in (75, 1, 75, 137, 75, 75):  # more than max_restarts, each with a new checkpoint
        checkpoint(10 * (len(said) + 1))
        said.append(slurm_job(code).stderr)
        assert slurm_job.requeued
    assert said[-1] == "exit code 75, the newest checkpoint is 60: restart 1 of 2 since it\n"
    assert "restart 2 of 2" in slurm_job(1).stderr and slurm_job.requeued
    (slurm_job.workdir / "checkpoints" / "61.orbax-checkpoint-tmp").mkdir()
    result = slurm_job(1)
    assert result.returncode == 1 and not slurm_job.requeued
    assert "given up after 2 restarts in a row without a new checkpoint" in result.stderr


def test_slurm_restarts_of_a_run_without_a_checkpoint_count(slurm_job):
    assert "the newest checkpoint is none: restart 1 of 1" in slurm_job(1, max_restarts=1).stderr
    assert slurm_job(1, max_restarts=1).returncode == 1 and not slurm_job.requeued


def test_slurm_asks_for_one_process_a_node_and_time_to_save():
    options = re.findall("^#SBATCH (.*)", (ROOT / "launch/slurm.sbatch").read_text(), re.M)
    assert {"--ntasks-per-node=1", "--requeue", "--signal=TERM@300"} <= set(options)
