"""The family contract (docs/adding-a-family.md): every family, every preset of it; and a new family is one file."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import psnr, talking_checkpoint, write_tokenizer
from tiny import random_model, random_tensors, random_tokens, write_folder

from phi3mobile.bundle import open_bundle
from phi3mobile.errors import InputError
from phi3mobile.models import families as rooms
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.config import ramp
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.loading import load_model
from phi3mobile.models.pieces import pieces
from phi3mobile.models.presets import PRESETS, SHAPES, preset
from phi3mobile.models.registry import families, family_of, model_types, read_config, stored_parts
from phi3mobile.models.tensors import BIAS, DOWN, EMBED, FINAL_NORM, GATE_UP, HEAD, LINEARS, NORMS, QKV, ROUTER, O

TINY = [name for name, config in PRESETS.items() if config.hidden_size <= 128]


def written_reference(config, tensors: dict[str, torch.Tensor], tokens: torch.Tensor) -> np.ndarray:
    """tests/reference_<family>.py in float64 numpy where there is one, else transformers' class."""
    if importlib.util.find_spec(name := f"reference_{config.family}"):
        arrays = {key: value.numpy() for key, value in tensors.items()}
        return importlib.import_module(name).logits(config.to_hf(), arrays, tokens[0].tolist())
    hf_config, hf_model = family_of(config).reference()
    values = {key: value for key, value in config.to_hf().items() if key != "model_type"}
    model = hf_model(hf_config(**values, attn_implementation="eager")).float().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    with torch.no_grad():
        return model(tokens).logits[0].numpy()


@pytest.mark.parametrize("length", [20, 40])
@pytest.mark.parametrize("name", TINY)
def test_logits_equal_the_reference(name: str, length: int):
    """40 tokens lie past the LongRoPE switch and the windows of the presets that have them."""
    config = PRESETS[name]
    tokens = random_tokens(config, length)
    want = written_reference(config, random_tensors(config), tokens)
    assert want.std() > 0.1  # a dead model would agree with anything
    assert np.abs(random_model(config)(tokens)[0].numpy() - want).max() <= 1e-4


