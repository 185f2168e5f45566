"""Every launch script against stand-ins: sequence, quoting, failures, recreation."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from standins import ROOT, SHA, archive_in_place, verbs

LIST = r"^gcloud compute tpus \S+ list"
STATUS = r"worker\.sh status"
ABSENT, ACTIVE, SUSPENDED = ("\n", 0), ("ACTIVE\n", 0), ("SUSPENDED\n", 0)
SUSPENDING = ("SUSPENDING\n", 0)
RUNNING = ("running\thost-0\tstep 10\nrunning\thost-1\t\n", 0)
FINISHED = ("exited 0\thost-0\tdone\nexited 0\thost-1\t\n", 0)
CRASHED = ("running\thost-0\tstep 10\nexited 1\thost-1\tOut of memory\n", 0)
SAVED = ("exited 75\thost-0\tsaved\nexited 75\thost-1\t\n", 0)
ABORTED = ("exited 255\thost-0\t\nrunning\thost-1\t\n", 0)
MISTAKE = ("exited 2\thost-0\terror: \nexited 2\thost-1\terror: \n", 0)
BEGIN = ["create", "list", "scp", "install", "start"]


def scripts() -> list[pathlib.Path]:
    return sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])


def test_shellcheck_is_clean():
    shellcheck = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    assert shellcheck, "pip install -e '.[test]' brings shellcheck"
    result = subprocess.run(
        [shellcheck, "--external-sources", *scripts()], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


@pytest.fixture
def tpu(standins, launch_file):
    """tpu(command, states, statuses, **changes): runs launch/tpu.sh; what it is told in turn."""

    def run(command="up", states=(ABSENT, ACTIVE), statuses=(RUNNING, FINISHED), **changes):
        standins.rules += [(LIST, states), (STATUS, statuses)]
        return standins.run("launch/tpu.sh", launch_file("tpu", **changes), *command.split())

    return run


def test_tpu_from_creation_to_deletion(tpu, standins):
    result = tpu(spot=True, service_account="a@b.c", create_flags=["--labels=for=a paper"])
    assert result.returncode == 0, result.stderr
    calls = standins.calls("gcloud")
    assert verbs(calls) == ["list", *BEGIN, "list", "status", "list", "status", "delete"]
    where = ["--project=my-project", "--zone=us-west4-a", "--quiet"]
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    assert calls[1] == [
        *queued,
        "create",
        "bert-base",
        *where,
        "--accelerator-type=v5litepod-16",
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=bert-base",
        "--spot",
        "--service-account=a@b.c",
        "--labels=for=a paper",
    ]
    archive = f"{standins.home}/tmp/bert_jax-{SHA}.tar.gz"
    every = ["--node=all", "--worker=all"]
    assert calls[3] == [*queued, "scp", archive, "bert-base:bert_jax.tar.gz", *where, *every]
    assert calls[4] == [
        *[*queued, "ssh", "bert-base", *where, *every],
        "--command=rm -rf bert_jax && mkdir bert_jax && tar -xzf bert_jax.tar.gz -C bert_jax"
        " && bash bert_jax/launch/worker.sh install tpu,gcs",
    ]
    assert calls[5][-1] == (
        "--command=bash bert_jax/launch/worker.sh start --config=configs/bert_base.py"
        " --config.data_dir=gs://bucket/data --workdir=gs://bucket/run"
    )
    assert calls[-1] == [*queued, "delete", "bert-base", *where, "--force"]
    assert ["git", "archive", "--format=tar.gz", f"--output={archive}", SHA] in standins.calls(
        "git"
    )


def test_tpu_without_a_queue_and_on_demand(tpu, standins):
    result = tpu(provisioning="direct", states=(ABSENT, ("READY\n", 0)))
    assert result.returncode == 0, result.stderr
    calls = standins.calls("gcloud")
    assert all(call[3] == "tpu-vm" for call in calls)
    assert "--version=v2-alpha-tpuv5-lite" in calls[1]
    assert not any(flag.startswith(("--spot", "--node")) for call in calls for flag in call)
    assert calls[-1][-1] == "--quiet"  # tpu-vm delete has no --force


def test_tpu_with_several_slices(tpu, standins):
    assert tpu(num_slices=4).returncode == 0
    create = standins.calls("gcloud")[1]
    assert {"--node-count=4", "--node-prefix=bert-base"} <= set(create)
    assert not any(flag.startswith("--node-id") for flag in create)


ODD = """gs://bucket/it's a "run" $HOME"""


