"""phi3_v: configs of the releases, what a folder must hold, parity of tower, projector and decoder with transformers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reference_phi3_v as reference
import torch
from exported import talking_checkpoint
from tiny import random_model, random_tensors, random_tokens, tiny, write_folder

from phi3mobile.engines.eager import EagerEngine
from phi3mobile.errors import InputError
from phi3mobile.export.plan import plan_export
from phi3mobile.models.checkpoint import open_checkpoint, write_checkpoint
from phi3mobile.models.clip import Vision, merged
from phi3mobile.models.companions import companion_files
from phi3mobile.models.config import RopeScaling
from phi3mobile.models.loading import fill, load_model, load_vision
from phi3mobile.models.pieces import pieces
from phi3mobile.models.presets import PRESETS, preset
from phi3mobile.models.registry import read_config
from phi3mobile.models.vision_config import PREFIX, TOWER, VisionConfig, num_crops

FACTORS = RopeScaling((1.0,) * 48, tuple(1.0 + number for number in range(48)))
HUB = {  # microsoft/Phi-3-vision-128k-instruct's config.json, made-up factors
    "_name_or_path": "Phi-3-vision-128k-instruct",
    "architectures": ["Phi3VForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig", "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"},
    "bos_token_id": 1,
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3_v",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": list(FACTORS.long_factor), "short_factor": list(FACTORS.short_factor), "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": 32064,
    "_attn_implementation": "flash_attention_2",
}
HUB_35 = HUB | {"sliding_window": 262144, "pad_token_id": 32000, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
SMALL = PRESETS["vision-tiny"]
WIDE = replace(SMALL, vision=VisionConfig(64, intermediate_size=256, num_hidden_layers=3))  # as wide as the released tower
GRIDS = [(1, 1), (2, 1), (1, 2), (3, 2)]


def hub_with(section: str, **changes) -> dict:
    values = {key: value for key, value in (HUB[section] | changes).items() if value is not None}
    return HUB | {section: values}


def test_the_released_configs_are_the_shapes():
    three, three_five = preset("phi-3-vision", FACTORS), preset("phi-3.5-vision", FACTORS)
    assert replace(read_config(HUB), pad_token_id=three.pad_token_id) == three
    assert read_config(HUB_35) == three_five
    assert three.vision == VisionConfig(3072) and three.mscales[0] == pytest.approx(1.19024, abs=1e-5)
    assert three.eos_token_ids == (32007, 32001, 32000)
    assert read_config(HUB | {"eos_token_id": [32007]}).eos_token_ids == (32007,)


def test_parameters_are_those_of_the_hubs_index():
    config = preset("phi-3-vision", FACTORS)
    vision = config.vision
    assert config.parameters() == 3_821_079_552
    assert vision.parameters() == 290_909_184 + 22_026_240 + 8_192
    one_layer = sum(math.prod(shape) for name, shape in vision.tensors().items() if ".layers.0." in name)
    assert config.parameters() + vision.parameters() + one_layer + 2 * 1024 == 4_146_621_440
    assert (vision.layers, vision.patches, vision.positions, vision.head_dim, vision.merged_size) == (23, 576, 577, 64, 4096)
    packed = sum(math.prod(vision.tensors()[name]) for name in vision.matrices())
    assert len(vision.matrices()) == 23 * 6 + 2 and packed / vision.parameters() > 0.99


def test_a_config_of_ours_has_the_hubs_keys():
    hf = json.loads(json.dumps(read_config(HUB_35).to_hf()))
    for key in ("model_type", "architectures", "embd_layer", "img_processor", "rope_scaling", "vocab_size", "sliding_window"):
        assert hf[key] == HUB_35[key], key
    tower = PRESETS["vision-tiny"].to_hf()["img_processor"]["vision_config"]
    assert tower["hidden_size"] == 32 and tower["hidden_act"] == "quick_gelu"


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        (
            "embd_layer",
            {"hd_transform_order": "glb_sub"},
            "embd_layer.hd_transform_order is 'glb_sub'; this graph allows 'sub_glb'",
        ),
        ("embd_layer", {"use_hd_transform": False}, "embd_layer.use_hd_transform is False; this graph allows True only"),
        ("embd_layer", {"with_learnable_separator": 1}, "embd_layer.with_learnable_separator is 1; this graph allows True"),
        ("embd_layer", {"projection_cls": None}, "embd_layer lacks projection_cls; a phi3_v config must give them"),
        ("embd_layer", {"audio": True}, r"unknown key 'audio' \(True\) in embd_layer"),
        ("img_processor", {"layer_idx": -1}, "img_processor.layer_idx is -1; this graph allows -2 only"),
        (
            "img_processor",
            {"type_feature": "cls_patch"},
            "img_processor.type_feature is 'cls_patch'; this graph allows 'patch'",
        ),
        ("img_processor", {"num_img_tokens": 256}, "img_processor.num_img_tokens is 256; this graph allows 144 only"),
        (
            "img_processor",
            {"model_name": "google/siglip"},
            "img_processor.model_name is 'google/siglip'; this graph allows 'openai/",
        ),
        ("img_processor", {"image_dim_out": 1152}, "img_processor.image_dim_out is 1152; this graph allows 1024 only"),
        ("img_processor", {"name": None}, "img_processor lacks name"),
        ("img_processor", {"vision_config": [1]}, r"img_processor.vision_config is \[1\]; it must be an object"),
        (
            "img_processor",
            {"vision_config": {"hidden_act": "gelu"}},
            "vision_config.hidden_act is 'gelu'; this graph allows 'quick",
        ),
        (
            "img_processor",
            {"vision_config": {"num_hidden_layers": 1}},
            "num_hidden_layers of the vision tower is 1; it must be 2",
        ),
        ("img_processor", {"vision_config": {"num_attention_heads": 3}}, "num_attention_heads 3 of the vision tower does not"),
        ("img_processor", {"vision_config": {"layer_norm_eps": 0}}, "layer_norm_eps of the vision tower is 0; it must be"),
    ],
)
def test_another_function_is_refused_by_name(section, changes, said):
    with pytest.raises(InputError, match=said):
        read_config(hub_with(section, **changes))


@pytest.mark.parametrize("section", ["embd_layer", "img_processor"])
@pytest.mark.parametrize("value", [None, "default"])
def test_a_config_without_its_pictures_is_refused(section, value):
    with pytest.raises(InputError, match=f"config: {section} is {value!r}; a phi3_v config must give it as an object"):
        read_config(HUB | {section: value})


def test_tower_and_decoder_must_meet():
    with pytest.raises(
        InputError, match="the vision tower is projected to 64, the decoder has hidden_size 128; they must agree"
    ):
        tiny("vision-tiny", hidden_size=128)


def test_optional_keys_may_be_there():
    assert read_config(hub_with("img_processor", layer_idx=-2, type_feature="patch")) == read_config(HUB)


# Folders


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(PRESETS["vision-tiny"])


def folder_of(path, tensors, **changes):
    stored = {name: value for name, value in (tensors | changes).items() if value is not None}
    return write_folder(path, PRESETS["vision-tiny"].to_hf(), stored)


def test_what_is_never_used_may_be_there_and_is_dropped(tensors, tmp_path):
    last = f"{TOWER}encoder.layers.2."
    unused = {
        name.replace(".layers.0.", ".layers.2."): value.clone()
        for name, value in tensors.items()
        if f"{TOWER}encoder.layers.0." in name
    }
    unused |= {f"{TOWER}post_layernorm.{part}": torch.ones(32) for part in ("weight", "bias")}
    unused |= {f"{TOWER}embeddings.position_ids": torch.arange(577)[None], f"{PREFIX}wte.weight": torch.ones(256, 64)}
    checkpoint = open_checkpoint(folder_of(tmp_path / "c", tensors, **unused))
    checkpoint.check()
    checkpoint.check_values()
    assert f"{last}mlp.fc1.weight" in unused
    assert not any(name in checkpoint.config.vision_tensors() or name in checkpoint.names() for name in unused)
    assert not set(checkpoint.names()) & set(checkpoint.config.vision_tensors())


def test_missing_and_misshapen_tensors_are_named(tensors, tmp_path):
    gone, short = f"{PREFIX}glb_GN", f"{TOWER}encoder.layers.1.mlp.fc1.bias"
    extra = f"{TOWER}encoder.layers.3.mlp.fc1.bias"
    folder = folder_of(tmp_path / "c", tensors, **{gone: None, short: torch.ones(63), extra: torch.ones(64)})
    with pytest.raises(InputError) as refused:
        load_model(folder)
    for said in (f"{gone} is missing", f"{extra} is not part of the model", f"{short} has shape [63], expected [64]"):
        assert said in str(refused.value)


def test_a_value_that_is_not_finite_is_named(tensors, tmp_path):
    name = f"{PREFIX}img_projection.2.bias"
    checkpoint = open_checkpoint(folder_of(tmp_path / "c", tensors, **{name: torch.full((64,), torch.nan)}))
    with pytest.raises(InputError, match=f"{name} has values that are not finite"):
        checkpoint.check_values()


def test_a_folder_is_written_and_read_back(tensors, tmp_path):
    config = PRESETS["vision-tiny"]
    folder = write_checkpoint(tmp_path / "c", config, tensors.items(), torch.float32, shard_bytes=200_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (config.parameters() + config.vision.parameters())
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    assert all(torch.equal(checkpoint.tensor(name), value) for name, value in tensors.items())
    vision = load_vision(folder)
    assert not vision.training and {f"{PREFIX}{name}" for name in vision.state_dict()} == set(config.vision_tensors())
    assert all(torch.equal(value, tensors[f"{PREFIX}{name}"]) for name, value in vision.state_dict().items())
    with pytest.raises(InputError, match=r"glb_GN is missing"):
        write_checkpoint(
            tmp_path / "d", config, ((n, t) for n, t in tensors.items() if not n.endswith("glb_GN")), torch.float32
        )


def test_a_model_without_a_tower_says_so(checkpoint_of):
    with pytest.raises(InputError, match="model_type phi3 takes no pictures; give a vision model"):
        load_vision(checkpoint_of("tiny-gqa"))
    assert PRESETS["tiny-gqa"].vision is None and PRESETS["tiny-gqa"].vision_tensors() == {}


def test_a_target_without_the_piece_refuses_it_by_name(checkpoint_of, tmp_path):
    assert pieces(PRESETS["vision-tiny"])["vision"] == "pictures"
    folder = checkpoint_of("vision-tiny")
    assert "preprocessor_config.json" in [path.name for path in companion_files(folder)]
    with pytest.raises(InputError, match=r"recipe litert has no vision \(pictures\), which this model needs; take "):
        plan_export(folder, tmp_path / "out", "litert", method="rtn")


def test_crops_are_the_preprocessors(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    assert num_crops(tmp_path) == 4
    hub = {
        "auto_map": {},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "num_crops": 16,
        "num_img_tokens": 144,
        "image_processor_type": "Phi3VImageProcessor",
    }
    path.write_text(json.dumps(hub))
    assert num_crops(tmp_path) == 16
    for key, value, said in [
        ("num_crops", 0, "num_crops is 0; it must be a whole number above 0"),
        ("num_crops", True, "num_crops is True"),
        ("num_crops", "4", "num_crops is '4'"),
        ("image_mean", [0.5, 0.5, 0.5], r"image_mean is \[0.5, 0.5, 0.5\]; this graph's pictures have"),
        ("image_std", [0.27], r"image_std is \[0.27\]"),
        ("image_std", ["a", "b", "c"], "image_std is"),
        ("num_img_tokens", 256, "num_img_tokens is 256; this graph's pictures have 144"),
        ("do_convert_rgb", False, "do_convert_rgb is False"),
    ]:
        path.write_text(json.dumps(hub | {key: value}))
        with pytest.raises(InputError, match=f"preprocessor_config.json: {said}"):
            num_crops(tmp_path)


# Parity


def made(config, views: int) -> tuple:
    """Random weights, our tower with them, random views, and the reference's features of these."""
    weights = random_tensors(config)
    with torch.device("meta"):
        vision = Vision(config.vision)
    fill(vision, config.vision_tensors(), weights.__getitem__, PREFIX)
    shown = torch.randn(views, 3, 336, 336, generator=torch.Generator().manual_seed(3))
    return weights, vision.eval(), shown, reference.features(config.vision, weights, shown)


