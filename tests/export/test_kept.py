"""Method keep: a source's own integers reach the program, what no program holds loses little, the rest is refused."""

import gguf
import pytest
import torch
from exported import VOCAB, write_tokenizer
from gguf_files import talking_gguf
from hub_formats import FORMATS, packed_folder
from tiny import random_tensors, tiny, write_folder

from phi3mobile.bundle import open_bundle
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.integers import first_difference
from phi3mobile.export.packed import PackedModel
from phi3mobile.export.plan import plan_export
from phi3mobile.export.recipe import find_recipe
from phi3mobile.export.scales import SMALLEST_SCALE
from phi3mobile.export.solve.build import method_for, quantize_checkpoint
from phi3mobile.export.solve.folder import Solved
from phi3mobile.export.solve.keep import is_packed
from phi3mobile.export.solve.kept import group_sizes, held, scaled
from phi3mobile.export.solve.stream import rounded
from phi3mobile.export.targets import target_of
from phi3mobile.export.verify import verify
from phi3mobile.export.weights import source_of
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.models.gguf_grid import gguf_grid
from phi3mobile.models.grid import Grid
from phi3mobile.models.source import open_source

KIND = gguf.GGMLQuantizationType
QKV, DOWN = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight"


def gguf_matrix(kind: KIND, rows: int = 64, width: int = 512, seed: int = 0) -> Grid:
    """A random matrix as llama.cpp's own rounding packs it."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05
    found = gguf_grid(kind, gguf.quantize(weight.numpy(), kind))
    assert found is not None
    return found


def grid_of(codes: torch.Tensor, scale: float, offset: float, group: int) -> Grid:
    shape = (codes.shape[0], codes.shape[1] // group)
    return Grid(codes.to(torch.int8), torch.full(shape, scale), torch.full(shape, offset))


def worst(grid: Grid) -> float:
    """The largest difference that holding it makes, in units of each group's scale."""
    packed = held(grid)
    assert packed is not None
    error = (packed.dequantized() - grid.values()).abs().unflatten(1, (-1, grid.group)).amax(-1)
    return float((error / grid.scales.abs()).max())


# One matrix


@pytest.mark.parametrize("kind", [KIND.Q4_0, KIND.Q4_1])
def test_gguf_matrices_keep_their_integers(kind):
    """bfloat16 rounds a scale by 2**-9, and a code is 8 at most; a row's offsets share 127 steps."""
    grid = gguf_matrix(kind)
    assert held(grid).form == Form(4, 32, True)  # half of Q4_0's scales are negative: code 8 comes up
    assert worst(grid) < 0.06
    noise = held(grid).dequantized() - grid.values()
    assert float(noise.square().sum() / grid.values().square().sum()) < 10**-5


def test_symmetric_codes_stay_symmetric():
    codes = torch.randint(-8, 8, (4, 128), generator=torch.Generator().manual_seed(1))
    for grid in (grid_of(codes, 0.5, 0.0, 64), grid_of(codes + 8, 0.5, -4.0, 64), grid_of(-codes, -0.5, 0.0, 64)):
        packed = held(grid)
        assert packed.form == Form(4, 64) and torch.equal(packed.unpacked(), codes.to(torch.int8))
        assert torch.equal(packed.dequantized(), grid.values())


def test_programs_with_scales_of_either_sign_hold_q4_0_as_it_is():
    grid = gguf_matrix(KIND.Q4_0)
    packed = held(grid, signed=True)
    assert packed.form == Form(4, 32, signed=True) and torch.equal(packed.unpacked(), grid.codes)
    assert torch.equal(packed.scales, grid.scales.bfloat16())
    assert held(gguf_matrix(KIND.Q4_1), signed=True).form == Form(4, 32, offsets=True)
    codes = torch.randint(-8, 8, (2, 64), generator=torch.Generator().manual_seed(1))
    for scale in (0.0, -1e-9, -(2.0**-18)):
        grid = grid_of(codes, scale, 0.0, 32)
        assert (held(grid, signed=True).dequantized() - grid.values()).abs().max() <= SMALLEST_SCALE / 2


