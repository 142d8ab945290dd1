"""The rule file: its rules, that Prometheus accepts it, its cost, and the commands that write and check it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml as stock
from fastapi import FastAPI
from tools import needs

from fastapi_observe import Availability, Latency, ObserveSettings, SLOOptions, generate_rules, install
from fastapi_observe.cli.main import main
from fastapi_observe.slo.loading import LoadError
from fastapi_observe.slo.plan import SLOPlan, make_plan
from fastapi_observe.slo.prometheus import yaml
from fastapi_observe.slo.prometheus.rules import make_rules, operator_format, rule_file
from fastapi_observe.slo.report import format_long_duration, report_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

SOAK = os.environ.get("OBSERVE_SOAK") == "1"
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
APP = """
from fastapi import FastAPI
from fastapi_observe import Availability, Latency, SLOOptions, install
app = FastAPI(title="shop")
install(app, logs=False, slos=({slos}), slo_options=SLOOptions(runbook_url="https://r/{{alert}}#{{slo}}", team="shop"))
@app.get("/orders")
async def orders() -> str:
    return "ok"
"""


async def answer() -> str:
    """Answer."""
    return "ok"


def shop(*paths: str) -> FastAPI:
    """Build an app."""
    app = FastAPI(title="shop")
    for path in paths or ("/orders", "/orders/{order_id}", '/quo"te\\{id}', "/käse`"):
        app.get(path)(answer)
        app.post(path)(answer)
    return app


def plan(*objectives: Any, app: Any = None, service: str = "shop", **options: Any) -> SLOPlan:
    """Resolve objectives against the app."""
    settings = ObserveSettings(service_name=service, slos=objectives, slo_options=SLOOptions(**options))
    return make_plan(app or shop(), settings)


OBJECTIVES = (
    Availability("availability", 99.9, sla=99.5),
    Availability(
        "checkout", 99.95, ["POST /orders", '/quo"te\\{id}', "/käse`"], bad_statuses=["5xx", "429"], min_bad_events=3
    ),
    Latency("latency", 95, within="300ms"),
)


def lint(directory: Path, rules: str) -> subprocess.CompletedProcess[str]:
    """Run all checks of promtool on a rule file."""
    (directory / "linted.yml").write_text(rules, "utf-8")
    command = [needs("promtool"), "check", "rules", "--lint=all", "--lint-fatal", "linted.yml"]
    return subprocess.run(command, cwd=directory, capture_output=True, check=False, encoding="utf-8")  # noqa: S603


def alerts(made: SLOPlan) -> list[dict[str, Any]]:
    """Return all alerts."""
    return [rule for group in make_rules(made)["groups"] for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("service", ["shop", 'sh"op\\ {{ .x }} käse', "yes", "a: b #c"])
@pytest.mark.parametrize("objectives", [OBJECTIVES, ()], ids=["objectives", "none"])
def test_prometheus_accepts_the_rules(objectives: Any, service: str, tmp_path: Path) -> None:
    """`promtool check rules` finds nothing, whatever the names of service and routes, also without objectives."""
    checked = lint(tmp_path, rule_file(plan(*objectives, service=service, dashboard_url="https://g/d?a={slo}")))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not checked.stderr


def test_the_rules_of_an_objective() -> None:
    """Two groups: short windows and pages every 30 s, windows of days, budgets and tickets every two minutes."""
    made = plan(Availability("availability", 99.9, sla=99.5))
    fast, slow, service = make_rules(made)["groups"]
    assert [fast["name"], fast["interval"]] == ["fastapi-observe:shop:slo:availability", "30s"]
    assert [slow["name"], slow["interval"]] == ["fastapi-observe:shop:slo:availability:slow", "120s"]
    assert service["name"] == "fastapi-observe:shop:service"
    assert [rule.get("record", rule.get("alert")) for rule in fast["rules"]] == [
        "slo:events:rate1m", "slo:bad_events:rate1m", "slo:error_ratio:rate5m", "slo:error_ratio:rate30m",
        "slo:error_ratio:rate1h", "slo:error_ratio:rate6h", "ErrorBudgetBurn", "ErrorBudgetBurn", "SLODataMissing",
    ]  # fmt: skip
    assert [rule.get("record", rule.get("alert")) for rule in slow["rules"]] == [
        "slo:error_ratio:rate2h", "slo:error_ratio:rate1d", "slo:error_ratio:rate3d", "slo:error_ratio:rate30d",
        "slo:objective:ratio", "slo:error_budget_remaining:ratio", "slo:sla_budget_remaining:ratio",
        "ErrorBudgetBurn", "ErrorBudgetBurn", "ErrorBudgetLow",
    ]  # fmt: skip
    series = '{service="shop",slo="availability"}'
    by_name = {rule["record"]: rule["expr"] for rule in slow["rules"] if "record" in rule}
    assert by_name["slo:error_ratio:rate30d"] == (
        f"sum_over_time(slo:bad_events:rate1m{series}[30d])\n/ (sum_over_time(slo:events:rate1m{series}[30d]) > 0)"
    )
    assert by_name["slo:objective:ratio"] == "vector(0.999)"
    assert by_name["slo:sla_budget_remaining:ratio"] == f"1 - slo:error_ratio:rate30d{series} / 0.005"
    page = fast["rules"][6]
    assert page["expr"] == (
        f"slo:error_ratio:rate1h{series} > 0.0144\nand slo:error_ratio:rate5m{series} > 0.0144\n"
        f"and round(sum_over_time(slo:bad_events:rate1m{series}[1h]) * 30) >= 5"
    )
    assert page["labels"] == {"service": "shop", "slo": "availability", "window": "1h", "severity": "page"}


def test_each_alert_has_annotations() -> None:
    """Every alert has a severity, a summary, a description and a runbook; only two alerts page."""
    found = alerts(plan(*OBJECTIVES, team="shop-backend", runbook_url="https://r/{alert}.md#{slo}"))
    for alert in found:
        assert alert["labels"]["severity"] in {"page", "ticket", "info"}
        assert alert["labels"]["service"] == "shop"
        assert alert["labels"]["team"] == "shop-backend"
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"].startswith(f"https://r/{alert['alert']}.md")
        assert alert["annotations"]["runbook_url"].endswith(
            f"#{alert['labels']['slo']}" if "slo" in alert["labels"] else "d"
        )
        assert "{{ range query" in alert["annotations"]["summary"] or not alert["alert"].startswith("ErrorBudget")
    assert {alert["alert"] for alert in found if alert["labels"]["severity"] == "page"} == {
        "ErrorBudgetBurn",
        "ServiceDown",
    }
    assert {alert["alert"] for alert in found} == {
        "ErrorBudgetBurn", "ErrorBudgetLow", "SLODataMissing", "ServiceDown", "InstanceDown", "InstanceRestarting",
        "EventLoopLagHigh", "DBPoolNearlyExhausted", "FileDescriptorsNearlyExhausted", "TelemetrySpansDropped",
        "TelemetryLogsDropped", "TelemetrySeriesLimit", "SLORulesOutdated",
    }  # fmt: skip


def test_the_rules_use_existing_metrics() -> None:
    """Every metric of a rule is documented in docs/reference/metrics.md, from Prometheus itself, or recorded."""
    documented = set(re.findall(r"^\| `(\w+)`", DOCS.read_text("utf-8"), re.MULTILINE))
    made = plan(*OBJECTIVES)
    recorded = {rule["record"] for group in make_rules(made)["groups"] for rule in group["rules"] if "record" in rule}
    for group in make_rules(made)["groups"]:
        for rule in group["rules"]:
            for name in re.findall(r"([a-z_][a-z0-9_:]*)\{", rule["expr"], re.IGNORECASE):
                known = name.removesuffix("_bucket") in documented | {"up", "fastapi_observe_slo_config_info"}
                assert known or name in recorded, name


def test_a_longer_scrape_interval_has_a_longer_base() -> None:
    """Rates are over four scrapes; the names of the series stay."""
    first = make_rules(plan(Availability("a", 99), scrape_interval="30s"))["groups"][0]["rules"][0]
    assert first["record"] == "slo:events:rate1m"
    assert "[2m]" in first["expr"]


def test_keep_firing_can_be_left_out(tmp_path: Path) -> None:
    """`keep_firing=False`, of the options or of the call, omits `keep_firing_for` for older versions."""
    app = shop()
    install(app, slos=OBJECTIVES, logs=False)
    assert "keep_firing_for" in yaml.dump(generate_rules(app))
    assert "keep_firing_for" not in yaml.dump(generate_rules(app, keep_firing=False))
    assert "keep_firing_for" not in rule_file(plan(*OBJECTIVES, keep_firing=False))
    app.state.observe.close()


def test_invalid_objectives_make_no_rules() -> None:
    """All problems are raised at once; an app without `install` is an error."""
    with pytest.raises(ValueError, match=r"^error: SLO01 a: .*\nerror: SLO01 b: "):
        make_rules(plan(Availability("a", 99, ["/x"]), Availability("b", 99, ["/y"])))
    with pytest.raises(LoadError, match=r"the app is not installed; call install\(app\)"):
        generate_rules(shop())


def test_the_operator_format_has_the_same_rules() -> None:
    """A `PrometheusRule` has the groups in its spec, and a name that is valid in Kubernetes."""
    made = plan(*OBJECTIVES, service="Shop & Söhne")
    resource = stock.safe_load(rule_file(made, form="operator"))
    assert resource["kind"] == "PrometheusRule"
    assert resource["metadata"]["name"] == "fastapi-observe-shop-s-hne"
    assert resource["spec"] == stock.safe_load(rule_file(made))
    assert operator_format({}, plan(service="!"))["metadata"]["name"] == "fastapi-observe-service"


def test_the_rule_file_is_stable() -> None:
    """Rules do not depend on the order of routes or of sets; the header has version and configuration."""
    first = rule_file(plan(*OBJECTIVES))
    assert first == rule_file(plan(*OBJECTIVES, app=shop("/käse`", '/quo"te\\{id}', "/orders/{order_id}", "/orders")))
    assert re.match(r"# Made by fastapi-observe \S+ from the objectives of shop; do not edit, make it again.\n"
                    rf"# Configuration: {plan(*OBJECTIVES).hash}\n", first)  # fmt: skip
    assert rule_file(plan(service="a\nb")).startswith("# Made by fastapi-observe 0")
    assert rule_file(plan(service="a\nb")).splitlines()[2] == "groups:"


RUNS_OUT = [
    "DBPoolNearlyExhausted", "EventLoopLagHigh", "FileDescriptorsNearlyExhausted", "InstanceDown", "InstanceRestarting",
    "SLORulesOutdated", "TelemetryLogsDropped", "TelemetrySeriesLimit", "TelemetrySpansDropped",
]  # fmt: skip


def exhausted(made: SLOPlan) -> list[dict[str, str]]:
    """Return input series of promtool in which every resource is exhausted."""

    def series(name: str, values: str, **labels: str) -> dict[str, str]:
        every = {"job": "shop", "instance": "a", **labels}
        return {
            "series": f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in every.items())}}}",
            "values": values,
        }

    return [
        series("up", "1x120"),
        series("up", "0x120", instance="b"),
        series("process_start_time_seconds", "1 1 1 1 2 2 2 3 3 3 4+0x110"),
        series("process_open_fds", "90x120", pid="7"),
        series("process_max_fds", "100x120", pid="7"),
        series("db_connections_active", "19x120", pool="main"),
        series("db_connections_max", "20x120", pool="main"),
        series("fastapi_observe_dropped_total", "0+1x120", signal="traces", reason="queue"),
        series("fastapi_observe_dropped_total", "0+1x120", signal="otlp_logs", reason="queue"),
        series("fastapi_observe_series_overflow_total", "_x20 1+0x120", metric="db_queries_total"),
        series("fastapi_observe_slo_config_info", "1x120", hash="other"),
        series("fastapi_observe_slo_config_info", "1x120", hash=made.hash, instance="c"),
        series("asyncio_event_loop_lag_seconds_bucket", "0+15x120", le="0.25"),
        series("asyncio_event_loop_lag_seconds_bucket", "0+30x120", le="0.5"),
        series("asyncio_event_loop_lag_seconds_bucket", "0+30x120", le="+Inf"),
    ]


def test_exhausted_resources_fire_alerts(tmp_path: Path) -> None:
    """Instances, event loop, pools, file descriptors, dropped telemetry and outdated rules each fire their alert."""
    made = plan(Availability("a", 99))
    count = 'count by (alertname) (ALERTS{alertstate="firing",slo=""})'
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in RUNS_OUT]
    seen = {"expr": f"count_over_time(({count})[80m:1m]) > bool 0", "eval_time": "80m", "exp_samples": samples}
    test = {"interval": "1m", "input_series": exhausted(made), "promql_expr_test": [seen]}
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "rules.yml").write_text(rule_file(made), "utf-8")
    (tmp_path / "tests.yml").write_text(yaml.dump(whole), "utf-8")
    command = [needs("promtool"), "test", "rules", "tests.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, encoding="utf-8")  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_report() -> None:
    """The report has the thresholds, failures, times to detection and budgets of the SRE Workbook."""
    rows = report_rows(plan(Availability("a", 99.9), Latency("b", 95, within="1s", expected_rpm=2)))
    assert rows[0] == (
        "objective", "alert", "fires above", "burn", "failures needed", "at 100%", "at 10%", "at 1%", "budget spent",
    )  # fmt: skip
    assert rows[1] == ("a", "page 1h/5m", "1.44%", "14.4x", "5, and 1.44% of 1h", "52s", "8m 39s", "never", "2%")
    assert rows[3][5:] == ("4m 20s", "43m 12s", "7h 12m", "10%")
    assert rows[5] == ("b", "page 1h/5m", "72%", "14.4x", "87", "43m 12s", "never", "never", "2%")
    thin = report_rows(plan(Availability("a", 99.9, expected_rpm=0.05)))
    assert thin[1][4:8] == ("5", "never", "never", "never")
    assert thin[4][4:8] == ("5", "1h 40m", "16h 40m", "never")
    assert format_long_duration(Decimal(0)) == "0s"


# --- the commands


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that writes an app with objectives and returns its name, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written: list[str] = []

    def write(slos: str) -> str:
        name = f"shop_{tmp_path.name.replace('-', '_')}_{len(written)}"
        (tmp_path / f"{name}.py").write_text(APP.format(slos=slos), "utf-8")
        written.append(name)
        return f"{name}:app"

    yield write
    for name in written:
        module = sys.modules.pop(name, None)
        if module is not None:
            module.app.state.observe.close()


GOOD = 'Availability("api", 99.9, ["/orders"]), Latency("fast", 95, within="300ms")'


def test_rules_are_written_and_checked(target: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`slo bundle --only rules` writes the rules and their tests; `--check` exits with 1 once they differ."""
    app = target(GOOD)
    command = ["slo", "bundle", app, "-o", "prom", "--only", "rules"]
    assert main([*command, "--check"]) == 1
    assert capsys.readouterr().out == "missing   prom/rules.yml\nmissing   prom/rules_test.yml\n"
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == "new       prom/rules.yml\nnew       prom/rules_test.yml\n"
    (problem,) = re.findall(r".*SLO\d\d.*", printed.err)
    assert problem.startswith(
        "info: SLO03 fast: added a histogram bucket at 300ms for this objective (0.25, 0.3, 0.5; "
    )
    rules = (tmp_path / "prom/rules.yml").read_text("utf-8")
    assert stock.safe_load((tmp_path / "prom/rules_test.yml").read_text("utf-8"))["rule_files"] == ["rules.yml"]
    assert main([*command, "--check"]) == 0
    capsys.readouterr()
    (tmp_path / "prom/rules.yml").write_text(rules.replace("> 0.0144", "> 0.144"), "utf-8")
    assert main([*command, "--check"]) == 1
    assert capsys.readouterr().out == "differs   prom/rules.yml\n"


