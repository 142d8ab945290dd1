"""PromQL that selects what an objective counts, with route templates and names quoted safely."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi_observe.settings.objectives import Availability, Latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

ALL_DURATIONS: Final = 'le="+Inf"'
RE2_SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")
PLACEHOLDER: Final = re.compile(r"<([a-z][a-z0-9_]*)>")

Matchers = tuple[str, ...]


def fill_in(template: str, values: Mapping[str, str]) -> str:
    """Replace each `<name>` of a template by its value; braces keep their meaning in PromQL. Raises `KeyError`."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


def quoted(text: str) -> str:
    """Write a PromQL string literal: a raw one where that avoids escapes and the text allows it."""
    if ("\\" in text or '"' in text) and "`" not in text and text.isprintable():
        return f"`{text}`"
    return go_string(text)


def go_string(text: str) -> str:
    """Write a string literal in double quotes, as Go, PromQL and the templates of annotations read it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else _escape(each) for each in escaped) + '"'


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004 - the two forms of Go


def escape_re2(text: str) -> str:
    """Write a regular expression of RE2 that matches a text exactly."""
    return RE2_SPECIAL.sub(r"\\\g<0>", text)


def match_any(label: str, values: Iterable[str]) -> str:
    """Write a matcher for any of the values."""
    found = sorted(values)
    if len(found) == 1:
        return f"{label}={quoted(found[0])}"
    return f"{label}=~{quoted('|'.join(map(escape_re2, found)))}"


def match_none(label: str, values: Iterable[str]) -> str:
    """Write a matcher for everything except the values."""
    return f"{label}!~{quoted('|'.join(map(escape_re2, sorted(values))))}"


def selector(labels: Iterable[tuple[str, str]]) -> str:
    """Write matchers of exact values, without braces: `job="shop",slo="checkout"`."""
    return ",".join(f"{label}={quoted(value)}" for label, value in labels)


def service_selector(plan: SLOPlan) -> str:
    """Write the matchers of all series that Prometheus scrapes from this service, without braces."""
    return selector(sorted(plan.selector.items()))


def recorded(plan: SLOPlan, slo: ResolvedObjective) -> str:
    """Write the matchers of the recorded series of an objective, with braces."""
    return "{" + selector((("service", plan.service), ("slo", slo.name))) + "}"


def bucket_label(objective: Latency) -> str:
    """Return the threshold of an objective as the label `le` has it."""
    from prometheus_client.utils import floatToGoString  # noqa: PLC0415 - for commands, not for servers

    return str(floatToGoString(objective.threshold))  # type: ignore[no-untyped-call]


def events(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the vector whose sum is the rate of all events of an objective."""
    names, durations = plan.names, f"{plan.names.duration}_bucket"
    if isinstance(slo.objective, Latency):
        # During a deploy that adds the bucket, requests of older instances would all count as slow without `and`.
        return " or ".join(
            f"({_rate(durations, (*group, ALL_DURATIONS), window)} and ignoring(le) "
            f"{_rate(durations, (*group, _le(slo.objective)), window)})"
            for group in groups(plan, slo)
        )
    return " or ".join(_rate(names.requests, group, window) for group in groups(plan, slo))


def good(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the vector whose sum is the rate of the requests within the threshold of a latency objective."""
    assert isinstance(slo.objective, Latency)  # noqa: S101 - for mypy; availability counts bad events
    durations = f"{plan.names.duration}_bucket"
    return " or ".join(_rate(durations, (*group, _le(slo.objective)), window) for group in groups(plan, slo))


def bad(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the vector whose sum is the rate of the failed requests of an availability objective."""
    assert isinstance(slo.objective, Availability)  # noqa: S101 - for mypy; latency counts good events
    status = _status(plan, slo.objective)
    with_status = [group if status in group else (*group, status) for group in groups(plan, slo)]
    return " or ".join(_rate(plan.names.requests, group, window) for group in with_status)


def bad_by(plan: SLOPlan, slo: ResolvedObjective, window: str, *, with_status: bool = False) -> str:
    """Write the rate of the bad events of an objective, summed by method and endpoint, or by these and the status."""
    names = plan.names
    labels = ", ".join((names.method, names.endpoint, *((names.status_code,) if with_status else ())))
    if isinstance(slo.objective, Availability):
        return f"sum by ({labels}) ({bad(plan, slo, window)})"
    return f"sum by ({labels}) ({events(plan, slo, window)}) - sum by ({labels}) ({good(plan, slo, window)})"


def worst(plan: SLOPlan, slo: ResolvedObjective, window: str) -> str:
    """Write the query for the route with the most bad events: one series with its method and endpoint."""
    return f"topk(1, {bad_by(plan, slo, window)} > 0)"


def groups(plan: SLOPlan, slo: ResolvedObjective) -> tuple[Matchers, ...]:
    """Return the matchers of each group of routes that an objective counts; no series matches two groups.

    An objective of all routes counts unmatched requests only if they failed: scanners must not dilute the error ratio,
    but a middleware that fails before the router must count.
    """
    base, names = (service_selector(plan),), plan.names
    if slo.groups:
        return tuple(
            (*base, match_any(names.method, methods), match_any(names.endpoint, templates))
            for methods, templates in slo.groups
        )
    served = (*base, match_none(names.endpoint, (*plan.excluded_templates, names.unmatched)))
    if isinstance(slo.objective, Latency):
        return (served,)
    return served, (*base, match_any(names.endpoint, (names.unmatched,)), _status(plan, slo.objective))


def _rate(metric: str, matchers: Matchers, window: str) -> str:
    return f"rate({metric}{{{','.join(matchers)}}}[{window}])"


def _le(objective: Latency) -> str:
    return f"le={quoted(bucket_label(objective))}"


def _status(plan: SLOPlan, objective: Availability) -> str:
    label = plan.names.status_code
    statuses = objective.bad_statuses
    if len(statuses) == 1 and statuses[0].isdecimal():
        return f"{label}={quoted(statuses[0])}"
    return f"{label}=~{quoted('|'.join(sorted({status.lower().replace('x', '.') for status in statuses})))}"
