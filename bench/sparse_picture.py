"""What phi-3-small's heads see, as an SVG that is legible on light and dark pages."""

from __future__ import annotations

from phi3mobile.models.blocksparse import Pattern

CELL, GAP, TOP = 3, 24, 44
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #57606a }
.causal { fill: #d0d7de }
.local { fill: #218bff }
.remote { fill: #e16f24 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .causal { fill: #30363d } .local { fill: #388bfd } .remote { fill: #f0883e }
}"""


def draw(pattern: Pattern, blocks: int = 48) -> str:
    """Panels of queries (down) by keys (across), in blocks: the heads of KV head 0, what its cache keeps, a dense layer."""
    group, side = pattern.heads // pattern.kv_heads, blocks * CELL
    panels = [(f"head {head}", {residue_of(pattern, head)}, True) for head in range(group)]
    panels += [("KV head 0 keeps", set(pattern.residues(0)), True), ("dense layers", set(), False)]
    width, height = len(panels) * (side + GAP) - GAP + 2, TOP + side + 52
    about = (
        f"Sparse layers (0, 2, 4 …): {pattern.local_blocks} local blocks and every {pattern.stride}th before them, "
        f"other ones in every head; blocks of {pattern.block} tokens"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 0 {width} {height}" width="{width}" role="img">',
        f"<title>Keys that the heads of phi-3-small see</title><style>{STYLE}</style>",
        _text(0, 16, about),
    ]
    for number, (title, residues, sparse) in enumerate(panels):
        left = number * (side + GAP)
        parts += [f'<g transform="translate({left} {TOP})">', _text(0, -6, title, "small")]
        parts.append(_stairs(blocks, blocks, "causal" if sparse else "local"))
        if sparse:
            first_remote = (j for j in range(blocks - pattern.local_blocks) if j % pattern.stride in residues)
            parts += [_bar(j, j + pattern.local_blocks, blocks) for j in first_remote]
            parts.append(_stairs(blocks, pattern.local_blocks, "local"))
        parts.append("</g>")
    at = 0
    legend = (("local", "local window; in dense layers all", 225), ("remote", "remote blocks", 125), ("causal", "not read", 95))
    for name, text, step in legend:
        parts += [
            f'<rect class="{name}" x="{at}" y="{TOP + side + 26}" width="11" height="11"/>',
            _text(at + 17, TOP + side + 36, text, "small"),
        ]
        at += step
    parts.append(_text(at, TOP + side + 36, f"queries run down, keys across: {blocks * pattern.block:,} tokens", "small"))
    return "\n".join([*parts, "</svg>\n"])


def residue_of(pattern: Pattern, head: int) -> int:
    """The j % stride of the remote blocks that one head sees."""
    return next(j for j in range(pattern.stride) if (j + head * pattern.head_step + 1) % pattern.stride == 0)


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{text}</text>'


def _bar(key: int, first_query: int, blocks: int) -> str:
    y, height = first_query * CELL, (blocks - first_query) * CELL
    return f'<rect class="remote" x="{key * CELL}" y="{y}" width="{CELL}" height="{height}"/>'


def _stairs(blocks: int, local: int, kind: str) -> str:
    """Blocks i - local < j <= i, row by row."""
    rows = []
    for i in range(blocks):
        first = max(0, i - local + 1)
        rows.append(f"M{first * CELL} {i * CELL}h{(i + 1 - first) * CELL}v{CELL}h-{(i + 1 - first) * CELL}z")
    return f'<path class="{kind}" d="{"".join(rows)}"/>'
