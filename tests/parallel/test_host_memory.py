"""What a process does with freed memory, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from bert_jax import finetune, pretrain
from bert_jax.parallel import host_memory

# 128 MiB taken, written and given back; then again, counting page faults.
COUNT = """
import resource, jax
from bert_jax.parallel import host_memory

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes([1]) * 2**27
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = host_memory.keep_freed()
first, second = use(), use()
print(kept, jax.config.read("jax_cpu_enable_async_dispatch"), first, second)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library than glibc")
@pytest.mark.parametrize(("platforms", "kept"), [("cpu", True), ("tpu,cpu", False)])
def test_memory_is_kept_where_the_cpu_computes(platforms, kept, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    result = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    said, asynchronous, first, second = result.stdout.split()
    assert said == str(kept) and asynchronous == str(not kept)
    assert (int(second) < int(first) / 2) is kept


class Kept(Exception):  # noqa: N818  (no error)
    pass


@pytest.mark.parametrize(
    ("module", "recipe"),
    [(finetune, "configs/finetune/sst2.py"), (pretrain, "configs/bert_tiny.py:laptop")],
)
def test_training_keeps_it(module, recipe, monkeypatch, tmp_path):
    def keep_freed():
        raise Kept

    monkeypatch.setattr(host_memory, "keep_freed", keep_freed)
    init = [f"--init={tmp_path}"] if module is finetune else []
    with pytest.raises(Kept):
        module.main([f"--config={recipe}", f"--workdir={tmp_path / 'run'}", *init])
