#!/usr/bin/env bash
# What happens on each worker. Keeps its files beside the project (PROJECT-venv, PROJECT-run), so
# that unpacking another commit leaves them alone.
#
#   worker.sh install EXTRAS   packages for the project: worker.sh install tpu,gcs
#   worker.sh run FLAG…        pretrains, with the flags of bert_jax.pretrain and its exit code
#   worker.sh task FLAG…       the same as a task of Slurm: leaves its exit code in $TASKS/codes
#   worker.sh newest FLAG…     the step of the newest checkpoint in the flag --workdir, if any
#   worker.sh start FLAG…      as run, detached: it survives the connection that started it
#   worker.sh status           one line: running, exited CODE, or lost; the log's last line
#   worker.sh stop SECONDS     asks it to save and exit; kills it after so many seconds
#   worker.sh log              the log, as it grows
#
# From the environment: COORDINATOR (HOST:PORT), NUM_PROCESSES and PROCESS_ID, where JAX cannot
# find out about the other workers by itself; SECRETS, a file of NAME=value lines.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$project-venv
state=$project-run
python=${PYTHON:-$venv/bin/python}
secrets=${SECRETS:-$project-secrets}

install() {
  cd "$project"
  if [[ ! -x $venv/bin/pip ]]; then # without pip it was not finished
    # 3.11, since constraints.txt has the versions for it. The VMs of Cloud TPU come with 3.10.
    if command -v python3.11 >/dev/null; then
      python3.11 -m venv "$venv"
    else
      command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
      PATH=$HOME/.local/bin:$PATH uv venv --seed --python=3.11 "$venv"
    fi
  fi
  "$venv/bin/python" -m pip install --quiet -c constraints.txt -e ".[$1]"
}

run() {
  cd "$project"
  if [[ -f $secrets ]]; then
    while IFS='=' read -r name value || [[ $name ]]; do
      [[ -z $name || $name = \#* ]] || export "$name=$value"
    done <"$secrets"
  fi
  # A process that was killed leaves its lock, and the next one hears that the TPU is in use.
  local lock=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
  if [[ -e $lock ]] && ! fuser -s "$lock" 2>/dev/null; then rm -f "$lock" || true; fi
  if [[ ${COORDINATOR:-} ]]; then
    set -- "$@" --coordinator="$COORDINATOR" --num_processes="$NUM_PROCESSES" \
      --process_id="$PROCESS_ID"
  fi
  # exec: signals (preemption, a scheduler's time limit) are for Python.
  exec "$python" -m bert_jax.pretrain "$@"
}

task() {
  local code=0
  # A trap that does nothing: a signal to all processes of the step is for pretrain, which ends.
  trap : TERM
  bash "$0" run "$@" || code=$?
  echo "$code" >"$TASKS/codes/$SLURM_PROCID"
  exit "$code"
}

newest() {
  cd "$project"
  local flag
  for flag; do
    if [[ $flag != --workdir=* ]]; then continue; fi
    "$python" - "${flag#*=}" <<'PYTHON'
import sys
from etils import epath
checkpoints = epath.Path(sys.argv[1]) / "checkpoints"
steps = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
print(max((int(step) for step in steps if step.isdigit()), default=""))
PYTHON
  done
}

# pretrain, or its supervisor, whose end means that the exit code is written.
is_running() {
  local file
  for file in pid supervisor; do
    if [[ -s $state/$file ]] && kill -0 "$(<"$state/$file")" 2>/dev/null; then return; fi
  done
  return 1
}

start() {
  mkdir -p "$state"
  if is_running; then return; fi
  rm -f "$state/pid" "$state/supervisor" "$state/exit_code"
  setsid bash "$0" supervise "$@" >>"$state/log" 2>&1 </dev/null &
  until [[ -s $state/pid ]]; do sleep 0.1; done
}

# Runs pretrain and leaves its exit code behind.
supervise() {
  local code=0
  echo "$$" >"$state/supervisor"
  trap '' TERM # a shutdown asks every process to end: this one waits for pretrain
  (
    trap - TERM
    exec bash "$0" run "$@"
  ) &
  echo "$!" >"$state/pid"
  wait "$!" || code=$?
  echo "$code" >"$state/exit_code"
}

status() {
  local word=lost last=''
  if is_running; then
    word=running
  elif [[ -s $state/exit_code ]]; then
    word="exited $(<"$state/exit_code")"
  fi
  # Progress lines end in carriage returns. grep fails while the log is empty.
  [[ ! -f $state/log ]] ||
    last=$(tail -c 2000 "$state/log" | tr '\r' '\n' | { grep . || true; } | tail -n 1)
  printf '%s\t%s\t%s\n' "$word" "$(hostname)" "$last"
}

stop() {
  local waited
  is_running || return 0
  kill -TERM "$(<"$state/pid")" 2>/dev/null || true
  for ((waited = 0; waited < $1; waited++)); do
    is_running || return 0
    sleep 1
  done
  kill -KILL "$(<"$state/pid")" 2>/dev/null || true
  # Its supervisor still writes the exit code: till then `start` would take it for a run.
  for ((waited = 0; waited < 100; waited++)); do
    is_running || return 0
    sleep 0.1
  done
}

log() { tail -n 100 -F "$state/log"; }

"$@"
