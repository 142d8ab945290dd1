"""Label sets that a user removes: `Removable`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics import MetricWrapperBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.signals.series_budget import SeriesBudget


class Removable(MetricWrapperBase):
    """Shows series no longer that were removed; in several workers that is so for gauges, totals stay."""

    budget: SeriesBudget

    def remove(self, *labelvalues: Any) -> None:
        """Remove the series of these label values."""
        with self._releasing():
            super().remove(*labelvalues)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Remove every series that has these labels, by name."""
        with self._releasing():
            super().remove_by_labels(labels)

    def clear(self) -> None:
        """Remove every series."""
        with self._releasing():
            super().clear()

    @contextmanager
    def _releasing(self) -> Iterator[None]:
        before = dict(self._metrics) if self._labelnames and not self._labelvalues else {}
        yield
        if before and self.budget.store is not None:
            for values in before.keys() - self._metrics.keys():
                self.budget.store.release(before[values])
