"""Starts a pretraining as several processes on this machine, as a cluster would."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping

from small_run import ROOT, overrides

# As from a terminal: where the tests are a shell's background job, Ctrl-C would be ignored.
PRETRAIN = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("bert_jax.pretrain", run_name="__main__", alter_sys=True)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(
    config,
    workdir: pathlib.Path,
    count: int,
    devices: int = 1,
    flags: Mapping[int, str] | None = None,
    before: Mapping[int, str] | None = None,
) -> list[subprocess.Popen]:
    """`count` processes with `devices` virtual devices each; {} in `workdir` is their number.

    Args:
      flags: process -> a flag that it alone is given.
      before: process -> Python that it alone runs first.
    """
    flags, before = flags or {}, before or {}
    coordinator = f"localhost:{free_port()}"
    flag = f"--xla_force_host_platform_device_count={devices}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", before.get(i, "") + PRETRAIN),
                *("--config=configs/bert_tiny.py:laptop", *overrides(config)),
                *([flags[i]] if i in flags else []),
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
