"""Verify that a running Prometheus has the rules of an app, scrapes it, and keeps its samples long enough."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from fastapi_observe.settings.objectives import Latency
from fastapi_observe.slo.burn_rates import promql_duration
from fastapi_observe.slo.datasources import retention
from fastapi_observe.slo.prometheus import promql
from fastapi_observe.slo.prometheus.alerts import POOL_ALERTS
from fastapi_observe.slo.prometheus.api import Prometheus, UnreachableError
from fastapi_observe.slo.prometheus.rules import make_rules
from fastapi_observe.slo.route_selection import join_some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

__all__ = ["Finding", "UnreachableError", "verify"]

HASH: Final = re.compile(r'hash!="([0-9a-f]+)"')
DEFAULT_RETENTION: Final = "15d"
"""Retention of Prometheus where its flag is `0s`."""

DURATION_PARTS: Final = re.compile(r"(\d+)(ms|y|w|d|h|m|s)")
PROMETHEUS_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
KEEP_FIRING_VERSION: Final = (2, 42)
"""The first version with `keep_firing_for`."""

MIN_SCRAPES: Final = 4
"""Scrapes in the base window, so that a missed one leaves no gap."""

MAX_LISTED_NAMES: Final = 10
"""Names listed in one message."""

MAKE_RULES: Final = (
    "run python -m fastapi_observe slo bundle --only rules, list the file under rule_files, reload Prometheus"
)


class Finding(NamedTuple):
    """The result of one check; `hint` is the next step, empty if the state is `ok`."""

    state: Literal["ok", "problem"]
    check: str
    message: str
    hint: str = ""


def verify(
    plan: SLOPlan, settings: ObserveSettings, url: str, *, token: str | None = None, allow_http_token: bool = False
) -> list[Finding]:
    """Check a running Prometheus against an app. Raises `UnreachableError`."""
    prometheus = Prometheus(url, token, allow_http_token=allow_http_token)
    try:
        flags = prometheus.get("status/flags")
        return [
            _check_version(plan, prometheus),
            *_check_rules(plan, prometheus),
            *_check_targets(plan, prometheus),
            *_check_running_app(plan, prometheus),
            *(_check_objective(plan, slo, prometheus) for slo in plan.slos),
            _check_retention(plan, flags),
            *_check_exemplars(settings, flags),
            _check_alertmanagers(prometheus),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        message = f"{prometheus.url} does not respond as Prometheus does ({error!s:.200}); correct the URL"
        raise UnreachableError(message) from error


def _check_version(plan: SLOPlan, prometheus: Prometheus) -> Finding:
    version = str(prometheus.get("status/buildinfo").get("version", ""))
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:2])
    if plan.options.keep_firing and numbers and numbers < KEEP_FIRING_VERSION:
        hint = "upgrade to 2.42, or set SLOOptions(keep_firing=False) and make the rules again"
        return Finding("problem", "version", f"Prometheus {version} does not support keep_firing_for", hint)
    return Finding("ok", "version", f"Prometheus {version}")


def _check_rules(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    """Compare the loaded groups with those of the app, and check that they can be evaluated."""
    prefix = f"fastapi-observe:{plan.service}:"
    loaded = {group["name"]: group for group in prometheus.get("rules")["groups"] if group["name"].startswith(prefix)}
    if not loaded:
        yield Finding("problem", "rules", f"no rules of {plan.service} are loaded", MAKE_RULES)
        return
    # Whether the app has pools is known where the bundle is made, not here.
    names = {rule["name"] for group in loaded.values() for rule in group["rules"]}
    made = make_rules(plan._replace(pools=not names.isdisjoint(POOL_ALERTS)))
    expected = {group["name"]: len(group["rules"]) for group in made["groups"]}
    missing = [name for name, count in expected.items() if len(loaded.get(name, {}).get("rules", ())) != count]
    unknown = [name for name in loaded if name not in expected]
    if missing or unknown:
        differ = join_some([*missing, *unknown], MAX_LISTED_NAMES)
        yield Finding("problem", "rules", f"these groups differ from those of the app: {differ}", MAKE_RULES)
    else:
        yield Finding("ok", "rules", f"{len(loaded)} groups with {sum(expected.values())} rules are loaded")
    hashes = {each for group in loaded.values() for rule in group["rules"] for each in HASH.findall(rule["query"])}
    if hashes == {plan.hash}:
        yield Finding("ok", "rules hash", plan.hash)
    else:
        shown = join_some(sorted(hashes), MAX_LISTED_NAMES) if hashes else "unknown"
        message = f"the rules were made from configuration {shown}, the app has {plan.hash}"
        yield Finding("problem", "rules hash", message, MAKE_RULES)
    for group in loaded.values():
        for rule in group["rules"]:
            if rule.get("health") == "err":
                message = f"{rule['name']} in {group['name']}: {rule.get('lastError', '')}"
                yield Finding("problem", "evaluation", message, "read the error; make the rules again")
        if float(group.get("evaluationTime", 0)) > float(group.get("interval", 0)):
            message = f"{group['name']} takes {group['evaluationTime']:.1f} s, longer than its interval"
            yield Finding("problem", "evaluation", message, "give Prometheus more CPU, or name routes in the objective")


def _check_targets(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    """Check that the selector finds the service, and that it is scraped often enough."""
    selector = promql.service_selector(plan)
    active = prometheus.get("targets", {"state": "active"})["activeTargets"]
    targets = [each for each in active if plan.selector.items() <= each["labels"].items()]
    if not targets:
        values = [
            f"values of {label}: {join_some(prometheus.get(f'label/{label}/values'), MAX_LISTED_NAMES)}"
            for label in sorted(plan.selector)
        ]
        hint = "rename the scrape job, or set SLOOptions(selector={...})"
        yield Finding("problem", "targets", f"{selector} matches no target; {'; '.join(values)}", hint)
        return
    down = [each for each in targets if each["health"] != "up"]
    if down:
        errors = join_some(
            sorted({f"{each['labels'].get('instance')}: {each['lastError']}" for each in down}), MAX_LISTED_NAMES
        )
        message = f"{len(down)} of {len(targets)} targets of {selector} cannot be scraped: {errors}"
        yield Finding("problem", "targets", message, "see the runbook InstanceDown")
    else:
        yield Finding("ok", "targets", f"{selector}: {len(targets)} up")
    slowest = max((each["scrapeInterval"] for each in targets), key=_seconds)
    if _seconds(slowest) * MIN_SCRAPES > _seconds(plan.base):
        message = f"scraped every {slowest}: the base window of {plan.base} holds fewer than {MIN_SCRAPES} scrapes"
        hint = f'scrape every {plan.options.scrape_interval}, or set SLOOptions(scrape_interval="{slowest}")'
        yield Finding("problem", "scrape interval", message, hint)
    else:
        yield Finding("ok", "scrape interval", f"{slowest}, base window {plan.base}")


def _check_running_app(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    """Compare the configuration of the running app with that of the code imported here."""
    if not plan.slos:
        return
    series = prometheus.query(f"count by (hash) (fastapi_observe_slo_config_info{{{promql.service_selector(plan)}}})")
    hashes = sorted(each["metric"].get("hash", "") for each in series)
    if hashes == [plan.hash]:
        yield Finding("ok", "running app", f"configuration {plan.hash}")
    elif not hashes:
        message = "the running app exposes no configuration of objectives"
        yield Finding("problem", "running app", message, "deploy a version with these objectives, or wait for a scrape")
    else:
        message = f"the running app has configuration {join_some(hashes, MAX_LISTED_NAMES)}, this code {plan.hash}"
        yield Finding("problem", "running app", message, "deploy this code, or check out the deployed version")


def _check_objective(plan: SLOPlan, slo: ResolvedObjective, prometheus: Prometheus) -> Finding:
    """Check that an objective has series, and that its events are recorded."""
    check, names = f"objective {slo.name}", plan.names
    selector = promql.service_selector(plan)
    if isinstance(slo.objective, Latency):
        metric = f'{names.duration}_bucket{{{selector},le="{promql.bucket_label(slo.objective)}"}}'
    else:
        metric = f"{names.requests}{{{selector}}}"
    series = [each["metric"] for each in prometheus.query(f"count by ({names.method}, {names.endpoint}) ({metric})")]
    existing = {(each.get(names.method, ""), each.get(names.endpoint, "")) for each in series}
    missing = [f"{method} {template}" for method, template in slo.endpoints if (method, template) not in existing]
    if not existing or (slo.groups and missing):
        message = f"{metric} has no series" + (f" for {join_some(missing, MAX_LISTED_NAMES)}" if existing else "")
        hint = "see `running app` and `targets`; if routes were renamed, make the bundle again"
        return Finding("problem", check, message, hint)
    if not prometheus.query(f"slo:events:rate1m{promql.recorded(plan, slo)}"):
        return Finding("problem", check, "its series exist but are not recorded", "load the rules, or wait a minute")
    return Finding("ok", check, "its series exist and are recorded")


def _check_retention(plan: SLOPlan, flags: dict[str, str]) -> Finding:
    flag = flags.get("storage.tsdb.retention.time", "0s")
    if not _seconds(flag) and flags.get("storage.tsdb.retention.size", "0B") != "0B":
        return Finding("ok", "retention", "limited by size only; make sure that it holds the period of the budgets")
    seconds = _seconds(flag) or _seconds(DEFAULT_RETENTION)
    period, kept = promql_duration(plan.period), promql_duration(Decimal(int(seconds)))
    if seconds < float(plan.period):
        message = f"samples are kept for {kept}, but budgets need {period}"
        hint = f"start Prometheus with --storage.tsdb.retention.time={retention(plan)}"
        return Finding("problem", "retention", message, hint)
    return Finding("ok", "retention", f"{kept}; budgets need {period}")


def _check_exemplars(settings: ObserveSettings, flags: dict[str, str]) -> Iterator[Finding]:
    if not settings.exemplars or not settings.tracing:
        return
    if "exemplar-storage" in flags.get("enable-feature", ""):
        yield Finding("ok", "exemplars", "stored")
    else:
        message = "not stored, so graphs do not link to traces"
        yield Finding("problem", "exemplars", message, "start Prometheus with --enable-feature=exemplar-storage")


def _check_alertmanagers(prometheus: Prometheus) -> Finding:
    active = prometheus.get("alertmanagers")["activeAlertmanagers"]
    if active:
        urls = join_some([each["url"] for each in active], MAX_LISTED_NAMES)
        return Finding("ok", "alertmanager", f"configured: {urls} (not contacted)")
    hint = "list one under alerting in the configuration of Prometheus"
    return Finding("problem", "alertmanager", "no Alertmanager is configured, alerts are not delivered", hint)


def _seconds(duration: str) -> float:
    """Read a duration of Prometheus, such as `1m30s`."""
    return sum(int(number) * PROMETHEUS_UNITS[unit] for number, unit in DURATION_PARTS.findall(duration))
