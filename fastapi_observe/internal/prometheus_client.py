"""Private names of prometheus_client that this package uses, in one place.

prometheus_client has no public way to list the collectors of a registry or to replace the value of a metric. Each
function states what it returns when a private name is missing. `can_replace_values` checks all of them once, by making
metrics in a registry that is thrown away. The metrics in `fastapi_observe.metrics.series` are subclasses of
prometheus_client's, but keep their state in attributes of their own.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import prometheus_client.metrics as prometheus_metrics
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client import values as prometheus_values
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ExemplarTuple = tuple[dict[str, str], float, float]
"""Labels, value, Unix time in seconds: an exemplar as a plain tuple, which is faster to make than an `Exemplar`."""

format_float: Callable[[float], str] = floatToGoString
"""Format a number as the text format requires."""

VALUE_METRICS: Final = (Counter, Gauge, Histogram, Summary)
"""Metric classes whose values are made by `values.ValueClass`. Info and Enum keep theirs elsewhere."""


class MetricHeader(NamedTuple):
    """Type, name (without `_total`), help text, unit and multiprocess mode of a metric."""

    kind: str
    name: str
    documentation: str
    unit: str
    multiprocess_mode: str


class ValueSlot(NamedTuple):
    """One value of a series: it is in `container[key]`. `extra_labels` are those of the sample alone, such as `le`."""

    container: Any
    key: Any
    sample_name: str
    extra_labels: tuple[tuple[str, str], ...]


def make_exemplar(exemplar: ExemplarTuple | None) -> Exemplar | None:
    """Return an exemplar in prometheus_client's form."""
    return None if exemplar is None else Exemplar(*exemplar)


def list_collectors(registry: Any) -> list[Any]:
    """Return the collectors of a registry, or the registry itself if it cannot list them.

    A registry has `collect()`, too: it is then read as a whole, and one collector that raises spoils the others.
    """
    return list(getattr(registry, "_collector_to_names", (registry,)))


def find_collector(registry: CollectorRegistry, name: str) -> Any | None:
    """Return the collector that has registered this name; None if there is none, or the registry has no list."""
    return getattr(registry, "_names_to_collectors", {}).get(name)


def metric_header(metric: Any) -> MetricHeader:
    """Return what describes a metric of prometheus_client. Requires `can_replace_values`."""
    mode = str(getattr(metric, "_multiprocess_mode", ""))
    return MetricHeader(metric._type, metric._name, metric._documentation, str(getattr(metric, "_unit", "")), mode)  # noqa: SLF001


def label_names(metric: Any) -> tuple[str, ...] | None:
    """Return the names of the labels of a metric; None if they are unknown."""
    names = getattr(metric, "_labelnames", None)
    return None if names is None else tuple(names)


def metric_children(metric: Any) -> list[Any]:
    """Return the children of a metric with labels, else the metric itself. Requires `can_replace_values`."""
    return list(metric._metrics.values()) if metric._labelnames else [metric]  # noqa: SLF001


def label_pairs(child: Any) -> list[tuple[str, str]]:
    """Return names and values of the labels of a child. Requires `can_replace_values`."""
    return [*zip(child._labelnames, child._labelvalues, strict=False)]  # noqa: SLF001


def value_slots(child: Any) -> Iterator[ValueSlot]:
    """Yield the values of a series of prometheus_client. Requires `can_replace_values`."""
    names = {"counter": {"_value": "_total"}, "gauge": {"_value": ""}}
    attributes = names.get(child._type, {"_count": "_count", "_sum": "_sum"})  # noqa: SLF001
    for attribute, suffix in attributes.items():
        if attribute in vars(child):
            yield ValueSlot(vars(child), attribute, child._name + suffix, ())  # noqa: SLF001
    for index, bound in enumerate(getattr(child, "_upper_bounds", ())):
        extra = (("le", format_float(bound)),)
        yield ValueSlot(child._buckets, index, f"{child._name}_bucket", extra)  # noqa: SLF001


def gauge_values(metric: Any) -> list[object]:
    """Return the values of a gauge that are exposed. Requires `can_replace_values`."""
    return [vars(child).get("_value") for child in metric_children(metric)]


def read_without_lock(value: Any) -> float:
    """Return the number in a value without its lock, which another thread may have held during a fork; 0 if unknown."""
    return float(getattr(value, "_value", 0.0))


def update_from_functions(metric: Any) -> None:
    """Set the children of a gauge that have a `set_function` to what it returns now.

    A function that raises leaves the value as it was. Without the private names, functions are not called.
    """
    for child in metric_children(metric):
        if "_child_samples" in vars(child):  # set_function puts it on the instance
            with suppress(Exception):
                for sample in child._child_samples():  # noqa: SLF001
                    child._value.set(float(sample.value))  # noqa: SLF001


def uses_multiprocess_directory() -> bool:
    """Return whether prometheus_client shares its values itself, because PROMETHEUS_MULTIPROC_DIR was set at import."""
    return bool(getattr(prometheus_values.ValueClass, "_multiprocess", False))


def get_value_class() -> Callable[..., Any]:
    """Return what prometheus_client makes every value with."""
    make: Callable[..., Any] = prometheus_values.ValueClass
    return make


def set_value_class(make: Callable[..., Any]) -> None:
    """Make prometheus_client create every value with `make` from now on. Requires `can_replace_values`."""
    prometheus_values.ValueClass = make


@functools.cache
def can_replace_values() -> bool:
    """Return whether all private names are where this module expects them.

    If not, metrics of prometheus_client are not shared between worker processes: each worker shows its own.
    """
    registry = CollectorRegistry()
    try:
        metrics = (
            Counter("probe_a_total", "A.", ("label",), registry=registry),
            Gauge("probe_b", "B.", registry=registry),
            Histogram("probe_c", "C.", ("label",), registry=registry, buckets=(1.0,)),
            Summary("probe_d", "D.", registry=registry),
        )
        metrics[0].labels("x")
        metrics[2].labels("x")
        slots = [slot for metric in metrics for child in metric_children(metric) for slot in value_slots(child)]
        return (
            getattr(prometheus_metrics, "values", None) is prometheus_values  # looked up again for every value
            and all(isinstance(slot.container[slot.key], prometheus_values.ValueClass) for slot in slots)
            and [slot.sample_name for slot in slots] == PROBE_SAMPLES
            and list_collectors(registry) == list(metrics)
            and find_collector(registry, "probe_b") is metrics[1]
            and label_pairs(metric_children(metrics[0])[0]) == [("label", "x")]
            and metric_header(metrics[2])[:3] == ("histogram", "probe_c", "C.")
        )
    except Exception:  # noqa: BLE001 - a version with other internals may raise anything
        return False


PROBE_SAMPLES: Final = [
    "probe_a_total",
    "probe_b",
    "probe_c_sum",
    "probe_c_bucket",
    "probe_c_bucket",
    "probe_d_count",
    "probe_d_sum",
]
"""Names of the values that the metrics in `can_replace_values` have."""
