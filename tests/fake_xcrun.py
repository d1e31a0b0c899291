"""What `xcrun devicectl list devices` says of phones."""

from __future__ import annotations

UDID = "00008130-001234560E12001C"


def listed(udid=UDID, **link) -> dict:
    return {
        "identifier": "5B4C4E0B-0000-4000-8000-00000000A001",
        "connectionProperties": {"pairingState": "paired", "transportType": "wired", "tunnelState": "connected"} | link,
        "deviceProperties": {
            "name": "Test",
            "osVersionNumber": "18.1",
            "osBuildUpdate": "22B83",
            "developerModeStatus": "enabled",
        },
        "hardwareProperties": {
            "platform": "iOS",
            "deviceType": "iPhone",
            "marketingName": "iPhone 15 Pro",
            "productType": "iPhone16,1",
            "udid": udid,
        },
    }


def answer(*devices: dict) -> dict:
    return {
        "info": {"commandType": "devicectl.list.devices", "outcome": "success", "version": "397.21"},
        "result": {"devices": list(devices)},
    }
