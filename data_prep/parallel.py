"""Runs a function over items in local processes, with memory bounded by a few items."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bert_jax.cli import UserError, prepare_buckets

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

_shared: Any = None  # set once in each worker process


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def checked_workers(workers: int | None) -> int:
    """The number that was asked for, or all processors; raises UserError if it is below 1."""
    if workers is None:
        return default_workers()
    if workers < 1:
        raise UserError(f"--workers is {workers}: expected at least 1")
    return workers


def run(
    function: Callable[[Shared, Item], Result],
    shared: Shared,
    items: Iterable[Item],
    workers: int,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, function(shared, item)) as results come, in no particular order.

    With one worker, or in a worker of another pool, everything happens in this process. `items` is
    read no further than twice the number of workers ahead. The first exception ends the run.

    Args:
      function: a module-level function.
      shared: sent to each process once, not with every item.
      items: picklable.
      workers: number of processes.
    """
    # A daemonic process, such as a worker of Beam's or Dask's, may have no children.
    if workers == 1 or multiprocessing.current_process().daemon:
        for item in items:
            yield item, function(shared, item)
        return
    # spawn: forking a process in which the Rust tokenizer or JAX has started threads can deadlock.
    before = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(shared,),
    )
    try:
        pending: dict[concurrent.futures.Future, Item] = {}
        iterator = iter(items)
        is_exhausted = False
        while pending or not is_exhausted:
            while not is_exhausted and len(pending) < 2 * workers:
                try:
                    item = next(iterator)
                except StopIteration:
                    is_exhausted = True
                else:
                    pending[pool.submit(_call, function, item)] = item
            done, _ = concurrent.futures.wait(
                pending, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                yield pending.pop(future), future.result()
    except KeyboardInterrupt:
        # What is under way may take minutes, and is done again in any case.
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(shared: Any) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    prepare_buckets(sys.argv)  # of the command
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process when its parent is gone: after kill -9 a pool's workers would stay."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_shared, item)