def test_groups_that_no_program_has_become_smaller_ones():
    codes = torch.randint(-8, 8, (2, 768), generator=torch.Generator().manual_seed(1))
    assert held(grid_of(codes, 0.5, 0.0, 768)).form == Form(4, 256)
    assert held(grid_of(codes[:, :96], 0.5, 0.0, 96)).form == Form(4, 32)
    assert held(grid_of(codes[:, :96], 0.5, 0.0, 16)) is None


def test_groups_of_zeros_and_of_tiny_scales_are_held():
    codes = torch.randint(0, 16, (2, 64), generator=torch.Generator().manual_seed(1))
    for scale, offset in ((0.0, 0.25), (1e-9, 0.0), (1e-7, -0.01)):
        grid = grid_of(codes, scale, offset, 32)
        assert (held(grid).dequantized() - grid.values()).abs().max() <= SMALLEST_SCALE / 2 + abs(offset) / 250


def test_eight_bits_stay_where_a_row_has_one_scale():
    codes = torch.randint(-128, 128, (4, 96), generator=torch.Generator().manual_seed(1))
    packed = held(grid_of(codes, 0.01, 0.0, 96))
    assert packed.form == Form(8, 96) and torch.equal(packed.codes, codes.to(torch.int8))
    assert held(grid_of(codes, 0.01, 0.0, 32)) is None and held(grid_of(codes, 0.01, 0.1, 96)) is None


def test_rows_and_groups_are_scaled_without_touching_an_integer():
    grid, generator = gguf_matrix(KIND.Q4_1), torch.Generator().manual_seed(2)
    rows, sizes = (torch.rand(n, generator=generator) + 0.5 for n in (64, 16))
    sizes = sizes.repeat_interleave(32)
    moved = scaled(grid, rows, sizes)
    assert torch.equal(moved.codes, grid.codes)
    assert torch.allclose(moved.values(), grid.values() * rows[:, None] * sizes, rtol=1e-5, atol=1e-7)


def test_sizes_of_groups_make_int8_inputs_better():
    generator = torch.Generator().manual_seed(3)
    weight, seen = torch.randn(64, 256, generator=generator), torch.randn(2, 100, 256, generator=generator)
    seen[..., 40] *= 50
    sizes = group_sizes(weight, seen, 32)
    assert all(len(part.unique()) == 1 for part in sizes.split(32)) and sizes.argmax() // 32 == 1
    error = [(rounded(seen / size) * size - seen) @ weight.t() for size in (sizes, torch.ones(256))]
    assert error[0].square().sum() < 0.3 * error[1].square().sum()


# A checkpoint


@pytest.fixture(scope="module")
def packed_checkpoint(tmp_path_factory):
    """Name of a hub's format -> a tiny checkpoint that can talk, its matrices packed so."""

    def make(name: str, preset: str = "tiny-gqa"):
        settings, maker = FORMATS[name]
        config = tiny(preset, vocab_size=VOCAB)
        tensors, _ = packed_folder(random_tensors(config), maker)
        folder = write_folder(
            tmp_path_factory.mktemp("packed") / "c", config.to_hf() | {"quantization_config": settings}, tensors
        )
        write_tokenizer(folder)
        (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "form", "kept"),
    [
        ("awq", Form(4, 32, True), "4 bit, offsets, its integers"),
        ("gptq", Form(4, 32, True), "4 bit, offsets, its integers"),
        ("compressed-tensors", Form(4, 32), "4 bit, its integers"),
        ("gptq, desc_act", Form(8, 64), "8 bit, rounded again"),
        ("nf4", Form(8, 64), "8 bit, rounded again"),
        ("compressed-tensors, int8", Form(8, 64), "8 bit, its integers"),
    ],
)
def test_each_format_is_kept_as_far_as_programs_go(name, form, kept, packed_checkpoint, text, tmp_path):
    source = packed_checkpoint(name)
    folder = quantize_checkpoint(source, tmp_path / "q", "host", calibration=text)
    solved, quality = Solved(folder), Solved(folder).about["quality"]
    assert quality["method"] == "keep" and solved.form_of(QKV) == form
    assert quality["kept"][FORMATS[name][0]["quant_method"]] == {kept: 8}
    assert quality["bits_per_weight"] == pytest.approx(PackedModel(solved, find_recipe("host")).bits_per_weight(), abs=1e-3)
    exact, packed = open_checkpoint(source).tensor(QKV), solved.tensor(QKV).dequantized()
    divided = solved.tensor("model.layers.0.input_layernorm.weight") / open_checkpoint(source).tensor(
        "model.layers.0.input_layernorm.weight"
    )
    noise = (packed * divided - exact).square().sum() / exact.square().sum()
    assert float(noise) < 2e-4