def test_formats_of_the_rules(target: Any, tmp_path: Path) -> None:
    """The operator's format has no tests, and `keep_firing_for` can be omitted."""
    app = target(GOOD)
    assert main(["slo", "bundle", app, "-o", "operator", "--only", "rules", "--format", "operator"]) == 0
    assert [path.name for path in (tmp_path / "operator").iterdir()] == ["rules.yml"]
    assert stock.safe_load((tmp_path / "operator/rules.yml").read_text("utf-8"))["kind"] == "PrometheusRule"
    for directory, options in (("with", []), ("without", ["--no-keep-firing"])):
        assert main(["slo", "bundle", app, "-o", directory, "--only", "rules", *options]) == 0
        rules = (tmp_path / directory / "rules.yml").read_text("utf-8")
        assert ("keep_firing_for" in rules) == (directory == "with")


def test_a_directory_that_is_a_file(target: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Status 2 and a message: 1 would mean that files differ."""
    (tmp_path / "file").write_text("", "utf-8")
    assert main(["slo", "bundle", target(GOOD), "-o", "file"]) == 2
    assert "cannot write file: File exists; choose another directory with -o" in capsys.readouterr().err


def test_check_and_report(target: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`slo check` shows what each objective counts, `slo report` what its alerts need."""
    app = target(GOOD)
    assert main(["slo", "check", app]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["objective", "target", "counts", "alerts"]
    assert shown[1].split("  ")[0] == "api"
    assert "99.9% without 5xx" in shown[1]
    assert "GET /orders" in shown[1]
    assert "95% within 300ms" in shown[2]
    assert "all 1 measured: GET /orders" in shown[2]
    assert main(["slo", "report", app]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_invalid_objectives_fail_the_commands(target: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command prints the problems and exits with 1; an app that cannot be loaded exits with 2."""
    app = target('Availability("api", 99.9, ["/order"]), Availability("other", 99.9, ["/item"])')
    for command, status in (("check", 1), ("report", 1), ("bundle", 2)):
        assert main(["slo", command, app]) == status
        out, printed = capsys.readouterr()
        assert command != "check" or " none " in out.splitlines()[1]  # what it counts
        assert "SLO01 api: '/order' matches no route; did you mean '/orders'? Routes: GET /orders" in printed
        assert "SLO01 other: '/item' matches no route" in printed
    assert main(["slo", "check", "no_such_module:app"]) == 2
    assert "there is no module 'no_such_module'" in capsys.readouterr().err
    refused = target('Availability("api", 100), Availability("x", 99), Availability("x", 99)')  # by `install`
    for arguments in (["check"], ["verify", "--prometheus", "http://127.0.0.1:1"]):
        assert main(["slo", *arguments, refused]) == 1
        printed = capsys.readouterr().err
        assert "error: SLO05 api: 100 leaves no error budget" in printed
        assert "error: SLO09 x: the name 'x' is used twice" in printed


# --- what the rules cost on a real Prometheus


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Any]:
    """Return a function that starts Prometheus on samples and returns one for queries: (result, samples read)."""
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str) -> Any:
        (tmp_path / "samples").write_text(text, "utf-8")
        (tmp_path / "prometheus.yml").write_text("{}", "utf-8")
        backfill = [needs("promtool"), "tsdb", "create-blocks-from", "openmetrics", "samples", "data"]
        subprocess.run(backfill, cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            needs("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
            f"--web.listen-address={address}", "--log.level=error", "--query.lookback-delta=5m",
        ]  # fmt: skip
        started.append(subprocess.Popen(command, cwd=tmp_path))  # noqa: S603
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)  # until it listens

        def ask(query: str, at: int) -> tuple[list[Any], int]:
            asked = urllib.parse.urlencode({"query": query, "time": at, "stats": "all"})
            with urllib.request.urlopen(f"http://{address}/api/v1/query?{asked}", timeout=60) as answered:
                data = json.load(answered)["data"]
            return data["result"], data["stats"]["samples"]["totalQueryableSamples"]

        return ask

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def backfilled(routes: list[str], begin: int, end: int) -> Iterator[str]:
    """Yield samples of four statuses of each route every 15 s, and of their recorded series every 30 s."""
    yield "# TYPE http_requests counter"
    for route in routes:
        for status in ("200", "302", "404", "500"):
            for at in range(begin, end + 1, 15):
                count = (at - begin) * (1 if status == "500" else 9)
                yield (f'http_requests_total{{job="shop",instance="a",method="GET",endpoint="{route}",'
                       f'status_code="{status}"}} {count} {at}')  # fmt: skip
    for name, rate in (("events", 28 * len(routes)), ("bad_events", len(routes))):
        yield f"# TYPE slo:{name}:rate1m gauge"
        for at in range(begin + 60, end + 1, 30):
            yield f'slo:{name}:rate1m{{service="shop",slo="api"}} {rate} {at}'
    yield "# EOF"


def test_recorded_windows_cost_a_twentieth(prometheus: Any) -> None:
    """All rules of an objective over 50 routes read at most 1/20 of the samples that the raw series would need."""
    needs("prometheus")
    routes = [f"/r{at}" for at in range(50)]
    made = plan(Availability("api", 99.9, ["/r*"]), app=shop(*routes))
    end = int(time.time()) // 60 * 60 - 3600
    ask = prometheus("\n".join(backfilled(routes, end - (12 if SOAK else 3) * 3600, end)) + "\n")
    rules = [rule for group in make_rules(made)["groups"][:2] for rule in group["rules"]]
    ours = sum(ask(rule["expr"], end)[1] for rule in rules)
    raw = 0
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    for name, expression in recorded.items():
        if name.startswith("slo:error_ratio:"):
            window = name.rpartition("rate")[2]
            bad, every = (
                recorded[f"slo:{each}:rate1m"].replace("[1m]", f"[{window}]") for each in ("bad_events", "events")
            )
            value, samples = ask(f"({bad.partition(' or 0')[0].partition(chr(10))[0]}) / ({every})", end)
            raw += samples
            derived = ask(expression, end)[0]
            assert float(derived[0]["value"][1]) == pytest.approx(1 / 28, rel=1e-3)
            assert float(value[0]["value"][1]) == pytest.approx(1 / 28, rel=1e-2)
    assert ours * 20 <= raw, f"{ours} samples against {raw}"
