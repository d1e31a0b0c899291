"""Memory of this process as the systems count it against their limits: /proc on Linux and Android, task_info on Apple's.

Nothing outside of the standard library: the app on a phone measures itself with this.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TASK_VM_INFO = 22  # mach/task_info.h
_SIZES = (
    "resident_size",
    "resident_size_peak",
    "device",
    "device_peak",
    "internal",
    "internal_peak",
    "external",
    "external_peak",
    "reusable",
    "reusable_peak",
    "purgeable_volatile_pmap",
    "purgeable_volatile_resident",
    "purgeable_volatile_virtual",
    "compressed",
    "compressed_peak",
    "compressed_lifetime",
    "phys_footprint",
    "min_address",
    "max_address",
)


class TaskVmInfo(ctypes.Structure):
    """struct task_vm_info of mach/task_info.h, up to revision 3: what every system since iOS 13 fills in."""

    _pack_ = 4
    _fields_ = (
        ("virtual_size", ctypes.c_uint64),
        ("region_count", ctypes.c_int32),
        ("page_size", ctypes.c_int32),
        *((name, ctypes.c_uint64) for name in _SIZES),
        ("ledger_phys_footprint_peak", ctypes.c_int64),
    )


def memory() -> dict[str, int]:
    """Bytes. Everywhere: resident, peak (of resident), anonymous.

    Linux and Android: pss, dirty (private), where /proc tells. Apple: footprint and footprint_peak, which jetsam goes by.
    """
    return apple_memory() if sys.platform in ("ios", "darwin") else linux_memory()


def linux_memory(process: Path = Path("/proc/self")) -> dict[str, int]:
    """RssAnon is what Android's low memory killer can't take back."""
    status = _kilobytes(process / "status")
    found = {"peak_bytes": status["VmHWM"], "resident_bytes": status["VmRSS"], "anonymous_bytes": status["RssAnon"]}
    try:
        rollup = _kilobytes(process / "smaps_rollup")
    except OSError:
        return found
    return found | {"pss_bytes": rollup["Pss"], "dirty_bytes": rollup["Private_Dirty"]}


def _kilobytes(path: Path) -> dict[str, int]:
    """The lines `Name:  number kB` of a file of /proc, in bytes."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.endswith(" kB")}


def apple_memory(library: Any = None) -> dict[str, int]:
    """`library` has task_info and mach_task_self_ (default: this process). Raises OSError where the kernel refuses."""
    library = library or ctypes.CDLL(None)
    info = TaskVmInfo()
    count = ctypes.c_uint32(ctypes.sizeof(info) // 4)  # in words; the kernel writes as many as it knows
    call: Callable[..., int] = library.task_info
    call.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p]
    code = call(ctypes.c_uint32.in_dll(library, "mach_task_self_"), _TASK_VM_INFO, ctypes.byref(info), ctypes.byref(count))
    if code:
        raise OSError(f"task_info gave {code}")
    found = {
        "peak_bytes": info.resident_size_peak,
        "resident_bytes": info.resident_size,
        "anonymous_bytes": info.internal + info.compressed,
        "footprint_bytes": info.phys_footprint,
    }
    if info.ledger_phys_footprint_peak > 0:
        found["footprint_peak_bytes"] = info.ledger_phys_footprint_peak
    return found
