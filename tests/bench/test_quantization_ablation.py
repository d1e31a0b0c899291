"""`phi3mobile ablate`: rounding at every width, the figures against the whole model, settings, and runs that go on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from exported import LINES, VOCAB, talking_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.bench.ablate import compare as comparing
from phi3mobile.bench.ablate.compare import compare
from phi3mobile.bench.ablate.measure import float_reference, measure, measure_solved
from phi3mobile.bench.ablate.page import ablation_plots
from phi3mobile.bench.ablate.rounding import fake_quantize
from phi3mobile.bench.ablate.settings import ALLOWED, FLOAT, Setting, default_settings, grid_settings, weigh
from phi3mobile.cli import main
from phi3mobile.errors import InputError
from phi3mobile.export.packed import PackedModel, load_packed
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.solve.build import quantize_checkpoint
from phi3mobile.export.solve.folder import Solved
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.loading import load_model

BITS = [bits for bits in ALLOWED["bits"] if bits != FLOAT]
ANY_WIDTH = ("absmax", "rtn", "gptq")
TOKENS = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(3))
OTHERS = torch.randint(VOCAB, (3, 48), generator=torch.Generator().manual_seed(4))


def matrix(seed: int, rows: int = 12, width: int = 128) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


# Rounding


def on_a_grid(values: torch.Tensor, bits: int) -> bool:
    """Whether one positive scale makes all of them codes of `bits`; two neighbouring values are a few codes apart."""
    if len(values) < 3:
        return True
    for apart in range(1, 9):
        codes = values.double() * apart / values.double().diff().min()
        near = (codes - codes.round()).abs().max() < 0.01 * apart
        if near and -(2 ** (bits - 1)) <= codes.round().min() and codes.round().max() < 2 ** (bits - 1):
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(BITS),
    st.sampled_from([0, 32, 64, 128]),
    st.sampled_from(ANY_WIDTH),
    st.sampled_from([0.0, 1e-8, 1.0, 1e5]),
)
def test_rounded_weights_lie_on_the_grid(seed, bits, group, method, size):
    weight = matrix(seed, rows=3) * size
    inputs = matrix(seed + 1, rows=200)
    found = fake_quantize(weight, bits, group, method, inputs.t() @ inputs)
    for part in found.unflatten(1, (-1, group or 128)).flatten(0, 1):
        values = part.unique()
        assert len(values) <= 2**bits and torch.isfinite(part).all() and on_a_grid(values, bits)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(BITS), st.sampled_from([0, 32]))
def test_searched_scales_do_not_lose_to_the_extremes(seed, bits, group):
    weight = matrix(seed)
    naive, searched = (fake_quantize(weight, bits, group, method) for method in ("absmax", "rtn"))
    assert (weight - searched).square().sum() <= (weight - naive).square().sum() * 1.02


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gptq_errs_less_on_the_outputs(bits):
    weight, mixing = matrix(0), torch.randn(128, 128, generator=torch.Generator().manual_seed(9))
    inputs = matrix(1, rows=2000) @ (mixing * torch.linspace(0.1, 2, 128))  # correlated, as activations are
    nearest, solved = (fake_quantize(weight, bits, 32, method, inputs.t() @ inputs) for method in ("rtn", "gptq"))
    error, better = (((weight - q) @ inputs.t()).square().sum() for q in (nearest, solved))
    assert better < 0.6 * error


def test_more_bits_and_smaller_groups_err_less():
    weight = matrix(2, rows=64)
    by_bits = [float((weight - fake_quantize(weight, bits, 32, "rtn")).square().mean()) for bits in BITS]
    by_group = [float((weight - fake_quantize(weight, 4, group, "rtn")).square().mean()) for group in (32, 64, 128)]
    assert by_bits == sorted(by_bits) and by_group == sorted(by_group)
    assert torch.equal(fake_quantize(weight, FLOAT, 32, "rtn"), weight)


def test_unusable_weights_are_refused():
    with pytest.raises(InputError, match="groups of 64 don't divide a width of 96"):
        fake_quantize(torch.ones(2, 96), 4, 64, "rtn")
    with pytest.raises(InputError, match="not finite"):
        fake_quantize(torch.tensor([[1.0, float("nan")]]), 4, 0, "rtn")


# Figures


@pytest.mark.parametrize("name", ["tiny-tied", "tiny-window", "small-tiny"])
def test_figures_are_those_of_the_whole_model(name, tmp_path):
    """The layers one by one give what the model with rounded weights gives in one forward."""
    checkpoint = open_checkpoint(talking_checkpoint(tmp_path / name, name))
    said = torch.tensor([token for token in range(VOCAB) if token not in checkpoint.config.masked_ids])
    tokens = said[TOKENS % len(said)]
    reference = float_reference(checkpoint, tokens)
    setting = Setting(bits=3, group=0, tables=8)
    found = measure(reference, setting, OTHERS)
    exact, rounded = load_model(tmp_path / name, 64), load_model(tmp_path / name, 64)
    head = rounded.lm_head.weight.clone()
    for key, parameter in rounded.named_parameters():
        if parameter.ndim == 2:
            bits = 8 if "embed" in key or "lm_head" in key else 3
            parameter.data = fake_quantize(parameter.data, bits, 0, "rtn")
    if "lm_head.weight" not in dict(rounded.named_parameters()):
        rounded.lm_head.weight = torch.nn.Parameter(fake_quantize(head, 8, 0, "rtn"), requires_grad=False)
    logs = [torch.cat([model(row[None])[0, :-1] for row in tokens]).double().log_softmax(-1) for model in (exact, rounded)]
    following = tokens[:, 1:].reshape(-1, 1)
    perplexities = [float((-log.gather(1, following)).mean().exp()) for log in logs]
    assert reference.perplexity == pytest.approx(perplexities[0], rel=1e-4)
    assert found["perplexity"] == pytest.approx(perplexities[1], rel=1e-3)
    assert found["ratio"] == pytest.approx(perplexities[1] / perplexities[0], rel=1e-3)
    kl = torch.where(logs[0] < -1e30, 0, logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert found["kl"] == pytest.approx(float(kl), rel=1e-2)
    assert found["top1"] == pytest.approx(float((logs[0].argmax(-1) == logs[1].argmax(-1)).double().mean()), abs=0.03)


def test_what_is_not_quantized_changes_nothing_and_the_rest_does(tiny_checkpoint_folder):
    reference = float_reference(open_checkpoint(tiny_checkpoint_folder), TOKENS)
    same = measure(reference, Setting(bits=FLOAT), OTHERS)
    assert same["kl"] < 1e-9 and same["top1"] == 1 and same["ratio"] == pytest.approx(1)
    kl = {
        name: measure(reference, Setting(bits=FLOAT, **{name: value}), OTHERS)["kl"]
        for name, value in (("kv", 8), ("activations", "int8"), ("tables", 4))
    }
    assert all(value > 1e-7 for value in kl.values()) and kl["kv"] < kl["tables"]
    assert measure(reference, Setting(bits=FLOAT, kv=16), OTHERS)["kl"] < kl["kv"]


def test_gptq_helps_the_model(tiny_checkpoint_folder):
    reference = float_reference(open_checkpoint(tiny_checkpoint_folder), TOKENS)
    calibration = torch.randint(VOCAB, (24, 64), generator=torch.Generator().manual_seed(5))
    nearest, solved = (measure(reference, Setting(bits=4, method=method), calibration)["kl"] for method in ("rtn", "gptq"))
    assert solved < nearest


@pytest.fixture(scope="module")
def solved(tiny_checkpoint_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("solved")
    (folder / "text.txt").write_text("\n".join(LINES * 80))
    return quantize_checkpoint(tiny_checkpoint_folder, folder / "tiny.q", calibration=folder / "text.txt")


def test_solved_folders_are_measured_as_the_phone_computes(tiny_checkpoint_folder, solved, tmp_path):
    reference = float_reference(open_checkpoint(tiny_checkpoint_folder), TOKENS)
    found = measure_solved(reference, Solved(solved), Setting(bits=FLOAT, activations="int8"))
    model = load_packed(PackedModel(Solved(solved), find_recipe("android-cpu")), 64)
    logs = torch.cat([model(row[None])[0, :-1] for row in TOKENS]).double().log_softmax(-1)
    expected = float((-logs.gather(1, TOKENS[:, 1:].reshape(-1, 1))).mean().exp())
    assert found["perplexity"] == pytest.approx(expected, rel=1e-3) and found["ratio"] > 0 and 0 < found["kl"] < 5
    assert 4 < found["bits_per_weight"] < 6 and found["bytes"] > 1000
    other = float_reference(open_checkpoint(talking_checkpoint(tmp_path / "other", "tiny-mha")), TOKENS)
    with pytest.raises(InputError, match="another checkpoint"):
        measure_solved(other, Solved(solved), Setting(bits=FLOAT))


def test_weights_are_counted():
    from tiny import tiny

    config = tiny("tiny-tied", vocab_size=VOCAB)
    count, tables = 64 * 128, VOCAB * config.hidden_size
    found = weigh(Setting(bits=4, group=32, tables=8), config, [(64, 128)])
    assert found["bits_per_weight"] == 4.5 and found["bytes"] == (count * 4.5 + tables * 8 + VOCAB * 16) // 8
    assert weigh(Setting(bits=FLOAT), config, [(64, 128)])["bits_per_weight"] == 16


# Settings


def test_settings_are_combined():
    assert len(grid_settings(bits=[4, 3], group=[32, 0], method=["rtn", "gptq"], kv=[], activations=[], tables=[])) == 8
    only = grid_settings(bits=[16], group=[32, 64], method=["rtn", "gptq"], kv=[32, 8])
    assert only == [Setting(bits=16), Setting(bits=16, kv=8)]
    labels = [setting.label for setting in default_settings()]
    assert len(labels) == len(set(labels)) and {setting.bits for setting in default_settings()} == set(ALLOWED["bits"])
    for axes in ({"bits": [7]}, {"method": ["awq"]}, {"group": [48]}, {"activations": ["int4"]}):
        with pytest.raises(InputError, match="known are"):
            grid_settings(**axes)


# The whole run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES * 40))
    return path


def test_a_run_goes_on_and_its_pages_show_every_setting(tiny_checkpoint_folder, solved, text, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = [
        "ablate",
        str(tiny_checkpoint_folder),
        "-o",
        str(out),
        "--text",
        str(text),
        "--calibration",
        str(text),
        "--tokens",
        "64",
        "--calibration-tokens",
        "64",
        "--bits",
        "8,4",
        "--methods",
        "rtn,gptq",
        "--solved",
        str(solved),
    ]
    measured = []

    def one_more(reference, setting, *rest):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(setting)
        return measure(reference, setting, *rest)

    monkeypatch.setattr(comparing, "measure", one_more)
    assert main(command) == 130 and not (out / "ablation.md").exists()
    monkeypatch.setattr(comparing, "measure", lambda *given: measured.append(given[1]) or measure(*given))
    assert main(command) == 0
    assert len(measured) == len(set(measured)) == 4
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = grid_settings(bits=[8, 4], method=["rtn", "gptq"])
    labels = [one["setting"] for one in said["settings"]]
    assert labels[:-1] == [setting.label for setting in wanted] and "tiny.q, as quantized" in labels[-1]
    page = (out / "ablation.html").read_text()
    assert all(setting.label in page and setting.label in (out / "ablation.md").read_text() for setting in measured)
    assert page.count("<figure>") >= 2 and "<script" not in page and not list(out.glob(".*"))
    assert main(command) == 0 and len(measured) == 4
    capsys.readouterr()
    assert main([*command, "--tokens", "32"]) == 2
    assert "another model, text or number of tokens" in capsys.readouterr().err


def test_plots_show_what_there_is():
    found = [
        (Setting(bits=bits, method=method), {"bits_per_weight": bits + 0.5, "kl": 10.0**-bits, "ratio": 1 + 2.0**-bits})
        for bits in (8, 4, 2)
        for method in ANY_WIDTH
    ]
    width, ratio, group = ablation_plots(found)
    assert width.count("<circle") == ratio.count("<circle") == 9 and group.count("<circle") == 3
    assert ablation_plots([(Setting(bits=FLOAT), {"bits_per_weight": 16.0, "kl": 0.0, "ratio": 1.0})]) == []


def test_bad_input_is_refused(tiny_checkpoint_folder, text, tmp_path, capsys):
    def refused(*arguments):
        assert main(["ablate", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    given = (tiny_checkpoint_folder, "-o", tmp_path / "out", "--text", text, "--calibration", text)
    assert "known are" in refused(*given, "--bits", "7")
    assert "give numbers" in refused(*given, "--bits", "four")
    assert "--tokens 1" in refused(*given, "--tokens", "1")
    assert "can't be read" in refused(tiny_checkpoint_folder, "-o", tmp_path / "out", "--text", tmp_path / "none")
    short = tmp_path / "short.txt"
    short.write_text("a b")
    assert "tokens: give a text of" in refused(tiny_checkpoint_folder, "-o", tmp_path / "out", "--text", short)
    (tmp_path / "out" / "results.jsonl").parent.mkdir(exist_ok=True)
    (tmp_path / "out" / "results.jsonl").write_text("{}\nnonsense\n")
    assert "is damaged" in refused(*given, "--bits", "4", "--tokens", "64")
    with pytest.raises(InputError, match="does not exist"):
        compare(tmp_path / "nothing", tmp_path / "o", {})


def test_broken_weights_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = talking_checkpoint(tmp_path / "broken", "tiny-gqa")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        float_reference(open_checkpoint(folder), TOKENS)


def test_clipped_is_core_ais_own_scheme():
    """int4 by the sheet's formula in numpy: scale = amax / 7 in float16 for 32 columns, codes -7 ... 7."""
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(3))
    groups = weight.double().numpy().reshape(24, 4, 32)
    scale = (np.abs(groups).max(-1, keepdims=True) / 7).astype(np.float32).astype(np.float16).astype(np.float64)
    codes = np.clip(np.round(groups / scale), -8, 7)
    assert codes.min() == -7
    np.testing.assert_allclose(fake_quantize(weight, 4, 32, "clipped").numpy(), (codes * scale).reshape(24, 128), rtol=1e-6)
