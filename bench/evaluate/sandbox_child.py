"""The process in which an unread program runs (see sandbox.py): puts limits on itself, then runs it. Standard library only.

Landlock (Linux 5.13) keeps it from files, seccomp from sockets, other processes and rights of files; both hold for root too.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Landlock, linux/landlock.h. Rights to files by the version that has them; what is not handled stays allowed.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
NEVER = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 15  # devices, sockets, pipes, ioctl: in the folder neither
# System calls that are refused, by the numbers of asm/unistd.h. fork and threads share one call: see filter_calls.
DENIED = {
    "x86_64": {
        "socket": 41,
        "connect": 42,
        "bind": 49,
        "socketpair": 53,
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "kill": 62,
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "fchown": 93,
        "lchown": 94,
        "ptrace": 101,
        "setpgid": 109,
        "setsid": 112,
        "rt_sigqueueinfo": 129,
        "utime": 132,
        "pivot_root": 155,
        "setrlimit": 160,
        "chroot": 161,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "reboot": 169,
        "sethostname": 170,
        "init_module": 175,
        "delete_module": 176,
        "setxattr": 188,
        "lsetxattr": 189,
        "fsetxattr": 190,
        "removexattr": 197,
        "lremovexattr": 198,
        "fremovexattr": 199,
        "tkill": 200,
        "clock_settime": 227,
        "tgkill": 234,
        "utimes": 235,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "fchownat": 260,
        "futimesat": 261,
        "fchmodat": 268,
        "unshare": 272,
        "utimensat": 280,
        "rt_tgsigqueueinfo": 297,
        "perf_event_open": 298,
        "prlimit64": 302,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "finit_module": 313,
        "bpf": 321,
        "execveat": 322,
        "userfaultfd": 323,
    },
    "aarch64": {
        "socket": 198,
        "connect": 203,
        "bind": 200,
        "socketpair": 199,
        "execve": 221,
        "kill": 129,
        "fchmod": 52,
        "fchown": 55,
        "ptrace": 117,
        "setpgid": 154,
        "setsid": 157,
        "rt_sigqueueinfo": 138,
        "pivot_root": 41,
        "setrlimit": 164,
        "chroot": 51,
        "settimeofday": 170,
        "mount": 40,
        "umount2": 39,
        "swapon": 224,
        "reboot": 142,
        "sethostname": 161,
        "init_module": 105,
        "delete_module": 106,
        "setxattr": 5,
        "lsetxattr": 6,
        "fsetxattr": 7,
        "removexattr": 14,
        "lremovexattr": 15,
        "fremovexattr": 16,
        "tkill": 130,
        "clock_settime": 112,
        "tgkill": 131,
        "kexec_load": 104,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "fchownat": 54,
        "fchmodat": 53,
        "unshare": 97,
        "utimensat": 88,
        "rt_tgsigqueueinfo": 240,
        "perf_event_open": 241,
        "prlimit64": 261,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "finit_module": 273,
        "bpf": 280,
        "execveat": 281,
        "userfaultfd": 282,
    },
}
SAME = {
    "io_uring_setup": 425,
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "fchmodat2": 452,
    "open_tree": 428,
    "fsopen": 430,
    "fsmount": 432,
    "mount_setattr": 442,
    "setxattrat": 463,
    "removexattrat": 466,
}
CLONE = {"x86_64": 56, "aarch64": 220}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE3, CLONE_THREAD, EPERM, ENOSYS = 435, 0x10000, 1, 38


def limit_resources(seconds: float, memory: int) -> None:
    """CPU time, address space, sizes of files; no core dumps."""
    cpu = max(1, int(seconds + 0.999))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # a signal that says why, then the end
    limits = {resource.RLIMIT_FSIZE: 1 << 24, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # macOS takes no limit of addresses
        limits[resource.RLIMIT_AS] = memory
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))


def keep_from_files(folder: str) -> bool:
    """Only `folder` can be written, only it and the standard library read. False: this kernel has no Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = FILE_RIGHTS[min(version, 5)]
    ruleset = struct.pack("Q", rights) + (struct.pack("Q", 3) if version >= 4 else b"")  # 3: TCP, to bind and to connect
    rules = libc.syscall(CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), 0)
    if rules < 0:
        return False
    reading = EXECUTE | READ_FILE | READ_DIR
    folders = {folder: rights & ~NEVER} | dict.fromkeys([*sys.path, "/usr/lib", "/usr/local/lib", "/lib", "/lib64"], reading)
    for path, allowed in folders.items():
        if os.path.isdir(path):  # noqa: PTH112  pathlib is slow to import
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, handle), 0):
                return False
            os.close(handle)
    return no_new_rights(libc) and libc.syscall(RESTRICT_SELF, rules, 0) == 0


def no_new_rights(libc: ctypes.CDLL) -> bool:
    return libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS: what lets anybody filter himself


def filter_calls() -> bool:
    """Refuse the system calls above, and fork but not threads. False: not this system."""
    machine = platform.machine()
    if machine not in DENIED:
        return False
    load, equal, at_least, any_bit, result = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x50000, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURE[machine]), (result, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, 0x40000000), (result, 0, 0, refuse | EPERM)]  # x32's numbers
    for number in [*DENIED[machine].values(), *SAME.values()]:
        steps += [(equal, 0, 1, number), (result, 0, 0, refuse | EPERM)]
    steps += [(equal, 0, 1, CLONE3), (result, 0, 0, refuse | ENOSYS)]  # its flags can't be seen: libc then calls clone
    steps += [(equal, 0, 3, CLONE[machine]), (load, 0, 0, 16), (any_bit, 1, 0, CLONE_THREAD), (result, 0, 0, refuse | EPERM)]
    steps += [(result, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    return no_new_rights(libc) and libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def main() -> None:
    wanted = json.loads(sys.argv[1])
    source = sys.stdin.read()
    limit_resources(wanted["seconds"], wanted["memory"])
    guards = ["limits"]
    if sys.platform == "linux":
        guards += ["files"] if keep_from_files(wanted["folder"]) else []
        guards += ["network", "processes"] if filter_calls() else []
    report = wanted["report"]
    os.write(report, json.dumps(guards).encode() + b"\n")
    if not set(wanted["needed"]) <= set(guards):
        return
    try:
        exec(compile(source, "<answer>", "exec"), {"__name__": "__main__"})
        verdict = "passed"
    except BaseException as error:  # an exit is no end of the tests
        verdict = f"{type(error).__name__}: {error}"
    os.write(report, " ".join(verdict.split())[:400].encode("utf-8", "replace") + b"\n")
    os._exit(0)  # not waiting for its threads


if __name__ == "__main__":
    main()
