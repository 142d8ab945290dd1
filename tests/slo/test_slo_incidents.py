"""The rules during incidents, evaluated by promtool: when alerts fire and clear, and how wrong rules are found."""

from __future__ import annotations

import os
import re
import subprocess
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import yaml as stock
from fastapi import FastAPI
from tools import needs

from fastapi_observe import Availability, Latency, ObserveSettings, SLOOptions
from fastapi_observe.slo.burn_rates import WINDOWS
from fastapi_observe.slo.plan import SLOPlan, make_plan
from fastapi_observe.slo.prometheus import rule_tests, yaml
from fastapi_observe.slo.prometheus.incident import (
    IncidentPhase,
    expected_alerts,
    incident_series,
    sample_pairs,
    sample_statuses,
    unrelated_series,
)
from fastapi_observe.slo.prometheus.rules import rule_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

SOAK = os.environ.get("OBSERVE_SOAK") == "1"
BUSY = Decimal(10)
THREE_NINES = Availability("api", 99.9, routes=["POST /orders", "/orders/{order_id}/pay", "/käse"])


async def answer() -> str:
    """Answer."""
    return "ok"


def shop(title: str = "shop") -> FastAPI:
    """Return an app with templates that need quoting."""
    app = FastAPI(title=title)
    for path in (
        "/orders",
        "/käse",
        '/quo"te',
        "/back\\slash",
        "/a.b",
        "/tick`y",
        "/orders/{order_id}/pay",
        '/q"\\{id}',
    ):
        app.get(path)(answer)
    app.post("/orders")(answer)
    app.put("/orders/{order_id}/pay")(answer)
    return app


def plan(*objectives: Any, service: str = "shop", **options: Any) -> SLOPlan:
    """Resolve objectives without problems."""
    settings = ObserveSettings(service_name=service, slos=objectives, slo_options=SLOOptions(**options))
    made = make_plan(shop(), settings)
    assert not made.errors
    return made


def promtool(directory: Path, rules: str, tests: str | dict[str, Any]) -> tuple[bool, str]:
    """Return whether the tests pass, and the output of promtool."""
    (directory / "rules.yml").write_text(rules, "utf-8")
    (directory / "tests.yml").write_text(tests if isinstance(tests, str) else yaml.dump(tests), "utf-8")
    command = [needs("promtool"), "test", "rules", "tests.yml"]
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False, encoding="utf-8")  # noqa: S603
    return done.returncode == 0, done.stdout + done.stderr


def chosen(made: SLOPlan, words: Iterable[str]) -> dict[str, Any]:
    """Return the generated tests whose name contains one of the words."""
    tests = rule_tests.make_rule_tests(made, "rules.yml")
    tests["tests"] = [test for test in tests["tests"] if any(word in test["name"] for word in words)]
    assert tests["tests"]
    return tests


HOUR, MINUTE = 3600, 60


def phases(*parts: tuple[float, float], rate: float | Decimal = BUSY) -> tuple[IncidentPhase, ...]:
    """Return the phases of an incident from (minutes, percentage of failures) at a rate of requests per second."""
    return tuple(
        IncidentPhase(int(minutes * MINUTE), Decimal(rate), Decimal(str(percent)) / 100) for minutes, percent in parts
    )


def firing(
    directory: Path,
    made: SLOPlan,
    incident: tuple[IncidentPhase, ...],
    **alerts: Mapping[int, bool] | Mapping[float, bool],
) -> None:
    """Have promtool check at which minutes each alert fires; a name such as `ErrorBudgetBurn_1h` has its window."""
    checks = []
    for name, expected in alerts.items():
        alertname, _, window = name.partition("_")
        series = f'ALERTS{{alertstate="firing",alertname=~"{alertname}",window=~"{window or ".*"}"}}'
        for minute, fires in expected.items():
            samples = [{"labels": "{}", "value": 1}] if fires else []
            checks.append({"expr": f"count({series}) > bool 0", "eval_time": f"{int(minute * MINUTE)}s",
                           "exp_samples": samples})  # fmt: skip
    test = {"interval": "15s", "input_series": incident_series(made, made.slos[0], incident)}
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": [{**test, "promql_expr_test": checks}]}
    passed, shown = promtool(directory, rule_file(made), tests)
    assert passed, shown


