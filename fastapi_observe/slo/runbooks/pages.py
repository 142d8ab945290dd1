"""Runbooks: one page for each alert, from the Markdown templates in this directory.

To add a runbook, add `<name of the alert>.md`. In a template `<service>` becomes the PromQL matchers of this service,
`<dashboard>` a sentence that links to the dashboard, `<objectives>` a section for each objective. Text between
`<!-- keep name -->` and `<!-- /keep -->` belongs to the user and survives when the page is made again.
"""

from __future__ import annotations

import re
from decimal import Decimal
from importlib import resources
from typing import TYPE_CHECKING, Final

from fastapi_observe.settings.objectives import Availability, parse_duration
from fastapi_observe.slo.burn_rates import ERROR_RATIOS, budget, budget_spent, burn_rate, format_number, promql_duration
from fastapi_observe.slo.prometheus import promql
from fastapi_observe.slo.prometheus.rules import make_rules
from fastapi_observe.slo.route_selection import join_some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

GENERATED_COMMENT: Final = (
    "<!-- Made by fastapi-observe; only the text between keep markers survives when it is made again. -->"
)
KEPT: Final = re.compile(r"<!-- keep ([a-z0-9 -]+?) -->\n(.*?)<!-- /keep -->\n", re.DOTALL)
OPENING_MARKER: Final = re.compile(r"<!-- keep\b")
CLOSING_MARKER: Final = re.compile(r"<!-- /keep -->")

OBJECTIVE_NOTES: Final = "notes on "
"""Start of the marker name of an objective's notes; its name follows."""

MAX_RUNBOOK_ENDPOINTS: Final = 10
"""Endpoints of an objective that a page lists."""

MAX_SECONDS: Final = 90
MAX_MINUTES: Final = 180
"""Longest times shown in seconds and in minutes."""


class MarkerError(ValueError):
    """The keep markers of a page do not pair, so the user's text in it cannot be found."""


def make_runbooks(plan: SLOPlan) -> dict[str, str]:
    """Return the pages by file name, one for each alert of the rules."""
    rules = [rule for group in make_rules(plan)["groups"] for rule in group["rules"]]
    alerts = dict.fromkeys(rule["alert"] for rule in rules if "alert" in rule)
    return {f"{alert}.md": _page(plan, alert) for alert in alerts}


def keep_user_sections(made: str, existing: str) -> str:
    """Copy the user's text between keep markers into a new page; sections without a place go to its end.

    Raises `MarkerError` if the markers of the existing page do not pair.
    """
    written = {match[1]: match[2] for match in KEPT.finditer(existing)}
    count = len(KEPT.findall(existing))
    if len(OPENING_MARKER.findall(existing)) != count or len(CLOSING_MARKER.findall(existing)) != count:
        raise MarkerError(
            "a keep marker is not closed, has no name, or is nested; write <!-- keep name --> ... <!-- /keep -->"
        )
    if len(written) != count:
        raise MarkerError("two keep markers have the same name; rename one of them")

    def fill(match: re.Match[str]) -> str:
        return f"<!-- keep {match[1]} -->\n{written.pop(match[1], match[2])}<!-- /keep -->\n"

    page = KEPT.sub(fill, made)
    # `pop` leaves what the new page has no marker for: sections of objectives that no longer exist, and the user's own.
    left = {name: body for name, body in written.items() if body != f"{_todo(name)}\n"}
    if left:
        page += "\n## Kept from before\n"
        page += "".join(f"\n<!-- keep {name} -->\n{body}<!-- /keep -->\n" for name, body in left.items())
    return page


def _page(plan: SLOPlan, alert: str) -> str:
    template = resources.files(__package__).joinpath(f"{alert}.md").read_text("utf-8")
    values = {
        **plan.names.placeholders,
        "service": promql.service_selector(plan),
        "dashboard": _dashboard_sentence(plan, alert),
        "objectives": "\n".join(line for slo in plan.slos for line in _objective(plan, alert, slo)).rstrip("\n"),
    }
    title, _, body = promql.fill_in(template, values).partition("\n\n")
    return f"{title}\n\n{GENERATED_COMMENT}\n\n{body}"


def _dashboard_sentence(plan: SLOPlan, alert: str) -> str:
    url = plan.options.dashboard_url
    if url:
        return f"Open [the dashboard]({url.replace('{alert}', alert).replace('{slo}', '')})."
    return f"Open the dashboard `{plan.service}: service` in Grafana; its graphs link to traces and log lines."


