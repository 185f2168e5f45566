"""The worker's side: environment, exit codes, and a launch that really trains."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time

import pytest
from small_run import numbers, overrides
from standins import ROOT

WORKER = ROOT / "launch" / "worker.sh"


def script(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def worker(tmp_path):
    """worker(*arguments, **environment): worker.sh of a project with nothing else in it."""
    project = tmp_path / "my project"
    script(project / "launch" / "worker.sh", WORKER.read_text())

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", project / "launch" / "worker.sh", *arguments],
            env={k: v for k, v in os.environ.items() if k != "PYTHON"}
            | {"LIBTPU_LOCKFILE": str(tmp_path / "no lock")}
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.project = project
    return run


@pytest.fixture
def echo(tmp_path) -> str:
    """A stand-in for Python that prints its arguments and environment as JSON."""
    return str(
        script(
            tmp_path / "echo",
            f"#!{sys.executable} -SE\nimport json, os, sys\n"
            "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n",
        )
    )


def test_install_makes_an_environment_with_the_pinned_versions(worker, tmp_path):
    record = f'echo "$0 $*" >>"{tmp_path}/calls"\n'
    tools = tmp_path / "tools"
    python = script(tmp_path / "python", f"#!/bin/sh\n{record}")
    making = f'#!/bin/sh\n{record}mkdir -p "$3/bin"\ncp "{python}" "$3/bin/python"\n'
    path = f"{tools}:{os.environ['PATH']}"
    # Debian without python3-venv: what is there then lacks pip.
    script(tools / "python3.11", f"{making}exit 1\n")
    assert worker("install", "tpu,gcs", PATH=path).returncode == 1
    script(tools / "python3.11", f'{making}cp "{python}" "$3/bin/pip"\n')
    for _ in range(2):  # the second finds the environment there
        result = worker("install", "tpu,gcs", PATH=path)
        assert result.returncode == 0, result.stderr
    venv = f"{worker.project}-venv"
    make = f"{tools}/python3.11 -m venv {venv}"
    install = f"{venv}/bin/python -m pip install --quiet -c constraints.txt -e .[tpu,gcs]"
    assert (tmp_path / "calls").read_text().splitlines() == [make, make, install, install]


def test_install_gets_python_where_the_machine_has_an_older_one(worker, tmp_path):
    record = f'echo "$(basename "$0") $*" >>"{tmp_path}/calls"\n'
    python = script(tmp_path / "python", f"#!/bin/sh\n{record}")
    tools = tmp_path / "tools"
    script(
        tools / "uv",
        f'#!/bin/sh\n{record}for last; do :; done\nmkdir -p "$last/bin"\n'
        f'cp "{python}" "$last/bin/python"\n',
    )
    for name in ("bash", "sh", "dirname", "basename", "mkdir", "cp"):
        (tools / name).symlink_to(pathlib.Path("/usr/bin", name))
    result = worker("install", "cuda12,gcs", PATH=str(tools))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"uv venv --seed --python=3.11 {worker.project}-venv",
        "python -m pip install --quiet -c constraints.txt -e .[cuda12,gcs]",
    ]


def test_run_hands_on_flags_secrets_and_the_place_among_the_workers(worker, echo, tmp_path):
    secrets = pathlib.Path(f"{worker.project}-secrets")
    secrets.write_text("# comment\nHF_TOKEN=a=b c\n\nLAST='quoted'")
    lock = tmp_path / "libtpu_lockfile"
    lock.write_text("")
    result = worker(
        "run",
        "--workdir=a b",
        PYTHON=echo,
        COORDINATOR="host:1234",
        NUM_PROCESSES="2",
        PROCESS_ID="1",
        LIBTPU_LOCKFILE=str(lock),
    )
    assert result.returncode == 0, result.stderr
    arguments, environment = json.loads(result.stdout)
    assert arguments == [
        *["-m", "bert_jax.pretrain", "--workdir=a b"],
        *["--coordinator=host:1234", "--num_processes=2", "--process_id=1"],
    ]
    assert environment["HF_TOKEN"] == "a=b c" and environment["LAST"] == "'quoted'"
    assert not lock.exists()


def test_run_leaves_to_jax_what_jax_finds_out(worker, echo):
    arguments, _ = json.loads(worker("run", "--a=b", PYTHON=echo).stdout)
    assert arguments == ["-m", "bert_jax.pretrain", "--a=b"]


def test_a_lock_in_use_is_left_alone(worker, echo, tmp_path):
    lock = tmp_path / "libtpu_lockfile"
    with lock.open("w"):
        worker("run", PYTHON=echo, LIBTPU_LOCKFILE=str(lock))
    assert lock.exists()


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SLOW_TO_END = """\
trap 'echo saved; exit 75' TERM
printf 'step 1\\rstep 2'
touch "$(dirname "$0")/started"
while :; do sleep 0.05; done
"""


def test_status_of_a_run_that_has_printed_nothing_yet(worker, tmp_path):
    pretrain = str(script(tmp_path / "pretrain", "#!/bin/bash\nexec sleep 30\n"))
    assert worker("start", PYTHON=pretrain).returncode == 0
    status = worker("status")
    assert status.returncode == 0, status.stderr
    assert status.stdout == f"running\t{socket.gethostname()}\t\n"
    assert worker("stop", "10").returncode == 0


def test_detached_run_reports_its_end(worker, tmp_path):
    pretrain = str(script(tmp_path / "pretrain", f"#!/bin/bash\n{SLOW_TO_END}"))
    assert worker("status").stdout.startswith("lost\t")
    assert worker("start", PYTHON=pretrain).returncode == 0
    wait_for((tmp_path / "started").exists)
    status = worker("status").stdout.rstrip("\n").split("\t")
    assert status == ["running", socket.gethostname(), "step 2"]
    pid = pathlib.Path(f"{worker.project}-run", "pid").read_text()
    assert worker("start", PYTHON=pretrain).returncode == 0  # changes nothing
    assert pathlib.Path(f"{worker.project}-run", "pid").read_text() == pid
    assert worker("stop", "30").returncode == 0
    wait_for(lambda: worker("status").stdout.startswith("exited 75\t"))
    assert worker("status").stdout.endswith("saved\n")


def test_what_does_not_end_is_killed(worker, tmp_path):
    deaf = SLOW_TO_END.replace("echo saved; exit 75", ":")
    pretrain = str(script(tmp_path / "pretrain", f"#!/bin/bash\n{deaf}"))
    worker("start", PYTHON=pretrain)
    wait_for((tmp_path / "started").exists)
    assert worker("stop", "1").returncode == 0
    wait_for(lambda: worker("status").stdout.startswith("exited 137\t"))


def test_a_shutdown_that_signals_every_process_leaves_the_exit_code(worker, tmp_path):
    pretrain = str(script(tmp_path / "pretrain", f"#!/bin/bash\n{SLOW_TO_END}"))
    worker("start", PYTHON=pretrain)
    wait_for((tmp_path / "started").exists)
    pid = int(pathlib.Path(f"{worker.project}-run", "pid").read_text())
    os.killpg(os.getpgid(pid), signal.SIGTERM)
    wait_for(lambda: worker("status").stdout.startswith("exited 75\t"))


GCLOUD = """#!{python} -SE
# Runs what would be run on the workers, each in its home directory; one slice is always there.
import os, pathlib, shutil, subprocess, sys
home = pathlib.Path({home!r})
workers = sorted(home.glob("worker-*"))
verb = sys.argv[4]
exists = home / "exists"
if verb == "create":
    exists.touch()
