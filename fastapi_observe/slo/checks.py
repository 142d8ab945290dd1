"""What can be wrong with objectives: each finding has a code, its cause and the next step."""

from __future__ import annotations

import re
from decimal import Decimal
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.settings.objectives import (
    NAME_PATTERN,
    Availability,
    Latency,
    Objective,
    SLOOptions,
    parse_duration,
    parse_percent,
)
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, WINDOWS, BurnWindow, burn_rate, format_number, threshold

if TYPE_CHECKING:
    from fastapi_observe.settings.model import ObserveSettings

MAX_OBJECTIVE: Final = Decimal("99.999")
FASTEST: Final = Decimal(15)
"""Seconds of a scrape interval up to which the base window is a minute."""

MIN_PERIOD: Final = "7d"
"""The shortest period: the longest window of an alert has to be a small part of it."""

LABEL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CLASSES: Final = frozenset({"1xx", "2xx", "3xx", "4xx", "5xx"})
STATUS: Final = re.compile(r"[1-5](?:xx|\d\d)", re.IGNORECASE)


class Problem(NamedTuple):
    """What is wrong with an objective: `level` is `error`, `warning` or `info`; `code` is SLO01 to SLO11."""

    code: str
    level: str
    slo: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.slo}: {self.text}"


class ProblemCollector:
    """Gathers what is wrong with one objective."""

    def __init__(self, problems: list[Problem], name: str) -> None:
        self._problems = problems
        self._name = name

    def __call__(self, code: str, message: str, level: str = "error") -> None:
        """Note a finding."""
        self._problems.append(Problem(code, level, self._name, message))


def check_name(objective: Objective, names: set[str], tell: ProblemCollector) -> None:
    """Tell SLO09: a name that is taken or no name."""
    name = objective.name
    if name in names or not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        why = "is used twice" if name in names else "cannot be a label value, a file name and an anchor"
        tell("SLO09", f"the name {name!r} {why}: use another, of a-z, 0-9 and single hyphens")


def check_percent(objective: Objective, tell: ProblemCollector) -> Decimal | None:
    """Tell SLO05 and SLO07; return the percentage if there is one."""
    share = _number(objective.objective, tell)
    if share is None:
        return None
    if 0 < share <= 1:
        tell(
            "SLO05",
            f"{format_number(share)} is a ratio, an objective is in percent: did you mean {format_number(share * 100)}?",  # noqa: E501
        )
        return None
    if share <= 0 or share > MAX_OBJECTIVE:
        tell(
            "SLO05",
            f"{format_number(share)} leaves no budget; use {format_number(MAX_OBJECTIVE)} or less, and more than 1",
        )
        return None
    sla = None if objective.sla is None else _number(objective.sla, tell)
    if sla is not None and not 0 < sla < share:
        tell(
            "SLO07",
            f"sla={objective.sla} is not below objective={objective.objective}: the contract breaks before anybody is "
            "told; promise customers less than you aim for",
        )
    return share


def _number(value: Any, tell: ProblemCollector) -> Decimal | None:
    try:
        return parse_percent(value)
    except ValueError as exc:
        tell("SLO05", f"{exc}; use a number such as 99.9")
        return None


def check_bad(objective: Objective, tell: ProblemCollector) -> None:
    """Tell SLO05: failures that cannot happen, so that nothing ever burns the budget."""
    if isinstance(objective, Availability):
        wrong = [each for each in objective.bad_statuses if not isinstance(each, str) or not STATUS.fullmatch(each)]
        if wrong or not objective.bad_statuses:
            shown = ", ".join(map(repr, wrong)) or "nothing"
            tell("SLO05", f"bad={shown} is no status: no request would ever fail; use codes such as 429 and 5xx")
        elif {each.lower() for each in objective.bad_statuses} >= CLASSES:
            tell("SLO05", "bad names every class: every request would fail; leave those out that are well")


def usable_windows(share: Decimal, period: Decimal, tell: ProblemCollector) -> tuple[tuple[BurnWindow, Decimal], ...]:
    """Return the windows whose alert can fire, with its threshold; tell SLO06 of the others."""
    found = [(window, threshold(window, share, period)) for window in WINDOWS]
    kept = tuple((window, limit) for window, limit in found if limit < 1)
    stays = ", ".join(f"the {window.long} {window.severity} ({_percent(limit)} %)" for window, limit in kept)
    highest = max(burn_rate(window, period) for window in WINDOWS)
    all_work = (100 - 100 / highest).quantize(Decimal("0.01"), "ROUND_CEILING")
    for window, limit in found:
        if limit >= 1:
            paged = any(other.severity == "page" for other, _ in kept)
            tell(
                "SLO06",
                f"{format_number(100 - share)} % of budget: the {window.long} {window.severity} would need {_percent(limit)} % "  # noqa: E501
                f"errors, which never happens; dropped, {stays or 'nothing'} stays. "
                f"Above {format_number(all_work)} % all alerts work",
                "warning" if paged else "error",
            )
    return kept


