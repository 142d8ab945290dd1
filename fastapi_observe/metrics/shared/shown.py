"""What a scrape of many workers shows, as collectors; light, since the single process imports it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import InfoMetricFamily

from fastapi_observe.internal.prometheus_client import list_collectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.metrics.series import BoundedMetric
    from fastapi_observe.metrics.shared.merged import MergedFamily
    from fastapi_observe.metrics.shared.samples import ExemplarsBySeries, LocalSample, SampleFamily


class MultiprocessRegistry:
    """A registry as all workers have it; `shown` yields its collectors."""

    def __init__(self, shown: Callable[[], Iterator[Any]]) -> None:
        self.shown = shown


class StaticCollector:
    """A collector of families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        """Return them."""
        return self.families


class SampleCollector:
    """A collector of the samples of all workers."""

    def __init__(self, samples: SampleFamily, alone: Sequence[LocalSample], exemplars: ExemplarsBySeries) -> None:
        self._samples = samples
        self._with = alone, exemplars

    def collect(self) -> list[Metric]:
        """Add them up."""
        return [self._samples.metric(*self._with)]


class MergedFamilyText:
    """A merged family, ready to be written."""

    def __init__(self, merged: MergedFamily, exemplars: ExemplarsBySeries, alone: list[BoundedMetric]) -> None:
        self._merged = merged
        self._exemplars = exemplars
        self._alone = alone

    def family(self) -> tuple[str, str]:
        """Return the name of the family, without the ending of counters, and its type."""
        return self._merged.family()

    def render(self, *, openmetrics: bool) -> str:
        """Return the family in the text format, or in OpenMetrics with exemplars; empty without a series."""
        series = self._merged.series_of_all(self._exemplars, self._alone)
        return self._merged.shape.render_series(series, openmetrics=openmetrics)


def collectors_of(registry: Any) -> list[Any]:
    """Return the collectors of a registry, each by itself, so that one that raises does not affect the others."""
    if isinstance(registry, MultiprocessRegistry):
        return list(registry.shown())
    collectors = list_collectors(registry)
    target = getattr(registry, "get_target_info", lambda: None)()
    if target:
        collectors.insert(0, StaticCollector([InfoMetricFamily("target", "Target metadata", value=target)]))
    return collectors
