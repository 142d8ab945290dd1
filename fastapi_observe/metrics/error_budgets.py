"""Error budgets and burn rates of objectives, from what this server has counted."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors

    Counts = Sequence[tuple[float, float]]

REPORTED_WINDOWS: Final = (("5m", 300.0), ("1h", 3600.0))
"""Name and seconds of the windows of burn rates: those of the fastest alert."""

SNAPSHOT_INTERVAL: Final = 15.0
"""Seconds between two snapshots."""

RECENT_SNAPSHOTS: Final = int(REPORTED_WINDOWS[-1][1] / SNAPSHOT_INTERVAL) + 2
"""Snapshots that reach back to the start of the longest window."""

PERIOD_SNAPSHOTS: Final = 100
"""Snapshots in one period, so the period is exact to one percent."""


class ObjectiveTarget(NamedTuple):
    """An objective by name; `allowed` is the fraction of its events that may be bad."""

    name: str
    allowed: float


class ErrorBudget(NamedTuple):
    """The error budget of one objective now.

    `events` and `bad` are those of the last period, or since the start. `remaining` is 1 for an untouched budget, 0 for
    a spent one, negative beyond that. `burn_rates` maps each window to the burn rate: 1 spends the budget in exactly
    one period.
    """

    slo: str
    events: float
    bad: float
    remaining: float
    burn_rates: dict[str, float]

    @property
    def burn(self) -> NoReturn:
        """Raise `AttributeError` with the new name."""
        raise AttributeError("ErrorBudget.burn was renamed to burn_rates")


class Snapshots:
    """Counts in the past: every 15 seconds for an hour, every hundredth of the period for the period."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._recent: deque[tuple[float, Counts]] = deque(maxlen=RECENT_SNAPSHOTS)
        self._long_term: deque[tuple[float, Counts]] = deque(maxlen=PERIOD_SNAPSHOTS + 2)

    def add(self, now: float, counts: Counts) -> None:
        """Store the counts if a snapshot is due.

        Lower counts than before, as after leaving multiprocess mode, discard all snapshots.
        """
        if self._recent and any(new[0] < old[0] for new, old in zip(counts, self._recent[-1][1], strict=True)):
            self._recent.clear()
            self._long_term.clear()
        if not self._recent or now - self._recent[-1][0] >= SNAPSHOT_INTERVAL:
            self._recent.append((now, counts))
        if not self._long_term or now - self._long_term[-1][0] >= self._period / PERIOD_SNAPSHOTS:
            self._long_term.append((now, counts))

    def at_window_start(self, start: float) -> Counts:
        """Return the counts at the start of a window, or the earliest ones. Requires an `add` before."""
        return next((counts for time, counts in reversed(self._recent) if time <= start), self._recent[0][1])

    def at_period_start(self, start: float) -> Counts | None:
        """Return the counts at the start of the period, or None if counting began later."""
        return next((counts for time, counts in reversed(self._long_term) if time <= start), None)


class ErrorBudgets:
    """Collects the error budgets of one install.

    `read` returns events and bad events of each objective since the start, over all workers in multiprocess mode. A
    thread calls it every `SNAPSHOT_INTERVAL` seconds between `start` and `stop`; requests are not involved.
    """

    covers_all_workers = True

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a budget
        self,
        targets: Sequence[ObjectiveTarget],
        period: float,
        config_hash: str,
        read: Callable[[], Counts],
        internal_errors: InternalErrors,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._targets = tuple(targets)
        self._period = period
        self._hash = config_hash
        self._read = read
        self._internal_errors = internal_errors
        self._clock = clock
        self._snapshots = Snapshots(period)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start taking snapshots. Idempotent, but a forked child, where the thread is not alive, starts its own.

        If no thread can start, snapshots are taken by scrapes only.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sample()
        consequence = "Error budgets are updated by scrapes only, so burn rates may be inexact."
        self._thread = start_thread(self._run, "fastapi-observe-budgets", consequence, (self._stopped,))

    def stop(self) -> None:
        """Stop taking snapshots. Those that were taken remain."""
        thread, self._thread = self._thread, None
        self._stopped.set()
        if thread is not None:
            thread.join(1)

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(SNAPSHOT_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        try:
            self.now()
        except Exception as exc:  # noqa: BLE001 - the files of other workers may be gone; the next time may succeed
            self._internal_errors("objectives.sample", exc)

    def now(self) -> list[ErrorBudget]:
        """Return the state of each budget."""
        with self._lock:
            counts, now = self._read(), self._clock()
            self._snapshots.add(now, counts)
            at_start = [(0.0, 0.0)] * len(counts)
            before = self._snapshots.at_period_start(now - self._period) or at_start
            windows = {name: self._snapshots.at_window_start(now - seconds) for name, seconds in REPORTED_WINDOWS}
        budgets = []
        for index, target in enumerate(self._targets):
            events, bad = (new - old for new, old in zip(counts[index], before[index], strict=True))
            rates = {name: _burn_rate(counts[index], past[index], target.allowed) for name, past in windows.items()}
            remaining = 1 - _burn_rate(counts[index], before[index], target.allowed)
            budgets.append(ErrorBudget(target.name, events, bad, remaining, rates))
        return budgets

    def describe(self) -> list[Metric]:
        """Return the families that `collect` yields."""
        return [*_families(), self._config()]

    def collect(self) -> Iterator[Metric]:
        """Yield the families with their values now."""
        remaining, burn_rate = _families()
        for budget in self.now():
            remaining.add_metric([budget.slo], budget.remaining)
            for window, rate in budget.burn_rates.items():
                burn_rate.add_metric([budget.slo, window], rate)
        yield remaining
        yield burn_rate
        yield self._config()

    def _config(self) -> Metric:
        return InfoMetricFamily(
            "fastapi_observe_slo_config",
            "Hash of the objectives, as in the generated rules.",
            value={"hash": self._hash},
        )


def _burn_rate(now: tuple[float, float], before: tuple[float, float], allowed: float) -> float:
    """Return the ratio of the fraction of bad events to the allowed fraction; 0 without events."""
    events, bad = now[0] - before[0], now[1] - before[1]
    return bad / events / allowed if events else 0.0


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "slo_error_budget_remaining_ratio",
            "Fraction of the error budget that remains, over the last period or since the start.",
            labels=["slo"],
        ),
        GaugeMetricFamily(
            "slo_burn_rate", "Burn rate of the error budget; 1 spends it in one period.", labels=["slo", "window"]
        ),
    )
