"""What a process does with freed memory, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from bert_jax import convert, finetune, host_memory, predict, pretrain, quickstart

# 64 MiB taken, written and given back, by a thread as XLA's are; then again, counting page faults.
COUNT = """
import concurrent.futures, resource
from bert_jax import host_memory

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes([1]) * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = host_memory.keep_freed()
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first, second = pool.submit(use).result(), pool.submit(use).result()
print(kept, first, second)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library than glibc")
@pytest.mark.parametrize(("platforms", "kept"), [("cpu", True), ("tpu,cpu", False)])
def test_memory_is_kept_where_the_cpu_computes(platforms, kept, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    result = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    said, first, second = result.stdout.split()
    assert said == str(kept)
    assert (int(second) < int(first) / 2) is kept


@pytest.mark.parametrize(
    ("module", "keeps"),
    [(finetune, True), (predict, True), (pretrain, True), (quickstart, True), (convert, False)],
)
def test_commands_that_compute_keep_it(module, keeps, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(host_memory, "keep_freed", lambda: calls.append(module))
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        module.cli()
    assert calls == [module] * keeps
