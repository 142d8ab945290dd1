"""Label sets that a user removes: `Removable`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics import MetricWrapperBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.metrics.budget import SeriesBudget


class Removable(MetricWrapperBase):
    """Shows series no longer that were removed; in several workers that is so for gauges, totals stay."""

    budget: SeriesBudget
    guard: Any
    values: Any

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
        with self.guard:
            before: dict[Any, Any] = dict(self._metrics) if self._labelnames and not self._labelvalues else {}
            yield
            gone = [child for values, child in before.items() if values not in self._metrics]
            for child in gone:
                self.values.remove(child.label_values())
        store = self.budget.store
        if store is not None:
            for child in gone:
                store.release(child)
