"""Local processes: results, errors, memory, and no orphans."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.cli import UserError
from data_prep import parallel


def _add(shared, item):
    if item == 13:
        raise UserError("thirteen")
    return shared + item


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_errors(workers):
    assert dict(parallel.run(_add, 100, range(10), workers)) == {i: 100 + i for i in range(10)}
    with pytest.raises(UserError, match="thirteen"):
        list(parallel.run(_add, 100, range(20), workers))


def test_reads_ahead_by_a_few_items_only():
    taken = []
    results = parallel.run(_add, 0, (taken.append(i) or i for i in range(1000)), 2)
    next(results)
    assert len(taken) <= 5
    results.close()


def _pid(_, item):
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two write to one pipe
    time.sleep(60)


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks processes up in /proc")
def test_workers_end_with_a_killed_parent():
    program = (
        "import test_parallel, data_prep.parallel as p\n"
        "if __name__ == '__main__': list(p.run(test_parallel._pid, None, range(2), 2))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)},
    )
    with process:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks processes up in /proc")
def test_ctrl_c_ends_the_workers_at_once():
    """It reaches the whole process group; what is under way is not waited for."""
    program = (
        "import test_parallel, data_prep.parallel as p, signal, sys\n"
        "if __name__ == '__main__':\n"
        "  signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored\n"
        "  try: list(p.run(test_parallel._pid, None, range(2), 2))\n"
        "  except KeyboardInterrupt: sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)},
        start_new_session=True,
    )
    with process:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in process.stderr.read()
    assert not any(_is_running(pid) for pid in workers)


def _run_in_worker(queue):
    queue.put(dict(parallel.run(_add, 1, range(3), 2)))


def test_a_daemonic_process_needs_no_children():
    """As the workers of Dask are, in which pydocs is read: they may have none."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_run_in_worker, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=30) == {0: 1, 1: 2, 2: 3}
    process.join()


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
