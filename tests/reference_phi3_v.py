"""phi3_v by transformers' CLIPVisionModel and Phi3ForCausalLM in float32, put together as the released code does.

The grid, its separators and the order of rows are written with loops over places, not with our reshaping.
"""

from __future__ import annotations

import numpy as np
import torch

PREFIX = "model.vision_embed_tokens."
TOWER = f"{PREFIX}img_processor.vision_model."
SIDE = 24  # patches of a view's side


def decoder(hf: dict, tensors: dict[str, torch.Tensor]):
    """transformers' Phi3ForCausalLM with a checkpoint's decoder."""
    from transformers import Phi3Config, Phi3ForCausalLM

    values = {key: value for key, value in hf.items() if key not in ("model_type", "embd_layer", "img_processor")}
    if values["rope_scaling"]:
        values["rope_scaling"] = values["rope_scaling"] | {"type": "longrope"}  # su, its first name, is forgotten there
    model = Phi3ForCausalLM(Phi3Config(**values, attn_implementation="eager")).float().eval()
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model


def features(vision, tensors: dict[str, torch.Tensor], views: torch.Tensor) -> torch.Tensor:
    """Views [B, 3, 336, 336] -> hidden_states[-2] without the class token, [B, 576, C].

    tensors may lack the last layer, whose output is not looked at: it stays random.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    given = {name: getattr(vision, name) for name in sizes}
    config = CLIPVisionConfig(**given, image_size=336, patch_size=14, hidden_act="quick_gelu", attn_implementation="eager")
    model = CLIPVisionModel(config).float().eval()
    own = {name.removeprefix(TOWER): tensor for name, tensor in tensors.items() if name.startswith(TOWER)}
    names = set(model.state_dict())
    if "embeddings.class_embedding" not in names:  # transformers before 5
        own = {f"vision_model.{name}": tensor for name, tensor in own.items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    unused = (f"layers.{vision.num_hidden_layers - 1}.", "post_layernorm.", "position_ids")
    assert not unexpected and all(any(part in name for part in unused) for name in missing)
    with torch.no_grad():
        return model(views, output_hidden_states=True).hidden_states[-2][:, 1:]


def grid_rows(found: torch.Tensor, grid: tuple[int, int], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Features of the whole's view and of `grid` = (across, down) crops -> [T, 4 C], place by place."""
    across, down = grid
    sub, whole = tensors[f"{PREFIX}sub_GN"].flatten(), tensors[f"{PREFIX}glb_GN"].flatten()

    def picture(patch_at, width: int, height: int) -> list[torch.Tensor]:
        lines = []
        for y in range(height // 2):
            for x in range(width // 2):
                four = [patch_at(2 * y + dy, 2 * x + dx) for dy in (0, 1) for dx in (0, 1)]
                lines.append(torch.cat(four))
            lines.append(sub)
        return lines

    def crop_patch(y: int, x: int) -> torch.Tensor:
        return found[1 + (y // SIDE) * across + x // SIDE, (y % SIDE) * SIDE + x % SIDE]

    crops = picture(crop_patch, SIDE * across, SIDE * down)
    return torch.stack([*crops, whole, *picture(lambda y, x: found[0, y * SIDE + x], SIDE, SIDE)])


def projected(rows: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """[T, 4 C] -> [T, hidden]."""
    first, second = (
        (tensors[f"{PREFIX}img_projection.{number}.weight"], tensors[f"{PREFIX}img_projection.{number}.bias"])
        for number in (0, 2)
    )
    inner = torch.nn.functional.linear(rows, *first)
    return torch.nn.functional.linear(0.5 * inner * (1 + torch.erf(inner / 2**0.5)), *second)


def logits(hf: dict, arrays: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """[T, V] of a prompt without pictures."""
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return decoder(hf, tensors)(torch.tensor([tokens])).logits[0].numpy()
