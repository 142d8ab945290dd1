"""How an incident looks to Prometheus, and when the alerts of an objective have to fire and clear because of it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.endpoint import UNMATCHED
from fastapi_observe.settings.objectives import Latency, parse_duration
from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL, BurnWindow, budget, format_number, min_events
from fastapi_observe.slo.prometheus import promql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

SAMPLE_INTERVAL: Final = 15
"""Seconds between two samples of the series that are played."""

EXACT: Final = 256
"""Events in one sample are multiples of its inverse."""

MAX_RATE: Final = 1_000_000
"""Requests a second that can be played: sums of more would lose their last digits."""

HALF: Final = Decimal("0.5")
"""Events are counted in whole numbers: what a rate says of single ones is a little more or less."""

MAX_UNRELATED_SERIES: Final = 6
"""Series that the objective must not count, in each incident."""

PHASE: Final = re.compile(r"(?P<time>\S+)\s+(?:(?P<word>ok|silent|down)|(?P<share>\d+(?:\.\d+)?)\s*%)")


class IncidentPhase(NamedTuple):
    """A part of an incident: seconds, requests a second, the part of them that fail, whether the service runs."""

    seconds: int
    rate: Decimal
    failing: Decimal = Decimal(0)
    up: bool = True


def read_incident(described: str, rate: Decimal) -> tuple[IncidentPhase, ...]:
    """Read `1h ok, 20m 30%, 8h silent, 5m down`: how long, and which part of the requests fails.

    `rate`: requests a second while there are any. Raises `ValueError` that says what is accepted.
    """
    if not rate.is_finite() or not 0 < rate < MAX_RATE:
        raise ValueError(f"{rate} requests a second: give a number above 0 and below a million")
    phases = []
    for part in described.split(","):
        match = PHASE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is no phase; write a time and what happens, such as 1h ok, 20m 30%, "
                             "8h silent (no traffic) or 5m down, separated by commas")  # fmt: skip
        lasts = parse_duration(match["time"])
        share = Decimal(match["share"] or 0) / 100
        if lasts % SAMPLE_INTERVAL or share > 1:
            raise ValueError(
                f"{part.strip()!r}: a phase lasts a multiple of {SAMPLE_INTERVAL}s, with at most 100 % failing"
            )
        silent = match["word"] in {"silent", "down"}
        phases.append(IncidentPhase(int(lasts), Decimal(0) if silent else rate, share, up=match["word"] != "down"))
    return tuple(phases)


def expected_alerts(
    plan: SLOPlan, slo: ResolvedObjective, phases: tuple[IncidentPhase, ...], window: BurnWindow, limit: Decimal
) -> list[list[int]]:
    """Return the times at which an alert begins to fire and clears, in seconds: what the rules have to do.

    A second reckoning of what the rules say, from the incident itself. One that does not clear has its beginning only.
    """
    bad = _recorded(phases, plan, lambda phase: phase.rate * phase.failing)
    every = _recorded(phases, plan, lambda phase: phase.rate)
    keep = int(parse_duration(window.keep_firing)) if plan.options.keep_firing else 0
    found: list[list[int]] = []
    cleared = None
    for at in range(1, len(bad)):
        long_bad, long_all = (_sum(each, at, window.long) for each in (bad, every))
        short_bad, short_all = (_sum(each, at, window.short) for each in (bad, every))
        burns = long_bad > limit * long_all and short_bad > limit * short_all
        firing = bool(found) and len(found[-1]) == 1
        burns = burns and not _is_over(slo, window, limit, bad, every, at)
        if burns and long_bad * EVALUATION_INTERVAL + HALF >= slo.objective.min_bad_events:
            cleared = None
            if not firing:
                found.append([at * EVALUATION_INTERVAL])
        elif firing:
            cleared = at if cleared is None else cleared
            if (at - cleared) * EVALUATION_INTERVAL >= keep:
                found[-1].append(at * EVALUATION_INTERVAL)
                cleared = None
    return found


def _is_over(  # noqa: PLR0913, PLR0917 - both sums at a time
    slo: ResolvedObjective, window: BurnWindow, limit: Decimal, bad: list[Decimal], every: list[Decimal], at: int
) -> bool:
    """Say whether enough requests came lately without more failures than the budget allows."""
    if not window.early_clear:
        return False
    events = _sum(every, at, window.early_clear)
    allowed = budget(slo.percent) * events
    return events * EVALUATION_INTERVAL >= min_events(limit) and _sum(bad, at, window.early_clear) <= allowed


def _recorded(
    phases: tuple[IncidentPhase, ...], plan: SLOPlan, flow: Callable[[IncidentPhase], Decimal]
) -> list[Decimal]:
    """Return prefix sums of a recorded rate, one for each evaluation."""
    base = int(parse_duration(plan.base))
    total = Decimal(0)
    sums = []
    for at in range(0, sum(phase.seconds for phase in phases) + 1, EVALUATION_INTERVAL):
        total += (_until(phases, at, flow) - _until(phases, max(0, at - base), flow)) / base
        sums.append(total)
    return sums


def _until(phases: tuple[IncidentPhase, ...], at: int, flow: Callable[[IncidentPhase], Decimal]) -> Decimal:
    """Return how many events there were until a time."""
    total, begin = Decimal(0), 0
    for phase in phases:
        total += flow(phase) * max(0, min(at - begin, phase.seconds))
        begin += phase.seconds
    return total


def _sum(sums: list[Decimal], at: int, window: str) -> Decimal:
    """Add up the evaluations within a window, both ends included."""
    before = at - int(parse_duration(window)) // EVALUATION_INTERVAL - 1
    return sums[at] - (sums[before] if before >= 0 else Decimal(0))


def incident_series(
    plan: SLOPlan, slo: ResolvedObjective, phases: tuple[IncidentPhase, ...], *, strange: bool = True
) -> list[dict[str, Any]]:
    """Return the input series of an incident: `up`, what the objective counts, and strangers that all fail."""
    pairs = sample_pairs(slo)
    share = Decimal(1) / len(pairs)
    found = [{"series": _named("up", plan, {}), "values": _values(phases, None)}]
    for method, endpoint in pairs:
        found += _requests(plan, slo, {"method": method, "endpoint": endpoint}, phases, share)
    lasting = (IncidentPhase(sum(phase.seconds for phase in phases), Decimal(100), Decimal(1)),)
    for labels in unrelated_series(plan, slo) if strange else ():
        found += _requests(plan, slo, labels, lasting, Decimal(1), counted=False)
    return found


def sample_pairs(slo: ResolvedObjective) -> list[tuple[str, str]]:
    """Return a few of the (method, template) that an objective counts: the first and the last of each group."""
    if not slo.groups:
        return [*dict.fromkeys((slo.endpoints[0], slo.endpoints[-1]))] if slo.endpoints else [("GET", "/")]
    found = [pair for methods, names in slo.groups for pair in ((methods[0], names[0]), (methods[-1], names[-1]))]
    return [*dict.fromkeys(found)]


def unrelated_series(plan: SLOPlan, slo: ResolvedObjective) -> list[dict[str, str]]:
    """Return labels of series that look like those of the objective and are not."""
    method, endpoint = sample_pairs(slo)[0]
    label, value = min(plan.selector.items())
    other = {"method": method, "endpoint": endpoint, label: f"{value}-other"}
    if not slo.groups:
        return [
            other,
            {"method": "GET", "endpoint": plan.excluded_templates[0]},
            {"method": "GET", "endpoint": UNMATCHED},
        ]
    known = set(slo.endpoints)
    methods = sorted({each for used, _ in slo.groups for each in used})
    templates = [name for _, names in slo.groups for name in (names[0], names[-1])]
    crossed = [(used, name) for name in dict.fromkeys(templates) for used in (*methods, "_OTHER")]
    near = [{"method": used, "endpoint": name} for used, name in crossed if (used, name) not in known]
    # one character more, and another character where a regular expression would take any
    names = {endpoint + "x", endpoint.replace(".", "-")} - {name for _, name in known}
    far = [{"method": method, "endpoint": name} for name in sorted(names)]
    return [other, *far, *sorted(near, key=lambda each: each["method"] == "_OTHER")][:MAX_UNRELATED_SERIES]


def _requests(  # noqa: PLR0913 - what a series is made of
    plan: SLOPlan,
    slo: ResolvedObjective,
    labels: dict[str, str],
    phases: tuple[IncidentPhase, ...],
    share: Decimal,
    *,
    counted: bool = True,
) -> list[dict[str, Any]]:
    def series(name: str, extra: dict[str, str], flow: Callable[[IncidentPhase], Decimal]) -> dict[str, Any]:
        return {"series": _named(name, plan, {**labels, **extra}), "values": _values(phases, flow)}

    if isinstance(slo.objective, Latency):
        limit = promql.bucket_label(slo.objective)
        return [
            series(promql.DURATIONS, {"le": limit}, lambda phase: phase.rate * (1 - phase.failing) * share),
            series(promql.DURATIONS, {"le": "+Inf"}, lambda phase: phase.rate * share),
        ]
    bad, good = statuses(slo.objective.bad_statuses)
    if not counted and labels["endpoint"] == UNMATCHED:  # those that failed do count
        return [series(promql.REQUESTS, {"status_code": good[-1]}, lambda phase: phase.rate)]
    failed = [series(promql.REQUESTS, {"status_code": each}, _part(share, bad, failing=True)) for each in bad]
    if not counted:
        return failed
    return [
        *failed,
        *(series(promql.REQUESTS, {"status_code": each}, _part(share, good, failing=False)) for each in good),
    ]


def _part(share: Decimal, among: list[str], *, failing: bool) -> Callable[[IncidentPhase], Decimal]:
    def flow(phase: IncidentPhase) -> Decimal:
        return phase.rate * (phase.failing if failing else 1 - phase.failing) * share / len(among)

    return flow


def statuses(bad: tuple[str, ...] | list[str]) -> tuple[list[str], list[str]]:
    """Return status codes that fail, one for each of `bad`, and some that do not."""
    fail = [f"{each[0]}03" if each.lower().endswith("xx") else each for each in bad]
    others = [each for each in ("200", "404") if not _is_bad(each, bad)]
    return [*dict.fromkeys(fail)], others or ["101"]


def _is_bad(status: str, bad: tuple[str, ...] | list[str]) -> bool:
    return any(status in (each, "") or each.lower() == f"{status[0]}xx" for each in bad)


def _named(metric: str, plan: SLOPlan, labels: dict[str, str]) -> str:
    every = {**plan.selector, "instance": "a", **labels}
    return f"{metric}{{{','.join(f'{name}={promql.go_string(value)}' for name, value in sorted(every.items()))}}}"


def _values(phases: tuple[IncidentPhase, ...], flow: Callable[[IncidentPhase], Decimal] | None) -> str:
    """Write the samples in promtool's notation; without a flow those of `up`."""
    first = phases[0].up
    parts = [("0" if flow else "1") if first else ("_" if flow else "0")]
    count = Decimal(0)
    for phase in phases:
        number = phase.seconds // SAMPLE_INTERVAL
        if flow is None:
            parts.append(f"{int(phase.up)}+0x{number - 1}")
        elif not phase.up:
            parts.append(f"_x{number}")
            count = Decimal(0)
        else:
            step = _exact(flow(phase) * SAMPLE_INTERVAL)
            thin = 0 < step < 1
            parts += _thin(count, step, number) if thin else [_run(count + step, step, number)]
            count += step * number
            count = Decimal(int(count)) if thin else count
    return " ".join(parts)


def _exact(step: Decimal) -> Decimal:
    """Round to what binary numbers hold exactly: else a sum of samples comes out a little lower, which is a reset."""
    return (step * EXACT).to_integral_value() / EXACT if step < EXACT else step.to_integral_value()


def _thin(count: Decimal, step: Decimal, number: int) -> Iterator[str]:
    """Write whole events where there is less than one in a sample."""
    length, last = 0, -1
    for at in range(1, number + 1):
        value = int(count + step * at)
        if value != last and length:
            yield f"{last}+0x{length - 1}"
            length = 0
        last = value
        length += 1
    yield f"{last}+0x{length - 1}"


def _run(value: Decimal, step: Decimal, number: int) -> str:
    return f"{format_number(value)}+{format_number(step)}x{number - 1}"
