"""Starts a pretraining as several processes on this machine, as a cluster would."""

import os
import pathlib
import socket
import subprocess
import sys

from small_run import ROOT, overrides


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(config, workdir: pathlib.Path, count: int, devices: int = 1) -> list[subprocess.Popen]:
    """`count` processes with `devices` virtual devices each; {} in `workdir` is their number."""
    coordinator = f"localhost:{free_port()}"
    flag = f"--xla_force_host_platform_device_count={devices}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "bert_jax.pretrain"),
                *("--config=configs/bert_tiny.py:laptop", *overrides(config)),
                f"--workdir={workdir}".format(i),
                *(f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={i}"),
            ],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    """What each process printed, once all have ended with `code`."""
    errors = [process.communicate(timeout=240)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), "\n\n".join(errors)
    return errors
