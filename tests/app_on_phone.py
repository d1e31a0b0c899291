"""The staged app as a phone runs it: `python app_on_phone.py android|ios STAGED SHARED TEXT` starts main.py in this process.

What a phone has besides Python stands in: pyjnius with PythonActivity and ExecuTorch's classes, or the Objective-C runtime,
both of fake_phone.py. TEXT: the intent's extra `bench` (android; "" for none) or the argument after --bench (ios).
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from pathlib import Path

import fake_phone


def main(system: str, staged: str, shared: str, text: str) -> None:
    os.environ["KIVY_NO_ARGS"] = os.environ["KIVY_NO_FILELOG"] = "1"
    import kivy.utils  # noqa: F401  before the system is told: its window is this machine's

    sys.argv = ["main.py"]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]  # the staged files, not ours
    sys.path.insert(0, staged)
    if system == "android":
        os.environ["ANDROID_ARGUMENT"] = staged
        jnius = types.ModuleType("jnius")
        jnius.autoclass = fake_phone.java(Path(shared), {"bench": text} if text else {})
        sys.modules["jnius"] = jnius
    else:
        os.environ["HOME"] = str(Path(shared).parent)
        import phi3mobile.assistant.device
        import phi3mobile.bench.memory
        import phi3mobile.engines.objc

        phi3mobile.assistant.device.device = lambda: "ios"
        phi3mobile.engines.objc.Runtime = fake_phone.FakePhone
        sys.argv += ["--bench", text] if text else []
    runpy.run_path(str(Path(staged, "main.py")), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
