"""The records that describe panels, and how they become panels of Grafana's JSON model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from fastapi_observe.slo.prometheus.promql import fill_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
"""Width of the grid."""

GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"

Steps = tuple[tuple[float | str, str], ...]
"""Thresholds as (value, color); a string names a value of the context."""


class PanelQuery(NamedTuple):
    """A PromQL query; `legend` names its series by their labels, `exemplar` shows links to traces on them."""

    expr: str
    legend: str = ""
    exemplar: bool = False
    when: str = ""


class Column(NamedTuple):
    """A column of a table: an instant query whose values are shown in a unit."""

    heading: str
    expr: str
    unit: str
    when: str = ""


class Graph(NamedTuple):
    """A panel of the series of `expr`, and of `more` queries, over time; `legend` names a series by its labels.

    `steps` are drawn as lines, `links` lead from a series to its traces and logs, `exemplar` shows single traces.
    """

    title: str
    description: str
    unit: str
    expr: str
    legend: str
    more: tuple[PanelQuery, ...] = ()
    exemplar: bool = False
    width: int = 8
    steps: Steps = ()
    links: bool = False
    stacked: bool = False
    minimum: float | None = 0
    maximum: float | None = None
    when: str = ""


class Stat(NamedTuple):
    """A panel of one number, in the color of the highest of `steps` that it reaches."""

    title: str
    description: str
    unit: str
    expr: str
    steps: Steps = ()
    base_color: str = GREEN
    decimals: int | None = None
    when: str = ""


class Heatmap(NamedTuple):
    """A panel of the buckets of a histogram over time."""

    title: str
    description: str
    unit: str
    query: PanelQuery
    when: str = ""


class Table(NamedTuple):
    """A panel with a row for each label set of `by`, sorted by the first column."""

    title: str
    description: str
    columns: tuple[Column, ...]
    by: tuple[str, ...]
    width: int = 24
    links: bool = False
    when: str = ""


Panel = Graph | Stat | Heatmap | Table


class Row(NamedTuple):
    """A heading with the panels below it; Grafana runs no query of a collapsed row."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = True
    when: str = ""


class DashboardContext(NamedTuple):
    """The values of an app: `text` for placeholders, `numbers` for steps, and the features that `when` may name.

    `links` lead from a series with the label `endpoint` to its traces and log lines.
    """

    text: Mapping[str, str]
    numbers: Mapping[str, float]
    enabled: frozenset[str]
    links: tuple[dict[str, Any], ...]


def is_shown(item: Row | Panel | PanelQuery | Column, context: DashboardContext) -> bool:
    """Return whether an app has the feature that an item depends on."""
    return not item.when or item.when in context.enabled


def render_panel(panel: Panel, context: DashboardContext) -> dict[str, Any]:
    """Return a panel of Grafana's model, without its id and its position."""
    rendered: dict[str, Any]
    if isinstance(panel, Graph):
        rendered = _graph(panel, context)
    elif isinstance(panel, Stat):
        rendered = _stat(panel, context)
    elif isinstance(panel, Heatmap):
        rendered = _heatmap(panel, context)
    else:
        rendered = _table(panel, context)
    return rendered


def _graph(panel: Graph, context: DashboardContext) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    if panel.steps:
        custom["thresholdsStyle"] = {"mode": "line"}
    defaults: dict[str, Any] = {"custom": custom, **_thresholds(panel.steps, GREEN, context)}
    if panel.links and context.links:
        label = context.text["endpoint"] if "<endpoint>" in panel.legend else "endpoint"
        defaults["links"] = [_with_field(link, f"labels.{label}") for link in context.links]
    limits = {"min": panel.minimum, "max": panel.maximum}
    defaults.update({name: value for name, value in limits.items() if value is not None})
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    first = PanelQuery(panel.expr, panel.legend, exemplar=panel.exemplar)
    queries = [first, *(query for query in panel.more if is_shown(query, context))]
    targets = [_target(query, at, context) for at, query in enumerate(queries)]
    return _panel(
        "timeseries", panel, context, (panel.width, 8), targets, unit=panel.unit, defaults=defaults, options=options
    )


def _stat(panel: Stat, context: DashboardContext) -> dict[str, Any]:
    thresholds = _thresholds(panel.steps, panel.base_color, context)
    defaults: dict[str, Any] = {**thresholds, "color": {"mode": "thresholds"}}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "value",
    }
    targets = [_target(PanelQuery(panel.expr), 0, context)]
    return _panel("stat", panel, context, (4, 4), targets, unit=panel.unit, defaults=defaults, options=options)


def _heatmap(panel: Heatmap, context: DashboardContext) -> dict[str, Any]:
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False, "exponent": 0.5},
        "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": False},
    }
    targets = [_target(panel.query, 0, context, form="heatmap")]
    return _panel("heatmap", panel, context, (8, 8), targets, unit=panel.unit, options=options)


