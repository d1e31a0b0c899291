"""The torch models that Core ML programs must agree with: the same packed weights, exact activations."""

from __future__ import annotations

import torch

from phi3mobile.export.packed import PackedModel
from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.targets.coreml.matrices import code_offsets
from phi3mobile.models.clip import Vision
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.loading import fill
from phi3mobile.models.quantized import Packed
from phi3mobile.models.vision_config import PREFIX


def reference_model(packed: PackedModel, context: int, half: bool = False) -> Decoder:
    """The model in fp32 with `packed`'s weights dequantized.

    half: with every constant as the program holds it, in float16. Then what is left between the two is the rewriting of the
    graph alone.
    """
    with torch.device("meta"):
        model = Decoder(packed.config, context)
    model.lm_head.weight = model.model.embed_tokens.weight  # replaced below: quantized apart even where they are tied
    for name in {*packed.checkpoint.names(), "lm_head.weight"}:
        module, _, attribute = name.rpartition(".")
        value = _value(packed.tensor(name), half)
        setattr(model.get_submodule(module), attribute, torch.nn.Parameter(value, requires_grad=False))
    model.allocate()
    if half:
        model.cos, model.sin = model.cos.half().float(), model.sin.half().float()
    return model.eval()


def reference_vision(packed: PackedVision, half: bool = False) -> Vision:
    """The tower and projector in the same way."""
    with torch.device("meta"):
        vision = Vision(packed.config)
    fill(vision, packed.names(), lambda name: _value(packed.tensor(name), half), PREFIX)
    return vision.eval()


def _value(value: Packed | torch.Tensor, half: bool) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.half().float() if half else value
    if not half:
        return value.dequantized()
    groups = value.unpacked().float().unflatten(1, (-1, value.group))
    if value.offsets:
        groups -= code_offsets(value).float()[..., None]
    return (groups * value.scales.half().float()[..., None]).flatten(1)
