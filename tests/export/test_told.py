"""What export and quantize say before they begin: how long solving takes, and that a bundle will not run where it is made."""

import re

import pytest
from torch.utils.flop_counter import FlopCounterMode

from phi3mobile.cli import main
from phi3mobile.engines import native
from phi3mobile.errors import InputError
from phi3mobile.export.solve import estimate
from phi3mobile.export.solve.build import quantize_checkpoint
from phi3mobile.export.solve.calibration import calibration_of
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.presets import preset
from phi3mobile.text.vocabularies import load_tokenizer


def test_multiplications_are_those_that_a_solve_does(checkpoint_of, text, tmp_path, monkeypatch):
    """As torch counts them; it does not count factorisations, and here few tokens go through small matrices."""
    source = checkpoint_of("tiny-gqa")
    opened = open_checkpoint(source)
    tokens = calibration_of(load_tokenizer(source), opened.config, text).tokens.numel()
    monkeypatch.setattr(estimate, "TOKENS", tokens)
    with FlopCounterMode(display=False) as counter:
        quantize_checkpoint(source, tmp_path / "q", calibration=text)
    assert 0.5 < counter.get_total_flops() / (2 * estimate.multiplications(opened.config)) < 2


def test_hours_are_told_and_minutes_are_not():
    assert estimate.told(preset("tiny-mha")) == ""
    config = preset("phi-3-medium-4k")
    assert re.fullmatch(
        r"solving .* takes about [\d.]+ hours on this machine; --method rtn takes minutes.*", estimate.told(config)
    )
    assert estimate.multiplications(config) > 3 * estimate.multiplications(preset("phi-3-mini-4k"))


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(native, "native_library", lambda: None)


def test_export_says_that_its_bundle_does_not_run_here(without_kernels, checkpoint_of, tmp_path, capsys):
    out = tmp_path / "b"
    arguments = ["export", str(checkpoint_of("tiny-gqa")), "-o", str(out), "--context", "64", "--method", "rtn"]
    assert main([*arguments, "--recipe", "host"]) == 0
    assert "this machine can't run a bundle of recipe host yet, for its kernels are not here: run `make native`" in (
        capsys.readouterr().err
    )
    assert main(["run", str(out), "hello"]) == 2
    assert "which are not here: run `make native`; a bundle of recipe android-cpu does without them" in capsys.readouterr().err


def test_how_kernels_come_depends_on_how_it_was_installed(monkeypatch, tmp_path):
    assert native.where_from() == "run `make native`"
    monkeypatch.setattr(native, "__file__", str(tmp_path / "site-packages/phi3mobile/engines/native.py"))
    monkeypatch.setattr(native, "native_library", lambda: None)
    with pytest.raises(InputError, match="install phi3mobile's wheel for this platform, or clone its repository"):
        native.load_library()
