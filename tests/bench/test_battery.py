"""Battery and thermal parsers on what phones print, on anything else, and the energy computed from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3mobile.bench.battery import (
    Battery,
    Sample,
    Thermal,
    energies,
    parse_battery,
    parse_capacity_mah,
    parse_current_a,
    parse_discharge_mah,
    parse_rails,
    parse_sample,
    parse_thermal,
)

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Dock powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: 3214000
  status: 2
  health: 2
  present: true
  level: 73
  scale: 100
  voltage: 4123
  temperature: 312
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 4
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=AP, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=45.6, mType=0, mName=AP, mStatus=0}
\tTemperature{mValue=33.8, mType=2, mName=BAT, mStatus=0}
\tTemperature{mValue=34.7, mType=3, mName=skin-front, mStatus=0}
\tTemperature{mValue=36.2, mType=3, mName=skin-back, mStatus=1}
\tTemperature{mValue=NaN, mType=4, mName=USB, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
"""
CHECKIN = """9,0,i,vers,36,216,AP3A.241005.015,AP3A.241005.015
9,hsp,0,0,"Unknown"
9,0,l,bt,0,86400000,43200000,90000000,45000000,1760000000000,80000000,40000000,4385,4350,4400,60000
9,0,l,dc,12,14,5,8,530,210,0,0
9,0,l,pws,4385,512.3,500,560
9,1000,l,pwi,uid,88.1,0,12,0.5
"""
RAILS = "t=176090328\nCH0(T=176090328)[S10M_VDD_TPU], 3100000\nCH3(T=176090328)[S4M_VDD_CPUCL0], 168620176\n"

parsers = pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_battery, BATTERY),
        (parse_thermal, THERMAL),
        (parse_capacity_mah, CHECKIN),
        (parse_discharge_mah, CHECKIN),
        (parse_current_a, "-512000\n"),
        (parse_rails, RAILS),
        (parse_sample, f"@@time\n12.5\n@@battery\n{BATTERY}\n@@thermal\n{THERMAL}\n@@rails\n{RAILS}"),
    ],
)


def test_dumpsys_battery():
    assert parse_battery(BATTERY) == Battery(73, 4.123, pytest.approx(31.2), 3214, True, False)
    out = parse_battery(BATTERY.replace("USB powered: true", "USB powered: false"))
    assert out.plugged is False
    # Old Samsung phones leave the powered lines out, and some report volts or microvolts.
    assert parse_battery("level: 5\nscale: 10\nstatus: 3\nvoltage: 4\n") == Battery(50, 4.0, None, None, False, False)
    assert parse_battery("voltage: 4123000").voltage_v == pytest.approx(4.123)


def test_a_simulated_battery_is_recognised():
    """`dumpsys battery unplug` makes a charging phone say that it is not."""
    text = "Current Battery Service state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n  USB powered: false\n  level: 80\n"
    assert parse_battery(text).simulated and parse_battery(text).plugged is False


def test_dumpsys_thermalservice():
    found = parse_thermal(THERMAL)
    assert found == Thermal(1, {"AP": 45.6, "BAT": 33.8, "skin-front": 34.7, "skin-back": 36.2}, 36.2)
    cached = THERMAL[: THERMAL.index("HAL Ready")]
    assert parse_thermal(cached) == Thermal(1, {"AP": 99.0}, None) and parse_thermal("Thermal Status: 9") == Thermal()


def test_batterystats_checkin():
    assert parse_capacity_mah(CHECKIN) == 4385 and parse_discharge_mah(CHECKIN) == 530
    assert parse_capacity_mah("9,0,l,bt,0,1") is None and parse_discharge_mah("") is None


@pytest.mark.parametrize(
    ("text", "amperes"),
    [("-512000\n", 0.512), ("512000", 0.512), ("-830", 0.83), ("0", 0.0), ("", None), ("x", None), ("9e12", None)],
)
def test_current_now(text, amperes):
    assert parse_current_a(text) == (None if amperes is None else pytest.approx(amperes))


def test_odpm_rails():
    assert parse_rails(RAILS) == {"S10M_VDD_TPU": pytest.approx(3.1), "S4M_VDD_CPUCL0": pytest.approx(168.620176)}


def test_a_samplers_block():
    block = f"\n@@time\n1800000000.25\n\n@@battery\n{BATTERY}\n@@thermal\n{THERMAL}\n@@current\n-400000\n"
    block += "@@voltage\n4000000\n@@rails\n"
    found = parse_sample(block)
    assert (found.t, found.battery.percent, found.thermal.status) == (1800000000.25, 73, 1)
    assert found.current_a == pytest.approx(0.4) and found.voltage_v == pytest.approx(4.0) and found.rails_j == {}
    assert parse_sample("@@time\n1800000000.%N\n").t == 1800000000 and parse_sample("@@battery\nlevel: 3") is None


