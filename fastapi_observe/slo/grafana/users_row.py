"""The row of the app's own metrics: a panel for each, made from its type, its labels and its help text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi_observe.slo.grafana.panels import Graph, Panel, PanelQuery, Row
from fastapi_observe.slo.grafana.queries import quantile, rate, top

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi_observe.metrics.users_metrics import UsersMetric

MAX_DESCRIPTION: Final = 200
"""Characters of a metric's help text that its panel shows."""

TARGET_LABELS: Final = frozenset({"job", "instance"})
"""Labels that Prometheus sets on each target."""

UNITS: Final = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "percent": "percent", "celsius": "celsius"}
"""Units of Grafana by the last word of a metric's name."""

RATE_UNITS: Final = {"bytes": "Bps", "seconds": "percentunit"}
"""Units of what grows per second. Seconds per second are a share of the time."""

GAUGES: Final = {
    "sum": "All instances and workers added up",
    "max": "The largest of all instances and workers",
    "min": "The smallest of all instances and workers",
    "pid": "Each worker by itself",
}
"""What a panel of a gauge shows, by the mode of the gauge."""


def make_users_row(metrics: Sequence[UsersMetric]) -> Row:
    """Return the row; an app without metrics of its own does not have the feature `users_metrics`."""
    panels = tuple(MAKERS[metric.kind](_as_stored(metric), f"<{_about(at)}>") for at, metric in enumerate(metrics))
    return Row("Metrics of the app", panels, when="users_metrics")


def describe_users_metrics(metrics: Sequence[UsersMetric]) -> dict[str, str]:
    """Return the values of the placeholders that stand for help texts, which may contain `<` themselves."""
    return {_about(at): _sentence(metric) for at, metric in enumerate(metrics)}


def _as_stored(metric: UsersMetric) -> UsersMetric:
    """Return a metric with its labels as Prometheus stores them: those that a target has too are renamed."""
    return metric._replace(
        labels=tuple(f"exported_{each}" if each in TARGET_LABELS else each for each in metric.labels)
    )


def _about(at: int) -> str:
    return f"about_{at}"


def _sentence(metric: UsersMetric) -> str:
    text = " ".join(metric.documentation.split())[:MAX_DESCRIPTION].rstrip(". ")
    return f"{text or metric.name}."


def _counter(metric: UsersMetric, about: str) -> Graph:
    name = f"{metric.name}_total"
    expression = rate(name, "<service>", ", ".join(metric.labels))
    unit = RATE_UNITS.get(_last_word(metric), "ops")
    shown = top(expression) if metric.labels else expression
    return Graph(name, f"{about} Per second.", unit, shown, _legend(metric))


def _gauge(metric: UsersMetric, about: str) -> Graph:
    function = "sum" if metric.mode == "pid" else metric.mode
    metric = metric._replace(labels=(*metric.labels, "instance", "pid")) if metric.mode == "pid" else metric
    by = f" by ({', '.join(metric.labels)}) " if metric.labels else ""
    expression = f"{function}{by}({metric.name}{{<service>}})"
    shown = top(expression) if metric.labels else expression
    unit = UNITS.get(_last_word(metric), "short")
    return Graph(metric.name, f"{about} {GAUGES[metric.mode]}.", unit, shown, _legend(metric), minimum=None)


def _histogram(metric: UsersMetric, about: str) -> Graph:
    unit = UNITS.get(_last_word(metric), "short")
    if metric.labels:
        slowest = top(quantile(0.95, metric.name, "<service>", ", ".join(metric.labels)))
        about = f"{about} At the 95th percentile."
        return Graph(metric.name, about, unit, slowest, _legend(metric), exemplar=True, minimum=None)
    low, *high = (
        PanelQuery(quantile(q, metric.name, "<service>"), f"p{q * 100:.0f}", exemplar=True) for q in (0.5, 0.95)
    )
    about = f"{about} At the 50th and 95th percentile."
    return Graph(metric.name, about, unit, low.expr, low.legend, more=(*high,), exemplar=True, minimum=None)


def _summary(metric: UsersMetric, about: str) -> Graph:
    total, count = (rate(f"{metric.name}_{part}", "<service>", ", ".join(metric.labels)) for part in ("sum", "count"))
    unit = UNITS.get(_last_word(metric), "short")
    shown = f"{total} / ({count} > 0)"
    return Graph(
        metric.name,
        f"{about} The average.",
        unit,
        top(shown) if metric.labels else shown,
        _legend(metric),
        minimum=None,
    )


MAKERS: Final[dict[str, Callable[[UsersMetric, str], Panel]]] = {
    "counter": _counter,
    "gauge": _gauge,
    "histogram": _histogram,
    "summary": _summary,
}
"""How each type of metric is shown. Types without an entry have no panel."""


def _last_word(metric: UsersMetric) -> str:
    return metric.name.rpartition("_")[2]


def _legend(metric: UsersMetric) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in metric.labels) or metric.name