def _percent(limit: Decimal) -> str:
    return format_number((limit * 100).quantize(Decimal("0.1")))


def check_threshold(objective: Latency, settings: ObserveSettings, tell: ProblemCollector) -> None:
    """Tell SLO03 and SLO04: a threshold that is no bound of a bucket yet, or none at all."""
    try:
        limit = objective.threshold
    except ValueError as exc:
        tell("SLO04", f"within: {exc}")
        return
    bounds = settings.duration_buckets
    if limit > bounds[-1]:
        tell(
            "SLO04",
            f"within={objective.within} is above the highest bucket, {bounds[-1]:g}s: every request would count as "
            "fast. It is added; raise duration_buckets too, to see how slow the slow ones are",
            "warning",
        )
    elif limit not in bounds:
        near = [f"{bound:g}" for bound in sorted({*bounds, limit})]
        at = near.index(f"{limit:g}")
        shown = ", ".join(near[max(0, at - 1) : at + 2])
        tell("SLO03", f"{objective.within} is no bucket bound; added: ... {shown} ... (+1 series per route)", "info")


def check_traffic(objective: Objective, share: Decimal | None, tell: ProblemCollector) -> None:
    """Tell SLO11: so little traffic that single failures are all there is to see."""
    needed = objective.min_bad_events
    if not isinstance(needed, int) or isinstance(needed, bool) or needed < 1:
        tell("SLO11", f"min_bad_events={needed!r}: give a whole number of at least 1; 5 keeps single failures quiet")
        return
    if share is None or objective.expected_rpm is None:
        return
    if not isinstance(objective.expected_rpm, int | float | Decimal) or not 0 < objective.expected_rpm < inf:
        tell("SLO11", f"expected_rpm={objective.expected_rpm!r}: give requests a minute, above 0, or leave it out")
        return
    a_minute = Decimal(str(objective.expected_rpm))
    burn = 100 / (a_minute * 60 * (100 - share))
    fast = WINDOWS[0].budget_spent * 30 * 24
    if burn * needed > fast:
        minutes = (needed / a_minute).quantize(Decimal("0.1"))
        tell(
            "SLO11",
            f"at {format_number(a_minute)} requests a minute one failure in an hour burns {format_number(burn.quantize(Decimal('0.1')))} "  # noqa: E501
            f"times the budget; pages need min_bad_events={needed}, about {format_number(minutes)} minutes of a full outage. "  # noqa: E501
            "Better: a synthetic probe, more routes in one objective, or a lower objective",
            "warning",
        )


def check_options(options: SLOOptions, tell: ProblemCollector) -> tuple[Decimal, Decimal]:
    """Tell SLO10; return the period and the base window in seconds, the usual ones where an option is wrong."""
    for name in options.selector or ():
        if not LABEL.fullmatch(name):
            tell("SLO10", f"selector: {name!r} is no name of a label; use those by which Prometheus knows the service")
    period = _seconds(options, "period", tell)
    interval = _seconds(options, "scrape_interval", tell)
    if period < parse_duration(MIN_PERIOD):
        tell("SLO10", f"period={options.period} is too short for windows of up to 3d: use {MIN_PERIOD} or more")
        period = parse_duration(MIN_PERIOD)
    base = max(Decimal(60), (4 * interval).to_integral_value("ROUND_CEILING"))
    if base > 10 * EVALUATION_INTERVAL:
        tell("SLO10", f"scrape_interval={options.scrape_interval}: alerts would look at 5 minutes; scrape every 75s or "
             "more often")  # fmt: skip
        base = Decimal(10 * EVALUATION_INTERVAL)
    elif interval > FASTEST:
        tell("SLO10", f"scrape_interval={options.scrape_interval}: the base window becomes {format_number(base)}s, four "  # noqa: E501
             "scrapes; alerts come later than with 15s", "warning")  # fmt: skip
    return period, base


def _seconds(options: SLOOptions, name: str, tell: ProblemCollector) -> Decimal:
    try:
        return parse_duration(getattr(options, name))
    except ValueError as exc:
        tell("SLO10", f"{name}: {exc}")
        return parse_duration(getattr(SLOOptions(), name))


def check_all(
    objective: Objective, names: set[str], settings: ObserveSettings, period: Decimal, tell: ProblemCollector
) -> tuple[Decimal | None, tuple[tuple[BurnWindow, Decimal], ...]]:
    """Check everything about an objective but its routes; return its percentage and its alerts' windows."""
    check_name(objective, names, tell)
    share = check_percent(objective, tell)
    check_bad(objective, tell)
    windows = () if share is None else usable_windows(share, period, tell)
    if isinstance(objective, Latency):
        check_threshold(objective, settings, tell)
    check_traffic(objective, share, tell)
    return share, windows
