"""Several processes end together: the one that fails says why to the others, and none waits on.

Without this an error in one process leaves the others in a collective, or all of them in the
barrier of JAX's shutdown, for five minutes.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed  # the coordination service has no public name

from bert_jax.cli import Interrupted, brief, outcome

KEY = "bert_jax/failure"  # in the coordination service: what has ended the run
LOOK_EVERY = 1.0  # seconds
# How long a process whose collective broke looks for the message of the one that broke it.
LOOK_FOR_CAUSE = 10.0
# How long a process stays for the others to have read why, above all the first one, whose
# coordination service they read it from.
STAY = 15.0
# How much later than the others the first one leaves: JAX aborts who loses the service before.
LEAVE_LAST = 2.0


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """What any process raises inside ends all of them, with its message and its exit code.

    Does nothing in a run of one process, nor with `Interrupted`, which all raise after one step.
    """
    if jax.process_count() == 1:
        yield
        return
    ending = _Ending()
    watching = threading.Thread(target=ending.watch, name="failures", daemon=True)
    watching.start()
    try:
        yield
    except Interrupted:
        ending.stop()
        raise
    except BaseException as error:
        ending.fail(error)
    ending.stop()


class _Ending:
    """One process's end, which its main thread or, while that waits for others, another brings."""

    def __init__(self) -> None:
        self._client: Any = jax_distributed.global_state.client
        self._is_over = threading.Event()
        self._one_speaks = threading.Lock()

    def stop(self) -> None:
        """All of them end, each by itself."""
        self._is_over.set()
        jax.distributed.shutdown()  # which waits for all

    def watch(self) -> None:
        """Ends this process when another one has failed."""
        while not self._is_over.wait(LOOK_EVERY):
            if failure := self._failure():
                with self._one_speaks:
                    self._end_with(failure)

    def _failure(self) -> dict[str, Any] | None:
        """What another process has said; None as long as none has failed."""
        try:
            return json.loads(self._client.key_value_try_get(KEY))
        except jax.errors.JaxRuntimeError:  # no such key; or no such service any more
            return None

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process, and with it all others, because of `error`."""
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Perhaps a collective that another process has left.
            deadline = time.monotonic() + LOOK_FOR_CAUSE
            while time.monotonic() < deadline:
                if failure := self._failure():
                    with self._one_speaks:
                        self._end_with(failure)
                time.sleep(LOOK_EVERY / 4)
        with self._one_speaks:  # held until the end
            message, code = outcome(error, sys.argv[1:])
            if isinstance(error, KeyboardInterrupt):
                message = "stopped by Ctrl-C; the same command resumes from the last checkpoint"
            print(message, file=sys.stderr)
            # Of a traceback, the last line alone.
            summary = message if len(message.splitlines()) == 1 else brief(error)
            if isinstance(error, jax.errors.JaxRuntimeError):
                summary += " (another process may have died, or its host: the same command resumes)"
            failure = {"process": jax.process_index(), "message": summary, "code": code}
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
                self._client.key_value_set(KEY, json.dumps(failure))
            self._leave(code)

    def _end_with(self, failure: dict[str, Any]) -> NoReturn:
        message = failure["message"].removeprefix("error: ")
        print(f"error: process {failure['process']}: {message}", file=sys.stderr)
        self._leave(failure["code"])

    def _leave(self, code: int) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        logging.shutdown()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # one is dead: not all come
            self._client.wait_at_barrier("bert_jax/ended", int(STAY * 1000))
        if jax.process_index() == 0:
            time.sleep(LEAVE_LAST)
        # Not sys.exit: what the interpreter does at its end waits for the other processes.
        os._exit(code)