OBJECTIVES = [
    THREE_NINES,
    Availability("everything", 99.5, bad_statuses=["5xx", "429"], sla=99, min_bad_events=1),
    Availability(
        "odd", 99.95, routes=['/quo"te', "/back\\slash", "/a.b", "/tick`y"], bad_statuses=["404"], min_bad_events=3
    ),
    Availability("clients", 99.9, bad_statuses=["4xx"]),
    Latency("latency", 95, within="300ms", routes=["/orders*"]),
    Latency("fast", 99.9, within="1s", min_bad_events=20),
]


@pytest.mark.parametrize("objective", OBJECTIVES if SOAK else OBJECTIVES[2:5], ids=lambda each: each.name)
def test_the_rules_pass_their_tests(objective: Any, tmp_path: Path) -> None:
    """The generated tests pass for the generated rules, also with quotes, backslashes and umlauts in names."""
    made = plan(objective)
    passed, shown = promtool(tmp_path, rule_file(made), rule_tests.test_file(made, "rules.yml"))
    assert passed, shown


@pytest.mark.skipif(not SOAK, reason="OBSERVE_SOAK=1 runs it")
@pytest.mark.parametrize("options", [
    {"keep_firing": False}, {"period": "28d"}, {"period": "7d"}, {"scrape_interval": "30s"},
    {"selector": {"app": 'sh"op', "namespace": "a\\b"}},
])  # fmt: skip
def test_the_tests_follow_the_options(options: dict[str, Any], tmp_path: Path) -> None:
    """Other periods, base windows and selectors, and rules without `keep_firing_for`, pass their tests."""
    made = plan(THREE_NINES, **options)
    passed, shown = promtool(tmp_path, rule_file(made), rule_tests.test_file(made, "rules.yml"))
    assert passed, shown


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "thresholds times ten": (lambda rules: scaled(rules, 10), "total outage"),
    "thresholds times three": (lambda rules: scaled(rules, 3), "% fail"),
    "another status class": (lambda rules: rules.replace("5..", "4.."), "total outage"),
    "no gate": (lambda rules: rules.replace(">= 5", ">= 0"), "one request fails"),
    "an absurd gate": (lambda rules: rules.replace(">= 5", ">= 5000"), "one request in two minutes"),
    "every method": (lambda rules: rules.replace('method="POST",', ""), "the budget allows"),
    "the long page alone is wrong": (lambda rules: rules.replace("> 0.006", "> 0.06"), "% fail"),
    "averages of averages": (
        lambda rules: rules.replace("sum_over_time(slo:bad", "avg_over_time(slo:bad").replace("[30d]", "[5m]"),
        "a night without traffic",
    ),
}  # fmt: skip


def scaled(rules: str, by: int) -> str:
    """Multiply the thresholds of the burn alerts."""
    for limit in ("0.0144", "0.006", "0.003", "0.001"):
        rules = rules.replace(f"> {limit}\n", f"> {Decimal(limit) * by}\n")
    return rules


@pytest.mark.parametrize("name", DAMAGES)
def test_wrong_rules_fail_their_tests(name: str, tmp_path: Path) -> None:
    """Wrong thresholds, statuses, minimum failures or selectors fail the generated tests."""
    made = plan(THREE_NINES)
    damage, noticed_by = DAMAGES[name]
    rules = rule_file(made)
    assert damage(rules) != rules
    assert not promtool(tmp_path, damage(rules), chosen(made, [noticed_by]))[0]