def test_quotes_survive_both_shells(tpu, standins):
    result = tpu(workdir=ODD, env={"LIBTPU_INIT_ARGS": "--a=1 --b='2'", "B": "$HOME *"})
    assert result.returncode == 0, result.stderr
    calls = standins.calls("gcloud")
    command = next(call[-1] for call in calls if "worker.sh start" in call[-1])
    words = shlex.split(command.removeprefix("--command="))
    script = ["bash", "bert_jax/launch/worker.sh", "start"]
    assert words[:6] == ["env", "LIBTPU_INIT_ARGS=--a=1 --b='2'", "B=$HOME *", *script]
    assert words[-1] == f"--workdir={ODD}"


@pytest.mark.parametrize("target", ["tpu", "gke", "slurm"])
def test_a_dry_run_can_be_pasted(target, standins, launch_file):
    archive_in_place(standins)
    path = launch_file(target, workdir=ODD, env={"A": "1 2"}, create_flags=["--labels=for=a paper"])
    dry = standins.run(f"launch/{target}.sh", path, "up", "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert standins.calls() == []
    pasted = standins.run("bash", "-euc", dry.stdout)
    assert pasted.returncode == 0, pasted.stderr
    calls = standins.calls()
    standins.rules += [(LIST, (ABSENT, ACTIVE)), (STATUS, (FINISHED,))]
    result = standins.run(f"launch/{target}.sh", path, "up")
    assert result.returncode == 0, result.stderr
    if target == "tpu":
        # Before creating, a real run looks for what is there already.
        assert calls == standins.calls()[1:]
    else:
        assert calls == standins.calls()


@pytest.mark.parametrize(
    "pattern",
    [
        LIST,
        " create ",
        "^git archive",
        " scp ",
        r"worker\.sh install",
        r"worker\.sh start",
        " delete ",
    ],
)
def test_a_failing_step_prints_the_delete_command(tpu, standins, pattern):
    standins.reply(pattern, ("", 3))
    result = tpu()
    assert result.returncode != 0
    *_, warning, command = result.stderr.splitlines()
    assert "may cost money" in warning
    assert shlex.split(command) == [
        *["gcloud", "compute", "tpus", "queued-resources", "delete", "bert-base"],
        *["--project=my-project", "--zone=us-west4-a", "--quiet", "--force"],
    ]
    # Nothing runs behind a failed step.
    calls = [" ".join(call) for call in standins.calls("gcloud", "git")]
    assert [call for call in calls if re.search(pattern, call)] == calls[-1:]


def test_a_queue_that_fails_is_not_waited_for(tpu, standins):
    result = tpu(states=(ABSENT, ("WAITING_FOR_RESOURCES\n", 0), ("FAILED\n", 0)))
    assert result.returncode == 1
    assert verbs(standins.calls("gcloud")) == ["list", "create", "list", "list"]
    assert "is lost" in result.stderr and "queued-resources delete" in result.stderr


def test_preempted_slices_are_made_again_and_the_run_resumes(tpu, standins):
    states = (ABSENT, ACTIVE, ACTIVE, SUSPENDING, SUSPENDING, SUSPENDED, ACTIVE)
    result = tpu(states=states, statuses=(RUNNING, RUNNING, FINISHED))
    assert result.returncode == 0, result.stderr
    assert "restart 1 of 2" in result.stderr
    assert verbs(standins.calls("gcloud")) == [
        *["list", *BEGIN, "list", "status", "list"],
        *["list", "list", "delete", *BEGIN, "list", "status", "list", "status", "delete"],
    ]
    starts = [call[-1] for call in standins.calls("gcloud") if "worker.sh start" in call[-1]]
    assert len(starts) == 2 and starts[0] == starts[1]


def test_no_capacity_after_a_preemption_is_tried_again(tpu, standins):
    standins.reply(" create ", ("", 0), ("no capacity", 1), ("", 0))
    states = (
        ABSENT,
        ("READY\n", 0),
        ("PREEMPTED\n", 0),
        ("PREEMPTED\n", 0),
        ABSENT,
        ("READY\n", 0),
    )
    result = tpu(states=states, statuses=(FINISHED,), provisioning="direct")
    assert result.returncode == 0, result.stderr
    assert verbs(standins.calls("gcloud")).count("create") == 3
    assert "restart 2 of 2" in result.stderr


@pytest.mark.parametrize("ended", [CRASHED, SAVED, ABORTED], ids=["crashed", "saved", "aborted"])
def test_a_crashed_run_resumes_on_the_same_slices(tpu, standins, ended):
    result = tpu(statuses=(ended, FINISHED))
    assert result.returncode == 0, result.stderr
    assert verbs(standins.calls("gcloud")) == [
        *["list", *BEGIN, "list", "status"],
        *["list", "stop", "list", "scp", "install", "start", "list", "status", "delete"],
    ]


def test_restarts_have_a_limit(tpu, standins):
    result = tpu(statuses=(CRASHED,), max_restarts=2)
    assert result.returncode == 1
    assert verbs(standins.calls("gcloud")).count("start") == 3
    assert "given up after 2 restarts" in result.stderr
    assert "queued-resources delete bert-base" in result.stderr.splitlines()[-1]
    assert "delete" not in verbs(standins.calls("gcloud"))


def test_a_users_mistake_is_not_tried_again(tpu, standins):
    result = tpu(statuses=(MISTAKE,))
    assert result.returncode == 2
    assert verbs(standins.calls("gcloud")).count("start") == 1
    assert "queued-resources delete bert-base" in result.stderr.splitlines()[-1]


def test_up_again_watches_what_is_running(tpu, standins):
    result = tpu(states=(ACTIVE,), statuses=(RUNNING, RUNNING, FINISHED))
    assert result.returncode == 0, result.stderr
    assert verbs(standins.calls("gcloud")) == [
        *["list", "status", "list", "status", "list", "status", "delete"]
    ]


def test_up_again_starts_all_workers_where_not_all_are_running(tpu, standins):
    result = tpu(states=(ACTIVE,), statuses=(CRASHED, FINISHED))
    assert result.returncode == 0, result.stderr
    assert verbs(standins.calls("gcloud")) == [
        *["list", "status", "stop", "list", "scp", "install", "start"],
        *["list", "status", "delete"],
    ]


def test_up_installs_on_a_slice_that_is_new(tpu, standins):
    no_script = ("", 127)
    result = tpu(states=(ACTIVE,), statuses=(no_script, FINISHED))
    assert result.returncode == 0, result.stderr
    assert verbs(standins.calls("gcloud")) == [
        *["list", "status", "list", "scp", "install", "start", "list", "status", "delete"]
    ]


def test_workers_that_do_not_answer_for_a_while_are_asked_again(tpu, standins):
    silent = ("", 255)
    result = tpu(statuses=(silent, silent, RUNNING, silent, FINISHED))
    assert result.returncode == 0, result.stderr
    assert verbs(standins.calls("gcloud")).count("start") == 1


def test_single_steps_of_tpu(tpu, standins):
    for command, expected in [
        ("create", ["create"]),
        ("install", ["scp", "install"]),
        ("start", ["start"]),
        ("watch", ["list", "status", "list", "status"]),
        ("log", ["log"]),
        ("stop", ["stop"]),
        ("delete", ["delete"]),
    ]:
        result = tpu(command, states=(ACTIVE,))
        assert result.returncode == 0, result.stderr
        assert verbs(standins.calls("gcloud")) == expected, command


@pytest.mark.parametrize("target", ["tpu", "gke", "slurm"])
def test_secrets_are_on_no_command_line_and_in_no_log(target, standins, launch_file, tmp_path):
    secrets = tmp_path / "my secrets"
    secrets.write_text("HF_TOKEN=hf_verysecret\n")
    secrets.chmod(0o600)
    path = launch_file(target, secrets_file=str(secrets))
    for arguments in (["up", "--dry_run"], ["start"], ["install"] if target == "tpu" else ["stop"]):
        result = standins.run(f"launch/{target}.sh", path, *arguments)
        assert result.returncode == 0, result.stderr
        assert "verysecret" not in result.stdout + result.stderr + json.dumps(standins.calls())
    dry = standins.run(f"launch/{target}.sh", path, "up", "--dry_run")
    assert str(secrets) in dry.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up"], "usage: launch/tpu.sh FILE.toml COMMAND"),
        (["FILE", "fly"], "unknown command fly: expected one of up create"),
        (["FILE", "up", "--dry-run"], "unknown flag --dry-run"),
        (["none.toml", "up"], "none.toml cannot be read"),
        (["gke", "up"], "has the target gke: use launch/gke.sh"),
    ],
)
def test_mistakes_on_the_command_line(standins, launch_file, arguments, message):
    files = {"FILE": launch_file("tpu"), "gke": launch_file("gke")}
    result = standins.run("launch/tpu.sh", *(files.get(a, a) for a in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert standins.calls() == []


def test_gke_from_cluster_to_job_set(standins, launch_file):
    path = launch_file("gke", num_slices=2, spot=True, env={"A": "1 2"}, extras=["wandb"])
    standins.reply("^docker build", ("", 0))
    archive_in_place(standins)
    result = standins.run("launch/gke.sh", path, "up")
    assert result.returncode == 0, result.stderr
    where = ["--cluster=bert", "--project=my-project", "--zone=us-west4-a"]
    slices = ["--tpu-type=v5litepod-16", "--num-slices=2"]
    image = f"pkg.dev/p/bert:{SHA}"
    create, build, push, start, watch = standins.calls()
    assert create == ["xpk", "cluster", "create", *where, *slices, "--spot"]
    assert build[:2] == ["docker", "build"]
    assert {f"--tag={image}", "--build-arg=EXTRAS=tpu,gcs,wandb"} <= set(build)
    assert push == ["docker", "push", image]
    assert start == [
        *["xpk", "workload", "create", "--workload=bert-base", *where, *slices],
        *[f"--docker-image={image}", "--max-restarts=2", "--restart-on-exit-codes=1,3-126"],
        "--termination-grace-period-seconds=300",
        "--command=exec env 'A=1 2' bash /bert_jax/launch/worker.sh run"
        " --config=configs/bert_base.py --config.data_dir=gs://bucket/data"
        " --workdir=gs://bucket/run",
    ]
    assert watch == ["xpk", "workload", "list", *where, "--wait-for-job-completion=bert-base"]
    assert "xpk cluster delete --cluster=bert" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "pattern",
    ["cluster create", "^docker build", "^docker push", "workload create", "workload list"],
)
def test_a_failing_step_on_gke_prints_the_delete_command(standins, launch_file, pattern):
    standins.reply(pattern, ("", 3))
    archive_in_place(standins)
    result = standins.run("launch/gke.sh", launch_file("gke"), "up")
    assert result.returncode == 3
    assert re.search(pattern, " ".join(standins.calls()[-1]))
    assert shlex.split(result.stderr.splitlines()[-1]) == [
        *["xpk", "cluster", "delete", "--cluster=bert", "--project=my-project"],
        *["--zone=us-west4-a", "--force"],
    ]


def test_single_steps_of_gke(standins, launch_file):
    path = launch_file("gke", num_slices=8)
    assert standins.run("launch/gke.sh", path, "log").returncode == 0
    credentials, pods, logs = standins.calls()
    assert logs[-1] == "--max-log-requests=8"
    assert credentials[-1] == "--region=us-west4"
    assert pods[:3] == ["kubectl", "get", "pods"] and logs[:2] == ["kubectl", "logs"]
    assert standins.run("launch/gke.sh", path, "stop").returncode == 0
    assert standins.calls()[0][1:4] == ["workload", "delete", "--workload=bert-base"]
    assert standins.run("launch/gke.sh", path, "delete").returncode == 0
    assert standins.calls()[0][1:3] == ["cluster", "delete"]


def test_dataflow_builds_and_checks(standins, launch_file):
    recorder = standins.home / "bin" / "python-stand-in"
    shutil.copy(standins.home / "bin" / "gcloud", recorder)
    # The launch file is read by Python itself; building and checking are recorded.
    wrapper = standins.home / "python"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *data_prep*) exec "{recorder}" "$@" ;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    wrapper.chmod(0o755)
    standins.environment = {"PYTHON": str(wrapper)}
    path = launch_file(
        "dataflow",
        build_flags=["--max_seq_length=128"],
        create_flags=["--labels=for=a paper"],
        service_account="a@b.c",
    )
    result = standins.run("launch/dataflow.sh", path, "up")
    assert result.returncode == 0, result.stderr
    build, check = standins.calls()
    assert build[1:] == [
        *["-m", "data_prep.build", "--input=gs://bucket/text/*.txt"],
        *["--tokenizer=bert-base-uncased", "--output=gs://bucket/data", "--max_seq_length=128"],
        *["--runner=beam", build[-1]],
    ]
    options = shlex.split(build[-1].removeprefix("--beam_options="))
    assert options == [
        *["--runner=DataflowRunner", "--project=my-project", "--region=us-west4"],
        *["--job_name=bert-data", "--temp_location=gs://bucket/data/.dataflow"],
        *["--setup_file=./setup.py", "--requirements_file=launch/dataflow_requirements.txt"],
        *["--requirements_cache=skip", "--max_num_workers=32"],
        *["--service_account_email=a@b.c", "--labels=for=a paper"],
    ]
    assert check[1:] == ["-m", "data_prep.check", "gs://bucket/data"]
    # A failure names the command that ends the job, and that one does.
    standins.reply("data_prep.build", ("", 1))
    result = standins.run("launch/dataflow.sh", path, "up")
    assert result.returncode == 1 and len(standins.calls()) == 1
    standins.reply("jobs list", ("2026-11_id\n", 0))
    result = standins.run(*shlex.split(result.stderr.splitlines()[-1]))
    assert result.returncode == 0, result.stderr
    assert standins.calls()[1] == [
        *["gcloud", "dataflow", "jobs", "cancel", "2026-11_id"],
        *["--project=my-project", "--region=us-west4"],
    ]
    dry = standins.run("launch/dataflow.sh", path, "stop", "--dry_run")
    assert "gcloud dataflow jobs cancel JOB_ID --project=my-project" in dry.stdout
