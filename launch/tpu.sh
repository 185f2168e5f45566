#!/usr/bin/env bash
# Pretraining on Cloud TPU: a VM, a slice, or several slices, as the launch file says.
#
#   launch/tpu.sh FILE.toml up [--dry_run]
#
# does it all: create, install, start, watch, and delete when the run is finished. After a
# preemption or a crash it resumes by itself, up to max_restarts times. Interrupted, the same command
# takes up where it is. Single steps: create, install, start, watch, log, stop, delete.
# --dry_run prints the commands instead of running them.
set -euo pipefail
COMMANDS='up create install start watch log stop delete'
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_arguments tpu "$@"

where=(--project="$PROJECT" --zone="$ZONE" --quiet)
if [[ $PROVISIONING = queued ]]; then
  tpus=(gcloud compute tpus queued-resources)
  all=(--node=all --worker=all)
  DELETE=("${tpus[@]}" delete "$NAME" "${where[@]}" --force)
  state_field=state.state
else
  tpus=(gcloud compute tpus tpu-vm)
  all=(--worker=all)
  DELETE=("${tpus[@]}" delete "$NAME" "${where[@]}")
  state_field=state
fi
LEFTOVER=("${DELETE[@]}")

on_workers() { run "${tpus[@]}" ssh "$NAME" "${where[@]}" "${all[@]}" --command="$1"; }
worker() { worker_command bert_jax "$@"; }

create() {
  local flags=(--accelerator-type="$ACCELERATOR_TYPE")
  flags+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
  if [[ $PROVISIONING = direct ]]; then
    flags+=(--version="$RUNTIME_VERSION")
  elif ((NUM_SLICES > 1)); then
    flags+=(--runtime-version="$RUNTIME_VERSION" --node-count="$NUM_SLICES" --node-prefix="$NAME")
  else
    flags+=(--runtime-version="$RUNTIME_VERSION" --node-id="$NAME")
  fi
  if [[ $SPOT ]]; then flags+=(--spot); fi
  if [[ $SERVICE_ACCOUNT ]]; then flags+=(--service-account="$SERVICE_ACCOUNT"); fi
  if [[ ${CREATE_FLAGS[*]+x} ]]; then flags+=("${CREATE_FLAGS[@]}"); fi
  run "${tpus[@]}" create "$NAME" "${where[@]}" "${flags[@]}"
}

delete() { run "${DELETE[@]}"; }

# absent, waiting, ready, leaving or lost; fails when Google Cloud cannot be asked.
state() {
  local found
  found=$(ask "${tpus[@]}" list "${where[@]}" --filter="name~/$NAME\$" \
    --format="value($state_field)") || return
  case $found in
    '') echo absent ;;
    ACTIVE | READY) echo ready ;;
    SUSPENDING | STOPPING | DELETING) echo leaving ;; # cannot be deleted yet
    SUSPENDED | STOPPED | FAILED | PREEMPTED | TERMINATED) echo lost ;;
    *) echo waiting ;;
  esac
}

wait_until_ready() {
  local found errors=0
  if [[ $DRY_RUN ]]; then
    state >/dev/null
    return
  fi
  while :; do
    if found=$(state); then
      errors=0
      case $found in
        ready) return ;;
        waiting) say "waiting for $ACCELERATOR_TYPE in $ZONE" ;;
        *) say "$NAME is $found"; return 1 ;;
      esac
    else
      ((++errors < 5)) || return 1
    fi
    sleep "$POLL_SECONDS"
  done
}

install() {
  archive || return
  run "${tpus[@]}" scp "$ARCHIVE" "$NAME:bert_jax.tar.gz" "${where[@]}" "${all[@]}" || return
  if [[ $SECRETS_FILE ]]; then # a file, since command lines are logged
    run "${tpus[@]}" scp "$SECRETS_FILE" "$NAME:bert_jax-secrets" "${where[@]}" "${all[@]}" || return
  fi
  local unpack='rm -rf bert_jax && mkdir bert_jax && tar -xzf bert_jax.tar.gz -C bert_jax'
  on_workers "$unpack && $(worker install "$EXTRAS")"
}

start() { on_workers "$(worker start "${PRETRAIN[@]}")"; }
stop() { on_workers "$(worker stop "${1:-120}")"; }
log() { run "${tpus[@]}" ssh "$NAME" "${where[@]}" --worker=0 --command="$(worker log)"; }

# One line a worker, see worker.sh. What gcloud says of each connection is shown if one fails.
status() {
  ask "${tpus[@]}" ssh "$NAME" "${where[@]}" "${all[@]}" --command="$(worker status)" \
    2>"$ARCHIVE.stderr" || {
    cat "$ARCHIVE.stderr" >&2
    return 1
  }
}

# Follows the run to its end: 0 finished, 2 a user error, 1 anything else.
watch() {
  local lines errors=0
  if [[ $DRY_RUN ]]; then
    state >/dev/null
    status
    return
  fi
  while :; do
    if [[ $(state) =~ ^(leaving|lost|absent)$ ]]; then
      say "$NAME is gone: preempted or deleted"
      return 1
    elif lines=$(status) && [[ $lines ]]; then
      errors=0
      say "$(date '+%F %T')"$'\n'"$lines"
      if grep -q $'^exited 2\t' <<<"$lines"; then return 2; fi
      if grep -q '^lost\|^exited [^0]' <<<"$lines"; then return 1; fi
      if ! grep -qv '^exited 0' <<<"$lines"; then return 0; fi
    elif ((++errors == 5)); then
      say "the workers of $NAME do not answer"
      return 1
    fi
    sleep "$POLL_SECONDS"
  done
}

# From whatever there is to the end of the run, as watch; 3: nothing was started.
attempt() {
  local found=absent lines
  if [[ ! $DRY_RUN ]]; then found=$(state) || return 3; fi
  while [[ $found = leaving ]]; do
    sleep "$POLL_SECONDS"
    found=$(state) || return 3
  done
  if [[ $found = ready ]]; then
    if [[ $1 = first ]] && lines=$(status) && ! grep -qv '^running' <<<"$lines"; then
      say "$NAME is running already"
      watch
      return
    fi
    # What a crash has left running waits for workers that are gone.
    if [[ $1 = again || ${lines:-} ]]; then stop 0 || return 3; fi
  fi
  if [[ $found = lost ]]; then
    delete || return 3
    found=absent
  fi
  if [[ $found = absent ]]; then create || return 3; fi
  wait_until_ready || return 3
  install && start || return 3
  watch
}

up() {
  local restarts=0 code turn=first
  while :; do
    code=0
    attempt "$turn" || code=$?
    if ((code == 0)); then
      delete
      return
    fi
    ((code != 2)) || die 2 "a user error, retrying does not help: see $0 $FILE log"
    # A first launch that does not get off the ground is for its owner to look at.
    [[ $code != 3 || $turn = again ]] || die 1 "the run was not started"
    turn=again
    ((++restarts <= MAX_RESTARTS)) || die 1 "given up after $MAX_RESTARTS restarts"
    say "restart $restarts of $MAX_RESTARTS"
    sleep "$POLL_SECONDS"
  done
}

"$COMMAND"