def test_names_may_have_what_divides_the_fields():
    """Sensors and rails are called as their makers like; a value may look like the mark of the next part."""
    hal = "Current temperatures from HAL:\n\tTemperature{mValue=41.5, mType=3, mName=skin, back} (2), mStatus=0}\n"
    assert parse_thermal(hal).temperatures == {"skin, back} (2)": 41.5} and parse_thermal(hal).skin_c == 41.5
    assert parse_rails("CH3(T=9)[S10M_VDD[0], a b], 2000000\n") == {"S10M_VDD[0], a b": 2.0}
    battery = "  level: 50\n  serial: x@@thermal\n  note: @@time 7\n"
    block = f"\n@@time\n12.5\n\n@@battery\n{battery}\n@@current\n500000\n"
    sample = parse_sample(block)
    assert sample.t == 12.5 and sample.battery.percent == 50 and sample.current_a == 0.5


@parsers
@given(data=st.data())
def test_any_damage_is_read(parse, text, data):
    """Lines lost, doubled, cut, numbers replaced: a value or None, never an error, and no value that is not finite."""
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = data.draw(
            st.sampled_from(["", lines[at] * 2, lines[at][: len(lines[at]) // 2], "1e999", "nan"]) | st.text()
        )
        digits = data.draw(st.sampled_from(["-1", "nan", "1e400", "99999999999999999999", ""]))
        lines[at - 1] = lines[at - 1].replace("3", digits)
    found = parse("\n".join(lines))
    values = [found] if isinstance(found, float | None) else list(found.values()) if isinstance(found, dict) else []
    if isinstance(found, Battery):
        values = [found.percent, found.voltage_v, found.temperature_c, found.charge_mah]
        assert found.percent is None or 0 <= found.percent <= 100
    assert all(value is None or math.isfinite(value) for value in values)


@parsers
@given(garbage=st.text())
def test_any_text_is_read(parse, text, garbage):
    parse(garbage)


# Energy


def run(seconds: int = 600, step: int = 10, **fixed) -> list[Sample]:
    """A phone that takes 4 W of a 16 Wh battery: one percent lasts 144 s."""
    return [
        Sample(
            float(t),
            Battery(math.floor(80 - t / 144), plugged=False),
            current_a=1.0,
            voltage_v=4.0,
            rails_j={"cpu": 100 + 2.5 * t, "gpu": 7.0},
            **fixed,
        )
        for t in range(0, seconds, step)
    ]


def test_every_method_finds_the_power():
    found, why = energies(run(), wh=16)
    power = {one.method: one.joules / one.seconds for one in found}
    assert not why and power["current"] == pytest.approx(4) and power["rails"] == pytest.approx(2.5)
    ticks = next(one for one in found if one.method == "ticks")
    assert abs(power["ticks"] / 4 - 1) <= ticks.error < 0.05


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=30, unique=True))
def test_the_order_and_spacing_of_samples_do_not_matter(times):
    samples = [Sample(float(t), Battery(50, plugged=False), current_a=1.0, voltage_v=4.0) for t in times]
    ((one,), _) = energies(samples)
    assert one.joules == pytest.approx(4 * (max(times) - min(times)))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"plugged": True}, "charging: unplug"), ({"plugged": None}, "charging"), ({"simulated": True}, "simulated")],
)
def test_a_phone_on_the_cable_tells_no_energy(change, says):
    samples = [replace(one, battery=replace(one.battery, **change), rails_j={}) for one in run()]
    assert energies(samples, wh=16)[0] == [] and says in energies(samples, wh=16)[1]
    rails, _ = energies([replace(one, battery=replace(one.battery, **change)) for one in run()])
    assert [one.method for one in rails] == ["rails"]  # measured behind the charger


def test_too_little_is_said():
    assert energies([]) == ([], "fewer than two battery samples")
    short = [replace(one, current_a=None, rails_j={}) for one in run(150)]
    assert energies(short, wh=16)[0] == [] and "run longer" in energies(short, wh=16)[1]
    reset = [replace(one, rails_j={"cpu": 100.0 - one.t}, current_a=None) for one in run(150)]
    assert energies(reset)[0] == []


def test_a_laptops_files_are_read(tmp_path):
    from phi3mobile.bench.local import Local

    for name, text in {
        "BAT0/type": "Battery",
        "BAT0/capacity": "61",
        "BAT0/status": "Discharging",
        "BAT0/current_now": "1500000",
        "BAT0/voltage_now": "12000000",
        "AC/type": "Mains",
    }.items():
        (tmp_path / "power" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "power" / name).write_text(f"{text}\n")
    zone = tmp_path / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("x86_pkg_temp\n")
    (zone / "temp").write_text("54000\n")
    found = Local(tmp_path / "power", tmp_path / "thermal").sample()
    assert found.battery == Battery(61, plugged=False) and found.current_a == 1.5 and found.voltage_v == 12
    assert found.thermal.temperatures == {"x86_pkg_temp": 54.0}
    assert Local(tmp_path / "none", tmp_path / "none").sample() is None
