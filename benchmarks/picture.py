"""The picture: horizontal bars of the cost beside bare, drawn from the results."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 220, 110, 24, 66
"""Pixels: the picture, the names before the bars, the room for numbers behind, the height of a row, the head."""

CAPTION = "CPU time of one trivial request, bare FastAPI = 1; upper bar at 10 % sampling, lower and paler at 100 %"

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.quiet { fill: #59636e }
.ours { fill: #1a7f37 } .peer { fill: #8c959f } .line { stroke: #59636e }
.all { opacity: .55 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .quiet { fill: #9198a1 } .ours { fill: #3fb950 } .peer { fill: #656c76 }
  .line { stroke: #9198a1 }
}
"""


def rows_of(results: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Return name, ratio at 10 % and ratio at 100 % (None: not measured), the cheapest first."""
    variants, peers = results["inprocess"]["variants"], results.get("peers", {})
    found: dict[str, dict[str, float]] = {}
    for key, one in {**{f"ours {part}": variants[f"trivial {part}"] for part in ("10%", "100%")}, **peers}.items():
        name, _, part = key.rpartition(" ")
        if "ratio" in one:
            found.setdefault(name, {})[part] = one["ratio"]
    rows = [(name, parts["10%"], parts.get("100%")) for name, parts in found.items() if "10%" in parts]
    return sorted(rows, key=lambda row: row[1])


def title_of(rows: list[tuple[str, float, float | None]]) -> str:
    """State the finding, whatever it is."""
    ratios = {name: ratio for name, ratio, _ in rows}
    title = f"All three signals of fastapi-observe: {ratios['ours']:.2f} times a bare request's CPU time"
    return f"{title}; wired by hand: {ratios['stack']:.1f}" if "stack" in ratios else title


def alt_of(rows: list[tuple[str, float, float | None]]) -> str:
    """Return the picture in words."""
    said = [f"{name} {ratio:.2f}" + (f" ({whole:.2f})" if whole is not None else "") for name, ratio, whole in rows]
    return f"{title_of(rows)}. CPU time of a request against bare at 10 % sampling (at 100 %): {', '.join(said)}."


def draw(results: dict[str, Any]) -> str:
    """Return the picture as SVG."""
    rows = rows_of(results)
    most = max(max(ratio, whole or 0) for _, ratio, whole in rows)
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + ROW * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"',
        'role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(title_of(rows))}</title>',
        f'<desc id="description">{escape(alt_of(rows))}</desc>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title_of(rows))}</text>',
        f'<text class="quiet" x="12" y="46">{CAPTION}</text>',
    ]
    for at, (name, ratio, whole) in enumerate(rows):
        parts += _row(TOP + ROW * at, name, ratio, whole, scale)
    one = LEFT + scale
    bottom = TOP + ROW * len(rows)
    parts.append(f'<line class="line" stroke-dasharray="3 3" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP}" y2="{bottom}"/>')
    parts.append(f'<text class="quiet" text-anchor="middle" x="{one:.1f}" y="{bottom + 18}">bare</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(top: int, name: str, ratio: float, whole: float | None, scale: float) -> list[str]:
    kind = "ours" if name == "ours" else "peer"
    shown = "fastapi-observe (all three)" if name == "ours" else name.replace("_", " ")
    said = f"{ratio:.2f}" + (f" / {whole:.2f}" if whole is not None else "")
    end = LEFT + max(ratio, whole or 0) * scale + 6
    tall = 9 if whole is not None else 18
    drawn = [
        f'<text text-anchor="end" x="{LEFT - 10}" y="{top + 16}">{escape(shown)}</text>',
        f'<rect class="{kind}" x="{LEFT}" y="{top + 3}" width="{ratio * scale:.1f}" height="{tall}"/>',
        f'<text x="{end:.1f}" y="{top + 16}">{said}</text>',
    ]
    if whole is not None:
        drawn.append(f'<rect class="{kind} all" x="{LEFT}" y="{top + 12}" width="{whole * scale:.1f}" height="9"/>')
    return drawn
