#!/usr/bin/env bash
# Data preparation on Dataflow: data_prep.build on as many machines as it takes.
#
#   launch/dataflow.sh FILE.toml up [--dry_run]
#
# builds DATA_DIR and checks it. The same command resumes from the finished parts. Single steps:
# build, check, stop. --dry_run prints the commands instead of running them.
set -euo pipefail
COMMANDS='up build check stop'
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_arguments dataflow "$@"

jobs=(gcloud dataflow jobs)
where=(--project="$PROJECT" --region="$REGION")
LEFTOVER=("$0" "$FILE" stop)

build() {
  # setup.py brings this project to the machines, which install what it needs by themselves.
  local beam=(--runner=DataflowRunner --project="$PROJECT" --region="$REGION" --job_name="$NAME")
  beam+=(--temp_location="$DATA_DIR/.dataflow" --setup_file=./setup.py)
  beam+=(--requirements_file=launch/dataflow_requirements.txt --requirements_cache=skip)
  beam+=(--max_num_workers="$MAX_WORKERS")
  if [[ $SERVICE_ACCOUNT ]]; then beam+=(--service_account_email="$SERVICE_ACCOUNT"); fi
  if [[ ${CREATE_FLAGS[*]+x} ]]; then beam+=("${CREATE_FLAGS[@]}"); fi
  local flags=(--input="$INPUT" --tokenizer="$TOKENIZER" --output="$DATA_DIR")
  if [[ ${BUILD_FLAGS[*]+x} ]]; then flags+=("${BUILD_FLAGS[@]}"); fi
  run "$PYTHON" -m data_prep.build "${flags[@]}" --runner=beam \
    --beam_options="$(quoted "${beam[@]}")"
}

check() { run "$PYTHON" -m data_prep.check "$DATA_DIR"; }

stop() {
  local ids job
  ids=$(ask "${jobs[@]}" list "${where[@]}" --status=active --filter="name=$NAME" \
    --format='value(id)')
  if [[ $DRY_RUN ]]; then ids=JOB_ID; fi
  for job in $ids; do
    run "${jobs[@]}" cancel "$job" "${where[@]}"
  done
}

up() {
  build
  check
}

"$COMMAND"
