# shellcheck shell=bash disable=SC2153  # the launch file's keys come from eval
# Shared by the launch scripts: arguments, printing and running commands, the project's archive.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
POLL_SECONDS=${POLL_SECONDS:-60}

say() { printf '%s\n' "$*" >&2; }

# Ends the script: die CODE MESSAGE.
die() {
  say "error: $2"
  exit "$1"
}

# Prints words so that they can be pasted into a shell.
quoted() {
  local word line=''
  for word in "$@"; do
    case $word in
      *\'*) word=$(printf '%q' "$word") ;;
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$word'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Prints a command and runs it; with --dry_run prints alone.
run() {
  if [[ $DRY_RUN ]]; then
    quoted "$@"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

# Runs a command that is asked again and again, without printing it.
ask() {
  if [[ $DRY_RUN ]]; then
    quoted "$@" >&3
  else
    "$@"
  fi
}
exec 3>&1 # so that a dry run shows what is asked inside $(…)

# parse_arguments TARGET SCRIPT_ARGUMENTS…: sets COMMAND, DRY_RUN, the keys of the launch file in
# capitals, and the commit to launch. COMMANDS are those that the script has.
parse_arguments() {
  local target=$1 argument words=() settings
  shift
  DRY_RUN=''
  for argument in "$@"; do
    case $argument in
      --dry_run) DRY_RUN=1 ;;
      -*) die 2 "unknown flag $argument: the one flag is --dry_run" ;;
      *) words+=("$argument") ;;
    esac
  done
  ((${#words[*]} == 2)) || die 2 "usage: $0 FILE.toml COMMAND [--dry_run]; commands: $COMMANDS"
  FILE=${words[0]} COMMAND=${words[1]}
  [[ " $COMMANDS " == *" $COMMAND "* ]] ||
    die 2 "unknown command $COMMAND: expected one of $COMMANDS"
  [[ $FILE = /* ]] || FILE=$PWD/$FILE
  cd "$ROOT" || exit # configs are named relative to the project
  if [[ -x .venv/bin/python && ! ${PYTHON:-} ]]; then PYTHON=.venv/bin/python; fi
  PYTHON=${PYTHON:-python3}
  "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("ml_collections"))' ||
    die 2 "$PYTHON lacks this project's packages: pip install -e . there, or set PYTHON to another"
  settings=$("$PYTHON" -m bert_jax.planning.launch_file "$FILE") || exit 2
  eval "$settings"
  [[ ! $DRY_RUN ]] || quoted cd "$ROOT"
  [[ $TARGET = "$target" ]] || die 2 "$FILE has the target $TARGET: use launch/$TARGET.sh"
  [[ $CONFIG ]] || return 0
  SHA=$(git rev-parse --short=12 "$COMMIT^{commit}") || die 2 "there is no commit $COMMIT in $ROOT"
  ARCHIVE=${TMPDIR:-/tmp}/bert_jax-$SHA.tar.gz
  [[ -z $(git status --porcelain) ]] ||
    say "note: $SHA is launched, without the uncommitted changes in $ROOT"
}

# The project at the commit, as a file: the workers need neither git nor access to the repository.
archive() { run git archive --format=tar.gz --output="$ARCHIVE" "$SHA"; }

# The command line of a worker: worker_command DIRECTORY ARGUMENTS….
worker_command() {
  local script="$1/launch/worker.sh"
  shift
  if [[ ${ENV[*]+x} && $1 =~ ^(start|run)$ ]]; then
    quoted env "${ENV[@]}" bash "$script" "$@"
  else
    quoted bash "$script" "$@"
  fi
}

# After a failure says what may be left; LEFTOVER is the command that removes it.
LEFTOVER=()
on_exit() {
  local code=$?
  if ((code)) && [[ ${LEFTOVER[*]+x} && ! $DRY_RUN ]]; then
    say "What is left may cost money. To delete it:"
    say "  $(quoted "${LEFTOVER[@]}")"
  fi
}
trap on_exit EXIT
