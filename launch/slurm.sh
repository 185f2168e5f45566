#!/usr/bin/env bash
# Pretraining on the GPU nodes of a Slurm cluster: run this on a login node.
#
#   launch/slurm.sh FILE.toml up [--dry_run]
#
# installs the project at its commit on the shared file system, submits the job and shows its log; a
# job of this name that is queued or running is only shown.
# The job requeues itself before its time limit and after crashes, until max_restarts restarts in a
# row have brought no new checkpoint. Single steps: install, start, watch, stop. --dry_run prints the
# commands.
set -euo pipefail
COMMANDS='up install start watch stop'
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_arguments slurm "$@"

project=$INSTALL_DIR/bert_jax-$SHA # a commit of its own: running jobs keep theirs
log=$INSTALL_DIR/$NAME.log

install() {
  archive
  run mkdir -p "$project"
  run tar -xzf "$ARCHIVE" -C "$project"
  run bash "$project/launch/worker.sh" install "$EXTRAS"
}

start() {
  local flags=(--job-name="$NAME" --nodes="$NODES" --gpus-per-node="$GPUS_PER_NODE")
  flags+=(--cpus-per-task="$CPUS_PER_NODE" --time="$TIME" --output="$log")
  local variables=("SECRETS=$SECRETS_FILE")
  if [[ ${CREATE_FLAGS[*]+x} ]]; then flags+=("${CREATE_FLAGS[@]}"); fi
  if [[ ${ENV[*]+x} ]]; then variables+=("${ENV[@]}"); fi
  # sbatch hands its environment on to the job, which has a Python of its own: the one installed.
  run env -u PYTHON "${variables[@]}" sbatch "${flags[@]}" "$project/launch/slurm.sbatch" \
    "$project/launch/worker.sh" "$MAX_RESTARTS" "${PRETRAIN[@]}"
}

watch() {
  run squeue --name="$NAME" --me
  run tail -n 100 -F "$log"
}

stop() { run scancel --name="$NAME" --me; }

up() {
  local queued
  queued=$(ask squeue --name="$NAME" --me --noheader)
  if [[ $queued ]]; then
    say "$NAME is queued or running already"
  else
    install
    start
  fi
  say "To end it: $0 $FILE stop. Its log (Ctrl-C leaves the job alone):"
  watch
}

"$COMMAND"