def _table(panel: Table, context: DashboardContext) -> dict[str, Any]:
    columns = [column for column in panel.columns if is_shown(column, context)]
    by = [fill_in(label, context.text) for label in panel.by]
    targets = [
        _target(PanelQuery(column.expr, column.heading), at, context, form="table", instant=True)
        for at, column in enumerate(columns)
    ]
    renamed = {f"Value #{target['refId']}": column.heading for target, column in zip(targets, columns, strict=True)}
    order = {name: at for at, name in enumerate((*by, *renamed))}
    overrides: list[dict[str, Any]] = [
        {"matcher": {"id": "byName", "options": column.heading}, "properties": [{"id": "unit", "value": column.unit}]}
        for column in columns
    ]
    if panel.links and context.links:
        links = [_with_field(link, f"fields.{by[0]}") for link in context.links]
        overrides.append(
            {"matcher": {"id": "byName", "options": by[0]}, "properties": [{"id": "links", "value": links}]}
        )
    options = {
        "showHeader": True,
        "cellHeight": "sm",
        "sortBy": [{"displayName": columns[0].heading, "desc": True}],
    }
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed}
    unit = columns[0].unit
    table = _panel("table", panel, context, (panel.width, 9), targets, unit=unit, options=options, overrides=overrides)
    return {
        **table,
        "transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}],
    }


def _panel(  # noqa: PLR0913 - the parts of Grafana's model
    kind: str,
    panel: Panel,
    context: DashboardContext,
    size: tuple[int, int],
    targets: list[dict[str, Any]],
    *,
    unit: str,
    options: dict[str, Any],
    defaults: Mapping[str, Any] | None = None,
    overrides: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "type": kind,
        "title": panel.title,
        "description": fill_in(panel.description, context.text),
        "datasource": DATASOURCE,
        "gridPos": {"x": 0, "y": 0, "w": size[0], "h": size[1]},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, **(defaults or {})}, "overrides": [*overrides]},
        "options": options,
    }


def _target(
    query: PanelQuery, at: int, context: DashboardContext, *, form: str = "time_series", instant: bool = False
) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + at),
        "datasource": DATASOURCE,
        "expr": fill_in(query.expr, context.text),
        "legendFormat": fill_in(query.legend, context.text),
        "format": form,
        "instant": instant,
        "range": not instant,
        "exemplar": query.exemplar and "exemplars" in context.enabled,
    }


def _thresholds(steps: Steps, base_color: str, context: DashboardContext) -> dict[str, Any]:
    if not steps and base_color == GREEN:
        return {}
    rendered: list[dict[str, Any]] = [{"color": base_color, "value": None}]
    for value, color in steps:
        rendered.append({"color": color, "value": context.numbers[value] if isinstance(value, str) else value})
    return {"thresholds": {"mode": "absolute", "steps": rendered}}


def explore_link(title: str, kind: str, variable: str, query: Mapping[str, Any]) -> dict[str, Any]:
    """Return a link to Grafana's Explore at the same time range; Grafana replaces `${...}` in the query."""
    pane = {
        "datasource": f"${{{variable}}}",
        "queries": [{"refId": "A", "datasource": {"type": kind, "uid": f"${{{variable}}}"}, **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = quote(json.dumps({"a": pane}, separators=(",", ":")), safe="${}_.:")
    return {"title": title, "url": f"/explore?schemaVersion=1&orgId=1&panes={panes}", "targetBlank": True}


def _with_field(link: dict[str, Any], field: str) -> dict[str, Any]:
    """Return a link whose endpoint is a label of the series, `labels.x`, or a cell of the row, `fields.x`."""
    source = "__data" if field.startswith("fields.") else "__field"
    return {**link, "url": link["url"].replace("${__field.labels.endpoint}", f"${{{source}.{field}}}")}


def lay_out(rows: Iterable[Row], context: DashboardContext) -> list[dict[str, Any]]:
    """Return the panels of all rows that an app has, with ids and positions in the grid."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        if not is_shown(row, context):
            continue
        heading: dict[str, Any] = {
            "type": "row",
            "title": row.title,
            "collapsed": row.collapsed,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        panels = [render_panel(panel, context) for panel in row.panels if is_shown(panel, context)]
        below = _assign_positions(panels, y + 1)
        placed.append(heading)
        if row.collapsed:
            heading["panels"] = panels
            y += 1
        else:
            placed += panels
            y = below
    for number, panel in enumerate(iter_panels(placed), 1):
        panel["id"] = number
    return placed


def _assign_positions(panels: Sequence[dict[str, Any]], y: int) -> int:
    """Place panels from left to right while there is room; return where the next row starts."""
    x = tallest = 0
    for panel in panels:
        position = panel["gridPos"]
        if x + position["w"] > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        position.update(x=x, y=y)
        x, tallest = x + position["w"], max(tallest, position["h"])
    return y + tallest


def iter_panels(panels: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield panels and rows, including those inside collapsed rows."""
    for panel in panels:
        yield panel
        yield from panel.get("panels", ())