def test_a_harmless_change_passes(tmp_path: Path) -> None:
    """Without the guard against 0/0 the tests still pass, because no comparison with NaN is true."""
    made = plan(THREE_NINES)
    rules = rule_file(made)
    damaged = rules.replace(" > 0)", ")")
    assert damaged != rules
    tests = (
        rule_tests.make_rule_tests(made, "rules.yml")
        if SOAK
        else chosen(made, ["total outage", "night", "one request"])
    )
    passed, shown = promtool(tmp_path, damaged, tests)
    assert passed, shown


def test_a_total_outage_pages_within_minutes(tmp_path: Path) -> None:
    """At 99.9 % the fast page fires within 2 minutes and the other within 4; both clear 15 minutes after the end."""
    firing(
        tmp_path,
        plan(THREE_NINES),
        phases((60, 0), (20, 100), (60, 0)),
        ErrorBudgetBurn_1h={60: False, 62: True, 80: True, 95.5: False},
        ErrorBudgetBurn_6h={60: False, 64: True, 80: True, 95.5: False},
    )


def test_an_outage_with_little_traffic_clears_with_the_short_window(tmp_path: Path) -> None:
    """With few requests five quiet minutes are not evidence, so the 6h page waits for its short window."""
    firing(
        tmp_path,
        plan(THREE_NINES),
        phases((60, 0), (20, 100), (60, 0), rate=1),
        ErrorBudgetBurn_1h={80: True, 95.5: False},
        ErrorBudgetBurn_6h={80: True, 110: True, 125.5: False},
    )


def test_a_page_stays_while_the_budget_still_burns(tmp_path: Path) -> None:
    """After a ten-minute outage 0.8 % still fail, eight times as much as allowed: the 6h page fires to the end."""
    incident = phases((30, 0), (10, 100), (120, 0.8), rate=100)
    instants = dict.fromkeys(range(35, 161, 5), True)
    firing(tmp_path, plan(THREE_NINES), incident, ErrorBudgetBurn_6h={30: False, **instants})


def test_two_percent_page_within_fifty_minutes(tmp_path: Path) -> None:
    """An error ratio of 2 % fires both pages within 50 minutes."""
    expected = {60: False, 110: True}
    incident = phases((60, 0), (50, 2))
    firing(tmp_path, plan(THREE_NINES), incident, ErrorBudgetBurn_1h=expected, ErrorBudgetBurn_6h=expected)


@pytest.mark.parametrize(
    "incident",
    [
        phases((120, 0.05)),
        phases((30, 0), (1, 100), (60, 0), rate=Decimal(1) / 60),
        (*phases((30, 0)), IncidentPhase(30 * MINUTE, Decimal(0)), *phases((30, 0))),
    ],
    ids=["0.05 %", "one failure at one per minute", "no traffic"],
)
def test_no_alert(incident: tuple[IncidentPhase, ...], tmp_path: Path) -> None:
    """Failures within the budget, one failed request and no traffic fire no alert at any time."""
    end = sum(phase.seconds for phase in incident)
    series = incident_series(plan(THREE_NINES), plan(THREE_NINES).slos[0], incident)
    check = {"expr": f'count_over_time(ALERTS{{alertstate="firing"}}[{end}s])', "eval_time": f"{end}s"}
    test = {"interval": "15s", "input_series": series, "promql_expr_test": [{**check, "exp_samples": []}]}
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": [test]}
    passed, shown = promtool(tmp_path, rule_file(plan(THREE_NINES)), tests)
    assert passed, shown


def test_an_outage_at_half_a_request_per_minute_pages_within_eleven_minutes(tmp_path: Path) -> None:
    """Five failures are enough, and four are not."""
    incident = phases((60, 0), (20, 100), rate=Decimal(1) / 120)
    firing(tmp_path, plan(Availability("api", 99.9, ["/käse"])), incident, ErrorBudgetBurn_1h={68: False, 71: True})


