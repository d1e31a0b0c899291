"""What a program must agree with: torch in float32 with the program's own weights, and a float32 twin of the program."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from phi3mobile.bundle import Bundle
from phi3mobile.engines.coreai import CoreaiEngine, require_coreai
from phi3mobile.export.packed import HEAD, PackedModel
from phi3mobile.export.targets.coreai.write import write_program
from phi3mobile.files import require_space
from phi3mobile.models.decoder import Decoder
from phi3mobile.models.quantized import Packed


def reference_model(packed: PackedModel, context: int) -> Decoder:
    """The model in float32 with `packed`'s weights dequantized and exact activations."""
    with torch.device("meta"):
        model = Decoder(packed.config, context)
    model.lm_head.weight = model.model.embed_tokens.weight  # replaced below: quantized apart even where they are tied
    for name in {*packed.checkpoint.names(), HEAD}:
        module, _, attribute = name.rpartition(".")
        value = packed.tensor(name)
        value = value.dequantized() if isinstance(value, Packed) else value
        setattr(model.get_submodule(module), attribute, torch.nn.Parameter(value, requires_grad=False))
    model.allocate()
    return model.eval()


class Twin(CoreaiEngine):
    """A bundle's program written again in float32, of the same integers: what differs from torch is the rewriting alone."""

    def __init__(self, bundle: Bundle, packed: PackedModel) -> None:
        require_coreai()
        self._folder = TemporaryDirectory(prefix="phi3mobile-verify-")
        path = Path(self._folder.name) / bundle.program.name
        require_space(path, 3 * bundle.program_bytes + (64 << 20))
        write_program(packed, path, bundle.info.max_context, "float32")
        super().__init__(path, bundle.info, bundle.manifest["runtime"], bundle.manifest["model"]["parameters"])

    def _release(self) -> None:
        super()._release()
        self._folder.cleanup()
