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

step_watcher=

stop_watcher() {
  [[ -n $step_watcher ]] || return 0
  kill "$step_watcher" 2>/dev/null || true
  wait "$step_watcher" 2>/dev/null || true
  step_watcher=
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}
trap stop_watcher EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

newest_line() { tail -c 2000 "$1" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1; }

# Redraws a line each second on a terminal, else writes one each half minute. The sleeps hold no
# stream open, so that nobody waits for them after the end.
watch_log() {
  local began=$SECONDS line width seconds
  while :; do
    sleep 1 >/dev/null 2>&1
    seconds=$((SECONDS - began))
    if [[ -t 2 ]]; then
      width=$(tput cols 2>/dev/null || echo 100)
      line="$1  $seconds s  $(newest_line "$2" || true)"
      printf '\r\033[K%s' "${line:0:width-1}" >&2
    elif ((seconds > 0 && seconds % 30 == 0)); then
      say "$1: $seconds s  $(newest_line "$2" || true)"
    fi
  done
}

# step TITLE COMMAND...: the command may be a function; it runs with errexit and without stdin.
step() {
  local title=$1 log began=$SECONDS status=0
  shift
  mkdir -p "$logs"
  log=$logs/$(tr -cs '[:alnum:]\n' '-' <<<"$title").log
  watch_log "$title" "$log" &
  step_watcher=$!
  set +e
  (
    set -e
    trap - EXIT INT TERM
    "$@"
  ) </dev/null >"$log" 2>&1
  status=$?
  set -e
  stop_watcher
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