@pytest.mark.parametrize("hours", [8 if SOAK else 1])
def test_a_night_without_traffic_leaves_the_budget_exact(hours: int, tmp_path: Path) -> None:
    """After hours without requests the budget is exact to a hundred thousandth, and not NaN."""
    made = plan(Availability("api", 99.9, ["/käse"]))
    slo, day = made.slos[0], IncidentPhase(1800, Decimal(2000), Decimal("0.0002"))
    end = 3600 + hours * 3600
    tests = rule_tests.make_rule_tests(made, "rules.yml")
    left = 'slo:error_budget_remaining:ratio{slo="api"}'
    tests["tests"] = [{
        "interval": "15s",
        "input_series": incident_series(made, slo, (day, IncidentPhase(hours * 3600, Decimal(0)), day)),
        "promql_expr_test": [{
            "expr": f"sum(abs({left} - 0.8) < bool 0.00001)", "eval_time": f"{end}s",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }],
    }]  # fmt: skip
    passed, shown = promtool(tmp_path, rule_file(made), tests)
    assert passed, shown


def test_service_down_fires_alone(tmp_path: Path) -> None:
    """Where nothing is counted no budget burns; `ServiceDown` fires within three minutes and clears at once."""
    incident = (*phases((30, 0)), IncidentPhase(10 * MINUTE, Decimal(0), up=False), *phases((10, 0)))
    firing(
        tmp_path,
        plan(THREE_NINES),
        incident,
        ServiceDown={32: False, 33: True, 40: True, 41: False},
        ErrorBudgetBurn=dict.fromkeys(range(30, 51), False),
        SLODataMissing={40: False},
    )


def test_expected_alerts_can_fire_again() -> None:
    """Two outages fire twice if they are far apart; one at the end has no end; `keep_firing_for` adds its time."""
    made = plan(THREE_NINES)
    slo, (window, limit) = made.slos[0], made.slos[0].windows[0]
    incident = phases((60, 0), (5, 100), (180, 0), (5, 100))
    first, second = expected_alerts(made, slo, incident, window, limit)
    assert (len(first), len(second)) == (2, 1)
    assert second[0] - first[0] == 185 * MINUTE
    without = expected_alerts(plan(THREE_NINES, keep_firing=False), slo, incident, window, limit)
    assert first[1] - without[0][1] == 300
    assert expected_alerts(made, slo, phases((60, 0)), window, limit) == []
    close = phases((60, 0), (3, 100), (6, 0), (3, 100), (60, 0))
    assert len(expected_alerts(made, slo, close, window, limit)) == 1


def test_unrelated_series_resemble_those_that_count() -> None:
    """Incidents have failing series of another job, of pairs that are not named and of similar names."""
    made = plan(THREE_NINES)
    assert sample_pairs(made.slos[0]) == [
        ("GET", "/käse"), ("GET", "/orders/{order_id}/pay"), ("PUT", "/orders/{order_id}/pay"), ("POST", "/orders"),
    ]  # fmt: skip
    found = unrelated_series(made, made.slos[0])
    assert {"method": "GET", "endpoint": "/orders"} in found
    assert found[0]["job"] == "shop-other"
    assert {"unmatched", "/docs"} <= {
        each["endpoint"] for each in unrelated_series(made, plan(Availability("a", 99)).slos[0])
    }


def test_counters_never_fall() -> None:
    """The samples of an incident only rise: Prometheus reads a lower sample as a restart."""
    made = plan(Availability("api", 99.9))
    rate = Decimal("10.7")
    incident = (
        *phases((5, 1.234), (5, 0), (5, 0.01), rate=rate),
        IncidentPhase(5 * MINUTE, Decimal(0)),
        *phases((5, 33.3), (5, 100), rate=rate),
    )
    for series in incident_series(made, made.slos[0], incident):
        values: list[float] = []
        for part in series["values"].split():
            first, _, rest = part.partition("+")
            step, _, number = rest.partition("x")
            values += [float(first) + float(step or 0) * at for at in range(int(number or 0) + 1)]
        assert len(values) == 30 * 60 / 15 + 1
        assert values == sorted(values)


