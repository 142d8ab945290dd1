"""The picture: horizontal bars of the cost compared with bare, drawn from the results."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 220, 110, 24, 66
"""Pixels: the picture, the names before the bars, the room for numbers behind, the height of a row, the head."""

TIME = "CPU time"
INSTRUCTIONS = "instructions"
"""What a picture compares."""

CAPTION = "of one trivial request, bare FastAPI = 1; upper bar at 10 % sampling, lower and paler at 100 %"

BETWEEN = 52
"""Room for the caption of the second group."""

BELOW = "A statement through SQLAlchemy (CPU) and a call by httpx (clock), bare = 1; upper bar unsampled, lower sampled"

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


def operations_of(results: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Return the same of a statement and of a call, ours and contrib's from the same rounds; none if not measured."""
    contrib = results.get("operations", {}).get("contrib", {})
    rows: list[tuple[str, float, float | None]] = []
    for kind, title in (("engine", "SQLAlchemy"), ("client", "httpx")) if "sampled" in contrib else ():
        one, sampled = contrib["unsampled"][kind], contrib["sampled"][kind]
        rows.append((f"ours, {title}", one["ours"]["ratio"], sampled["ours"]["ratio"]))
        rows.append((f"contrib, {title}", one["ratio"], sampled["ratio"]))
    return rows


def title_of(rows: list[tuple[str, float, float | None]], unit: str = TIME) -> str:
    """State the finding, whatever it is."""
    ratios = {name: ratio for name, ratio, _ in rows}
    title = f"All three signals of fastapi-observe: {ratios['ours']:.2f} times a bare request's {unit}"
    return f"{title}; wired by hand: {ratios['stack']:.1f}" if "stack" in ratios else title


def alt_of(results: dict[str, Any], unit: str = TIME) -> str:
    """Return the picture in words."""
    rows, operations = rows_of(results), operations_of(results)
    said = f"{title_of(rows, unit)}. Bare is 1, at 10 % sampling (at 100 %): {_said(rows)}."
    if not operations:
        return said
    return f"{said} A statement and a call against bare ones in an unsampled (sampled) request: {_said(operations)}."


def _said(rows: list[tuple[str, float, float | None]]) -> str:
    return ", ".join(
        f"{name} {ratio:.2f}" + (f" ({whole:.2f})" if whole is not None else "") for name, ratio, whole in rows
    )


def draw(results: dict[str, Any], unit: str = TIME) -> str:
    """Return the picture as SVG."""
    rows, operations = rows_of(results), operations_of(results)
    most = max(max(ratio, whole or 0) for _, ratio, whole in (*rows, *operations))
    scale = (WIDTH - LEFT - RIGHT) / most
    bottom = TOP + ROW * len(rows)
    below = bottom + BETWEEN if operations else bottom
    end = below + ROW * len(operations)
    height = end + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"',
        'role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(title_of(rows, unit))}</title>',
        f'<desc id="description">{escape(alt_of(results, unit))}</desc>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title_of(rows, unit))}</text>',
        f'<text class="quiet" x="12" y="46">{unit[0].upper()}{unit[1:]} {CAPTION}</text>',
    ]
    for at, (name, ratio, whole) in enumerate(rows):
        parts += _row(TOP + ROW * at, name, ratio, whole, scale)
    if operations:
        parts.append(f'<text class="quiet" x="12" y="{below - 20}">{BELOW}</text>')
    for at, (name, ratio, whole) in enumerate(operations):
        parts += _row(below + ROW * at, name, ratio, whole, scale)
    one = LEFT + scale
    for top, last in ((TOP, bottom), (below, end)) if operations else ((TOP, bottom),):
        parts.append(
            f'<line class="line" stroke-dasharray="3 3" x1="{one:.1f}" x2="{one:.1f}" y1="{top}" y2="{last}"/>'
        )
    parts.append(f'<text class="quiet" text-anchor="middle" x="{one:.1f}" y="{end + 18}">bare</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(top: int, name: str, ratio: float, whole: float | None, scale: float) -> list[str]:
    kind = "ours" if name.startswith("ours") else "peer"
    shown = (
        "fastapi-observe (all three)" if name == "ours" else name.replace("ours,", "fastapi-observe,").replace("_", " ")
    )
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