def _objective(plan: SLOPlan, alert: str, slo: ResolvedObjective) -> Iterator[str]:
    """Yield the lines of the section of an objective."""
    objective, recorded = slo.objective, promql.recorded(plan, slo)
    target = (
        f"{format_number(slo.percent)} % of requests succeed (bad: {', '.join(objective.bad_statuses)})"
        if isinstance(objective, Availability)
        else f"{format_number(slo.percent)} % of requests complete within {objective.within}"
    )
    sla = f"; the SLA is {objective.sla} %." if objective.sla is not None else "."
    yield from (f"## {slo.name}", "", f"The objective: {target} over {promql_duration(plan.period)}{sla}")
    yield from (f"It counts {_routes(slo)}.", "")
    if alert == "ErrorBudgetBurn":
        yield from _burn_table(plan, slo)
    if isinstance(objective, Availability):
        failing = promql.bad_by(plan, slo, "5m", with_status=True)
        yield from _query("Which route, and which status?", f"topk(5, {failing})")
    else:
        yield from _query("Which route is slow?", f"topk(5, {promql.bad_by(plan, slo, '5m')})")
    if alert == "SLODataMissing":
        yield from _query("What is recorded?", f"slo:events:rate1m{recorded}")
    else:
        remaining = f"slo:error_budget_remaining:ratio{recorded}"
        yield from _query("How much of the budget is left?", remaining)
        budget_seconds = format_number(plan.period * budget(slo.percent))
        yield from _query(
            "When is it spent, at the rate of the last hour? In seconds:",
            f"{budget_seconds} * {remaining} / (slo:error_ratio:rate1h{recorded} > 0)",
        )
    name = f"{OBJECTIVE_NOTES}{slo.name}"
    yield from (f"<!-- keep {name} -->", _todo(name), "<!-- /keep -->", "")


def _burn_table(plan: SLOPlan, slo: ResolvedObjective) -> Iterator[str]:
    """Yield a table of the alerts of an objective: thresholds, times to detection, budget spent."""
    needed = slo.objective.min_bad_events
    yield "| window | severity | fires above | at 100 % bad | at 10 % | at 1 % | budget spent |"
    yield "|---|---|---|---|---|---|---|"
    for window, limit in slo.windows:
        times = " | ".join(_time_to_fire(limit, parse_duration(window.long), ratio) for ratio in ERROR_RATIOS)
        factor = format_number(burn_rate(window, plan.period).quantize(Decimal("0.01")))
        spent = format_number((budget_spent(window, plan.period) * 100).quantize(Decimal("0.1")))
        yield (
            f"| {window.long} and {window.short} | {window.severity} "
            f"| {format_number(limit * 100)} % ({factor} times as fast as allowed) | {times} | {spent} % |"
        )
    yield ""
    minutes = (plan.period * budget(slo.percent) / 60).quantize(Decimal("0.1"))
    yield f"An alert needs at least {needed} bad {'request' if needed == 1 else 'requests'} in its long window."
    yield f"If every request fails, the whole budget is spent in {format_number(minutes)} minutes."
    yield "Times are for steady traffic; scrape and evaluation add about a minute."
    yield ""


def _time_to_fire(limit: Decimal, long: Decimal, ratio: Decimal) -> str:
    """Return after how long an error ratio raises that of the long window, in seconds, to the limit."""
    if ratio <= limit:
        return "never"
    seconds = limit * long / ratio
    if seconds < MAX_SECONDS:
        return f"{seconds.quantize(Decimal(1))} s"
    minutes = seconds / 60
    if minutes < MAX_MINUTES:
        return f"{minutes.quantize(Decimal(1))} min"
    return f"{(minutes / 60).quantize(Decimal(1))} h"


def _routes(slo: ResolvedObjective) -> str:
    if not slo.groups:
        return f"all measured routes, currently {len({template for _, template in slo.endpoints})}"
    names = [f"`{method} {template}`" for method, template in slo.endpoints]
    return join_some(names, MAX_RUNBOOK_ENDPOINTS)


def _query(question: str, expression: str) -> Iterator[str]:
    yield from (question, "", "```promql", expression, "```", "")


def _todo(marker: str) -> str:
    """Return the text of an objective's notes while the user has not changed it."""
    objective = marker.removeprefix(OBJECTIVE_NOTES)
    return f"TODO notes on {objective}: owners, dependencies, known causes."