def test_sample_statuses() -> None:
    """Each of `bad` has a status that fails; where 200 and 404 are bad, an uncommon status succeeds."""
    assert sample_statuses(("5xx", "429", "503")) == (["503", "429"], ["200", "404"])
    assert sample_statuses(("2XX", "404")) == (["203", "404"], ["101"])


def test_the_generated_tests_are_stable() -> None:
    """Two runs write the same file of tests, without YAML aliases."""
    made = plan(*OBJECTIVES)
    first = rule_tests.test_file(made, "../rules.yml")
    assert first == rule_tests.test_file(plan(*OBJECTIVES), "../rules.yml")
    assert "&id" not in first
    read = stock.safe_load(first)
    assert read["rule_files"] == ["../rules.yml"]
    assert len({test["name"] for test in read["tests"]}) == len(read["tests"])
    assert [window.long for window in WINDOWS] == ["1h", "6h", "1d", "3d"]


def test_annotations_name_the_worst_route(tmp_path: Path) -> None:
    """The summary of a page names the route with most failures, with any characters; links are filled in."""
    odd = '/q"\\{id}'
    options = {"team": "te{{am", "dashboard_url": "https://d/{slo}", "selector": {"job": "shop"}}
    made = plan(Availability("odd", 99.9, [odd, "/tick`y"]), service='sh"op {{x}}', **options)
    series = incident_series(made, made.slos[0], phases((15, 0), (10, 100)))
    healthy = [each["series"] for each in series if "tick" in each["series"] and '"503"' in each["series"]]
    test = {
        "interval": "15s",
        "input_series": [each for each in series if each["series"] not in healthy],
        "alert_rule_test": [{"eval_time": "24m", "alertname": "ErrorBudgetBurn", "exp_alerts": []}],
    }
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": [test]}
    passed, shown = promtool(tmp_path, rule_file(made), tests)
    assert not passed  # it says what there is instead of nothing
    labels, annotations = (re.search(rf"{name}:(.*?),?\n", shown) for name in ("Labels", "Annotations"))
    assert labels is not None
    assert annotations is not None
    assert labels[1] == (
        r'{alertname="ErrorBudgetBurn", service="sh\"op {{x}}", severity="page", slo="odd", team="te{{am", window="1h"}'
    )
    # Ranges of Prometheus 3 exclude their start, so that its rates differ a little.
    assert annotations[1].replace("22.68%", "22.58%") == (
        r'{dashboard_url="https://d/odd", description="The 30d error budget is spent. Fires above 1.44% over 1h and '
        r'5m, with at least 5 failed requests.", runbook_url="runbooks/ErrorBudgetBurn.md#odd", summary="'
        r'sh\"op {{x}}/odd: 22.58% of requests failed over 1h (objective 99.9%), worst: GET /q\"\\{id}"}'
    )


def test_annotations_of_latency_name_the_slowest_route(tmp_path: Path) -> None:
    """For latency the summary has the threshold and the route with most slow requests."""
    made = plan(Latency("fast", 99.9, within="300ms"))
    series = one_slow_route(made)
    test = {
        "interval": "15s",
        "input_series": series,
        "alert_rule_test": [{"eval_time": "20m", "alertname": "ErrorBudgetBurn", "exp_alerts": []}],
    }
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": [test]}
    shown = promtool(tmp_path, rule_file(made), tests)[1]
    assert "of requests took more than 300ms over 1h (objective 99.9%), worst: PUT /orders/{order_id}/pay" in shown


def one_slow_route(made: SLOPlan) -> list[dict[str, Any]]:
    """Return series of two routes, of which only the second is slow."""
    slow = phases((10, 0), (10, 50))
    return [
        *(each for each in incident_series(made, made.slos[0], slow) if "PUT" in each["series"]),
        *(each for each in incident_series(made, made.slos[0], phases((20, 0))) if "PUT" not in each["series"]),
    ]
