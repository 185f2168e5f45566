#!/usr/bin/env bash
# orbax-checkpoint: a CheckpointManager whose save() has raised says for ever that a save is in
# progress.
#
# Expected: is_saving_in_progress() is False once wait_until_finished() has returned.
# Seen with orbax-checkpoint 0.12.8 on Python 3.11: it stays True after any exception of save()'s own
# thread (here: the step exists; also a directory that cannot be made, a bucket that refuses). Who
# waits for it to become False, as a loop that polls does, waits for ever.
# Here: a store whose save() has raised is not polled any more (bert_jax/runs/checkpoint.py).
set -euo pipefail
directory=$(mktemp -d); trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check 'orbax-checkpoint==0.12.8' 'jax[cpu]==0.10.2'
cd "$directory"
JAX_PLATFORMS=cpu venv/bin/python - <<'PYTHON'
import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

manager = ocp.CheckpointManager(pathlib.Path("checkpoints").resolve())
state = ocp.args.StandardSave({"x": np.ones(3)})
manager.save(1, args=state)
manager.wait_until_finished()
seen = [manager.is_saving_in_progress()]
try:
    manager.save(1, args=state, force=True)
except ocp.checkpoint_manager.StepAlreadyExistsError as error:
    print("save() raised", type(error).__name__)
manager.wait_until_finished()
seen.append(manager.is_saving_in_progress())
print("orbax-checkpoint", ocp.__version__, "jax", jax.__version__, "Python", sys.version.split()[0])
print("is_saving_in_progress() after each wait: expected [False, False]; seen", seen)
sys.exit(seen != [False, True])
PYTHON
