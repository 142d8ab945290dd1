"""Objectives of a service: `Availability`, `Latency` and `SLOOptions`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping  # noqa: TC003 - a dataclass field
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

C = TypeVar("C")

NAME_PATTERN: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
"""Names of objectives. A name becomes a label value, a file name and an anchor."""

DURATION_PATTERN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d|w)")
UNIT_SECONDS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
    "w": Decimal(604800),
}


def parse_duration(text: str) -> Decimal:
    """Return the seconds of a duration such as `300ms`, `1.5s`, `30m`, `6h`, `30d` or `4w`. Raises `ValueError`."""
    match = DURATION_PATTERN.fullmatch(str(text).strip())
    if match is None or not Decimal(match[1]):
        raise ValueError(f"invalid duration {text!r}; use a number and a unit, such as 300ms, 1.5s, 30m, 6h or 30d")
    return Decimal(match[1]) * UNIT_SECONDS[match[2]]


def parse_percent(value: float | str | Decimal) -> Decimal:
    """Return a percentage exactly as it is written. Raises `ValueError` if it is not a finite number."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"invalid percentage {value!r}; use a number such as 99.9") from None
    if not number.is_finite():
        raise ValueError(f"invalid percentage {value!r}; use a number such as 99.9")
    return number


def _name_new_argument(old: str, new: str) -> Callable[[type[C]], type[C]]:
    """Return a class decorator: the former name of an argument raises a `TypeError` with its new name."""

    def decorate(cls: type[C]) -> type[C]:
        init = cls.__init__

        @functools.wraps(init)
        def check(self: C, *args: Any, **kwargs: Any) -> None:
            if old in kwargs:
                raise TypeError(f"{cls.__name__}({old}=...) was renamed to {cls.__name__}({new}=...)")
            init(self, *args, **kwargs)

        cls.__init__ = check  # type: ignore[method-assign,assignment]
        return cls

    return decorate


def _make_tuples(objective: object, *names: str) -> None:
    """Convert lists to tuples, so that an objective can be compared and hashed. A string becomes a tuple of one."""
    for name in names:
        value = getattr(objective, name)
        object.__setattr__(objective, name, (value,) if isinstance(value, str) else tuple(value))


@_name_new_argument("bad", "bad_statuses")
@dataclass(frozen=True, slots=True)
class Availability:
    """An objective for the percentage of requests that succeed.

    `routes` are exact templates (`/orders/{id}`), also with a method (`POST /orders`), globs (`/admin/*`) and tags
    (`tag:public`); the default is all measured routes. `bad_statuses` are status codes (`429`) and classes (`5xx`). An
    alert needs `min_bad_events` failures in its long window. `sla` is the percentage that customers were promised.
    `expected_rpm`, in requests per minute, lets `slo check` estimate how the alerts behave.
    """

    name: str
    objective: float
    routes: str | tuple[str, ...] | list[str] = ()
    bad_statuses: str | tuple[str, ...] | list[str] = ("5xx",)
    min_bad_events: int = 5
    sla: float | None = None
    expected_rpm: float | None = None
    kind = "availability"

    def __post_init__(self) -> None:
        _make_tuples(self, "routes", "bad_statuses")


@dataclass(frozen=True, slots=True)
class Latency:
    """An objective for the percentage of requests that end within a time, such as `within="300ms"`.

    The other arguments are those of `Availability`.
    """

    name: str
    objective: float
    within: str
    routes: str | tuple[str, ...] | list[str] = ()
    min_bad_events: int = 5
    sla: float | None = None
    expected_rpm: float | None = None
    kind = "latency"

    def __post_init__(self) -> None:
        _make_tuples(self, "routes")

    @property
    def threshold(self) -> float:
        """The time in seconds, a bucket bound of `http_request_duration_seconds`."""
        return float(parse_duration(self.within))


Objective = Availability | Latency


def find_thresholds(objectives: Iterable[Objective]) -> list[float]:
    """Return the valid thresholds of the latency objectives. `slo check` imports apps that have invalid ones too."""
    thresholds = []
    for objective in objectives:
        if isinstance(objective, Latency):
            with suppress(ValueError, TypeError):
                thresholds.append(objective.threshold)
    return thresholds


@dataclass(frozen=True, slots=True)
class SLOOptions:
    """Options of the rules, alerts and dashboards that are made from the objectives.

    `period` is that of the error budgets, `scrape_interval` that of the Prometheus that scrapes the service. `selector`
    are the labels of the service's series (default: `job` is the service name). `runbook_url` and `dashboard_url` are
    the links of alerts; `{alert}` and `{slo}` in them are replaced. `team` is a label of alerts. `keep_firing` uses
    `keep_firing_for` (Prometheus 2.42 and later).
    """

    period: str = "30d"
    scrape_interval: str = "15s"
    selector: Mapping[str, str] | None = None
    runbook_url: str = "runbooks/{alert}.md#{slo}"
    dashboard_url: str | None = None
    team: str | None = None
    keep_firing: bool = True
