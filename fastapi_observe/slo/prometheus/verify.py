"""Whether a running Prometheus does what the rules of an app need: `verify`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from fastapi_observe.settings.objectives import Latency
from fastapi_observe.slo.datasources import retention
from fastapi_observe.slo.prometheus import promql
from fastapi_observe.slo.prometheus.api import Prometheus, UnreachableError
from fastapi_observe.slo.prometheus.rules import make_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan

__all__ = ["Finding", "UnreachableError", "verify"]

HASH: Final = re.compile(r'hash!="([0-9a-f]+)"')
DEFAULT_RETENTION: Final = "15d"
"""What Prometheus keeps where its flag says `0s`."""

PARTS: Final = re.compile(r"(\d+)(ms|y|w|d|h|m|s)")
IN_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
KEEPS_FIRING: Final = (2, 42)
"""The first version that knows `keep_firing_for`."""

SCRAPES: Final = 4
"""How many scrapes the base window must hold, so that a missed one leaves no gap."""

SHOWN: Final = 10
"""Most names that are told in one line."""


class Finding(NamedTuple):
    """What one check found; `step` is what to do, empty where all is well."""

    state: Literal["ok", "problem"]
    check: str
    message: str
    hint: str = ""


def verify(
    plan: SLOPlan, settings: ObserveSettings, url: str, *, token: str | None = None, allow_http_token: bool = False
) -> list[Finding]:
    """Check a running Prometheus against an app; raises `UnreachableError`."""
    prometheus = Prometheus(url, token, allow_http_token=allow_http_token)
    try:
        return _findings(plan, settings, prometheus)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        text = f"{prometheus.url} answers other than Prometheus does ({error!s:.200}); correct the URL"
        raise UnreachableError(text) from error


def _findings(plan: SLOPlan, settings: ObserveSettings, prometheus: Prometheus) -> list[Finding]:
    flags = prometheus.get("status/flags")
    return [
        *_version(plan, prometheus),
        *_rules(plan, prometheus),
        *_targets(plan, prometheus),
        *_running(plan, prometheus),
        *(_objective(plan, slo, prometheus) for slo in plan.slos),
        _retention(plan, flags),
        *_exemplars(settings, flags),
        _alertmanagers(prometheus),
    ]


def _version(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    version = str(prometheus.get("status/buildinfo").get("version", ""))
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:2])
    if plan.options.keep_firing and numbers and numbers < KEEPS_FIRING:
        step = "upgrade to 2.42, or set SLOOptions(keep_firing=False) and make the rules again"
        yield Finding("problem", "version", f"Prometheus {version} does not know keep_firing_for", step)
    else:
        yield Finding("ok", "version", f"Prometheus {version}")


def _rules(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    """Compare the groups that are loaded with those that would be made, and see whether they can be evaluated."""
    made = {group["name"]: len(group["rules"]) for group in make_rules(plan)["groups"]}
    groups = {group["name"]: group for group in prometheus.get("rules")["groups"]}
    ours = {name: group for name, group in groups.items() if name.startswith(f"fastapi-observe:{plan.service}:")}
    load = "python -m fastapi_observe rules, name the file under rule_files, then reload Prometheus"
    if not ours:
        yield Finding("problem", "rules", f"no rules of {plan.service} are loaded", load)
        return
    missing = [name for name, count in made.items() if len(ours.get(name, {}).get("rules", ())) != count]
    unknown = [name for name in ours if name not in made]
    if missing or unknown:
        names = _some([*missing, *unknown])
        yield Finding("problem", "rules", f"groups that differ from what the app makes: {names}", load)
    else:
        yield Finding("ok", "rules", f"{len(ours)} groups with {sum(made.values())} rules are loaded")
    loaded = {each for group in ours.values() for rule in group["rules"] for each in HASH.findall(rule["query"])}
    if loaded == {plan.hash}:
        yield Finding("ok", "rules hash", plan.hash)
    else:
        text = f"the rules are of configuration {_some(sorted(loaded)) or 'unknown'}, the app makes {plan.hash}"
        yield Finding("problem", "rules hash", text, load)
    for group in ours.values():
        for rule in group["rules"]:
            if rule.get("health") == "err":
                text = f"{rule['name']} in {group['name']}: {rule.get('lastError', '')}"
                yield Finding("problem", "evaluation", text, "read the error; make the rules again")
        if float(group.get("evaluationTime", 0)) > float(group.get("interval", 0)):
            text = f"{group['name']} takes {group['evaluationTime']:.1f} s, more than its interval"
            yield Finding("problem", "evaluation", text, "give Prometheus more CPU, or name routes in the objective")


def _targets(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    """See whether the selector finds the service, and whether it is scraped often enough."""
    of = promql.service_selector(plan)
    active = prometheus.get("targets", state="active")["activeTargets"]
    found = [each for each in active if plan.selector.items() <= each["labels"].items()]
    if not found:
        values = [
            f"{label}s seen: {_some(prometheus.get(f'label/{label}/values')) or 'none'}"
            for label in sorted(plan.selector)
        ]
        step = "rename the scrape job, or set SLOOptions(selector={...})"
        yield Finding("problem", "targets", f"{of} matches nothing; {'; '.join(values)}", step)
        return
    down = [each for each in found if each["health"] != "up"]
    if down:
        errors = _some(sorted({f"{each['labels'].get('instance')}: {each['lastError']}" for each in down}))
        text = f"{len(down)} of {len(found)} targets of {of} cannot be scraped: {errors}"
        yield Finding("problem", "targets", text, "see the runbook of InstanceDown")
    else:
        yield Finding("ok", "targets", f"{of}: {len(found)} up")
    slowest = max((each["scrapeInterval"] for each in found), key=_seconds)
    if _seconds(slowest) * SCRAPES > _seconds(plan.base):
        text = f"scraped each {slowest}: the base window of {plan.base} holds fewer than {SCRAPES} scrapes"
        step = f'scrape each {plan.options.scrape_interval}, or set SLOOptions(scrape_interval="{slowest}")'
        yield Finding("problem", "scrape interval", text, step)
    else:
        yield Finding("ok", "scrape interval", f"{slowest}, base window {plan.base}")


def _running(plan: SLOPlan, prometheus: Prometheus) -> Iterator[Finding]:
    """Compare what runs with the code that this command has imported."""
    if not plan.slos:
        return
    series = prometheus.query(f"count by (hash) (fastapi_observe_slo_config_info{{{promql.service_selector(plan)}}})")
    hashes = sorted(each["metric"].get("hash", "") for each in series)
    if hashes == [plan.hash]:
        yield Finding("ok", "running app", f"configuration {plan.hash}")
    elif not hashes:
        text = "the running app tells no configuration of objectives"
        yield Finding("problem", "running app", text, "deploy a version with these objectives, or wait for a scrape")
    else:
        text = f"the running app has configuration {_some(hashes)}, this code {plan.hash}"
        yield Finding("problem", "running app", text, "deploy this code, or check out what runs")


def _objective(plan: SLOPlan, slo: ResolvedObjective, prometheus: Prometheus) -> Finding:
    """See whether the selectors of an objective find series, and whether its events are recorded."""
    what = f"objective {slo.name}"
    of = promql.service_selector(plan)
    if isinstance(slo.objective, Latency):
        metric = f'{promql.DURATIONS}{{{of},le="{promql.bucket_label(slo.objective)}"}}'
    else:
        metric = f"{promql.REQUESTS}{{{of}}}"
    counted = [each["metric"] for each in prometheus.query(f"count by (method, endpoint) ({metric})")]
    seen = {(each.get("method", ""), each.get("endpoint", "")) for each in counted}
    missing = [f"{method} {template}" for method, template in slo.endpoints if (method, template) not in seen]
    if not seen or (slo.groups and missing):
        text = f"{metric} matches nothing" + (f" for {_some(missing)}" if seen else "")
        step = "see `running app` and `targets`; if routes were renamed, make the bundle again"
        return Finding("problem", what, text, step)
    if not prometheus.query(f"slo:events:rate1m{promql.recorded(plan, slo)}"):
        return Finding(
            "problem", what, "its series are there, but are not recorded", "load the rules, or wait a minute"
        )
    return Finding("ok", what, "its series are there and recorded")


def _retention(plan: SLOPlan, flags: dict[str, str]) -> Finding:
    told = flags.get("storage.tsdb.retention.time", "0s")
    kept = DEFAULT_RETENTION if not _seconds(told) else told
    if not _seconds(told) and flags.get("storage.tsdb.retention.size", "0B") != "0B":
        return Finding("ok", "retention", "by size alone: see that it holds the period of the budgets")
    period, days = promql.duration(plan.period), promql.duration(Decimal(int(_seconds(kept))))
    if _seconds(kept) < float(plan.period):
        text = f"samples are kept {days}, budgets look back {period}"
        return Finding("problem", "retention", text, f"start it with --storage.tsdb.retention.time={retention(plan)}")
    return Finding("ok", "retention", f"{days}; budgets look back {period}")


def _exemplars(settings: ObserveSettings, flags: dict[str, str]) -> Iterator[Finding]:
    if not settings.exemplars or not settings.tracing:
        return
    if "exemplar-storage" in flags.get("enable-feature", ""):
        yield Finding("ok", "exemplars", "are stored")
    else:
        text = "are not stored: graphs cannot lead to traces"
        yield Finding("problem", "exemplars", text, "start it with --enable-feature=exemplar-storage")


def _alertmanagers(prometheus: Prometheus) -> Finding:
    active = prometheus.get("alertmanagers")["activeAlertmanagers"]
    if active:
        return Finding("ok", "alertmanager", _some([each["url"] for each in active]))
    step = "name it under alerting in the configuration of Prometheus"
    return Finding("problem", "alertmanager", "there is none: nobody is told of an alert", step)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _seconds(duration: str) -> float:
    """Read a duration of Prometheus, such as `1m30s`."""
    return sum(int(number) * IN_SECONDS[unit] for number, unit in PARTS.findall(duration))
