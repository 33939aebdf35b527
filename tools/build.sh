# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Configures and builds a preset of CMakePresets.json. Sourced after steps.sh, never run.

# build_directory PRESET
build_directory() {
  if [[ $1 == release ]]; then echo "$root/build"; else echo "$root/build-$1"; fi
}

# Warnings are errors for the compiler that we test with; others may know more of them.
warnings_as_errors() {
  [[ $(c++ -dumpversion 2>/dev/null) == 12* ]] && echo ON || echo OFF
}

# build_tree PRESET [TARGET]: configures when anything that is configured has changed.
build_tree() {
  local preset=$1 target=${2:-all} directory key options
  options=("-DCOPPICE_WERROR=${COPPICE_WERROR:-$(warnings_as_errors)}"
    -UCOPPICE_TEST_MODEL -UCOPPICE_TEST_TEXT)
  [[ -z ${COPPICE_LLAMA_DIR:-} ]] || options+=("-DCOPPICE_LLAMA_DIR=$COPPICE_LLAMA_DIR")
  directory=$(build_directory "$preset")
  key=$(cat "$root/CMakePresets.json" "$root/models/models.json" - <<<"${options[*]} $cache" | sha256sum)
  if [[ ! -f $directory/build.ninja ]] || ! stamp_is "$directory/configured" "$key"; then
    step "configuring $preset" cmake -S "$root" --preset "$preset" "${options[@]}"
    echo "$key" >"$directory/configured"
  fi
  step "building $preset" cmake --build "$directory" --target "$target"
}
