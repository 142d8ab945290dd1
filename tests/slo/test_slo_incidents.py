"""The rules at work: incidents played with promtool, when each alert fires and clears, damaged rules that are found."""

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
    read_incident,
    sample_pairs,
    statuses,
    unrelated_series,
)
from fastapi_observe.slo.prometheus.rules import rule_file
from fastapi_observe.slo.prometheus.simulate import Detection, _samples, detection_table, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SOAK = os.environ.get("OBSERVE_SOAK") == "1"
BUSY = Decimal(10)
THREE_NINES = Availability("api", 99.9, routes=["POST /orders", "/orders/{order_id}/pay", "/käse"])


async def answer() -> str:
    """Answer."""
    return "ok"


def shop(title: str = "shop") -> FastAPI:
    """Build an app some of whose names are hard to write."""
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
    """Resolve objectives, with which nothing is wrong."""
    settings = ObserveSettings(service_name=service, slos=objectives, slo_options=SLOOptions(**options))
    made = make_plan(shop(), settings)
    assert not made.errors
    return made


def promtool(folder: Path, rules: str, tests: str | dict[str, Any]) -> tuple[bool, str]:
    """Return whether the tests pass, and what promtool says."""
    (folder / "rules.yml").write_text(rules, "utf-8")
    (folder / "tests.yml").write_text(tests if isinstance(tests, str) else yaml.dump(tests), "utf-8")
    command = [needs("promtool"), "test", "rules", "tests.yml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, encoding="utf-8")  # noqa: S603
    return done.returncode == 0, done.stdout + done.stderr


def chosen(made: SLOPlan, words: Iterable[str]) -> dict[str, Any]:
    """Return the generated tests whose name has one of the words."""
    tests = rule_tests.make_rule_tests(made, "rules.yml")
    tests["tests"] = [test for test in tests["tests"] if any(word in test["name"] for word in words)]
    assert tests["tests"]
    return tests


def windows(found: list[Detection]) -> dict[str, Detection]:
    """Return what the burn alerts did, by window."""
    return {each.window: each for each in found if each.alert == "ErrorBudgetBurn"}


def after(found: Detection, seconds: int) -> float:
    """Return how many minutes after a time an alert fired."""
    assert found.fired is not None
    return (found.fired - seconds) / 60


def cleared(found: Detection, seconds: int) -> float:
    """Return how many minutes after a time an alert fired no longer."""
    assert found.last is not None
    return (found.last + 30 - seconds) / 60


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
def test_the_rules_do_what_their_tests_say(objective: Any, tmp_path: Path) -> None:
    """The generated tests pass for the generated rules, names with quotes, backslashes and umlauts included."""
    made = plan(objective)
    passed, shown = promtool(tmp_path, rule_file(made), rule_tests.test_file(made, "rules.yml"))
    assert passed, shown


@pytest.mark.skipif(not SOAK, reason="OBSERVE_SOAK=1 runs it")
@pytest.mark.parametrize("options", [
    {"keep_firing": False}, {"period": "28d"}, {"period": "7d"}, {"scrape_interval": "30s"},
    {"selector": {"app": 'sh"op', "namespace": "a\\b"}},
])  # fmt: skip
def test_the_tests_follow_the_options(options: dict[str, Any], tmp_path: Path) -> None:
    """Other periods, base windows and selectors, and rules without `keep_firing_for`, pass their tests too."""
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
def test_damaged_rules_are_found(name: str, tmp_path: Path) -> None:
    """Thresholds, status, gate or selectors that are wrong fail the generated tests."""
    made = plan(THREE_NINES)
    damage, noticed_by = DAMAGES[name]
    rules = rule_file(made)
    assert damage(rules) != rules
    assert not promtool(tmp_path, damage(rules), chosen(made, [noticed_by]))[0]


def test_a_harmless_change_passes(tmp_path: Path) -> None:
    """Without the guard against 0/0 an alert sees the same: NaN is above nothing. The tests say so."""
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


def test_a_total_outage_pages_within_two_minutes() -> None:
    """At 99.9 % both pages come within 4 minutes, the fast one within 2, and clear within 15 after the end."""
    needs("promtool")
    made = plan(THREE_NINES)
    found = windows(simulate(made, made.slos[0], "1h ok, 20m 100%, 1h ok", 10))
    assert 0 < after(found["1h"], 3600) <= 2
    assert cleared(found["1h"], 4800) <= 15
    assert 0 < after(found["6h"], 3600) <= 4
    assert cleared(found["6h"], 4800) <= 15


def test_an_outage_of_little_traffic_clears_with_the_short_window() -> None:
    """Five quiet minutes prove nothing where few requests come: the long page then waits for its short window."""
    needs("promtool")
    made = plan(THREE_NINES)
    found = windows(simulate(made, made.slos[0], "1h ok, 20m 100%, 1h ok", 1))
    assert cleared(found["1h"], 4800) <= 15
    assert 30 < cleared(found["6h"], 4800) <= 45


def test_what_smoulders_after_an_outage_keeps_the_long_page() -> None:
    """Ten minutes of outage, then 0.8 %: the budget burns on eight times too fast, and the page stays."""
    needs("promtool")
    made = plan(THREE_NINES)
    found = windows(simulate(made, made.slos[0], "30m ok, 10m 100%, 2h 0.8%", 100))
    assert found["6h"].last == 160 * 60
    assert found["6h"].lasted >= 129 * 60


def test_two_percent_page_within_fifty_minutes() -> None:
    """Of 2 % errors somebody is told within 50 minutes, by the fast page too."""
    needs("promtool")
    made = plan(THREE_NINES)
    found = windows(simulate(made, made.slos[0], "1h ok, 50m 2%", 10))
    assert 0 < after(found["1h"], 3600) <= 50
    assert 0 < after(found["6h"], 3600) <= 50


@pytest.mark.parametrize(
    ("described", "rate"),
    [("2h 0.05%", 10.0), ("30m ok, 1m 100%, 1h ok", 1 / 60), ("30m ok, 30m silent, 30m ok", 10.0)],
    ids=["0.05 %", "one failure at one a minute", "nobody comes"],
)
def test_silence(described: str, rate: float) -> None:
    """What the budget allows, one failed request and no traffic wake nobody and make no ticket."""
    needs("promtool")
    made = plan(THREE_NINES)
    assert {each.alert for each in simulate(made, made.slos[0], described, rate) if each.fired is not None} == set()


def test_an_outage_of_thin_traffic_pages_within_twelve_minutes() -> None:
    """At half a request a minute five failures are enough."""
    needs("promtool")
    made = plan(Availability("api", 99.9, ["/käse"]))
    found = windows(simulate(made, made.slos[0], "1h ok, 20m 100%", 1 / 120))
    assert 8 < after(found["1h"], 3600) <= 11


@pytest.mark.parametrize("hours", [8 if SOAK else 1])
def test_a_night_without_traffic_leaves_the_budget_exact(hours: int, tmp_path: Path) -> None:
    """The budget after hours without a request is that of the requests there were, not NaN, to a hundred thousandth."""
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


def test_when_the_process_is_gone_service_down_tells() -> None:
    """Where nothing is counted no budget burns; `ServiceDown` fires within three minutes and clears at once."""
    needs("promtool")
    made = plan(THREE_NINES)
    found = simulate(made, made.slos[0], "30m ok, 10m down, 10m ok", 10)
    assert {each.alert for each in found if each.fired is not None} == {"ServiceDown"}
    down = found[-1]
    assert 2 <= after(down, 1800) <= 3
    assert cleared(down, 2400) <= 1
    phases = read_incident("30m ok, 10m down, 10m ok", BUSY)
    assert detection_table(found, phases)[-1][3:5] == ("2m30s after the beginning", "30s after the end")
    assert detection_table(found, phases)[1][3:] == ("never", "-", "-")
    quiet = [Detection("ErrorBudgetBurn", "page", "1h", 3600, 3600, 30)]  # nothing happens, and it fires at the end
    row = ("ErrorBudgetBurn", "page", "1h", "0s after the beginning", "not yet", "30s")
    assert detection_table(quiet, read_incident("1h ok", BUSY))[1] == row


def test_the_reckoning_knows_alerts_that_come_again() -> None:
    """Two outages far apart fire twice; one that does not end has a beginning only; `keep_firing_for` adds its time."""
    made = plan(THREE_NINES)
    slo, (window, limit) = made.slos[0], made.slos[0].windows[0]
    phases = read_incident("1h ok, 5m 100%, 3h ok, 5m 100%", BUSY)
    first, second = expected_alerts(made, slo, phases, window, limit)
    assert (len(first), len(second)) == (2, 1)
    assert second[0] - first[0] == 185 * 60
    short = expected_alerts(plan(THREE_NINES, keep_firing=False), slo, phases, window, limit)
    assert first[1] - short[0][1] == 300
    assert expected_alerts(made, slo, read_incident("1h ok", BUSY), window, limit) == []
    again = read_incident("1h ok, 3m 100%, 6m ok, 3m 100%, 1h ok", BUSY)
    assert len(expected_alerts(made, slo, again, window, limit)) == 1


def test_incidents_are_described_in_words() -> None:
    """Phases are read as people write them; what is no phase is told with what is accepted."""
    assert read_incident("1h ok, 20m 2.5 %,1d silent , 5m down", BUSY) == (
        IncidentPhase(3600, BUSY),
        IncidentPhase(1200, BUSY, Decimal("0.025")),
        IncidentPhase(86400, Decimal(0)),
        IncidentPhase(300, Decimal(0), up=False),
    )
    for wrong, message in (
        ("1h fine", "'1h fine' is no phase; write a time and what happens, such as 1h ok, 20m 30%"),
        ("", "'' is no phase"),
        ("20s ok", "a phase lasts a multiple of 15s"),
        ("1h 101%", "with at most 100 % failing"),
        ("1x ok", "'1x' is no duration"),
    ):
        with pytest.raises(ValueError, match=message):
            read_incident(wrong, BUSY)


def test_strangers_look_like_what_counts() -> None:
    """The tests play series of another job, of pairs that were not named and of near names, which all fail."""
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
    """What is played only grows, whatever follows: a lower sample would be read as a start from 0."""
    made = plan(Availability("api", 99.9))
    phases = read_incident("5m 1.234%, 5m ok, 5m 0.01%, 5m silent, 5m 33.3%, 5m 100%", Decimal("10.7"))
    for series in incident_series(made, made.slos[0], phases):
        values: list[float] = []
        for part in series["values"].split():
            first, _, rest = part.partition("+")
            step, _, number = rest.partition("x")
            values += [float(first) + float(step or 0) * at for at in range(int(number or 0) + 1)]
        assert len(values) == 30 * 60 / 15 + 1
        assert values == sorted(values)


def test_statuses_of_tests() -> None:
    """Each of `bad` has a status that fails; where everything usual is bad, something unusual succeeds."""
    assert statuses(("5xx", "429", "503")) == (["503", "429"], ["200", "404"])
    assert statuses(("2XX", "404")) == (["203", "404"], ["101"])


def test_what_promtool_prints_is_read() -> None:
    """Both forms of its output, that of 2.42 and that of 3.x with escaped quotes, are understood."""
    labels = 'alertname="ErrorBudgetBurn", severity="page", window="1h"'
    wanted = {("ErrorBudgetBurn", "page", "1h"): 3690, ("ServiceDown", "page", ""): 60}
    assert _samples(f'{{{labels}}} 3.69E+03, {{alertname="ServiceDown", severity="page"}} 6E+01') == wanted
    escaped = labels.replace('"', '\\"')
    down = 'Labels:"{alertname=\\"ServiceDown\\", severity=\\"page\\"}" Value: 60'
    newer = f'Labels:"{{{escaped}}}" Value: 3.69e+03, {down}'
    assert _samples(newer) == wanted


def test_what_promtool_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without promtool the error says where it comes from; its own words are passed on if it says something else."""
    made = plan(THREE_NINES)
    fake = tmp_path / "promtool"
    fake.write_text("#!/bin/sh\necho no such flag\n", "utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match="no such flag"):
        simulate(made, made.slos[0], "1h ok", 10)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install prometheus"):
        simulate(made, made.slos[0], "1h ok", 10)


def test_the_tests_are_the_same_each_time() -> None:
    """Two runs write the same file, which YAML reads without aliases."""
    made = plan(*OBJECTIVES)
    first = rule_tests.test_file(made, "../rules.yml")
    assert first == rule_tests.test_file(plan(*OBJECTIVES), "../rules.yml")
    assert "&id" not in first
    read = stock.safe_load(first)
    assert read["rule_files"] == ["../rules.yml"]
    assert len({test["name"] for test in read["tests"]}) == len(read["tests"])
    assert [window.long for window in WINDOWS] == ["1h", "6h", "1d", "3d"]


def test_annotations_name_the_worst_route(tmp_path: Path) -> None:
    """The summary of a page names the route with most failures, however it is written; links are filled in."""
    odd = '/q"\\{id}'
    options = {"team": "te{{am", "dashboard_url": "https://d/{slo}", "selector": {"job": "shop"}}
    made = plan(Availability("odd", 99.9, [odd, "/tick`y"]), service='sh"op {{x}}', **options)
    phases = (IncidentPhase(900, Decimal(10)), IncidentPhase(600, Decimal(10), Decimal(1)))
    series = incident_series(made, made.slos[0], phases)
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
    assert annotations[1] == (
        r'{dashboard_url="https://d/odd", description="The 30d error budget is spent. Fires above 1.44% over 1h and '
        r'5m, with at least 5 failed requests.", runbook_url="runbooks/ErrorBudgetBurn.md#odd", summary="'
        r'sh\"op {{x}}/odd: 22.58% of requests failed over 1h (objective 99.9%), worst: GET /q\"\\{id}"}'
    )


def test_annotations_of_latency_name_the_slowest_route(tmp_path: Path) -> None:
    """Where too many requests are slow, the summary says how slow and names the route with most of them."""
    made = plan(Latency("fast", 99.9, within="300ms"))
    series = incidents_of_one_slow_route(made)
    test = {
        "interval": "15s",
        "input_series": series,
        "alert_rule_test": [{"eval_time": "20m", "alertname": "ErrorBudgetBurn", "exp_alerts": []}],
    }
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": [test]}
    shown = promtool(tmp_path, rule_file(made), tests)[1]
    assert "of requests took more than 300ms over 1h (objective 99.9%), worst: PUT /orders/{order_id}/pay" in shown


def incidents_of_one_slow_route(made: SLOPlan) -> list[dict[str, Any]]:
    """Return series of two routes, of which the second alone is slow."""
    slow = (IncidentPhase(600, Decimal(10)), IncidentPhase(600, Decimal(10), Decimal("0.5")))
    return [
        *(each for each in incident_series(made, made.slos[0], slow) if "PUT" in each["series"]),
        *(
            each
            for each in incident_series(made, made.slos[0], (IncidentPhase(1200, BUSY),))
            if "PUT" not in each["series"]
        ),
    ]
