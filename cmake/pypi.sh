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

# ggml_options ARCH: sets options for a build of ggml for ARCH, or for this machine where that is native.
ggml_options() {
  options=()
  [ "$1" = native ] || options=(-DGGML_NATIVE=OFF "-DCMAKE_C_FLAGS=-march=$1" "-DCMAKE_CXX_FLAGS=-march=$1"
    -DGGML_{SSE42,AVX,AVX2,BMI2,FMA,F16C}"=OFF")  # what it would add of its own accord
}
