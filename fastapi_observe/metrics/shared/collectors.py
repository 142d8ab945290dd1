"""Collectors for a scrape of several workers, in a small module because a single process imports it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import InfoMetricFamily

from fastapi_observe.internal.prometheus_client import list_collectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.metrics.series import BoundedMetric
    from fastapi_observe.metrics.shared.merged import MergedFamily
    from fastapi_observe.metrics.shared.samples import ExemplarsBySeries, LocalSample, SampleFamily


class MultiprocessRegistry:
    """A registry with the values of all workers. `collectors` yields them."""

    def __init__(self, collectors: Callable[[], Iterator[Any]]) -> None:
        self.collectors = collectors


class StaticCollector:
    """A collector of families that have been read."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Sequence[Metric]:
        """Return the families."""
        return self.families


class LabeledCollector:
    """A collector of this package (`inner`) with constant labels on each sample. Its other attributes are `inner`'s."""

    def __init__(self, inner: Any, labels: Mapping[str, str]) -> None:
        self.inner = inner
        self._labels = labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def describe(self) -> list[Metric]:
        """Return the families that `collect` yields."""
        return list(getattr(self.inner, "describe", list)())

    def collect(self) -> Iterator[Metric]:
        """Yield the families with the labels added."""
        for family in self.inner.collect():
            family.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in family.samples]
            yield family


class SampleCollector:
    """A collector of the samples of all workers."""

    def __init__(self, family: SampleFamily, local: Sequence[LocalSample], exemplars: ExemplarsBySeries) -> None:
        self._family = family
        self._local = local
        self._exemplars = exemplars

    def collect(self) -> list[Metric]:
        """Return the family, merged."""
        return [self._family.metric(self._local, self._exemplars)]


class MergedFamilyText:
    """A merged family that renders itself."""

    def __init__(self, merged: MergedFamily, exemplars: ExemplarsBySeries, local: list[BoundedMetric]) -> None:
        self._merged = merged
        self._exemplars = exemplars
        self._local = local

    def family(self) -> tuple[str, str]:
        """Return the name of the family, without the suffix of counters, and its type."""
        return self._merged.template.family()

    def render(self, *, openmetrics: bool) -> str:
        """Return the family in the text format, or in OpenMetrics with exemplars. Empty if it has no series."""
        series = self._merged.merge(self._exemplars, self._local)
        return self._merged.template.render_series(series, openmetrics=openmetrics)


def collectors_of(registry: Any) -> list[Any]:
    """Return the collectors of a registry, each by itself, so that one that raises does not affect the others."""
    if isinstance(registry, MultiprocessRegistry):
        return list(registry.collectors())
    collectors = list_collectors(registry)
    target = getattr(registry, "get_target_info", lambda: None)()
    if target:
        collectors.insert(0, StaticCollector([InfoMetricFamily("target", "Target metadata", value=target)]))
    return collectors
