#!/usr/bin/env bash
# etils: resolve(), absolute() and os.path.abspath of a path on gs:// are local paths.
#
# Expected: the path itself (an object store has no working directory), or an error.
# Seen with etils 1.15.0 on Python 3.11: CWD/gs:/bucket/x, without an error. A program that makes
# its output directory absolute, as Orbax asks for, then writes to the local disk.
# Here: bert_jax.files.absolute is the one place that asks, and a test greps for others.
set -euo pipefail
directory=$(mktemp -d); trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check 'etils[epath]==1.15.0' 'gcsfs==2026.10.0'
cd "$directory"
venv/bin/python - <<'PYTHON'
import importlib.metadata
import os
import sys

from etils import epath

path = epath.Path("gs://bucket/x")
seen = {"resolve": str(path.resolve()), "absolute": str(path.absolute())}
print("etils", importlib.metadata.version("etils"), "on Python", sys.version.split()[0])
print("expected gs://bucket/x or an error; seen", seen)
local = f"{os.getcwd()}/gs:/bucket/x"
sys.exit(any(value != local for value in seen.values()))
PYTHON