elif verb == "delete":
    exists.unlink()
elif verb == "list" and exists.exists():
    print("ACTIVE")
elif verb == "scp":
    for worker in workers:
        shutil.copy(sys.argv[5], worker / sys.argv[6].partition(":")[2])
elif verb == "ssh":
    command = next(a for a in sys.argv if a.startswith("--command=")).partition("=")[2]
    environment = {{k: v for k, v in os.environ.items() if k != "PYTHON"}}
    running = [
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=worker,
            env=environment | {{"HOME": str(worker), "PROCESS_ID": str(number)}},
        )
        for number, worker in enumerate(workers)
    ]
    sys.exit(max(process.wait() for process in running))
"""


@pytest.fixture
def cloud(tmp_path):
    """A Cloud TPU of processes on this machine: cloud(workers) makes it, and says its PATH."""

    def make(workers: int) -> dict[str, str]:
        home = tmp_path / "cloud"
        script(home / "bin" / "gcloud", GCLOUD.format(python=sys.executable, home=str(home)))
        # Packages are there already: installing them is noted and nothing else.
        for number in range(workers):
            script(
                home / f"worker-{number}" / "bert_jax-venv" / "bin" / "python",
                f'#!/bin/sh\ncase "$*" in *"pip install"*) echo "$*" >>"{home}/installed" ;;\n'
                f'*) exec "{sys.executable}" "$@" ;; esac\n',
            )
        # The working tree stands in for the commit.
        archive = home / "project.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in ("bert_jax", "configs", "launch", "constraints.txt", "setup.py"):
                tar.add(ROOT / name, name, filter=lambda i: None if "__pycache__" in i.name else i)
        script(
            home / "bin" / "git",
            f"#!/bin/bash\ncase $1 in rev-parse) echo 0123456789ab ;;\n"
            f'archive) cp "{archive}" "${{3#--output=}}" ;; esac\n',
        )
        environment = {
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "TMPDIR": str(home),
            "PYTHON": sys.executable,
            "POLL_SECONDS": "1",
            "LIBTPU_LOCKFILE": str(home / "no lock"),
        }
        if workers > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                environment["COORDINATOR"] = f"localhost:{free.getsockname()[1]}"
            environment["NUM_PROCESSES"] = str(workers)
        return os.environ | environment

    make.home = tmp_path / "cloud"
    return make


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_comes_back_and_the_run_equals_an_uninterrupted_one(
    cloud, config, launch_file, tmp_path, workers
):
    config.update(num_steps=40, eval_every=0, checkpoint_every=5)
    flags = dict(flag.removeprefix("--config.").split("=", 1) for flag in overrides(config))
    data_dir = flags.pop("data_dir")
    flags = {f'"{name}"': value for name, value in flags.items() if value}
    environment = cloud(workers)

    def launch(name: str) -> subprocess.Popen:
        path = launch_file(
            "tpu",
            config="configs/bert_tiny.py:laptop",
            data_dir=data_dir,
            workdir=str(tmp_path / name),
            overrides=flags,
        )
        return subprocess.Popen(
            ["launch/tpu.sh", path, "up"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = launch("whole")
    _, log = whole.communicate(timeout=300)
    assert whole.returncode == 0, log
    assert len((cloud.home / "installed").read_text().splitlines()) == workers, log

    killed = launch("killed")
    checkpoints = tmp_path / "killed" / "checkpoints"

    def kill_the_last_worker() -> None:
        wait_for(lambda: any(p.name.isdigit() for p in checkpoints.glob("*")), seconds=120)
        pid = cloud.home / f"worker-{workers - 1}" / "bert_jax-run" / "pid"
        os.kill(int(pid.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_last_worker)
    killer.start()
    _, log = killed.communicate(timeout=300)
    killer.join()
    assert killed.returncode == 0, log
    assert "exited 137" in log and "restart 1 of 2" in log
    assert "resuming from step" in (cloud.home / "worker-0/bert_jax-run/log").read_text()
    assert len(numbers(tmp_path / "whole")) == 40
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert not (cloud.home / "exists").exists()  # deleted at the end
