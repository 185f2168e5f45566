"""Slurm with two nodes on this machine, as root and without systemd (Debian's packages)."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from small_run import ROOT

NODES = ("n1", "n2")
MUNGE = [pathlib.Path(f"/{name}/munge") for name in ("etc", "run", "var/log", "var/lib")]
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldPort={port}
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
MpiDefault=none
GresTypes=gpu
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=2 RealMemory=1000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=2 RealMemory=1000 Gres=gpu:1
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why Slurm cannot be started here; "" if it can."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        return "needs Slurm: apt-get install slurm-wlm munge"
    if os.geteuid():
        return "needs to be root, to start Slurm's daemons"
    return ""


def wait_for(condition: Callable[[], object], seconds: float, why: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.2)


class Cluster:
    """The daemons, and the project installed as launch/slurm.sh would on a shared file system."""

    def __init__(self, home: pathlib.Path, ports: list[int]):
        self.home = home
        self.host = socket.gethostname().partition(".")[0]
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (home / name).mkdir()
        names = dict(zip(("port", "port1", "port2"), ports, strict=True))
        config = CONFIG.format(home=home, host=self.host, **names)
        (home / "slurm.conf").write_text(config)
        (home / "gres.conf").write_text("NodeName=n[1-2] Name=gpu Count=1 File=/dev/null\n")
        self.environment = os.environ | {"SLURM_CONF": str(home / "slurm.conf")}
        self._hosts = pathlib.Path("/etc/hosts").read_text()
        # JAX looks the first node's name up.
        pathlib.Path("/etc/hosts").write_text(f"{self._hosts}127.0.0.1 {' '.join(NODES)}\n")
        self._munged = self._start_munged()
        self.run("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        idle = lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2"  # noqa: E731
        wait_for(idle, 60, (home / "slurmctld.log").read_text)

    def _start_munged(self) -> bool:
        """Starts the daemon that authenticates Slurm's; False if one is running."""
        if pathlib.Path("/run/munge/munge.socket.2").exists():
            return False
        for directory in MUNGE:
            directory.mkdir(parents=True, exist_ok=True)
        key = MUNGE[0] / "munge.key"
        if not key.exists() or not key.stat().st_size:
            key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for directory in MUNGE:
            for path in (directory, *directory.rglob("*")):
                shutil.chown(path, "munge", "munge")
        MUNGE[1].chmod(0o755)
        self.run("runuser", "-u", "munge", "--", "munged")
        return True

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints; that it succeeds is checked."""
        result = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert not check or result.returncode == 0, (command, result.stderr)
        return result.stdout

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """The node's daemon and all that runs on it are gone, as after a power cut."""
        os.kill(int((self.home / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
        for pid in processes():
            if environment_of(pid).get("SLURMD_NODENAME") == node:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in processes():  # what watches over them, too
            if command_of(pid).startswith("slurmstepd") and f"spool-{node}" in open_files(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        subprocess.run(["scancel", "-u", "root"], env=self.environment, check=False)
        time.sleep(1)
        for pid_file in [*self.home.glob("slurmd-*.pid"), self.home / "slurmctld.pid"]:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
        if self._munged:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(int((MUNGE[1] / "munged.pid").read_text()), signal.SIGTERM)
        pathlib.Path("/etc/hosts").write_text(self._hosts)

    def install(self, directory: pathlib.Path) -> pathlib.Path:
        """The working tree as launch/slurm.sh install lays out a commit, with this Python."""
        sha = self.run("git", "rev-parse", "--short=12", "HEAD").strip()
        project = directory / f"bert_jax-{sha}"
        for name in ("bert_jax", "configs", "launch"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, project / name, ignore=ignored)
        environment = directory / f"{project.name}-venv" / "bin"
        environment.mkdir(parents=True)
        # A link to Python would have it look for its packages here.
        (environment / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (environment / "python").chmod(0o755)
        return project

    def job(self, name: str) -> dict[str, str]:
        """What Slurm says about the newest job of a name; {} if it knows none."""
        show = self.run("scontrol", "--oneliner", "show", "jobs")
        jobs = [
            dict(w.split("=", 1) for w in line.split() if "=" in w) for line in show.split("\n")
        ]
        return max(
            (job for job in jobs if job.get("JobName") == name),
            key=lambda job: int(job["JobId"]),
            default={},
        )


def processes() -> list[int]:
    return [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid: int) -> str:
    """A process's command line; "" if it is gone."""
    with contextlib.suppress(OSError):
        content = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        return content.replace(b"\0", b" ").decode(errors="replace")
    return ""


def environment_of(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        content = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return dict(item.split("=", 1) for item in content.split("\0") if "=" in item)
    return {}


def open_files(pid: int) -> str:
    """The names of the files that a process has open."""
    names = []
    with contextlib.suppress(OSError):
        for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(os.readlink(link))
    return json.dumps(names)
