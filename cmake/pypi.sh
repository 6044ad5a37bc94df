# shellcheck shell=bash disable=SC2034
# What comes from PyPI, and llama.cpp's sources are among it. Sourced after packages.sh, by bench/peers/build and
# examples/llama_cpp/run.

llama_cpp_python=0.3.36  # its source archive carries them
llama_cpp_source=$root/build/llama_cpp/source-$llama_cpp_python
venv=$root/build/venv
export PIP_DISABLE_PIP_VERSION_CHECK=1

make_venv() {
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
}

# from_pypi FOLDER ARGUMENT...: pip download, without the dependencies.
from_pypi() {
  make_venv && "$venv/bin/pip" download --quiet --no-deps --dest "$@"
}

fetch_llama_cpp() {
  local folder=$root/build/llama_cpp
  [ ! -d "$llama_cpp_source" ] || return 0
  # pip asks the archive for its metadata, which compiles nothing
  from_pypi "$folder" --no-binary llama-cpp-python "llama-cpp-python==$llama_cpp_python" || return
  mkdir -p "$llama_cpp_source.part" || return
  tar -xzf "$folder/llama_cpp_python-$llama_cpp_python.tar.gz" -C "$llama_cpp_source.part" --strip-components=3 \
    --wildcards '*/vendor/llama.cpp/*' || return
  rm "$folder/llama_cpp_python-$llama_cpp_python.tar.gz"
  mv "$llama_cpp_source.part" "$llama_cpp_source"
}

# amx_is_broken ARCH: does the compiler lose what a function writes into a tile configuration of its own? GCC before 12.4
# and 13.3 does (its bug 114098), and what ggml makes of AMX then crashes.
amx_is_broken() {
  local probe result=1
  probe=$(mktemp) || return
  if "${CXX:-c++}" -O3 "-march=$1" -x c++ -std=c++20 -o "$probe" - <<'PROBE' 2>/dev/null; then
#ifdef __AMX_TILE__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
struct tiles { unsigned char palette, start, reserved[14]; unsigned short bytes[16]; unsigned char rows[16]; };
__attribute__((noinline)) static void configure(int rows) {
  struct tiles t = {.palette = 1};
  for (int i = 0; i < 8; ++i) { t.bytes[i] = 64; t.rows[i] = rows; }
  _tile_loadconfig(&t);
}
int main(int argc, char** argv) {
  (void)argv;
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 0;  // not allowed to, and ggml will find out, too
  configure(15 + argc);
  struct tiles back;
  _tile_storeconfig(&back);
  return back.rows[7] != 16;
}
#else
int main() {}
#endif
PROBE
    bash -c '"$0"; exit $?' "$probe" >/dev/null 2>&1 || [ $? -eq 126 ] || result=0  # 126: nothing runs from there
  fi
  rm -f "$probe"
  return $result
}

# ggml_options ARCH: sets options for a build of ggml for ARCH, or for this machine where that is native.
ggml_options() {
  local flags=
  [ "$1" = native ] || flags=-march=$1
  if amx_is_broken "$1"; then
    flags+=" -U__AMX_INT8__"
    say "This compiler can't use AMX; llama.cpp is built without"
  fi
  options=()
  [ -z "$flags" ] || options=("-DCMAKE_C_FLAGS=$flags" "-DCMAKE_CXX_FLAGS=$flags")
  # what it would add of its own accord
  [ "$1" = native ] || options+=(-DGGML_NATIVE=OFF -DGGML_{SSE42,AVX,AVX2,BMI2,FMA,F16C}"=OFF")
}
