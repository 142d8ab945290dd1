"""The tree of a trace as text: one row for each span with its bar and duration, repeated spans folded into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.terminal.style import TIMES, columns, escape_controls, fit, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi_observe.terminal.spans import SpanRow
    from fastapi_observe.terminal.style import Style

MAX_TREE_ROWS: Final = 40
"""Rows of a tree; the spans after them are counted."""

MAX_LEVELS: Final = 16
"""Levels of a tree; the spans below them are counted."""

MAX_NAME: Final = 200
DURATION_WIDTH: Final = 9
MIN_BAR: Final = 8
MAX_BAR: Final = 40
"""Characters of a name that are considered, and columns of a duration and of a bar."""


class _Row(NamedTuple):
    """One row: a span, or several equal ones. Times are in nanoseconds since the epoch."""

    branch: str
    span: SpanRow
    times: int
    start: int
    end: int
    total: int


class _Tree:
    """Collects the rows of a tree in their order."""

    def __init__(self, spans: Iterable[SpanRow], style: Style, max_rows: int) -> None:
        self._children: dict[str, list[SpanRow]] = {}
        for span in sorted(spans, key=lambda each: (each.start, -each.end)):
            parent_id = "" if span.parent_id == span.span_id else span.parent_id
            self._children.setdefault(parent_id, []).append(span)
        self._style = style
        self._max_rows = max_rows
        self.rows: list[_Row] = []
        self.hidden = 0

    def add(self, siblings: Sequence[SpanRow], prefix: str, depth: int = 0) -> None:
        """Add spans with the same parent, and what is below them."""
        groups = self._fold(siblings)
        for at, group in enumerate(groups):
            first, is_last = group[0], at == len(groups) - 1
            if len(self.rows) >= self._max_rows or depth >= MAX_LEVELS:
                self.hidden += sum(map(self._size, group))
                continue
            branch = prefix + self._style.pick("└ " if is_last else "├ ", "`-" if is_last else "|-")
            total = sum(span.end - span.start for span in group)
            ends = max(span.end for span in group)
            self.rows.append(_Row(branch, first, len(group), first.start, ends, total))
            # Removed, so that ids that occur twice cannot make a cycle.
            below = self._children.pop(first.span_id, [])
            if below:
                self.add(below, prefix + ("  " if is_last else self._style.pick("│ ", "| ")), depth + 1)

    def add_top(self, span: SpanRow) -> None:
        """Add the span that is the root, and what is below it."""
        self.rows.append(_Row("", span, 1, span.start, span.end, span.end - span.start))
        self.add(self.pop_children(span.span_id), "")

    def pop_children(self, span_id: str) -> list[SpanRow]:
        """Remove and return the children of a span."""
        return self._children.pop(span_id, [])

    def _fold(self, siblings: Sequence[SpanRow]) -> list[list[SpanRow]]:
        """Group equal spans without children at the place of the first."""
        groups: dict[object, list[SpanRow]] = {}
        for span in siblings:
            attributes = span.attributes
            key: object = (
                span.name,
                span.status,
                attributes.get("db.query.text"),
                attributes.get("code.line.number"),
                attributes.get("error.type"),
            )
            groups.setdefault(span.span_id if span.span_id in self._children else repr(key), []).append(span)
        return list(groups.values())

    def _size(self, span: SpanRow) -> int:
        """Return the number of spans at and below one, and remove them."""
        count, pending = 1, [span.span_id]
        while pending:
            below = self._children.pop(pending.pop(), [])
            count += len(below)
            pending += [each.span_id for each in below]
        return count


def render_tree(  # noqa: PLR0913 - how it is drawn
    spans: Sequence[SpanRow],
    style: Style,
    *,
    width: int,
    indent: str = "",
    root_id: str | None = None,
    max_rows: int = MAX_TREE_ROWS,
) -> list[str]:
    """Return the rows of a trace as lines of at most `width` columns.

    With `root_id` that span itself is left out: the line above the tree is about it. Without, each span whose parent
    is not there is a root.
    """
    if not spans:
        return []
    tree = _Tree(spans, style, max_rows)
    if root_id is None:
        known = {span.span_id for span in spans}
        for root in sorted(spans, key=lambda span: span.start):
            if root.parent_id not in known or root.parent_id == root.span_id:
                tree.add_top(root)
    else:
        tree.add(tree.pop_children(root_id), "")
    lines = _draw(tree.rows, style, width - columns(indent), _bounds(spans, root_id))
    if tree.hidden:
        lines.append(style.paint(style.pick(f"… {tree.hidden} more spans", f"... {tree.hidden} more spans"), "dim"))
    return [indent + line for line in lines]


def _bounds(spans: Sequence[SpanRow], root_id: str | None) -> tuple[int, int]:
    """Return the start and the end of the bars: those of the root where it is there, else of all spans."""
    roots = [span for span in spans if span.span_id == root_id] or spans
    start = min(span.start for span in roots)
    return start, max(start + 1, *(span.end for span in roots))


def _draw(rows: Sequence[_Row], style: Style, width: int, bounds: tuple[int, int]) -> list[str]:
    if not rows:
        return []
    # The name is cut where there is no room, not how often it occurred.
    labels = [row.branch + escape_controls(row.span.name[:MAX_NAME]) for row in rows]
    times = [f" {style.pick(TIMES, 'x')}{row.times}" if row.times > 1 else "" for row in rows]
    widest = max(columns(label) + len(count) for label, count in zip(labels, times, strict=True))
    name_width = min(widest, max(16, int(width * 0.45)))
    bar_width = min(MAX_BAR, max(MIN_BAR, width - name_width - DURATION_WIDTH - 24))
    ellipsis = style.pick("…", "~")
    lines = []
    for row, label, count in zip(rows, labels, times, strict=True):
        failed = row.span.status == "ERROR"
        bar = _bar(row, bounds, bar_width, style.pick("█", "#"))
        color = "red" if failed else "yellow" if row.times > 1 else "green"
        duration = format_duration(row.total / 1e9).rjust(DURATION_WIDTH)
        room = name_width - len(count)
        name = fit(label, room, ellipsis) if columns(label) > room else label
        name = style.paint(fit(name + count, name_width), "red" if failed else "")
        head = f"{name} {style.paint(bar, color)} {duration}"
        room = width - name_width - bar_width - DURATION_WIDTH - 4
        note = _note(row, style, room)
        lines.append(f"{head}  {style.paint(note, 'dim')}".rstrip() if note else head)
    return lines


def _bar(row: _Row, bounds: tuple[int, int], width: int, block: str) -> str:
    start, end = bounds
    scale = width / (end - start)
    left = min(width - 1, max(0, int((row.start - start) * scale)))
    length = max(1, min(width, int((row.end - start) * scale)) - left)
    return (" " * left + block * length).ljust(width)


def _note(row: _Row, style: Style, room: int) -> str:
    """Return what is said after the duration: the error, and the line of the user's code that started the span.

    Where there is no room for the whole path, the name of the file is enough.
    """
    attributes = row.span.attributes
    error = path = ""
    if row.span.status == "ERROR":
        error = style.pick("✗", "x") + f" {str(attributes.get('error.type', '')).rpartition('.')[2]}".rstrip()
    if "code.file.path" in attributes and "code.line.number" in attributes:
        path = f"{attributes['code.file.path']}:{attributes['code.line.number']}"
    arrow = style.pick("← ", "<- ") if row.times > 1 and path else ""
    notes = [
        escape_controls("  ".join(filter(None, [error, arrow + place]))[:MAX_NAME])
        for place in (path, path.rpartition("/")[2])
    ]
    note = next((note for note in notes if columns(note) <= room), notes[-1])
    return note if columns(note) <= room else fit(note, room, style.pick("…", "~")) if room > MIN_BAR else ""