@pytest.fixture(scope="module")
def wide():
    return made(WIDE, 2)


@pytest.fixture(scope="module")
def small():
    return made(SMALL, 7)


def rows_of(small, grid: tuple[int, int]) -> torch.Tensor:
    """The reference's rows for the decoder, [T, hidden], of a picture of that many crops."""
    weights, _, _, features = small
    found = features[: 1 + grid[0] * grid[1]]
    return reference.projected(reference.grid_rows(found, grid, weights), weights)


def test_features_equal_transformers(wide):
    _, vision, views, want = wide
    got = vision.encode(views)
    assert want.shape == (2, 576, 1024) and want.std() > 0.1
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert (want[0] - want[1]).abs().max() > 0.1  # of other views


def test_rows_are_projected_as_the_reference_does(wide):
    weights, vision, _, features = wide
    lines = reference.grid_rows(features, (1, 1), weights)
    assert lines.shape == (313, 4096)
    got, want = vision.project(lines), reference.projected(lines, weights)
    assert want.std() > 0.1 and (got - want).abs().max() <= 1e-5 * want.abs().max()
    sub, whole = vision.separators
    assert torch.equal(lines[12], sub) and torch.equal(lines[156], whole)
    blocks = merged(features[:1])[0].unflatten(0, (12, 12))
    assert torch.equal(blocks, lines[157:].unflatten(0, (12, 13))[:, :12])


