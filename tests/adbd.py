"""A phone for the real adb client: the device's end of adb's transport over TCP, with a folder as the phone's storage.

Protocol: packets of 24 bytes header (command, two arguments, length, checksum, magic) and payload; CNXN, AUTH, OPEN, OKAY,
WRTE, CLSE; services `shell,v2` (packets of stream number, length, bytes) and `sync:` (STAT, STA2, LST2, SEND, RECV).
Commands run here, in `sh`, with the phone's paths replaced by paths in the folder, whose bin/ comes first on PATH.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

_HEADER = struct.Struct("<4sIIIII")
_VERSION, _MAX = 0x01000001, 256 << 10
_FEATURES = "shell_v2,cmd,stat_v2,fixed_push_mkdir"
MOVED = ("/data/local/tmp", "/sdcard", "/sys/class/power_supply", "/sys/bus/iio", "/proc/meminfo", "/sys/devices/system/cpu")


class Phone:
    """Listens on 127.0.0.1:port. Knobs may be changed while it runs."""

    def __init__(self, root: Path, model: str = "Pixel_X", state: str = "device") -> None:
        """state: device, unauthorized (asks for a key and takes none) or offline (says nothing)."""
        self.root, self.model, self.state = root, model, state
        self.room: int | None = None  # bytes that sync may still write
        self.cut_after: int | None = None  # payload bytes of SEND after which the cable is pulled
        self.cut_on: str | None = None  # text in a shell command that pulls it
        self.received = 0
        self.commands: list[str] = []
        self._links: list[_Link] = []
        (root / "bin").mkdir(parents=True, exist_ok=True)
        for folder in ("data/local/tmp", "sdcard"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self._listen(0)

    def _listen(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                link = _Link(self, server.accept()[0])
                self._links.append(link)
                threading.Thread(target=link.serve, daemon=True).start()

    def script(self, name: str, text: str) -> None:
        """A program on the phone."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def unplug(self, closed: bool = True) -> None:
        """Drop the connection; `closed`: take no new one."""
        if closed:
            with suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
        for link in self._links:
            link.close()
        self._links.clear()

    def plug(self) -> None:
        self._listen(self.port)

    def moved(self, text: str) -> str:
        for path in MOVED:
            text = text.replace(path, f"{self.root}{path}")
        return text


class _Link:
    """One connection."""

    def __init__(self, phone: Phone, peer: socket.socket) -> None:
        self.phone, self._peer, self._lock = phone, peer, threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._ids = itertools.count(1)

    def send(self, command: bytes, one: int, other: int, data: bytes = b"") -> None:
        magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        with self._lock:
            self._peer.sendall(_HEADER.pack(command, one, other, len(data), sum(data) & 0xFFFFFFFF, magic) + data)

    def serve(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                command, one, other, length, _, _ = _HEADER.unpack(self._exactly(_HEADER.size))
                data = self._exactly(length)
                if command == b"CNXN":
                    self._greet()
                elif command == b"AUTH":
                    self.send(b"AUTH", 1, 0, bytes(20)) if one == 2 else None
                elif command == b"OPEN":
                    stream = _Stream(self, next(self._ids), one, data.rstrip(b"\0").decode())
                    self._streams[stream.id] = stream
                    threading.Thread(target=stream.serve, daemon=True).start()
                elif other in self._streams:
                    self._streams[other].take(command, data)
        self.close()

    def _greet(self) -> None:
        if self.phone.state == "device":
            banner = f"device::ro.product.name=x;ro.product.model={self.phone.model};ro.product.device=x;features={_FEATURES}"
            self.send(b"CNXN", _VERSION, _MAX, banner.encode())
        elif self.phone.state == "unauthorized":
            self.send(b"AUTH", 1, 0, bytes(20))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._peer.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self) -> None:
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()
        for stream in list(self._streams.values()):
            stream.take(b"CLSE", b"")


