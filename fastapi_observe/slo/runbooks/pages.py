"""Runbooks: one page for each alert, with a section for each objective, its own numbers and ready queries."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from fastapi_observe.settings.objectives import Availability, parse_duration
from fastapi_observe.slo.burn_rates import budget, budget_spent, burn_rate, format_number
from fastapi_observe.slo.prometheus import promql
from fastapi_observe.slo.prometheus.rules import make_rules
from fastapi_observe.slo.runbooks.guides import GUIDES, RunbookGuide, RunbookStep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

GENERATED_COMMENT: Final = (
    "<!-- Made by fastapi-observe; only what stands between keep markers survives the next making. -->"
)
KEPT: Final = re.compile(r"<!-- keep ([a-z0-9 -]+?) -->\n(.*?)<!-- /keep -->\n", re.DOTALL)
OPENED: Final = re.compile(r"<!-- keep\b")
CLOSED: Final = re.compile(r"<!-- /keep -->")

NOTES: Final = "notes on "
"""What the marker of an objective begins with."""

RATIOS: Final = (Decimal(1), Decimal("0.1"), Decimal("0.01"))
"""Parts of failing requests for which it is said how soon an alert fires."""

BY_OBJECTIVE: Final = frozenset({"ErrorBudgetBurn", "ErrorBudgetLow", "SLODataMissing"})


class MarkerError(ValueError):
    """A page has a keep marker that does not open or close; what stands there would be lost."""


def make_runbooks(plan: SLOPlan) -> dict[str, str]:
    """Return the pages by name: one for each alert of the rules."""
    alerts: dict[str, None] = {
        rule["alert"]: None for group in make_rules(plan)["groups"] for rule in group["rules"] if "alert" in rule
    }
    return {f"{alert}.md": "\n".join(_page(plan, alert, GUIDES[alert])) for alert in alerts}


def keep_user_sections(made: str, existing: str) -> str:
    """Put what people wrote between keep markers into a new page; what has no place any more goes to its end.

    Raises MarkerError if the markers of the existing page do not pair.
    """
    written = {match[1]: match[2] for match in KEPT.finditer(existing)}
    count = len(KEPT.findall(existing))
    if len(OPENED.findall(existing)) != count or len(CLOSED.findall(existing)) != count:
        raise MarkerError("a keep marker is not closed, not named or doubled: <!-- keep name --> ... <!-- /keep -->")
    if len(written) != count:
        raise MarkerError("two keep markers have the same name: give each its own")

    def fill(match: re.Match[str]) -> str:
        return f"<!-- keep {match[1]} -->\n{written.pop(match[1], match[2])}<!-- /keep -->\n"

    page = KEPT.sub(fill, made)
    asked_for = {match[1]: match[2] for match in KEPT.finditer(page)}
    left = {name: body for name, body in written.items() if name not in asked_for and body != _unchanged(name)}
    if left:
        page += "\n## Kept from before\n"
        page += "".join(f"\n<!-- keep {name} -->\n{body}<!-- /keep -->\n" for name, body in left.items())
    return page


def _page(plan: SLOPlan, alert: str, guide: RunbookGuide) -> Iterator[str]:
    yield f"# {alert}"
    yield ""
    yield GENERATED_COMMENT
    yield ""
    yield guide.meaning
    yield ""
    yield f"**Impact.** {guide.impact}"
    yield ""
    if alert in BY_OBJECTIVE:
        for slo in plan.slos:
            yield from _objective(plan, alert, slo)
    yield "## First five minutes"
    yield ""
    if plan.options.dashboard_url:
        yield f"Open [the dashboard]({plan.options.dashboard_url.replace('{alert}', alert).replace('{slo}', '')})."
    else:
        yield f"Open the dashboard `{plan.service}: service` in Grafana; its graphs link to traces and log lines."
    yield ""
    for step in guide.steps:
        yield from _step(plan, step)
    yield "## What it may be"
    yield ""
    yield "| if | then |"
    yield "|---|---|"
    for seen, meant in guide.causes:
        yield f"| {seen} | {meant} |"
    yield ""
    yield "## What helps"
    yield ""
    for help_ in guide.mitigation:
        yield f"- {help_}"
    yield ""
    yield from _kept("what helps here", "how exactly that is done here: commands, links, whom to call.")
    yield "## False alarm?"
    yield ""
    yield guide.false_alarm
    yield ""
    yield "## Afterwards"
    yield ""
    yield "Note when it began, when somebody knew, when it was over; what users saw; what will be changed."
    yield ""
    yield from _kept("history", "what it was the last times.")


def _objective(plan: SLOPlan, alert: str, slo: ResolvedObjective) -> Iterator[str]:
    objective, whole = slo.objective, promql.duration(plan.period)
    promise = (
        f"{format_number(slo.percent)} % of requests succeed (bad: {', '.join(objective.bad_statuses)})"
        if isinstance(objective, Availability)
        else f"{format_number(slo.percent)} % of requests are answered within {objective.within}"
    )
    yield f"## {slo.name}"
    yield ""
    yield f"The promise: {promise} over {whole}" + (
        f"; {objective.sla} % are promised to customers." if objective.sla is not None else "."
    )
    yield f"It counts {_routes(slo)}."
    yield ""
    if alert == "ErrorBudgetBurn":
        yield from _numbers(plan, slo)
    yield from _step(plan, RunbookStep("Which route, and which status?" if isinstance(objective, Availability) else
                                "Which route is slow?", _worst(plan, slo)))  # fmt: skip
    if alert == "SLODataMissing":
        yield from _step(plan, RunbookStep("What is recorded?", f"slo:events:rate1m{promql.recorded(plan, slo)}"))
    else:
        yield from _step(plan, RunbookStep("How much of the budget is left?",
                                    f"slo:error_budget_remaining:ratio{promql.recorded(plan, slo)}"))  # fmt: skip
        left = f"{format_number(plan.period * budget(slo.percent))} * slo:error_budget_remaining:ratio"
        yield from _step(plan, RunbookStep("At the rate of the last hour, when is it gone? In seconds:",
                                    f"{left}{promql.recorded(plan, slo)} / (slo:error_ratio:rate1h"
                                    f"{promql.recorded(plan, slo)} > 0)"))  # fmt: skip
    yield from _kept(f"{NOTES}{slo.name}", _particular(slo.name))


def _numbers(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[str]:
    """Say what each pair of windows means for this objective."""
    needed = slo.objective.min_bad_events
    yield "| window | who is told | fires above | at 100 % bad | at 10 % | at 1 % | of the budget gone |"
    yield "|---|---|---|---|---|---|---|"
    for window, limit in slo.windows:
        soon = [_after(limit, parse_duration(window.long), ratio) for ratio in RATIOS]
        gone = format_number((budget_spent(window, plan.period) * 100).quantize(Decimal("0.1")))
        yield (
            f"| {window.long} and {window.short} | {window.severity} | {format_number(limit * 100)} % "
            f"({format_number(burn_rate(window, plan.period).quantize(Decimal('0.01')))} times as fast as allowed) "
            f"| {' | '.join(soon)} | {gone} % |"
        )
    yield ""
    minutes = (plan.period * budget(slo.percent) / 60).quantize(Decimal("0.1"))
    yield f"An alert needs at least {needed} bad {'request' if needed == 1 else 'requests'} in its long window."
    yield f"If everything fails, the whole budget is gone in {format_number(minutes)} minutes."
    yield "Times are those of a steady flow of requests; scrape and evaluation add about a minute."
    yield ""


def _after(limit: Decimal, long: Decimal, ratio: Decimal) -> str:
    """Say after how long so many failures make the long window reach its limit."""
    if ratio <= limit:
        return "never"
    late = limit * long / ratio
    if late < 90:  # noqa: PLR2004 - shorter is better told in seconds
        return f"{late.quantize(Decimal(1))} s"
    minutes = late / 60
    return f"{minutes.quantize(Decimal(1))} min" if minutes < 180 else f"{(minutes / 60).quantize(Decimal(1))} h"  # noqa: PLR2004


def _routes(slo: ResolvedObjective) -> str:
    if not slo.groups:
        return f"all measured routes, {len({template for _, template in slo.endpoints})} as of now"
    shown = [f"`{method} {template}`" for method, template in slo.endpoints]
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""  # noqa: PLR2004 - enough to know which
    return ", ".join(shown[:10]) + more


def _worst(plan: SLOPlan, slo: ResolvedObjective) -> str:
    if isinstance(slo.objective, Availability):
        return f"topk(5, sum by (method, endpoint, status_code) ({promql.bad(plan, slo, '5m')}))"
    by = "sum by (method, endpoint)"
    return f"topk(5, {by} ({promql.events(plan, slo, '5m')}) - {by} ({promql.good(plan, slo, '5m')}))"


def _step(plan: SLOPlan, step: RunbookStep) -> Iterator[str]:
    of = promql.service_selector(plan)
    failed = f'{of},outcome!="ok",outcome!="client_error"'
    query = step.query.replace("{of_not_ok}", f"{{{failed}}}").replace("{of}", f"{{{of}}}")
    yield from (step.question, "", "```promql", query, "```", "")


def _particular(objective: str) -> str:
    return f"what is particular about {objective}: owners, dependencies, known causes."


def _unchanged(marker: str) -> str:
    """Return what stands between markers that leave with their objective, as long as nobody has written there."""
    return f"TODO {_particular(marker.removeprefix(NOTES))}\n"


def _kept(name: str, todo: str) -> Iterator[str]:
    yield from (f"<!-- keep {name} -->", f"TODO {todo}", "<!-- /keep -->", "")