@pytest.mark.parametrize("grid", GRIDS)
def test_a_picture_becomes_the_references_rows(small, grid):
    merge = pytest.importorskip("phi3mobile.models.vision").merge
    _, vision, views, _ = small
    features = vision.encode(views[: 1 + grid[0] * grid[1]]).numpy()
    separators = [separator.numpy() for separator in vision.separators]
    got, want = vision.project(torch.from_numpy(merge(features, grid, *separators))), rows_of(small, grid)
    assert got.shape == want.shape == ((grid[0] * grid[1] + 1) * 144 + 1 + (grid[1] + 1) * 12, 64)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def run(engine: EagerEngine, runs: list[np.ndarray], long: bool) -> np.ndarray:
    """Logits of a prompt whose parts are tokens int64 [T] or rows float32 [T, hidden], chunk by chunk."""
    position, logits = 0, []
    for part in runs:
        forward = engine.forward if part.ndim == 1 else engine.forward_embeddings
        for start in range(0, len(part), engine.info.max_chunk):
            chunk = part[start : start + engine.info.max_chunk]
            logits.append(forward(chunk, position, long))
            position += len(chunk)
    return np.concatenate(logits)


@pytest.mark.parametrize("grids", [*([grid] for grid in GRIDS), [(1, 1), (2, 1)], [(2, 1), (1, 2), (1, 1)]])
def test_logits_of_a_prompt_with_pictures_equal_transformers(small, grids):
    """3 x 2 crops (1045 rows) and three pictures lie past the LongRoPE switch at 1024, the others before it."""
    weights = small[0]
    texts = random_tokens(SMALL, 9 * (len(grids) + 1))[0].split(9)
    runs = [texts[0], *(part for grid, text in zip(grids, texts[1:], strict=True) for part in (rows_of(small, grid), text))]
    length = sum(map(len, runs))
    long = length > SMALL.original_max_position_embeddings
    assert long == (grids in ([(3, 2)], [(2, 1), (1, 2), (1, 1)]))
    model = reference.decoder(SMALL.to_hf(), weights)
    table = weights["model.embed_tokens.weight"]
    with torch.no_grad():
        want = (
            model(inputs_embeds=torch.cat([table[part] if part.ndim == 1 else part for part in runs])[None]).logits[0].numpy()
        )
    engine = EagerEngine(random_model(SMALL, 2048))
    got = run(engine, [part.numpy() for part in runs], long)
    assert want.std() > 0.1 and got.shape == (length, SMALL.vocab_size)
    assert np.abs(got - want).max() <= 1e-4
    if long:
        assert (
            np.abs(run(engine, [part.numpy() for part in runs], False) - want).max() > 1e-2
        )  # early chunks in the short regime


