#!/usr/bin/env bash
# Pretraining on GKE through XPK (pip install 'xpk>=1.16'): a cluster of TPU slices, and a job set
# on it.
#
#   launch/gke.sh FILE.toml up [--dry_run]
#
# creates the cluster (or finds it there), builds and pushes the image, runs, and watches. The job set
# restarts itself after preemptions and crashes, up to max_restarts times. The cluster stays, for
# the next run, and costs money until `delete`. Single steps: create, image, start, watch, log, stop,
# delete. --dry_run prints the commands instead of running them.
set -euo pipefail
COMMANDS='up create image start watch log stop delete'
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_arguments gke "$@"

where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
slices=(--tpu-type="$ACCELERATOR_TYPE" --num-slices="$NUM_SLICES")
DELETE=(xpk cluster delete "${where[@]}" --force)
LEFTOVER=("${DELETE[@]}")
pods="jobset.sigs.k8s.io/jobset-name=$NAME"
tagged=$IMAGE:$SHA

create() {
  local flags=(--on-demand)
  if [[ $SPOT ]]; then flags=(--spot); fi
  if [[ ${CREATE_FLAGS[*]+x} ]]; then flags=("${CREATE_FLAGS[@]}"); fi # e.g. --reservation=…
  run xpk cluster create "${where[@]}" "${slices[@]}" "${flags[@]}"
}

image() {
  local context=${ARCHIVE%.tar.gz}
  archive
  run mkdir -p "$context"
  run tar -xzf "$ARCHIVE" -C "$context"
  run docker build --platform=linux/amd64 --file="$context/launch/tpu.Dockerfile" \
    --build-arg=EXTRAS="$EXTRAS" --tag="$tagged" "$context"
  run docker push "$tagged"
}

start() {
  # Any exit code but 2, a user error, restarts the job set (127-255 always do).
  local flags=(--max-restarts="$MAX_RESTARTS" --restart-on-exit-codes="1,3-126")
  # Five minutes to save after a notice; exec, so that the notice gets to Python.
  flags+=(--termination-grace-period-seconds=300)
  if [[ $SECRETS_FILE ]]; then flags+=(--env-file="$SECRETS_FILE"); fi
  run xpk workload create --workload="$NAME" "${where[@]}" "${slices[@]}" --docker-image="$tagged" \
    "${flags[@]}" --command="exec $(worker_command /bert_jax run "${PRETRAIN[@]}")"
}

watch() { run xpk workload list "${where[@]}" --wait-for-job-completion="$NAME"; }

log() {
  run gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --region="${ZONE%-*}"
  run kubectl get pods --selector="$pods" --output=wide
  # Worker 0 of each slice; process 0 alone prints progress. kubectl follows five pods at most
  # unless it is told otherwise.
  run kubectl logs --selector="$pods,batch.kubernetes.io/job-completion-index=0" --tail=100 \
    --follow --max-log-requests="$NUM_SLICES"
}

stop() { run xpk workload delete --workload="$NAME" "${where[@]}" --force; }
delete() { run "${DELETE[@]}"; }

up() {
  create
  image
  start
  watch
  [[ ! $DRY_RUN ]] || return 0
  say "$NAME is finished. The cluster stays, and costs money. To delete it:"
  say "  $(quoted "${DELETE[@]}")"
}

"$COMMAND"
