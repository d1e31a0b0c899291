"""Battery and thermal readings of a phone, parsed from what it prints, and the energy that a stretch of time took.

Formats: `dumpsys battery`, `dumpsys thermalservice` (Android 10 on), `dumpsys batterystats --checkin`,
/sys/class/power_supply, and the ODPM rails of Pixel 6 and later (/sys/bus/iio/devices/*/energy_value, which the kernel driver
writes as `CH<n>(T=<ms>)[<rail>], <microwatt seconds>`). Unreadable lines are skipped; a value that is not there is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # Android's thermal status 0..6
NOMINAL_V = 3.85  # of a lithium-ion phone cell, where the battery's energy is known as mAh only
_CHARGING, _DISCHARGING = 2, 3  # android.os.BatteryManager
_SANE_A, _SANE_V = 30.0, 25.0  # beyond: a reading in other units, or none


@dataclass(frozen=True)
class Battery:
    """One reading of `dumpsys battery`."""

    percent: float | None = None
    voltage_v: float | None = None
    temperature_c: float | None = None
    charge_mah: float | None = None  # what is left, by the gauge's charge counter
    plugged: bool | None = None
    simulated: bool = False  # `dumpsys battery unplug`, `set`: the readings stand still


@dataclass(frozen=True)
class Thermal:
    """One reading of `dumpsys thermalservice`."""

    status: int | None = None  # index into STATUS
    temperatures: dict[str, float] = field(default_factory=dict)  # sensor -> degrees Celsius
    skin_c: float | None = None


@dataclass(frozen=True)
class Sample:
    """Everything read at one time. current_a: magnitude, amperes; rails_j: joules counted since boot, by rail."""

    t: float
    battery: Battery = Battery()
    thermal: Thermal = Thermal()
    current_a: float | None = None
    voltage_v: float | None = None
    rails_j: dict[str, float] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """For the record."""
        return {"kind": "sample", **asdict(self)}


def _numbers(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}


def _number(text: str | None) -> float | None:
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _scaled(text: str | None, scale: float, least: float, most: float) -> float | None:
    value = _number(text)
    return value * scale if value is not None and least <= value * scale <= most else None


def parse_battery(text: str) -> Battery:
    """`dumpsys battery`: level of scale, voltage in mV, temperature in 0.1 degrees, charge counter in microampere hours."""
    found = _numbers(text)
    level, scale = _number(found.get("level")), _number(found.get("scale")) or 100
    powered = [found[name].lower() == "true" for name in found if name.endswith(" powered")]
    status = _number(found.get("status"))
    plugged = any(powered) if powered else {_CHARGING: True, _DISCHARGING: False}.get(status)  # type: ignore[arg-type]
    voltage = _number(found.get("voltage"))
    volts_each = 1.0 if voltage is not None and voltage < _SANE_V else 1e-6 if voltage and voltage > 1e5 else 1e-3
    return Battery(
        percent=100 * level / scale if level is not None and 0 <= level <= scale else None,
        voltage_v=_scaled(found.get("voltage"), volts_each, 0.5, _SANE_V),
        temperature_c=_scaled(found.get("temperature"), 0.1, -60, 150),
        charge_mah=_scaled(found.get("charge counter"), 1e-3, 1, 1e5),
        plugged=plugged,
        simulated="updates stopped" in text.lower(),
    )


_TEMPERATURE = re.compile(r"Temperature\{mValue=([-+.\deE]+|NaN), mType=(-?\d+), mName=(.*?), mStatus=(\d+)\}")


def parse_thermal(text: str) -> Thermal:
    """`dumpsys thermalservice`: what the HAL measures now, else what is cached."""
    now = text.partition("Current temperatures from HAL:")[2].partition("Current cooling")[0]
    found = _TEMPERATURE.findall(now) or _TEMPERATURE.findall(text)
    temperatures, skin = {}, None
    for value, kind, name, _ in found:
        degrees = _number(value)
        if degrees is not None and -60 < degrees < 200:
            temperatures[name] = degrees
            if kind == "3":  # SKIN
                skin = max(skin if skin is not None else degrees, degrees)
    status = re.search(r"^\s*Thermal Status:\s*(\d)\s*$", text, re.M)
    known = int(status[1]) if status and int(status[1]) < len(STATUS) else None
    return Thermal(known, temperatures, skin)


def parse_capacity_mah(text: str) -> float | None:
    """`dumpsys batterystats --checkin`: the estimated capacity, 11th value of the battery line (`9,0,l,bt,...`)."""
    for line in text.splitlines():
        cells = line.split(",")
        if cells[2:4] == ["l", "bt"] and len(cells) > 12:
            return _scaled(cells[12], 1.0, 100, 1e5)
    return None


def parse_discharge_mah(text: str) -> float | None:
    """The same: mAh taken since the last charge, by the gauge; 5th value of the discharge line (`9,0,l,dc,...`)."""
    for line in text.splitlines():
        cells = line.split(",")
        if cells[2:4] == ["l", "dc"] and len(cells) > 8:
            return _scaled(cells[8], 1.0, 0, 1e5)
    return None


def parse_current_a(text: str) -> float | None:
    """/sys/class/power_supply/battery/current_now, microamperes by the kernel's rule; the sign differs between makers.

    Some makers give milliamperes: under 15,000 of either unit is below any phone's idle current in microamperes.
    """
    value = _number(text.strip())
    if value is None:
        return None
    amperes = abs(value) * (1e-3 if abs(value) < 15_000 else 1e-6)
    return amperes if amperes < _SANE_A else None


def parse_rails(text: str) -> dict[str, float]:
    """ODPM's energy_value: rail -> joules since boot."""
    found = re.findall(r"^CH\d+\(T=\d+\)\[(.*)\],\s*(\d{1,20})\s*$", text, re.M)
    return {rail: int(energy) * 1e-6 for rail, energy in found}


