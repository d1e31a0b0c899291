#!/bin/sh
# Cross compiler, emulator and ExecuTorch's aarch64 libraries, unpacked into a folder without root: tools.sh FOLDER PYTHON
# Needs Debian (apt) on x86-64. Prints what is missing and leaves with 3 where they can't be had.
set -eu
folder=$1 python=$(command -v "$2")
case $python in /*) ;; *) python=$PWD/$python ;; esac
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$folder"
[ -e ready ] && exit 0
command -v apt-get dpkg-deb > /dev/null || { echo "no apt-get and dpkg-deb here: the cross compiler comes from Debian"; exit 3; }

mkdir -p debs/partial root
# apt downloads only what is not installed: what is, is linked to where the downloads are unpacked.
apt-get -qq -y install --download-only --no-install-recommends -o Debug::NoLocking=1 -o Dir::Cache::archives="$folder/debs" \
    g++-aarch64-linux-gnu qemu-user-static > apt.log 2>&1 || { echo "apt-get: $(tail -1 apt.log)"; exit 3; }
for deb in debs/*.deb; do [ ! -e "$deb" ] || dpkg-deb -x "$deb" root; done
mkdir -p root/usr/bin
for file in /usr/bin/qemu-aarch64-static /usr/bin/aarch64-linux-gnu-* /usr/aarch64-linux-gnu /usr/lib/gcc-cross; do
    [ -e "root$file" ] || [ ! -e "$file" ] || { mkdir -p "root$(dirname "$file")" && ln -s "$file" "root$file"; }
done
for tool in qemu-aarch64-static aarch64-linux-gnu-g++; do
    [ -e "root/usr/bin/$tool" ] || { echo "$tool was neither installed nor downloaded (apt.log)"; exit 3; }
done

version=$("$python" -c "import importlib.metadata as m; print(m.version('executorch'))")
"$python" -m pip download -q --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --python-version 3.11 \
    -d wheels "executorch==$version" > pip.log 2>&1 || { echo "pip: $(tail -1 pip.log)"; exit 3; }
"$python" -m zipfile -e wheels/executorch-*aarch64.whl wheel
touch ready
