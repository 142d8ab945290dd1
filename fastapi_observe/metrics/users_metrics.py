"""The metrics of a registry that are the user's own: what the dashboard needs to show them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

from fastapi_observe.internal.prometheus_client import label_names
from fastapi_observe.metrics.budget import WITHIN_LABEL_SET
from fastapi_observe.metrics.shared.collectors import collectors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric


class UsersMetric(NamedTuple):
    """A metric that the user created. `name` has no `_total`; `mode` is how a gauge's values are merged."""

    kind: str
    name: str
    documentation: str
    labels: tuple[str, ...]
    mode: str = "sum"


def list_users_metrics(registries: Iterable[Any], is_internal: Callable[[Any], bool]) -> Iterator[UsersMetric]:
    """Yield the metrics of registries that belong to neither this package nor prometheus_client."""
    for registry in registries:
        for collector in collectors_of(registry):
            if is_internal(collector) or isinstance(collector, GCCollector | PlatformCollector | ProcessCollector):
                continue
            with contextlib.suppress(Exception):  # a collector of the user; a scrape reports what it raises
                labels = label_names(collector)
                for family in collector.collect():
                    metric = describe_family(family)
                    # A metric with labels has no samples before its first label set.
                    names = metric.labels if labels is None else labels
                    yield metric._replace(labels=names, mode=str(getattr(collector, "mode", metric.mode)))


def describe_family(family: Metric) -> UsersMetric:
    """Return the metric of a family that was collected or scraped. Labels are those of its samples."""
    labels = dict.fromkeys(
        label for sample in family.samples for label in sample.labels if label not in WITHIN_LABEL_SET
    )
    return UsersMetric(family.type, family.name, family.documentation, tuple(labels))