@pytest.mark.parametrize("name", [*PRESETS, *SHAPES])
def test_a_config_is_written_and_read_back(name: str):
    config = preset(name, ramp(SHAPES[name].rotary_dim // 2, 9.0) if name in SHAPES else None)
    hf = json.loads(json.dumps(config.to_hf()))
    assert hf["model_type"] == config.family
    back = read_config(hf)
    assert {**vars(back), "source_model_type": ""} == {**vars(config), "source_model_type": ""}
    with pytest.raises(InputError, match="unknown key 'never_heard_of'"):
        read_config(hf | {"never_heard_of": 1})


@pytest.mark.parametrize("name", TINY)
def test_tensors_are_the_models_own_each_with_one_role(name: str):
    config = PRESETS[name]
    tensors = config.tensors()
    with torch.device("meta"):
        model = Decoder(config, 8)
    stated = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del stated["lm_head.weight"]
    assert {key: tensor.shape for key, tensor in tensors.items()} == stated
    assert all(key == tensor.name for key, tensor in tensors.items())
    assert config.parameters() == sum(np.prod(shape) for shape in stated.values())
    for layer in range(config.num_hidden_layers):
        per_layer = dict.fromkeys((*LINEARS, "attention_norm", "mlp_norm"), 1)
        if routing := config.block(layer).routing:
            per_layer |= {GATE_UP: routing.experts, DOWN: routing.experts, ROUTER: 1}
        roles = [tensor.role for tensor in tensors.values() if tensor.layer == layer and tensor.role != BIAS]
        assert {role: roles.count(role) for role in roles} == per_layer
    whole = {tensor.role for tensor in tensors.values() if tensor.layer is None} - {BIAS}
    assert whole == {EMBED, FINAL_NORM} | (set() if config.tie_word_embeddings else {HEAD})


@pytest.mark.parametrize("name", TINY)
def test_rows_are_a_partition_and_what_is_read_through_is_there(name: str):
    config = PRESETS[name]
    for tensor in config.tensors().values():
        if tensor.role in (QKV, GATE_UP):
            numbers = range(tensor.shape[0])
            parts = [numbers[rows] if isinstance(rows, slice) else rows for rows in tensor.rows.values()]
            assert sorted(number for part in parts for number in part) == list(numbers)
            assert list(tensor.rows) == (["q", "k", "v"] if tensor.role == QKV else ["gate", "up"])
        if tensor.reads is not None:
            assert tensor.reads in {O: (QKV,), DOWN: (GATE_UP,)}.get(tensor.role, NORMS)
        if tensor.role == BIAS:
            assert tensor.shape == (
                config.tensor(tensor.of, tensor.layer).shape[:1] if tensor.of != HEAD else (config.vocab_size,)
            )


@pytest.mark.parametrize("model_type", sorted(model_types()))
def test_every_layout_stores_the_same_model(model_type: str, tmp_path: Path):
    """A folder in each source layout reads as the family's own weights."""
    family = model_types()[model_type]
    config = next(config for config in family.PRESETS.values() if config.hidden_size <= 128)
    tensors = random_tensors(config)
    layout = type(config)(**{**vars(config), "source_model_type": model_type})
    stored = {}
    for name, tensor in tensors.items():
        parts = stored_parts(layout, name)
        values = tensor.split([shape[0] for shape in parts.values()])
        stored |= {key: value.contiguous() for key, value in zip(parts, values, strict=True)}
    hf = {**config.to_hf(), "model_type": model_type}
    checkpoint = open_checkpoint(write_folder(tmp_path / "c", hf, stored))
    checkpoint.check()
    assert checkpoint.config.source_model_type == model_type
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())


def test_a_family_is_its_file():
    for name, family in families().items():
        assert name in family.MODEL_TYPES
        assert all(config.family == name for config in (*family.PRESETS.values(), *family.SHAPES.values()))
        assert any(config.hidden_size <= 128 for config in family.PRESETS.values()), (
            f"{name} has no tiny preset to be tested on"
        )


TOY = '''"""A family of known pieces: LayerNorm, SwiGLU, rows [v | q | k] and [up | gate], a multiplier of embeddings."""

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import nn
from torch.nn import functional

from phi3mobile.models.config import DecoderConfig
from phi3mobile.models.modules import norm
from phi3mobile.models.pieces import Block
from phi3mobile.models.rope import apply_rope
from phi3mobile.models.tensors import ATTENTION_NORM, DOWN, EMBED, FINAL_NORM, GATE_UP, HEAD, LINEARS, MLP_NORM, O, QKV
from phi3mobile.models.tensors import Tensor, bias_of, in_layer, table

MODEL_TYPES, GGUF, SHAPES = ("toy",), {}, {}


@dataclass(frozen=True)
class ToyConfig(DecoderConfig):
    family: ClassVar[str] = "toy"
    layouts: ClassVar[tuple[str, ...]] = MODEL_TYPES

    @property
    def embedding_multiplier(self):
        return 3.0

    def block(self, layer):
        return Block("layernorm", window=self.sliding_window)

    def tensors(self):
        hidden, inner, dim = self.hidden_size, self.intermediate_size, self.head_dim
        q, k = self.num_attention_heads * dim, self.num_key_value_heads * dim
        rows = {"q": slice(k, k + q), "k": slice(k + q, None), "v": slice(0, k)}
        halves = {"gate": slice(inner, None), "up": slice(0, inner)}
        found = [Tensor("model.embed_tokens.weight", (self.vocab_size, hidden), EMBED)]
        for i in range(self.num_hidden_layers):
            base = f"model.layers.{i}."
            first = Tensor(base + "one.weight", (hidden,), ATTENTION_NORM, i)
            second = Tensor(base + "two.weight", (hidden,), MLP_NORM, i)
            found += [
                first, bias_of(first), second, bias_of(second),
                Tensor(base + "vqk.weight", (q + 2 * k, hidden), QKV, i, ATTENTION_NORM, rows=rows),
                Tensor(base + "out.weight", (hidden, q), O, i, QKV),
                Tensor(base + "wide.weight", (2 * inner, hidden), GATE_UP, i, MLP_NORM, rows=halves),
                Tensor(base + "back.weight", (hidden, inner), DOWN, i, GATE_UP),
            ]
        final = Tensor("model.last.weight", (hidden,), FINAL_NORM)
        head = Tensor("lm_head.weight", (self.vocab_size, hidden), HEAD, reads=FINAL_NORM)
        return table([*found, final, bias_of(final), head])

    def to_hf(self):
        return {"model_type": "toy"} | {field.name: getattr(self, field.name) for field in fields(self)}


def read(hf):
    values = {key: value for key, value in hf.items() if key != "model_type"}
    return ToyConfig(**values | {"eos_token_ids": tuple(values["eos_token_ids"])})


def stored(config, tensor):
    return {tensor.name: tensor.shape}


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.config, self.one, self.two = config, norm(config, index), norm(config, index)
        for tensor in config.tensors().values():
            if tensor.layer == index and tensor.role in LINEARS:
                setattr(self, in_layer(tensor), nn.Linear(*tensor.shape[::-1], bias=False))

    def attention_inputs(self, x, cos, sin):
        dim, kv = self.config.head_dim, self.config.num_key_value_heads
        v, q, k = self.vqk(self.one(x)).unflatten(-1, (-1, dim)).split([kv, self.config.num_attention_heads, kv], -2)
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def attention_output(self, x, attended):
        x = x + self.out(attended)
        up, gate = self.wide(self.two(x)).chunk(2, -1)
        return x + self.back(functional.silu(gate) * up)


PRESETS = {
    "toy-tiny": ToyConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=304, original_max_position_embeddings=256, max_position_embeddings=256, eos_token_ids=(2,),
    )
}
'''


@pytest.fixture
def toy_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One file in a folder of families, and a checkpoint of it."""
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "toy.py").write_text(TOY)
    monkeypatch.setattr(rooms, "__path__", [*rooms.__path__, str(tmp_path / "rooms")])
    families.cache_clear()
    config = families()["toy"].PRESETS["toy-tiny"]
    folder = write_folder(tmp_path / "checkpoint", config.to_hf(), random_tensors(config))
    write_tokenizer(folder)
    yield folder
    families.cache_clear()


@pytest.mark.parametrize("method", ["rtn", pytest.param("gptq", marks=pytest.mark.slow)])
def test_a_new_family_of_known_pieces_is_one_file(toy_checkpoint: Path, tmp_path: Path, text: Path, method: str):
    """Read, solved, exported and run by an engine that never heard of it: the phone's program is the torch model's."""
    from phi3mobile.engines.executorch import ExecutorchEngine
    from phi3mobile.export.build import export

    given = {"calibration": text} if method == "gptq" else {}
    folder = export(toy_checkpoint, tmp_path / "bundle", "android-cpu", method=method, accept_quality=True, **given)
    bundle = open_bundle(folder)
    assert bundle.manifest["family"] == "toy"
    model, tokens = load_model(toy_checkpoint), random_tokens(load_model(toy_checkpoint).config, 40)
    engine = ExecutorchEngine(bundle)
    got = np.concatenate([engine.forward(tokens[0, :30].numpy(), 0), engine.forward(tokens[0, 30:].numpy(), 30)])
    engine.close()
    assert psnr(model(tokens)[0].numpy(), got) >= 25  # 4 bit against float
    if method == "rtn":
        from phi3mobile.export.packed import PackedModel, load_packed
        from phi3mobile.export.recipe import find_recipe

        packed = load_packed(PackedModel(open_checkpoint(toy_checkpoint), find_recipe("android-cpu")))
        assert psnr(packed(tokens)[0].numpy(), got) >= 60


def test_a_new_family_runs_on_another_target(toy_checkpoint: Path, tmp_path: Path):
    """Core ML's program, interpreted: rows in an order that it has never seen, and the Neural Engine's refusal by the piece."""
    pytest.importorskip("coremltools", reason="Core ML recipes need coremltools: pip install 'phi3mobile[coreml]'")
    from phi3mobile.engines.registry import open_engine
    from phi3mobile.export.build import export
    from phi3mobile.export.packed import PackedModel, load_packed
    from phi3mobile.export.recipe import find_recipe

    bundle = open_bundle(export(toy_checkpoint, tmp_path / "bundle", "ios-gpu", 64, method="rtn"))
    packed = load_packed(PackedModel(open_checkpoint(toy_checkpoint), find_recipe("ios-gpu")))
    engine, tokens = open_engine(bundle), random_tokens(packed.config, 20)
    assert psnr(packed(tokens)[0].numpy(), engine.forward(tokens[0].numpy(), 0)) >= 35  # int8 activations in torch alone
    engine.close()
    with pytest.raises(InputError, match=r"recipe ios-ane has no .*row_order \(every layer\).*; take .*ios-gpu"):
        export(toy_checkpoint, tmp_path / "refused", "ios-ane", method="rtn")
    assert not (tmp_path / "refused").exists()


def test_a_new_familys_rows_are_turned_and_balanced_exactly(toy_checkpoint: Path):
    """Rotation and balancing go by roles: the float function stays the same."""
    from phi3mobile.export.solve.rotate import Rotated

    checkpoint = open_checkpoint(toy_checkpoint)
    tokens, turned = random_tokens(checkpoint.config, 24), Rotated(checkpoint)
    model = Decoder(turned.config, 64).eval()
    model.load_state_dict({name: turned.tensor(name) for name in turned.names()})
    assert (model(tokens) - load_model(toy_checkpoint)(tokens)).abs().max() < 1e-3
    assert "row_order" in pieces(checkpoint.config)


def test_talking_checkpoints_exist_for_every_tiny_preset(tmp_path: Path):
    """What the target contract exports."""
    for name in TINY:
        assert open_checkpoint(talking_checkpoint(tmp_path / name, name)).config.family == PRESETS[name].family
