"""How this process treats memory of the host that it has no more use for."""

import ctypes
import os
import pathlib
import platform

import jax

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")  # in /dev: GPUs, TPUs


def _computes_here() -> bool:
    """Whether JAX will compute on the CPU, asked without starting JAX."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(any(pathlib.Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)


def keep_freed() -> bool:
    """Has freed memory kept for the next allocation where JAX computes on the CPU; whether it does.

    XLA for CPU takes a program's buffers from malloc and gives them back in every step. By default
    glibc returns them to Linux, which hands them out again page by page, filled with zeros: a tenth
    of a step (docs/explanation/performance.md). Kept, they cost nothing, and the process's memory
    does not shrink. Only the main thread's arena holds buffers of any size, so programs are run by
    the thread that calls them. To be called before JAX starts its devices. Nothing happens on
    machines with an accelerator, and with another library than glibc.
    """
    if not _computes_here() or platform.libc_ver()[0] != "glibc":
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_MMAP_MAX, 0)])
