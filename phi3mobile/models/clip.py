"""CLIP's vision tower, and the projector between it and a decoder, in torch: the reference of every exported tower.

Attributes have the names of the checkpoint's tensors behind `model.vision_embed_tokens.`. All layers are one kind of module,
because targets lower one and stamp the others. Formulas: transformers' CLIPVisionModel (hidden_states[-2] without the class
token) and the released code of Phi-3-vision.
"""

from __future__ import annotations

import torch
from torch import nn

from phi3mobile.models.modules import GELU_SLOPE
from phi3mobile.models.vision_config import VisionConfig


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """CLIP's stand-in for GELU."""
    return x * torch.sigmoid(GELU_SLOPE * x)


class Embeddings(nn.Module):
    """Views [B, 3, 336, 336] -> [B, 577, hidden]: the class token, then patches row by row, each with its position's."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.positions, config.hidden_size)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(views).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(views), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Every position sees every other: [B, S, hidden] -> [B, S, hidden]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads, hidden = config.num_attention_heads, config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.out_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (self.heads, -1)
        q, k, v = (linear(x).unflatten(-1, heads).transpose(1, 2) for linear in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(2, 3), dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(quick_gelu(self.fc1(x)))


class ClipLayer(nn.Module):
    """[B, 577, hidden] -> [B, 577, hidden]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers that are computed: all but CLIP's last."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.layers))


class Tower(nn.Module):
    """Views float32 [B, 3, 336, 336] -> features float32 [B, 576, hidden]: 24 x 24 patches, row by row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Encoder(config)

    def embed(self, views: torch.Tensor) -> torch.Tensor:
        """What the first layer takes, [B, 577, hidden]."""
        return self.pre_layrnorm(self.embeddings(views))

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        x = self.embed(views)
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class Processor(nn.Module):
    """Holds the tower where the checkpoint has it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = Tower(config)


class Vision(nn.Module):
    """A tower, the separators and the projector. What lies between `encode` and `project` is models.vision.merge, in numpy."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.img_processor = Processor(config)
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, config.merged_size))
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, config.merged_size))
        self.img_projection = projector(config)

    @torch.no_grad()
    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Views float32 [B, 3, 336, 336] -> features float32 [B, 576, hidden], one view after the other."""
        return torch.cat([self.img_processor.vision_model(view[None]) for view in views])

    @torch.no_grad()
    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Merged patches and separators float32 [T, 4 * hidden] -> what stands for tokens, [T, the decoder's hidden]."""
        return self.img_projection(rows)

    @property
    def separators(self) -> tuple[torch.Tensor, torch.Tensor]:
        """At the end of a row of patches and before the global view, each float32 [4 * hidden]."""
        return self.sub_GN.detach().flatten(), self.glb_GN.detach().flatten()


def projector(config: VisionConfig) -> nn.Sequential:
    """[..., 4 * hidden] -> [..., the decoder's hidden]; GELU is the exact one."""
    out = config.projection_size
    return nn.Sequential(nn.Linear(config.merged_size, out), nn.GELU(), nn.Linear(out, out))


def merged(features: torch.Tensor) -> torch.Tensor:
    """Features [B, 576, hidden] -> each view's 2 x 2 patches side by side, [B, 144, 4 * hidden], row by row."""
    side = int(features.shape[1] ** 0.5) // 2
    blocks = features.unflatten(1, (side, 2, side, 2))
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)
