"""Measurements: of this machine and peers beside us (host.py, peers.py), of text quality (perplexity.py), and of devices.

Devices: one protocol (protocol.py, steps.py) on this machine (local.py), Android (android.py, adb.py) and iOS (ios.py);
battery.py parses what phones print; report*.py makes a page of the records; predict.py says what to expect of other phones.
"""
