# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What the scripts share: where things are, and how work is shown. Sourced, never run.
#
#   step "fetching the model" tools/fetch_model.py smollm2-135m
#
# shows one line with the time and the newest line of the output on a terminal, plain lines in a
# log. The whole output is in build/log; a failure shows its end. Everything goes to stderr, so that
# stdout belongs to the program that was asked for.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/coppice
logs=${COPPICE_LOG_DIR:-$root/build/log}

say() { printf '%s\n' "$*" >&2; }

# die MESSAGE [STATUS]
die() {
  say "error: $1"
  exit "${2:-1}"
}

step_job=

# A step is a process group of its own, so that a script that is told to stop stops all of it.
stop_step() {
  [[ -z $step_job ]] || kill -TERM -- "-$step_job" 2>/dev/null || true
  exit "$1"
}
trap 'stop_step 130' INT
trap 'stop_step 143' TERM

newest_line() { tail -c 2000 "$1" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1; }

# show_step TITLE LOG TICKS: on a terminal redraws a line each second, else writes one each half
# minute. A tick is a fifth of a second.
show_step() {
  local line width
  if [[ -t 2 ]] && (($3 % 5 == 0)); then
    width=$(tput cols || echo 100)
    line="$1  $(($3 / 5)) s  $(newest_line "$2" || true)"
    printf '\r\033[K%s' "${line:0:width-1}" >&2
  elif [[ ! -t 2 ]] && (($3 % 150 == 0)); then
    say "$1: $(($3 / 5)) s  $(newest_line "$2" || true)"
  fi
}

# step TITLE COMMAND...: the command may be a function; it runs with errexit and without stdin.
step() {
  local title=$1 log began=$SECONDS ticks=0 status=0
  shift
  mkdir -p "$logs"
  log=$logs/$(tr -cs '[:alnum:]\n' '-' <<<"$title").log
  set -m
  (
    set -e
    trap - EXIT INT TERM
    "$@"
  ) </dev/null >"$log" 2>&1 &
  step_job=$!
  set +m
  while kill -0 "$step_job" 2>/dev/null; do
    sleep 0.2
    show_step "$title" "$log" $((ticks += 1))
  done
  wait "$step_job" || status=$?
  step_job=
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
  if ((status == 0)); then
    ((SECONDS == began)) || say "$title: done, $((SECONDS - began)) s"
    return 0
  fi
  local last
  last=$(newest_line "$log" || true)
  if [[ $last == "error: "* ]]; then
    say "$last"
  else
    tail -n 20 "$log" >&2
    say "error: $title failed; the whole output is in $log"
  fi
  exit "$status"
}

# stamp_is FILE KEY: was this step done with the same inputs?
stamp_is() { [[ -f $1 && $(<"$1") == "$2" ]]; }
