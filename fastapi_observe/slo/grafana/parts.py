"""Building blocks of a Grafana dashboard: queries, panels, links, and the grid that they stand on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROMETHEUS: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
SERIES: Final = 10
"""Most lines of a panel whose number of series grows with the app."""

GREEN: Final = "green"
LINES: Final = "line"


class Query(NamedTuple):
    """One PromQL query of a panel; `legend` names its lines by their labels."""

    expr: str
    legend: str = ""
    exemplar: bool = False
    instant: bool = False
    form: str = "time_series"


class Panel(NamedTuple):
    """One panel before it has a place; `more` is merged into what Grafana is told."""

    kind: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    more: dict[str, Any] = {}  # noqa: RUF012 - read only


class Row(NamedTuple):
    """A headline with the panels below it; a closed one asks nothing of Prometheus until it is opened."""

    title: str
    panels: tuple[Panel, ...]
    closed: bool = True


def top_series(expr: str, count: int = SERIES) -> str:
    """Keep the largest series of a query that may have many."""
    return f"topk({count}, {expr})"


def or_zero(expr: str, label: str) -> str:
    """Draw a line at 0, called `none`, where there is nothing yet: series of failures appear with the first."""
    return f'({expr}) or on () label_replace(vector(0), "{label}", "none", "", "")'


def graph(  # noqa: PLR0913 - what a panel has
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    steps: Sequence[tuple[float, str]] = (),
    links: Sequence[dict[str, Any]] = (),
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
) -> Panel:
    """Lines over time; `steps` are limits, drawn as lines: (value, colour)."""
    custom: dict[str, Any] = {"fillOpacity": 20 if stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    if steps:
        custom["thresholdsStyle"] = {"mode": LINES}
    bounds = {"min": least, "max": most}
    defaults: dict[str, Any] = {"custom": custom, **_steps(steps), **({"links": [*links]} if links else {})}
    defaults.update({name: value for name, value in bounds.items() if value is not None})
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, description, unit, queries, width, 8, {"defaults": defaults, "options": options})


def number(  # noqa: PLR0913 - what a panel has
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Sequence[tuple[float, str]] = (),
    base: str = GREEN,
    width: int = 4,
    decimals: int | None = None,
) -> Panel:
    """One number, coloured by the highest of `steps` that it reaches."""
    defaults: dict[str, Any] = {**_steps(steps, base), "color": {"mode": "thresholds"}}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "value",
    }
    return Panel("stat", title, description, unit, (query,), width, 4, {"defaults": defaults, "options": options})


def heatmap(title: str, description: str, unit: str, query: Query, *, width: int = 8) -> Panel:
    """How many samples fell into each bucket of a histogram, over time."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False, "exponent": 0.5},
        "yAxis": {"unit": unit, "axisPlacement": "left"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": False},
    }
    return Panel("heatmap", title, description, unit, (query._replace(form="heatmap"),), width, 8, {"options": options})


def table(  # noqa: PLR0913 - what a panel has
    title: str,
    description: str,
    columns: Sequence[tuple[str, str, str]],
    *,
    by: Sequence[str],
    width: int = 24,
    links: Sequence[dict[str, Any]] = (),
) -> Panel:
    """A row for each label set of `by`, a column for each query: (heading, expression, unit)."""
    queries = tuple(Query(expr, heading, instant=True, form="table") for heading, expr, _ in columns)
    refs = [chr(ord("A") + at) for at in range(len(columns))]
    renamed = {f"Value #{ref}": heading for ref, (heading, _, _) in zip(refs, columns, strict=True)}
    order = {name: at for at, name in enumerate((*by, *renamed))}
    overrides: list[dict[str, Any]] = [
        {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit}]}
        for heading, _, unit in columns
    ]
    if links:
        overrides.append(
            {"matcher": {"id": "byName", "options": by[0]}, "properties": [{"id": "links", "value": [*links]}]}
        )
    more = {
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed},
            },
        ],
        "overrides": overrides,
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": columns[0][0], "desc": True}],
        },
    }
    return Panel("table", title, description, columns[0][2], queries, width, 9, more)


def explore(title: str, kind: str, variable: str, query: dict[str, Any]) -> dict[str, Any]:
    """Link a line or a cell to Grafana's Explore, at the same time; `${...}` in the query are filled in there."""
    pane = {
        "datasource": f"${{{variable}}}",
        "queries": [{"refId": "A", "datasource": {"type": kind, "uid": f"${{{variable}}}"}, **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    text = quote(json.dumps({"a": pane}, separators=(",", ":")), safe="${}_.:")
    return {"title": title, "url": f"/explore?schemaVersion=1&orgId=1&panes={text}", "targetBlank": True}


def assign_positions(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Give every panel its id and its place: rows below each other, panels from left to right."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        head: dict[str, Any] = {
            "type": "row",
            "title": row.title,
            "collapsed": row.closed,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        below, y = _in_lines(row.panels, y + 1)
        placed.append(head)
        (head["panels"] if row.closed else placed).extend(below)
        if row.closed:
            y = int(head["gridPos"]["y"]) + 1
    for at, panel in enumerate(iter_panels(placed), 1):
        panel["id"] = at
    return placed


def iter_panels(panels: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield panels and rows, those inside closed rows too."""
    for panel in panels:
        yield panel
        yield from panel.get("panels", ())


def _in_lines(panels: Sequence[Panel], y: int) -> tuple[list[dict[str, Any]], int]:
    """Place panels beside each other while there is room; return them, and where the next row begins."""
    placed, x, tallest = [], 0, 0
    for panel in panels:
        if x + panel.width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        placed.append(_shown(panel, {"x": x, "y": y, "w": panel.width, "h": panel.height}))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return placed, y + tallest


def _shown(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    more = panel.more
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": PROMETHEUS,
        "gridPos": place,
        "targets": [_target(query, at) for at, query in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **more.get("defaults", {})},
            "overrides": more.get("overrides", []),
        },
        "options": more.get("options", {}),
        **({"transformations": more["transformations"]} if "transformations" in more else {}),
    }


def _target(query: Query, at: int) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + at) if at < 26 else f"A{at}",  # noqa: PLR2004 - letters
        "datasource": PROMETHEUS,
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": query.form,
        "instant": query.instant,
        "range": not query.instant,
        "exemplar": query.exemplar,
    }


def _steps(steps: Sequence[tuple[float, str]], base: str = GREEN) -> dict[str, Any]:
    if not steps and base == GREEN:
        return {}
    found: list[dict[str, Any]] = [{"color": base, "value": None}]
    found += [{"color": color, "value": value} for value, color in steps]
    return {"thresholds": {"mode": "absolute", "steps": found}}
