"""The native library compiled and linked for bionic by Zig, without the NDK: a gate, never what is released.

Headers are musl's with a shim, whose constants differ from bionic's, and the ExecuTorch that is linked is another project's
build of another version. So it proves that everything compiles for Android, which names it takes from the C library
(gate/bionic.txt, all of API 26), and the library's form: 16 KB segments, no text relocations, JNI's names. It is not to be run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

from tools import HERE, SDK, Failed, Tools, files, run

CORE = HERE.parents[1] / "phi3mobile" / "core"
GATE = HERE / "gate"
API = 26
# ABI -> Zig's processor, the headers' folders, the instruction sets of the loops (CMakeLists.txt).
ABIS = {
    "arm64-v8a": ("aarch64", ("aarch64-linux-any", "aarch64-linux-musl"), {"baseline": []}),
    "x86_64": (
        "x86_64",
        ("x86-linux-any", "x86_64-linux-musl"),
        {"baseline": [], "avx2": ["-mcpu=x86_64_v3"], "avx512": ["-mcpu=x86_64_v4", "-mprefer-vector-width=512"]},
    ),
}
# Of ExecuTorch 1.5 and of Zig's libc++; the stand-in is older.
NEWER = (
    "_ZN10executorch9extension16get_thread_countEv",
    "_ZN10executorch9extension15make_tensor_ptrENSt6__ndk16vectorIiNS1_9allocatorIiEEEEPvNS2_IhNS3_IhEEEES5_NS_7runtime7etensor"
    "10ScalarTypeENSA_6DeviceENS9_19TensorShapeDynamismENS1_8functionIFvS6_EEE",
    "_ZNSt6__ndk113__hash_memoryEPKvm",
    "_ZNSt6__ndk117bad_function_callD1Ev",
)


class Zig:
    """Zig's compiler for one ABI, with a sysroot of our own in `folder`."""

    def __init__(self, tools: Tools, abi: str, folder: Path) -> None:
        self.root = tools.folder / "zig" / "ziglang"
        self.processor, self.headers, self.isas = ABIS[abi]
        self.folder, self.include, self.lib = folder, folder / "include", folder / "lib"
        cache = {name: str(tools.folder / "zig-cache") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
        self._plain = {name: value for name, value in os.environ.items() if name != "ZIG_LIBC"} | cache
        self._android = self._plain | {"ZIG_LIBC": str(folder / "libc.txt")}

    def android(self, *arguments: str | Path) -> None:
        run([self.root / "zig", "c++", "-target", f"{self.processor}-linux-android.{API}", *arguments], env=self._android)

    def plain(self, *arguments: str | Path) -> None:
        """C and assembler without any library."""
        run([self.root / "zig", "cc", "-target", f"{self.processor}-linux-musl", *arguments], env=self._plain)

    def sysroot(self) -> None:
        for folder in (self.include, self.lib):
            shutil.rmtree(folder, ignore_errors=True)
        self.lib.mkdir(parents=True)
        for name in ("generic-musl", "any-linux-any", *self.headers):
            shutil.copytree(self.root / "lib" / "libc" / "include" / name, self.include, dirs_exist_ok=True)
        errno, features = self.include / "errno.h", self.include / "features.h"
        errno.write_text(errno.read_text().replace("__errno_location", "__errno"))
        features.write_text(features.read_text() + (GATE / "shim.h").read_text())
        lines = [f"{name}_dir={self.include}" for name in ("include", "sys_include")]
        lines += [f"{name}_dir={self.lib}" for name in ("crt", "cc")]
        lines += [f"{name}_dir=" for name in ("msvc_lib", "kernel32_lib", "darwin_sdk")]
        (self.folder / "libc.txt").write_text("\n".join(lines) + "\n")
        self.plain("-fPIC", "-O2", "-c", GATE / "begin.c", "-o", self.lib / "crtbegin_so.o")
        (self.folder / "end.c").write_text("")
        self.plain("-c", self.folder / "end.c", "-o", self.lib / "crtend_so.o")
        for library, (functions, data) in bionic().items():
            self.stub(self.lib / f"{library}.so", functions, data, "LIBC")
        self.stub(self.lib / "librest.so", NEWER, (), None)

    def stub(self, out: Path, functions: Iterable[str], data: Iterable[str], version: str | None) -> None:
        """A shared library of names."""
        lines = [".text", *(f".globl {name}\n.type {name},%function\n{name}: ret" for name in functions), ".data"]
        lines += [f".globl {name}\n.type {name},%object\n.size {name},8\n{name}: .quad 0" for name in data]
        source, script = out.with_suffix(".s"), out.with_suffix(".map")
        source.write_text("\n".join(lines) + "\n")
        options = ["-nostdlib", "-shared", f"-Wl,-soname,{out.name}"]
        if version:
            script.write_text(f"{version} {{ global: *; }};\n")
            options.append(f"-Wl,--version-script={script}")
        self.plain(*options, source, "-o", out)


def bionic() -> dict[str, tuple[list[str], list[str]]]:
    """Library -> its functions and its data."""
    found: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in ("libc", "libm", "libdl")}
    for line in (GATE / "bionic.txt").read_text().splitlines():
        if not line.startswith("#"):
            library, _, names = line.partition(": ")
            found[library.removesuffix("-data")][library.endswith("-data")].extend(names.split())
    return found


