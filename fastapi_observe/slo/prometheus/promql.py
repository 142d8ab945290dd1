"""PromQL that selects what an objective counts, with every name of a route written safely."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi_observe.records.endpoint import UNMATCHED
from fastapi_observe.settings.objectives import Availability, Latency
from fastapi_observe.slo.burn_rates import duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

REQUESTS: Final = "http_requests_total"
DURATIONS: Final = "http_request_duration_seconds_bucket"
EVERYTHING: Final = 'le="+Inf"'
SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")

__all__ = [
    "bad",
    "bucket_label",
    "duration",
    "events",
    "exactly",
    "go_string",
    "good",
    "groups",
    "match_any",
    "match_none",
    "quoted",
    "recorded",
    "selector",
    "service_selector",
    "worst",
]

Matchers = tuple[str, ...]


def quoted(text: str) -> str:
    """Write a string literal of PromQL: raw where that spares backslashes and the text allows it."""
    if ("\\" in text or '"' in text) and "`" not in text and text.isprintable():
        return f"`{text}`"
    return go_string(text)


def go_string(text: str) -> str:
    """Write a string literal between double quotes, as Go, PromQL and templates of annotations read it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else _escaped(each) for each in escaped) + '"'


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004 - the forms that Go has


def exactly(text: str) -> str:
    """Write a text as a regular expression of RE2 that matches it alone."""
    return SPECIAL.sub(r"\\\g<0>", text)


def match_any(label: str, values: Iterable[str]) -> str:
    """Write a matcher that lets the values pass and nothing else."""
    found = sorted(values)
    if len(found) == 1:
        return f"{label}={quoted(found[0])}"
    return f"{label}=~{quoted('|'.join(map(exactly, found)))}"


def match_none(label: str, values: Iterable[str]) -> str:
    """Write a matcher that lets everything but the values pass."""
    return f"{label}!~{quoted('|'.join(map(exactly, sorted(values))))}"


def selector(labels: Iterable[tuple[str, str]]) -> str:
    """Write matchers of exact values, without the braces: `job="shop",slo="checkout"`."""
    return ",".join(f"{label}={quoted(value)}" for label, value in labels)


def service_selector(plan: SLOPlan) -> str:
    """Select what Prometheus scrapes of this service, without the braces."""
    return selector(sorted(plan.selector.items()))


def recorded(plan: SLOPlan, slo: ResolvedObjective) -> str:
    """Select the recorded series of an objective, with the braces."""
    return "{" + selector((("service", plan.service), ("slo", slo.name))) + "}"


def bucket_label(objective: Latency) -> str:
    """Write the threshold of an objective as the label `le` has it."""
    from prometheus_client.utils import floatToGoString  # noqa: PLC0415 - for people, not at import

    return str(floatToGoString(objective.threshold))  # type: ignore[no-untyped-call]


def events(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the vector whose sum is the rate of all events of an objective."""
    if isinstance(slo.objective, Latency):
        return " or ".join(
            f"({_rate(DURATIONS, (*group, EVERYTHING), window)} and ignoring(le) "
            f"{_rate(DURATIONS, (*group, _le(slo.objective)), window)})"
            for group in groups(plan, slo)
        )
    return " or ".join(_rate(REQUESTS, group, window) for group in groups(plan, slo))


def good(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the vector whose sum is the rate of the fast enough requests of a latency objective."""
    assert isinstance(slo.objective, Latency)  # noqa: S101 - for the type checker; availability counts the bad ones
    return " or ".join(_rate(DURATIONS, (*group, _le(slo.objective)), window) for group in groups(plan, slo))


def bad(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the vector whose sum is the rate of the failed requests of an availability objective."""
    assert isinstance(slo.objective, Availability)  # noqa: S101 - as above
    status = _status(slo.objective)
    chosen = [group if status in group else (*group, status) for group in groups(plan, slo)]
    return " or ".join(_rate(REQUESTS, group, window) for group in chosen)


def worst(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the query for the route with the most bad events: one series with `method` and `endpoint`."""
    by = "sum by (method, endpoint)"
    if isinstance(slo.objective, Availability):
        return f"topk(1, {by} ({bad(plan, slo, window)}) > 0)"
    return f"topk(1, {by} ({events(plan, slo, window)}) - {by} ({good(plan, slo, window)}) > 0)"


def groups(plan: SLOPlan, slo: ResolvedObjective) -> tuple[Matchers, ...]:
    """Return the matchers of each group of routes that an objective counts; no series fits two groups.

    Where all routes count, what no route answered counts if it failed only: scanners must not thin out the errors, but
    a middleware that fails before the router must be seen.
    """
    base = (service_selector(plan),)
    if slo.groups:
        return tuple(
            (*base, match_any("method", methods), match_any("endpoint", names)) for methods, names in slo.groups
        )
    served = (*base, match_none("endpoint", (*plan.excluded_templates, UNMATCHED)))
    if isinstance(slo.objective, Latency):
        return (served,)
    return served, (*base, match_any("endpoint", (UNMATCHED,)), _status(slo.objective))


def _rate(metric: str, matchers: Matchers, window: str) -> str:
    return f"rate({metric}{{{','.join(matchers)}}}[{window}])"


def _le(objective: Latency) -> str:
    return f"le={quoted(bucket_label(objective))}"


def _status(objective: Availability) -> str:
    if len(objective.bad_statuses) == 1 and objective.bad_statuses[0].isdecimal():
        return f"status_code={quoted(objective.bad_statuses[0])}"
    return (
        f"status_code=~{quoted('|'.join(sorted({each.lower().replace('x', '.') for each in objective.bad_statuses})))}"
    )
