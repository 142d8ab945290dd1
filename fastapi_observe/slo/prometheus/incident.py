"""Incidents as input series for promtool, and the times at which alerts must fire and clear during one."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.endpoint import UNMATCHED
from fastapi_observe.settings.objectives import Latency, parse_duration
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, BurnWindow, budget, format_number, min_events
from fastapi_observe.slo.prometheus import promql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

    Flow = Callable[["IncidentPhase"], Decimal]
    """Events per second during a phase."""

SAMPLE_INTERVAL: Final = 15
"""Seconds between two samples of the input series."""

STEP_FRACTION: Final = 256
"""Events per sample are multiples of 1/256, which binary floating point represents exactly."""

HALF: Final = Decimal("0.5")
"""Tolerance for single events, which a rate counts as a little more or less than one."""

MAX_UNRELATED_SERIES: Final = 6
"""Series in each incident that the objective must not count."""


class IncidentPhase(NamedTuple):
    """A part of an incident: seconds, requests per second, the share of them that fail, whether the service is up."""

    seconds: int
    rate: Decimal
    failing: Decimal = Decimal(0)
    up: bool = True


Phases = tuple[IncidentPhase, ...]


def expected_alerts(
    plan: SLOPlan, slo: ResolvedObjective, phases: Phases, window: BurnWindow, limit: Decimal
) -> list[list[int]]:
    """Return the times in seconds at which an alert starts to fire and clears; one that does not clear has one time.

    This computes from the incident itself what the rules compute from its series, so that the two can be compared.
    """
    bad = _prefix_sums(phases, plan, lambda phase: phase.rate * phase.failing)
    events = _prefix_sums(phases, plan, lambda phase: phase.rate)
    keep_firing = int(parse_duration(window.keep_firing)) if plan.options.keep_firing else 0
    firings: list[list[int]] = []
    condition_ended = None
    for at in range(1, len(bad)):
        long_bad, long_events = (_window_sum(sums, at, window.long) for sums in (bad, events))
        short_bad, short_events = (_window_sum(sums, at, window.short) for sums in (bad, events))
        burns = long_bad > limit * long_events and short_bad > limit * short_events
        burns = burns and not _is_cleared(slo, window, limit, bad, events, at)
        firing = bool(firings) and len(firings[-1]) == 1
        if burns and long_bad * EVALUATION_INTERVAL + HALF >= slo.objective.min_bad_events:
            condition_ended = None
            if not firing:
                firings.append([at * EVALUATION_INTERVAL])
        elif firing:
            condition_ended = at if condition_ended is None else condition_ended
            if (at - condition_ended) * EVALUATION_INTERVAL >= keep_firing:
                firings[-1].append(at * EVALUATION_INTERVAL)
                condition_ended = None
    return firings


def _is_cleared(  # noqa: PLR0913, PLR0917 - an alert, both sums and a time
    slo: ResolvedObjective, window: BurnWindow, limit: Decimal, bad: list[Decimal], events: list[Decimal], at: int
) -> bool:
    """Return whether enough recent events have no more failures than the budget allows."""
    if not window.early_clear:
        return False
    recent = _window_sum(events, at, window.early_clear)
    allowed = budget(slo.percent) * recent
    return recent * EVALUATION_INTERVAL >= min_events(limit) and _window_sum(bad, at, window.early_clear) <= allowed


def _prefix_sums(phases: Phases, plan: SLOPlan, flow: Flow) -> list[Decimal]:
    """Return the prefix sums of a recorded rate, one for each evaluation."""
    base = int(parse_duration(plan.base))
    total = Decimal(0)
    sums = []
    for at in range(0, sum(phase.seconds for phase in phases) + 1, EVALUATION_INTERVAL):
        total += (_events_until(phases, at, flow) - _events_until(phases, max(0, at - base), flow)) / base
        sums.append(total)
    return sums


def _events_until(phases: Phases, at: int, flow: Flow) -> Decimal:
    total, begin = Decimal(0), 0
    for phase in phases:
        total += flow(phase) * max(0, min(at - begin, phase.seconds))
        begin += phase.seconds
    return total


def _window_sum(sums: list[Decimal], at: int, window: str) -> Decimal:
    """Return the sum of the evaluations within a window, both ends included."""
    before = at - int(parse_duration(window)) // EVALUATION_INTERVAL - 1
    return sums[at] - (sums[before] if before >= 0 else Decimal(0))


def incident_series(
    plan: SLOPlan, slo: ResolvedObjective, phases: Phases, *, with_unrelated: bool = True
) -> list[dict[str, Any]]:
    """Return the input series of an incident: `up`, what the objective counts, and unrelated series that all fail."""
    pairs = sample_pairs(slo)
    share = Decimal(1) / len(pairs)
    series = [{"series": _series_name("up", plan, {}), "values": _values(phases, None)}]
    for method, endpoint in pairs:
        series += _request_series(plan, slo, {"method": method, "endpoint": endpoint}, phases, share)
    always_failing = (IncidentPhase(sum(phase.seconds for phase in phases), Decimal(100), Decimal(1)),)
    for labels in unrelated_series(plan, slo) if with_unrelated else ():
        series += _request_series(plan, slo, labels, always_failing, Decimal(1), counted=False)
    return series


def sample_pairs(slo: ResolvedObjective) -> list[tuple[str, str]]:
    """Return some (method, template) pairs that an objective counts: the first and the last of each group."""
    if not slo.groups:
        return [*dict.fromkeys((slo.endpoints[0], slo.endpoints[-1]))] if slo.endpoints else [("GET", "/")]
    pairs = [pair for methods, names in slo.groups for pair in ((methods[0], names[0]), (methods[-1], names[-1]))]
    return [*dict.fromkeys(pairs)]


def unrelated_series(plan: SLOPlan, slo: ResolvedObjective) -> list[dict[str, str]]:
    """Return labels of series that resemble those of the objective, but that it does not count."""
    method, endpoint = sample_pairs(slo)[0]
    label, value = min(plan.selector.items())
    other_service = {"method": method, "endpoint": endpoint, label: f"{value}-other"}
    if not slo.groups:
        return [
            other_service,
            {"method": "GET", "endpoint": plan.excluded_templates[0]},
            {"method": "GET", "endpoint": UNMATCHED},
        ]
    known = set(slo.endpoints)
    methods = sorted({each for used, _ in slo.groups for each in used})
    templates = [name for _, names in slo.groups for name in (names[0], names[-1])]
    crossed = [(used, name) for name in dict.fromkeys(templates) for used in (*methods, "_OTHER")]
    same_template = [{"method": used, "endpoint": name} for used, name in crossed if (used, name) not in known]
    # One more character, and another character where an unescaped regular expression would match any.
    names = {endpoint + "x", endpoint.replace(".", "-")} - {name for _, name in known}
    same_method = [{"method": method, "endpoint": name} for name in sorted(names)]
    same_template.sort(key=lambda labels: labels["method"] == "_OTHER")
    return [other_service, *same_method, *same_template][:MAX_UNRELATED_SERIES]


def _request_series(  # noqa: PLR0913 - an objective and the parts of its series
    plan: SLOPlan,
    slo: ResolvedObjective,
    labels: dict[str, str],
    phases: Phases,
    share: Decimal,
    *,
    counted: bool = True,
) -> list[dict[str, Any]]:
    names = plan.names

    def series(name: str, extra: dict[str, str], flow: Flow) -> dict[str, Any]:
        return {
            "series": _series_name(name, plan, names.rename_labels({**labels, **extra})),
            "values": _values(phases, flow),
        }

    if isinstance(slo.objective, Latency):
        limit = promql.bucket_label(slo.objective)
        return [
            series(f"{names.duration}_bucket", {"le": limit}, lambda phase: phase.rate * (1 - phase.failing) * share),
            series(f"{names.duration}_bucket", {"le": "+Inf"}, lambda phase: phase.rate * share),
        ]
    bad, good = sample_statuses(tuple(slo.objective.bad_statuses))
    if not counted and labels["endpoint"] == UNMATCHED:  # only successes: failures of unmatched requests count
        return [series(names.requests, {"status_code": good[-1]}, lambda phase: phase.rate)]
    failed = [series(names.requests, {"status_code": each}, _part(share, bad, failing=True)) for each in bad]
    if not counted:
        return failed
    return [
        *failed,
        *(series(names.requests, {"status_code": each}, _part(share, good, failing=False)) for each in good),
    ]


def _part(share: Decimal, among: list[str], *, failing: bool) -> Flow:
    def flow(phase: IncidentPhase) -> Decimal:
        return phase.rate * (phase.failing if failing else 1 - phase.failing) * share / len(among)

    return flow


def sample_statuses(bad: tuple[str, ...] | list[str]) -> tuple[list[str], list[str]]:
    """Return status codes that fail, one for each of `bad`, and some that do not."""
    failing = [f"{each[0]}03" if each.lower().endswith("xx") else each for each in bad]
    others = [each for each in ("200", "404") if not _is_bad(each, bad)]
    return [*dict.fromkeys(failing)], others or ["101"]


def _is_bad(status: str, bad: tuple[str, ...] | list[str]) -> bool:
    return any(each == status or each.lower() == f"{status[0]}xx" for each in bad)


def _series_name(metric: str, plan: SLOPlan, labels: dict[str, str]) -> str:
    every = {**plan.selector, "instance": "a", **labels}
    return f"{metric}{{{','.join(f'{name}={promql.go_string(value)}' for name, value in sorted(every.items()))}}}"


def _values(phases: Phases, flow: Flow | None) -> str:
    """Write the samples of a counter in promtool's notation, or without a flow those of `up`."""
    if flow is None:
        parts = [str(int(phases[0].up)), *(f"{int(phase.up)}+0x{_samples(phase) - 1}" for phase in phases)]
        return " ".join(parts)
    parts = ["0" if phases[0].up else "_"]
    count = Decimal(0)
    for phase in phases:
        number = _samples(phase)
        if not phase.up:  # no samples, and the counter restarts at 0
            parts.append(f"_x{number}")
            count = Decimal(0)
            continue
        step = _round_exactly(flow(phase) * SAMPLE_INTERVAL)
        if 0 < step < 1:
            parts += _whole_events(count, step, number)
            count = Decimal(int(count + step * number))
        else:
            parts.append(f"{format_number(count + step)}+{format_number(step)}x{number - 1}")
            count += step * number
    return " ".join(parts)


def _samples(phase: IncidentPhase) -> int:
    return phase.seconds // SAMPLE_INTERVAL


def _round_exactly(step: Decimal) -> Decimal:
    """Round to a number that floating point holds exactly: promtool would read a sum that is too low as a reset."""
    fraction = STEP_FRACTION if step < STEP_FRACTION else 1
    return (step * fraction).to_integral_value() / fraction


def _whole_events(count: Decimal, step: Decimal, number: int) -> Iterator[str]:
    """Write samples of whole events where there is less than one per sample."""
    length, last = 0, -1
    for at in range(1, number + 1):
        value = int(count + step * at)
        if value != last and length:
            yield f"{last}+0x{length - 1}"
            length = 0
        last = value
        length += 1
    yield f"{last}+0x{length - 1}"
