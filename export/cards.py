"""Cards: what a person wants to know of a bundle or a checkpoint, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phi3mobile.manifest import files_of
from phi3mobile.screen import size

if TYPE_CHECKING:
    from phi3mobile.bundle import Bundle
    from phi3mobile.export.census import Census
    from phi3mobile.models.checkpoint import Checkpoint
    from phi3mobile.models.config import DecoderConfig
    from phi3mobile.models.vision_config import VisionConfig


def bundle_card(bundle: Bundle) -> dict[str, str]:
    """Rows of a bundle's card."""
    manifest = bundle.manifest
    model, memory, runtime = manifest["model"], manifest["memory"], manifest["runtime"]
    switch = f", LongRoPE switch past {model['original_context']}" if model["original_context"] else ""
    return {
        "recipe": manifest["recipe"]["name"],
        "model": f"{model['parameters']:,} parameters, {model['layers']} layers x {model['hidden']}, "
        f"{model['heads']}/{model['kv_heads']} heads x {model['head_dim']}, vocabulary {model['vocab']}",
        "file": f"{size(bundle.program_bytes)}, {model['bits_per_weight']:.2f} bits per weight",
        **({"pictures": _bundled_tower(bundle)} if bundle.vision else {}),
        "quality": quality_line(manifest.get("quality")),
        "context": f"{model['context']} of {model['max_context']}{switch}",
        "memory at context": ", ".join(f"{tokens}: {size(peak)}" for tokens, peak in memory["peak"].items()),
        "KV cache per token": size(memory["kv_per_token"]),
        **({"KV cache": evicted} if (evicted := _eviction(manifest)) else {}),
        "stop ids": ", ".join(map(str, manifest["tokens"]["eos"])),
        "runtime": f"{runtime['name']} {runtime['version']}, {len(runtime['operators'])} operators",
        **({"note": "; ".join(manifest["notes"])} if manifest.get("notes") else {}),
        "license": manifest["license"] or "not stated by the checkpoint",
    }


def _bundled_tower(bundle: Bundle) -> str:
    about = bundle.vision or {}
    bytes_ = sum(listed["bytes"] for listed in files_of(bundle.manifest, about["program"]).values())
    return f"{size(bytes_)} of the file, {about['bits']} bits; {about['num_crops']} crops of a picture unless asked otherwise"


def quality_line(quality: dict[str, Any] | None) -> str:
    """The quality card on one line."""
    if quality is None:
        return "not measured"
    worst = min(quality["layers_db"], default=0.0)
    method = f"{quality['method']}, rotated" if quality.get("rotated") else quality["method"]
    return (
        f"{method}, {quality['bits_per_weight']:.2f} bits per layer weight; perplexity {quality['perplexity']:.2f}, "
        f"{quality['ratio']:.3f} x float's; KL {quality['kl']:.4f}, same top token {quality['top1']:.1%}, "
        f"worst layer {worst:.1f} dB" + _seen(quality.get("vision"))
    )


def _seen(vision: dict[str, Any] | None) -> str:
    """What packing cost a tower."""
    return f"; pictures: features {vision['features_db']:.1f} dB, {vision['bits']} bits" if vision else ""


def _eviction(manifest: dict[str, Any]) -> str:
    """What an evicting KV cache saves at the bundle's context; "" for one that keeps everything."""
    context, memory = manifest["model"]["context"], manifest["memory"]
    back, evicted = manifest["model"].get("back"), memory.get("kv_evicted", 0)
    if back is None or not evicted:
        return ""
    kept = memory["kv_per_token"] * context
    return (
        f"{size(kept)} at context, {kept / (kept + evicted):.0%} of a full one: blocks that nobody reads again are dropped; "
        f"going back by more than {back} tokens prefills afresh"
    )


def placement(bundle: Bundle) -> dict[str, Census]:
    """The census of every .mlpackage among a bundle's programs, by package and function, its default function first."""
    programs = [*bundle.programs, *([bundle.folder / bundle.vision["program"]] if bundle.vision else [])]
    packages = [program for program in programs if program.suffix == ".mlpackage"]
    if not packages:
        return {}
    from phi3mobile.engines import mil
    from phi3mobile.export.census import census

    found = {}
    for package in packages:
        program = mil.load(package)
        for item in sorted(census(program), key=lambda item: item.function != program.default_function):
            found[f"{package.stem}.{item.function}"] = item
    return found


def checkpoint_card(checkpoint: Checkpoint) -> dict[str, str]:
    """Rows of a checkpoint's card."""
    config = checkpoint.config
    token = config.kv_bytes_per_token(2)
    contexts = [c for c in (2048, 4096, 8192, 32768, 131072) if c <= config.max_position_embeddings]
    return {
        "parameters": f"{config.parameters():,}",
        "shape": f"{config.num_hidden_layers} layers x {config.hidden_size}, ffn {config.intermediate_size}, "
        f"{config.num_attention_heads}/{config.num_key_value_heads} heads x {config.head_dim}",
        **({"pictures": _tower(config.vision)} if config.vision else {}),
        "vocabulary": f"{config.vocab_size}{', tied' if config.tie_word_embeddings else ''}",
        "context": f"{config.max_position_embeddings}"
        + (f", LongRoPE switch past {config.original_context}" if config.original_context else "")
        + (f", sliding window {config.sliding_window}" if config.sliding_window else ""),
        **({"attention": sparse} if (sparse := _sparse_layers(config)) else {}),
        "weights at 4 bit": size(config.parameters() * 4.5 / 8),
        "KV cache, 16 bit": ", ".join(f"{c}: {size(token * c)}" for c in contexts) or size(token) + " per token",
        **({"evicted by host recipes": saved} if (saved := _evictable(config, contexts)) else {}),
    }


def _tower(vision: VisionConfig) -> str:
    return f"vision tower of {vision.layers} layers x {vision.hidden_size}, {vision.parameters():,} parameters more"


def _evictable(config: DecoderConfig, contexts: list[int]) -> str:
    """What block-sparse layers' caches need not hold, in percent of the model's KV cache; "" where nothing."""
    from phi3mobile.models.blocksparse import evicting_cache

    patterns = [config.blocksparse(layer) for layer in range(config.num_hidden_layers)]
    saved = {}
    for context in contexts:
        caches = [evicting_cache(pattern, context) if pattern else None for pattern in patterns]
        saved[context] = sum(context - cache.rows_for(context) for cache in caches if cache) / (context * len(caches))
    return ", ".join(f"{context}: {share:.0%}" for context, share in saved.items() if share)


def _sparse_layers(config: DecoderConfig) -> str:
    """Which layers are block-sparse, and how; "" where none is."""
    layers = [pattern for layer in range(config.num_hidden_layers) if (pattern := config.blocksparse(layer))]
    if not layers:
        return ""
    return (
        f"sparse in {len(layers)} of {config.num_hidden_layers} layers: blocks of {layers[0].block}, "
        f"{layers[0].local_blocks} local, one in {layers[0].stride} of the others"
    )