MARK = "@@"  # before each part of a sampler block


def parse_sample(block: str) -> Sample | None:
    """A block of the sampler: parts `@@name`, then what that command printed. None without a readable time."""
    parts: dict[str, str] = {}
    for part in re.split(f"^{MARK}", block, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        parts[name.strip()] = parts.get(name.strip(), "") + body
    time = re.match(r"\d{1,12}(\.\d+)?", parts.get("time", "").strip())  # old shells print %N as it is
    if time is None:
        return None
    t = float(time[0])
    return Sample(
        t,
        parse_battery(parts.get("battery", "")),
        parse_thermal(parts.get("thermal", "")),
        parse_current_a(parts.get("current", "")),
        _scaled(parts.get("voltage", "").strip(), 1e-6, 0.5, _SANE_V),
        parse_rails(parts.get("rails", "")),
    )


@dataclass(frozen=True)
class Energy:
    """Energy of a stretch. `method`: rails, current, ticks; `joules` of the whole phone, rails: of what is wired to them."""

    method: str
    joules: float
    seconds: float
    error: float  # relative, from the method's resolution


def energies(samples: Sequence[Sample], wh: float | None = None) -> tuple[list[Energy], str]:
    """What each method that has its data gives over these samples, and why there is none (else "").

    wh: the battery's energy when full. Only a phone that runs on its battery tells its energy, except by rails.
    """
    samples = sorted(samples, key=lambda one: one.t)
    if len(samples) < 2:
        return [], "fewer than two battery samples"
    seconds = samples[-1].t - samples[0].t
    found = [rails] if (rails := _by_rails(samples, seconds)) else []
    if any(one.battery.simulated for one in samples):
        return found, "" if found else "the battery's readings are simulated (dumpsys battery reset ends that)"
    if any(one.battery.plugged is not False for one in samples):
        return found, "" if found else "the phone was charging: unplug it and use adb over Wi-Fi"
    for method in (_by_current(samples), _by_ticks(samples, wh)):
        if method:
            found.append(method)
    if found:
        return found, ""
    known = "" if wh else "; for ticks give --battery-wh too"
    return [], f"no current reading, and less than two battery ticks: run longer (--sustain){known}"


def _by_rails(samples: Sequence[Sample], seconds: float) -> Energy | None:
    first, last = samples[0].rails_j, samples[-1].rails_j
    shared = first.keys() & last.keys()
    if not shared or any(last[rail] < first[rail] for rail in shared):  # a counter that went back was reset
        return None
    joules = sum(last[rail] - first[rail] for rail in shared)
    return Energy("rails", joules, seconds, 0.02) if joules > 0 else None


def _by_current(samples: Sequence[Sample]) -> Energy | None:
    """Current x voltage, by trapezoids."""
    points = [
        (one.t, one.current_a * volts)
        for one in samples
        if one.current_a is not None and (volts := one.voltage_v or one.battery.voltage_v)
    ]
    if len(points) < 3:
        return None
    joules = sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairwise(points))
    return Energy("current", joules, points[-1][0] - points[0][0], 0.05)


def _by_ticks(samples: Sequence[Sample], wh: float | None) -> Energy | None:
    """Between the first and the last downward step of the level: those two moments are known, the rest of a step is not."""
    levels = [(one.t, one.battery.percent) for one in samples if one.battery.percent is not None]
    ticks = [(t, level) for (_, before), (t, level) in pairwise(levels) if level < before]
    if wh is None or len(ticks) < 2:
        return None
    (start, high), (end, low) = ticks[0], ticks[-1]
    share = (high - low) / 100
    wait = max(t1 - t0 for (t0, _), (t1, _) in pairwise(levels))
    return Energy("ticks", share * wh * 3600, end - start, min(1.0, wait / (end - start)))
