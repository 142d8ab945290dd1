"""What is left of each error budget and how fast it burns, from what this server has counted itself."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors

    Counts = Sequence[tuple[float, float]]

WINDOWS: Final = (("5m", 300.0), ("1h", 3600.0))
"""Name and seconds of what a burn rate is told for: the windows of the fastest alert."""

SNAPSHOT_INTERVAL: Final = 15.0
"""Seconds between two snapshots."""

RECENT_SNAPSHOTS: Final = int(WINDOWS[-1][1] / SNAPSHOT_INTERVAL) + 2
"""Snapshots that reach back to the beginning of the longest window."""

PERIOD_SNAPSHOTS: Final = 100
"""Parts of the period of which a snapshot is kept each: the period is right to one percent."""


class ObjectiveTarget(NamedTuple):
    """An objective: `allowed` is the part of its events that may be bad."""

    name: str
    allowed: float


class ErrorBudget(NamedTuple):
    """The error budget of one objective now.

    `events` and `bad` are those of the last `period` at most; `remaining` is 1 for an untouched budget, 0 for a spent
    one, negative beyond; `burn` says for each window how many times faster than allowed it burns.
    """

    slo: str
    events: float
    bad: float
    remaining: float
    burn_rates: dict[str, float]


class Snapshots:
    """Counts of the past: each quarter of a minute for an hour, each hundredth of the period for the period."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._fine: deque[tuple[float, Counts]] = deque(maxlen=RECENT_SNAPSHOTS)
        self._coarse: deque[tuple[float, Counts]] = deque(maxlen=PERIOD_SNAPSHOTS + 2)

    def add(self, now: float, counts: Counts) -> None:
        """Keep the counts if it is time; counts that went back (the workers parted) begin everything anew."""
        if self._fine and any(new[0] < old[0] for new, old in zip(counts, self._fine[-1][1], strict=True)):
            self._fine.clear()
            self._coarse.clear()
        if not self._fine or now - self._fine[-1][0] >= SNAPSHOT_INTERVAL:
            self._fine.append((now, counts))
        if not self._coarse or now - self._coarse[-1][0] >= self._period / PERIOD_SNAPSHOTS:
            self._coarse.append((now, counts))

    def of_window(self, since: float) -> Counts:
        """Return the counts at the beginning of a window, or the first ones that were seen; `add` comes before."""
        return next((counts for at, counts in reversed(self._fine) if at <= since), self._fine[0][1])

    def of_period(self, since: float) -> Counts | None:
        """Return the counts at the beginning of the period; None if all that was counted is younger."""
        return next((counts for at, counts in reversed(self._coarse) if at <= since), None)


class ErrorBudgets:
    """The error budgets of one install, and a collector that shows them.

    `read` returns events and bad events of each promise so far, those of all workers where there are several. A thread
    reads them each `INTERVAL` between `start` and `stop`; requests pay nothing.
    """

    covers_all_workers = True

    def __init__(  # noqa: PLR0913, PLR0917 - what a budget is made of
        self,
        promises: Sequence[ObjectiveTarget],
        period: float,
        config_hash: str,
        read: Callable[[], Counts],
        faults: InternalErrors,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._promises = tuple(promises)
        self._period = period
        self._hash = config_hash
        self._read = read
        self._faults = faults
        self._clock = clock
        self._snapshots = Snapshots(period)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take snapshots from now on; again while they are taken changes nothing, in a forked child they are not."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sample()
        self._thread = threading.Thread(
            target=self._go_on, args=(self._ended,), name="fastapi-observe-budgets", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Take no more snapshots; what was taken is kept."""
        thread, self._thread = self._thread, None
        self._ended.set()
        if thread is not None:
            thread.join(1)

    def _go_on(self, ended: threading.Event) -> None:
        while not ended.wait(SNAPSHOT_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        try:
            self.now()
        except Exception as exc:  # noqa: BLE001 - files of other workers may be gone; the next one may succeed
            self._faults("objectives.sample", exc)

    def now(self) -> list[ErrorBudget]:
        """Return the state of each budget."""
        with self._lock:
            counts, now = self._read(), self._clock()
            self._snapshots.add(now, counts)
            since_start = [(0.0, 0.0)] * len(counts)
            before = self._snapshots.of_period(now - self._period) or since_start
            windows = {name: self._snapshots.of_window(now - seconds) for name, seconds in WINDOWS}
        found = []
        for at, promise in enumerate(self._promises):
            events, bad = (new - old for new, old in zip(counts[at], before[at], strict=True))
            burn = {name: _burn(counts[at], past[at], promise.allowed) for name, past in windows.items()}
            remaining = 1 - _burn(counts[at], before[at], promise.allowed)
            found.append(ErrorBudget(promise.name, events, bad, remaining, burn))
        return found

    def describe(self) -> list[Metric]:
        """Name what `collect` yields."""
        return [*_families(), self._config()]

    def collect(self) -> Iterator[Metric]:
        """Read everything; safe in any thread."""
        remaining, burn = _families()
        for budget in self.now():
            remaining.add_metric([budget.slo], budget.remaining)
            for window, rate in budget.burn_rates.items():
                burn.add_metric([budget.slo, window], rate)
        yield remaining
        yield burn
        yield self._config()

    def _config(self) -> Metric:
        return InfoMetricFamily(
            "fastapi_observe_slo_config", "The objectives, as rules are made from them.", value={"hash": self._hash}
        )


def _burn(now: tuple[float, float], before: tuple[float, float], allowed: float) -> float:
    """Return how many times more was bad than is allowed; nothing is where nothing happened."""
    events, bad = now[0] - before[0], now[1] - before[1]
    return bad / events / allowed if events else 0.0


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "slo_error_budget_remaining_ratio",
            "Part of the error budget that is left, since the start and over one period at most.",
            labels=["slo"],
        ),
        GaugeMetricFamily(
            "slo_burn_rate", "How many times faster than allowed the error budget burns.", labels=["slo", "window"]
        ),
    )
