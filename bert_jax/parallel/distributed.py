"""Several hosts as one run: how the processes find each other and agree."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from bert_jax.cli import UserError, brief

# A process that has been silent for so long is dead, and the run ends.
HEARTBEAT_SECONDS = 30
# Packages that the numbers of a run come from.
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "grain", "array_record", "tokenizers"),
    "orbax-checkpoint",
)


def initialize(coordinator: str = "", num_processes: str = "", process_id: str = "") -> None:
    """Joins the processes of a run; does nothing for a run of one process.

    Cloud TPU, Slurm (srun, a process a node or a GPU), Open MPI (a process a GPU) and Kubernetes
    are recognised by JAX itself. Elsewhere each process is told, and takes all GPUs of its host:
    `coordinator` is host:port of process 0, the same everywhere. To be called before JAX touches a
    device.

    Raises:
      UserError: the three do not come together, or are no numbers; or JAX was told a coordinator
        and no more, so that each process would train alone.
    """
    given = (coordinator, num_processes, process_id)
    if any(given):
        try:
            count, index = int(num_processes), int(process_id)
        except ValueError:
            count = index = -1
        if ":" not in coordinator or not 0 <= index < count:
            raise UserError(
                f"--coordinator={coordinator} --num_processes={num_processes} "
                f"--process_id={process_id}: expected all three, as in "
                "--coordinator=10.0.0.1:8476 --num_processes=4 --process_id=0 (ids from 0)"
            )
        # Else JAX looks for a scheduler all the same, and takes one GPU a process of it.
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    else:
        _take_all_gpus_of_a_slurm_node()
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except ValueError as error:  # no cluster was recognised: this process is the whole run
            if os.environ.get("JAX_COORDINATOR_ADDRESS"):
                raise UserError(
                    f"JAX_COORDINATOR_ADDRESS is set, and JAX does not know the rest ({error}): "
                    "give --coordinator, --num_processes and --process_id to every process"
                ) from None
            return
    if jax.process_index():
        logging.getLogger().setLevel(logging.WARNING)  # the first process speaks for all


def _take_all_gpus_of_a_slurm_node() -> None:
    """Of Slurm's tasks JAX gives each one GPU, by its number on the node: a single one gets all."""
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 1(x4), or 2,1
    if gpus.isdecimal() and re.fullmatch(r"1(\(x\d+\))?", tasks):
        os.environ.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, range(int(gpus)))))


def is_first() -> bool:
    """Whether this process writes what a run writes once: config, metrics, progress."""
    return jax.process_index() == 0


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """At the block's end, where all processes meet, a UserError of any of them is raised in all.

    So is an OSError, as of a file that all share. Else the others would wait for the one that has
    ended. Inside, none may wait for others.
    """
    if jax.process_count() == 1:
        yield
        return
    own: UserError | OSError | None = None
    try:
        yield
    except (UserError, OSError) as error:
        own = error
    kinds = multihost_utils.process_allgather(np.int32(_KINDS.index(_kind_of(own))))
    if kinds.any():
        number = int(np.flatnonzero(kinds)[0])
        message = _text_of(number, "" if own is None else _message_of(own))
        if number == jax.process_index() and own is not None:
            raise own
        message = f"process {number}: {message}" if number else message
        raise (UserError if _KINDS[kinds[number]] is UserError else OSError)(message)


_KINDS = (type(None), UserError, OSError)


def _kind_of(error: UserError | OSError | None) -> type:
    return next(kind for kind in _KINDS if isinstance(error, kind))


def _message_of(error: UserError | OSError) -> str:
    return str(error) if isinstance(error, UserError) else brief(error)


def as_in_first(value: Any) -> Any:
    """`value`, of JSON, as the first process has it: what is read from files may differ."""
    if jax.process_count() == 1:
        return value
    return json.loads(_text_of(0, json.dumps(value)))


def _text_of(number: int, text: str) -> str:
    """`text` as process `number` has it."""
    is_source = jax.process_index() == number
    content = np.frombuffer(text.encode(), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(content.size), is_source)
    content = multihost_utils.broadcast_one_to_all(np.resize(content, int(size)), is_source)
    return bytes(np.asarray(content)).decode()


def check_alike(facts: Mapping[str, Any]) -> None:
    """Compares what each process is about to run.

    Args:
      facts: name -> value, of JSON; those of packages and of this program are added.

    Raises:
      UserError: a process differs from the first one; in all of them, and with the first field
        that does.
    """
    if jax.process_count() == 1:
        return
    own = json.loads(json.dumps({**facts, **_program()}))
    text = json.dumps(own, sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    different = np.flatnonzero((digests != digests[0]).any(1))
    if not different.size:
        return
    number = int(different[0])
    expected, found = (json.loads(_text_of(source, text)) for source in (0, number))
    names = [
        name for name in {**expected, **found} if expected.get(name) != found.get(name)
    ]  # in the order in which they were given
    first, further = names[0], f" (and {len(names) - 1} more differ)" if names[1:] else ""
    raise UserError(
        f"process {number} runs something else than process 0: {first} is "
        f"{found.get(first)!r} there, {expected.get(first)!r} in process 0{further}. Start all "
        "processes with the same command, data, packages and version of this program"
    )


def _program() -> dict[str, str]:
    """What computes: versions of packages, settings of JAX, and the digest of this program."""
    root = pathlib.Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(str(path.relative_to(root)).encode() + path.read_bytes())
    versions = {f"version of {name}": _version(name) for name in PACKAGES}
    settings = ("jax_threefry_partitionable", "jax_default_matmul_precision", "jax_enable_x64")
    return {
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
        **versions,
        **{name: str(getattr(jax.config, name)) for name in settings},
        "SHA-256 of bert_jax's source": source.hexdigest(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_shared(directory: epath.Path) -> None:
    """Raises UserError unless all processes see what the first one writes to `directory`."""
    if jax.process_count() == 1:
        return
    # A name that none has looked up, since a network file system remembers what was not there.
    probe = directory / f".shared-{as_in_first(uuid.uuid4().hex)}"
    try:
        with shared_errors():
            if is_first():
                probe.write_text("")
        with shared_errors():
            if not probe.exists():
                raise UserError(
                    f"{socket.gethostname()} does not see what the first process writes to "
                    f"{directory}: WORKDIR must be storage that all hosts share (a shared file "
                    "system or gs://)"
                )
    finally:
        if is_first():
            probe.unlink(missing_ok=True)


class StopSignal:
    """Turns SIGTERM (preemption, a time limit) and the first Ctrl-C into "stop after this step".

    Several processes agree on the step through JAX's coordination service, which listens for
    SIGTERM itself and passes it on when any process gets it; Ctrl-C ends a process of theirs at
    once. A context manager: the signals' former handlers come back at its end, that of Ctrl-C once
    it was used.
    """

    def __init__(self) -> None:
        self.received = ""  # name of the signal
        self._asked = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as of a shell's background job
                    self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)
            signal.signal(number, self._former[number])

    def asked(self) -> bool:
        """Whether all processes stop here; each must ask at the same places, as after each step."""
        self._asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return bool(self.received)