class _Stream:
    """One service. adb allows one packet under way: each WRTE waits for the OKAY of the one before."""

    def __init__(self, link: _Link, id_: int, peer: int, service: str) -> None:
        self._link, self.id, self._peer, self._service = link, id_, peer, service
        self._data, self._may_send = queue.Queue(), threading.Semaphore(1)
        self._rest, self._closed, self._process = b"", False, None

    def take(self, command: bytes, data: bytes) -> None:
        if command == b"OKAY":
            self._may_send.release()
        elif command == b"WRTE":
            self._data.put(data)
            self._link.send(b"OKAY", self.id, self._peer)
        elif command == b"CLSE":
            self._closed = True
            self._data.put(b"")
            self._may_send.release()
            if self._process and self._process.poll() is None:  # the shell's terminal is gone
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGHUP)

    def serve(self) -> None:
        name, _, argument = self._service.partition(":")
        with suppress(OSError, EOFError):
            if name == "sync":
                self._link.send(b"OKAY", self.id, self._peer)
                self._sync()
            elif name.startswith("shell"):
                self._link.send(b"OKAY", self.id, self._peer)
                self._shell(argument)
            self._link.send(b"CLSE", self.id if name in ("sync",) or name.startswith("shell") else 0, self._peer)

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), _MAX):
            self._may_send.acquire()
            if self._closed:
                raise EOFError
            self._link.send(b"WRTE", self.id, self._peer, data[at : at + _MAX])

    def _read(self, count: int) -> bytes:
        while len(self._rest) < count:
            more = self._data.get()
            if not more:
                raise EOFError
            self._rest += more
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def _shell(self, command: str) -> None:
        phone = self._link.phone
        phone.commands.append(command)
        if phone.cut_on and phone.cut_on in command:
            phone.cut_on = None
            phone.unplug()
            raise EOFError
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", phone.moved(command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=phone.root,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"PATH": f"{phone.root}/bin:{os.environ['PATH']}"},
        )
        out, err = self._process.communicate()
        for number, data in ((1, out), (2, err)):
            if data:
                self._write(struct.pack("<BI", number, len(data)) + data)
        self._write(struct.pack("<BI", 3, 1) + bytes([self._process.returncode & 255]))

    def _sync(self) -> None:
        while True:
            kind, length = struct.unpack("<4sI", self._read(8))
            if kind == b"QUIT":
                return
            name = self._read(length).decode()
            path = Path(self._link.phone.moved(name.rpartition(",")[0] if kind == b"SEND" else name))
            if kind == b"SEND":
                self._take_file(path)
            elif kind == b"RECV":
                self._give_file(path)
            else:
                self._write(kind + self._status(kind, path))

    def _status(self, kind: bytes, path: Path) -> bytes:
        """STAT: mode, size, time; zeros for no such file. STA2, LST2: an errno before, and all of stat."""
        try:
            s = path.stat()
        except OSError as error:
            return bytes(12) if kind == b"STAT" else struct.pack("<I", error.errno) + bytes(64)
        if kind == b"STAT":
            return struct.pack("<III", s.st_mode, s.st_size, int(s.st_mtime))
        times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
        return struct.pack("<IQQIIIIQqqq", 0, s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, *times)

    def _give_file(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            said = f"open failed: {error.strerror}".encode()
            self._write(b"FAIL" + struct.pack("<I", len(said)) + said)
            return
        for at in range(0, len(data), 64 << 10):
            part = data[at : at + (64 << 10)]
            self._write(b"DATA" + struct.pack("<I", len(part)) + part)
        self._write(b"DONE" + struct.pack("<I", 0))

    def _take_file(self, path: Path) -> None:
        phone, refused = self._link.phone, b""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while True:
                kind, length = struct.unpack("<4sI", self._read(8))
                if kind == b"DONE":
                    break
                data = self._read(length)
                phone.received += length
                if phone.cut_after is not None and phone.received >= phone.cut_after:
                    phone.cut_after = None
                    file.write(data[: length // 2])
                    phone.unplug()
                    raise EOFError
                if refused:
                    continue  # as adbd does: told at once, and the rest is read and dropped
                if phone.room is not None and length > phone.room:
                    refused = b"write failed: No space left on device"
                    self._write(b"FAIL" + struct.pack("<I", len(refused)) + refused)
                    continue
                phone.room = None if phone.room is None else phone.room - length
                file.write(data)
        if refused:
            path.unlink()
        else:
            self._write(b"OKAY" + struct.pack("<I", 0))
