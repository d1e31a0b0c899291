#!/bin/sh
# Kernels, checks and runner for aarch64 in FOLDER/native: build.sh FOLDER PYTHON. Leaves with 3 where tools can't be had.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"$here/tools.sh" "$1" "$2" || exit $?
folder=$(cd "$1" && pwd)
export LD_LIBRARY_PATH="$folder/root/usr/lib/x86_64-linux-gnu"
cmake=$(dirname "$2")/cmake
"$cmake" -S "$here/../../../phi3mobile/core" -B "$folder/native" -DCMAKE_TOOLCHAIN_FILE="$here/toolchain.cmake" \
    -DARM64_TOOLS="$folder" -DEXECUTORCH_DIR="$folder/wheel/executorch"
"$cmake" --build "$folder/native" --target attention_check attention_fuzz tiles_check run_pte p3m --parallel 2
