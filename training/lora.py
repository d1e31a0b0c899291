"""LoRA, DoRA and QLoRA through peft on Phi-3's fused linears, and merging into an ordinary checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from phi3mobile.errors import InputError
from phi3mobile.models.finite import require_finite
from phi3mobile.training.config import LORA_TARGETS, Lora


def add_lora(model: nn.Module, lora: Lora, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with frozen weights and trainable adapters; with `qlora` its linears' weights become NF4 first."""
    from peft import LoraConfig, get_peft_model

    if unknown := sorted(set(lora.targets) - set(LORA_TARGETS)):
        raise InputError(f"lora: targets {', '.join(unknown)}; known are {', '.join(LORA_TARGETS)}")
    if lora.qlora:
        _to_nf4(model, lora.targets, dtype)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merge(base: nn.Module, lora: Lora, adapters: Mapping[str, torch.Tensor], folder: Path | None = None) -> nn.Module:
    """`base` (unquantized, float32) with the trained adapters added to its weights; `folder` gets the adapters alone.

    QLoRA's adapters too are added to the unquantized weights: the export quantizes by its own grid. InputError for an adapter
    with a value that is NaN or infinite, before anything is written.
    """
    from dataclasses import replace

    for name, weight in adapters.items():
        require_finite(name, weight, "the adapter")
    wrapped = add_lora(base, replace(lora, qlora=False))
    found = wrapped.load_state_dict(dict(adapters), strict=False)
    missing = [name for name in found.missing_keys if "lora_" in name]
    if found.unexpected_keys or missing:
        raise RuntimeError(f"adapters do not fit the model: {(found.unexpected_keys + missing)[:3]}")
    if folder is not None and not folder.exists():
        from phi3mobile.files import new_folder

        with new_folder(folder) as partial:
            wrapped.save_pretrained(str(partial))
    return wrapped.merge_and_unload()


def _to_nf4(model: nn.Module, targets: tuple[str, ...], dtype: torch.dtype) -> None:
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise InputError("lora: qlora = true needs the package: pip install bitsandbytes; or set it to false") from None
    for name, module in list(model.named_modules()):
        owner, _, attribute = name.rpartition(".")
        if attribute not in targets or not isinstance(module, nn.Linear):
            continue
        packed = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4")
        packed.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
        setattr(model.get_submodule(owner), attribute, packed.to(module.weight.device))
    model.is_loaded_in_4bit = True  # peft asks
