"""transformers' eager float32 classes at a vision model's full size: what the same views and rows cost there."""

from __future__ import annotations

import time

import torch

from phi3mobile.errors import InputError
from phi3mobile.models.presets import PRESETS, SHAPES


def first_token(name: str, views: int, tokens: int, threads: int) -> dict[str, float]:
    """Of the shape `name`: seconds of CLIP over `views` views, and of the decoder until the first token after `tokens` rows.

    Weights are constants: the time of eager float32 products does not depend on them. Needs 4 bytes of memory a parameter.
    Raises InputError: no such shape, or one without a tower.
    """
    shapes = PRESETS | SHAPES
    if name not in shapes:
        raise InputError(f"unknown shape {name!r}; known are {', '.join(shapes)}")
    model, vision = shapes[name], shapes[name].vision
    if vision is None:
        raise InputError(f"shape {name} sees no pictures: take phi-3-vision or phi-3.5-vision")
    from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

    torch.set_num_threads(threads)
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            hidden_act="quick_gelu",
            attn_implementation="eager",
        )
    ).eval()
    config = Phi3Config(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        pad_token_id=None,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        decoder = Phi3ForCausalLM(config)
    decoder = decoder.to_empty(device="cpu").float().eval()
    with torch.inference_mode():
        for tensor in (*decoder.parameters(), *decoder.buffers()):
            tensor.fill_(0.01)
        pixels, rows = torch.zeros(views, 3, vision.image_size, vision.image_size), torch.zeros(1, tokens, model.hidden_size)
        start = time.perf_counter()
        tower(pixels, output_hidden_states=True)
        seen = time.perf_counter()
        decoder(inputs_embeds=rows, logits_to_keep=1)
        end = time.perf_counter()
    return {"tower_s": round(seen - start, 3), "prefill_s": round(end - seen, 3), "first_token_s": round(end - start, 3)}