def gate(tools: Tools) -> Path:
    """FOLDER/gate/ABI/libphi3mobile_gate.so for both ABIs: core, kernels and JNI in one."""
    for abi in ABIS:
        library(tools, abi)
    return tools.folder / "gate"


def library(tools: Tools, abi: str) -> Path:
    folder = tools.folder / "gate" / abi
    out, zig = folder / "libphi3mobile_gate.so", Zig(tools, abi, tools.folder / "gate" / f"{abi}-root")
    sources = [*files(CORE / "src", "*.cpp"), *files(CORE / "kernels", "*.cpp"), SDK / "cpp" / "phi3mobile_jni.cpp"]
    sources = [
        path for path in sources if not path.stem.startswith(("p3m_", "run_")) and not path.stem.endswith(("_check", "_fuzz"))
    ]
    headers = max(path.stat().st_mtime for path in (*files(CORE, "*.h", "*.inc"), GATE / "shim.h"))
    newest = max(headers, *(path.stat().st_mtime for path in (*sources, GATE / "bionic.txt", Path(__file__))))
    if out.exists() and out.stat().st_mtime > newest:
        return out
    zig.sysroot()
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(path, []) for path in sources if path.name != "attention_loops.cpp"]
    jobs += [(CORE / "kernels" / "attention_loops.cpp", [f"-DP3M_ISA={isa}", *more]) for isa, more in zig.isas.items()]
    objects = [zig.folder / f"{path.stem}-{len(more)}-{path.parent.name}.o" for path, more in jobs]

    def compile_one(job: tuple[Path, list[str]], made: Path) -> None:
        if made.exists() and made.stat().st_mtime > max(headers, job[0].stat().st_mtime):
            return
        zig.android(*options(tools), *job[1], "-c", job[0], "-o", made)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, jobs, objects))
    executorch = (
        tools.folder / "npm" / "node_modules" / "react-native-executorch" / "third-party" / "android" / "libs" / "executorch"
    )
    linking = ["-shared", "-s", "-Wl,-z,max-page-size=16384", "-Wl,--no-undefined", f"-Wl,-soname,{out.name}"]
    beside = out.with_name(f".{out.name}")
    zig.android(*linking, *objects, executorch / abi / "libexecutorch.so", zig.lib / "librest.so", "-o", beside)
    beside.replace(out)
    return out


def options(tools: Tools) -> list[str | Path]:
    found = find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise Failed("the package executorch is not installed, whose headers the core is compiled against: make setup")
    include = Path(next(iter(found.submodule_search_locations))) / "include"
    c10 = include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    defined = ("_LIBCPP_ABI_NAMESPACE=__ndk1", "ET_USE_THREADPOOL", "C10_USING_CUSTOM_GENERATED_MACROS")
    return [
        *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-Wno-macro-redefined"),
        *(f"-D{name}" for name in defined),
        f'-DP3M_RUNTIME_VERSION="{version_of("executorch")}"',
        *(f"-I{CORE / name}" for name in ("include", "kernels", "src")),
        *(part for path in (include, c10) for part in ("-isystem", path)),
        *(f"-I{tools.jdk / 'include' / name}" for name in ("", "linux")),  # jni.h is the same everywhere
    ]
