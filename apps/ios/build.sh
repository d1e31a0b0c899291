#!/bin/sh
# sh build.sh: the Xcode project of the assistant, on a Mac with Xcode 16 and kivy-ios. Then see README.md.
set -eu
cd "$(dirname "$0")"
list() { python3 -c "import tomllib; print(*tomllib.load(open('project.toml', 'rb'))['python']['$1'])"; }
toolchain build $(list recipes)
toolchain pip install $(list pip)
python3 ../stage.py app
test -d assistant-ios || toolchain create assistant app
cp assistant.entitlements PrivacyInfo.xcprivacy assistant-ios/
python3 - <<'PY'
import plistlib
from pathlib import Path

made = Path("assistant-ios/assistant-Info.plist")
made.write_bytes(plistlib.dumps(plistlib.loads(made.read_bytes()) | plistlib.loads(Path("Info.plist").read_bytes())))
PY
echo "open assistant-ios/assistant.xcodeproj and add the Swift package of project.toml"
