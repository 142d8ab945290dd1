"""An exception as text: the user's own frames first, with their source, those of libraries on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.terminal.style import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fastapi_observe.terminal.style import Style

MAX_OWN_FRAMES: Final = 10
"""Frames of the user's code that are shown of each exception, the innermost ones."""

MAX_MESSAGE_LINES: Final = 10
MAX_LINE_LENGTH: Final = 500
"""Lines of a message, and characters of a line."""

RELATIONS: Final = {"": "", "cause": "caused by ", "context": "while handling ", "member": "in the group: "}


def render_exception(chain: Sequence[Mapping[str, Any]], style: Style, *, indent: str = "") -> list[str]:
    """Return the lines for an exception and its causes, as `records.frames.describe_exception` describes them."""
    return [indent + line for described in chain for line in _render_one(described, style)]


def render_heading(described: Mapping[str, Any], style: Style) -> list[str]:
    """Return the type and the message of an exception, on as many lines as the message has."""
    name = escape_controls(str(described.get("type", ""))[:MAX_LINE_LENGTH])
    message = str(described.get("message", ""))
    first, *further = [escape_controls(line[:MAX_LINE_LENGTH]) for line in message.split("\n")[:MAX_MESSAGE_LINES]]
    relation = RELATIONS.get(str(described.get("relation", "")), "")
    heading = f"{name}: {first}" if message else name
    mark = style.pick("✗", "x")
    return [
        style.paint(relation, "dim") + style.paint(f"{mark} {heading}" if not relation else heading, "red"),
        *(f"    {line}" for line in further if line.strip()),
    ]


def _render_one(described: Mapping[str, Any], style: Style) -> Iterator[str]:
    yield from render_heading(described, style)
    frames: Sequence[Mapping[str, Any]] = described.get("frames") or ()
    own = [frame for frame in frames if frame.get("own")]
    for frame in own[:MAX_OWN_FRAMES]:
        yield f"  {_place(frame)}"
        if frame.get("code"):
            yield "      " + style.paint(escape_controls(str(frame["code"])[:MAX_LINE_LENGTH]), "bold")
    folded = []
    if len(own) > MAX_OWN_FRAMES:
        folded.append(f"{len(own) - MAX_OWN_FRAMES} more of your frames")
    library = [frame for frame in frames if not frame.get("own")]
    if library:
        raised_there = f", raised in {_place(library[0])}" if frames[0] is library[0] else ""
        plural = "frame" if len(library) == 1 else "frames"
        folded.append(f"{len(library)} {plural} of libraries{raised_there}")
    if folded:
        yield "  " + style.paint(style.pick("… ", "... ") + ", ".join(folded), "dim")


def _place(frame: Mapping[str, Any]) -> str:
    file = str(frame.get("file", ""))
    # The part after site-packages says which library it is.
    for directory in ("site-packages/", "dist-packages/"):
        file = file.rpartition(directory)[2]
    return escape_controls(f"{file}:{frame.get('line', '')} in {frame.get('function', '')}"[:MAX_LINE_LENGTH])
