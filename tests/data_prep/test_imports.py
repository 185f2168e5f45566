"""data_prep runs where JAX is not installed, as on the workers of a Beam pipeline."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
_IMPORT_ALL = """
import importlib, pathlib, sys
for name in ("jax", "jaxlib", "flax", "torch", "tensorflow"):
    sys.modules[name] = None  # importing it raises ImportError
for path in sorted(pathlib.Path("data_prep").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts)
    if path.name not in ("__init__.py", "__main__.py"):
        importlib.import_module(name)
"""


def test_without_jax():
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
