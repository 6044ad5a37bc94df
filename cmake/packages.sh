# shellcheck shell=bash disable=SC2034
# Shell shared by tests/run, examples/run and bench/run. Sourced, with set -euo pipefail.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=$(nproc)
build_packages=(g++ cmake ninja-build libeigen3-dev)

export CXX=${CXX:-g++}
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi

say() { printf '\n== %s\n' "$*"; }

is_installed() {
  dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

# need_packages NAME...: installs those Debian packages that are missing.
need_packages() {
  if ! command -v apt-get >/dev/null; then
    say "No apt-get here. Needed, under Debian's names: $*"
    return
  fi
  local package missing=() as_root=()
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    return
  fi
  say "Installing ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Neither root nor sudo: install them yourself, then start again." >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get -qq update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --yes --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
}

# configure PRESET [FOLDER] [CMAKE ARGUMENT...]: into build/FOLDER, by default build/PRESET.
configure() {
  local preset=$1 folder=${2:-$1}
  (cd "$root" && cmake --preset "$preset" -B "build/$folder" --log-level=WARNING "${@:3}")
}

# build FOLDER [TARGET...]
build() {
  cmake --build "$root/build/$1" --parallel "$jobs" --target "${@:2}"
}