def test_a_gguf_file_is_exported_as_it_is(tmp_path, text):
    path = talking_gguf(tmp_path / "tiny.gguf", KIND.Q4_1)
    bundle = open_bundle(export(path, tmp_path / "b", "android-cpu", 256, calibration=text, accept_quality=True))
    quality = bundle.manifest["quality"]
    assert bundle.manifest["name"] == "tiny" and quality["method"] == bundle.manifest["recipe"]["method"] == "keep"
    assert quality["kept"]["Q4_1"] == {"8 bit, rounded again": 2, "4 bit, offsets, its integers": 8}  # both tables
    assert bundle.tokenizer.vocab_size == VOCAB and bundle.eos_ids == {2}
    source = source_of(bundle, None)
    assert source.floats is not None and source.floats.source_hash() == open_source(path).source_hash()
    assert all(check.passed for check in verify(bundle, source, [[5, 6, 7, 8]]))


@pytest.mark.parametrize("recipe", ["ios-gpu", "litert", "android-small"])
def test_other_targets_hold_the_same_integers(recipe, packed_checkpoint, text, tmp_path):
    pytest.importorskip({"ios-gpu": "coremltools", "litert": "ai_edge_litert"}.get(recipe, "executorch"))
    source = packed_checkpoint("awq")
    chosen = find_recipe(recipe)
    folder = quantize_checkpoint(source, tmp_path / "q", recipe, calibration=text)
    bundle = open_bundle(export(folder, tmp_path / "b", recipe, 64, accept_quality=True))
    solved = Solved(folder)
    assert first_difference(target_of(chosen).integers(bundle, solved.config), PackedModel(solved, chosen)) == ""
    assert solved.form_of(DOWN) == Form(4, 32, True)


def test_a_mixture_of_types_is_kept_type_by_type(text, tmp_path):
    """gguf quantizes no K types, so Q8_0 stands for what 4 bits can't hold."""
    folder = quantize_checkpoint(talking_gguf(tmp_path / "m.gguf", KIND.Q4_0, KIND.Q8_0), tmp_path / "q", calibration=text)
    kept = Solved(folder).about["quality"]["kept"]
    assert kept == {"Q4_0": {"8 bit, rounded again": 2, "4 bit, offsets, its integers": 4}, "Q8_0": {"8 bit, rounded again": 4}}
    assert Solved(folder).form_of(QKV).bits == 4 and Solved(folder).form_of(DOWN).bits == 8


# Refusals


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_kept_by_default(packed_checkpoint, checkpoint_of):
    packed, floats = open_source(packed_checkpoint("awq")), open_source(checkpoint_of("tiny-gqa"))
    assert is_packed(packed) and not is_packed(floats)
    host, ane = find_recipe("host"), find_recipe("ios-ane")
    assert method_for(packed, host, None, None, False) == "keep"
    assert method_for(packed, host, None, 4.6, False) == method_for(packed, host, None, None, True) == "gptq"
    assert method_for(packed, ane, None, None, False) == method_for(floats, host, None, None, False) == "gptq"
    assert method_for(packed, host, "rtn", None, False) == "rtn"


def test_what_cannot_be_kept_is_named(packed_checkpoint, checkpoint_of, tmp_path):
    packed, out = packed_checkpoint("awq"), tmp_path / "out"
    assert "method keep is for what is integers already" in refusal(plan_export, checkpoint_of("tiny-gqa"), out, method="keep")
    assert "leave out --bits and --rotate" in refusal(plan_export, packed, out, method="keep", bits=4.6)
    assert "leave out --bits and --rotate" in refusal(plan_export, packed, out, method="keep", rotate=True)
    message = refusal(plan_export, packed, out, "ios-ane", method="keep", context=64)
    assert f"can't hold {QKV} (awq): take --recipe ios-gpu or ios-executorch, or --method gptq" in message
    assert "method rtn takes no folder" in refusal(quantize_checkpoint, packed, out, method="rtn")
    assert "method 'best' is not known; take one of: gptq, rtn, keep" in refusal(plan_export, packed, out, method="best")
