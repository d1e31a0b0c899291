"""Phones that the real adb server knows, what they print, and a benchmark's record of one; fixtures to import."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time

import pytest
from adbd import Phone

from phi3mobile.bench.protocol import Record, measure, read_record

needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed (Debian: apt install adb)")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of adb's own, with keys of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("ANDROID_SERIAL", raising=False)
        yield
        subprocess.run(["adb", "kill-server"], check=False)


@pytest.fixture
def plugged(server, tmp_path):
    """Folder name -> a phone that the server knows; all are unplugged afterwards."""
    phones: list[Phone] = []

    def plug(name: str = "phone", wait: bool = True, **knobs) -> Phone:
        phones.append(phone := Phone(tmp_path / name, **knobs))
        command = ["adb", "connect", phone.serial]
        if wait:
            subprocess.run(command, check=True, capture_output=True, timeout=1800)
        else:  # adb waits ten seconds for a phone that says nothing, but lists it at once
            threading.Thread(target=subprocess.run, args=(command,), kwargs={"capture_output": True}).start()
            time.sleep(0.3)
        return phone

    yield plug
    for phone in phones:
        subprocess.run(["adb", "disconnect", phone.serial], capture_output=True, check=False)
        phone.unplug()


def readings(phone: Phone, level: int = 80) -> None:
    """What a phone prints that runs on its battery, at half an ampere and four volts."""
    phone.script(
        "getprop",
        "case $1 in ro.product.model) echo Pixel X;; ro.product.manufacturer) echo Test;; "
        "ro.build.version.release) echo 15;; ro.product.cpu.abi) echo x86_64;; esac",
    )
    phone.script(
        "dumpsys",
        f"""case "$1" in
battery) printf 'Current Battery Service state:\\n  AC powered: false\\n  USB powered: false\\n  status: 3\\n'
         printf '  level: {level}\\n  scale: 100\\n  voltage: 4000\\n  temperature: 301\\n';;
thermalservice) printf 'Thermal Status: 0\\nCurrent temperatures from HAL:\\n'
         printf '\\tTemperature{{mValue=33.5, mType=3, mName=skin, mStatus=0}}\\n';;
batterystats) echo 9,0,l,bt,0,1,1,1,1,1700000000000,1,1,4500,4400,4600,0;;
esac""",
    )
    power = phone.root / "sys/class/power_supply/battery"
    power.mkdir(parents=True)
    (power / "current_now").write_text("-500000\n")
    (power / "voltage_now").write_text("4000000\n")


def record_of(device, bundle, plan, path) -> list[dict]:
    with path.open("w") as file:
        measure(device, bundle, plan, Record(file), lambda stage, done, total: None, battery_wh=17.0)
    return read_record(path)