def test_talking_checkpoints_hold_a_tower(checkpoint_of, tmp_path):
    folder = checkpoint_of("vision-tiny")
    assert num_crops(folder) == 4 and load_vision(folder).config == PRESETS["vision-tiny"].vision
    assert load_model(folder, 64).config.vocab_size == 304
    assert open_checkpoint(talking_checkpoint(tmp_path / "c", "vision-tiny", num_hidden_layers=1)).config.num_hidden_layers == 1


def test_a_checkpoint_is_written_again_whole(checkpoint_of, tmp_path):
    """`phi3mobile import` of a folder, and its card."""
    from phi3mobile.export.cards import checkpoint_card
    from phi3mobile.export.checkpoint import import_checkpoint

    source = open_checkpoint(checkpoint_of("vision-tiny"))
    again = open_checkpoint(import_checkpoint(source.folder, tmp_path / "c", "float32"))
    again.check()
    assert again.config == source.config and num_crops(again.folder) == 4
    assert all(torch.equal(again.tensor(name), source.tensor(name)) for name in source.config.vision_tensors())
    card = checkpoint_card(again)
    assert card["pictures"] == f"vision tower of 2 layers x 32, {again.config.vision.parameters():,} parameters more"
    assert "pictures" not in checkpoint_card(open_checkpoint(checkpoint_of("tiny-gqa")))
