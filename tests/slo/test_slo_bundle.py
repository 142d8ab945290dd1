"""The bundle: its files are valid and stable, the user's notes are kept, and alerts are routed."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from monitored import ROOT, command, serving
from tools import needs

from fastapi_observe import Availability, Latency, SLOOptions
from fastapi_observe.cli.main import main
from fastapi_observe.slo.bundle import PARTS, UnmanagedFileError, compare, make_bundle, merge_user_edits, write
from fastapi_observe.slo.datasources import make_datasources
from fastapi_observe.slo.features import detect_features
from fastapi_observe.slo.loading import get_plan
from fastapi_observe.slo.prometheus import yaml
from fastapi_observe.slo.prometheus.alertmanager import make_alertmanager
from fastapi_observe.slo.prometheus.rules import make_rules
from fastapi_observe.slo.runbooks.pages import MarkerError, keep_user_sections, make_runbooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen
    from monitored import Api

    from fastapi_observe.slo.plan import SLOPlan

SHOP = ROOT / "example_app" / "observability"
SLOS = (
    Availability("availability", 99.9, sla=99.5),
    Availability("checkout", 99.95, routes=["POST /orders"], bad_statuses=["5xx", "429"], min_bad_events=1),
    Latency("latency", 95, within="300ms", routes=["/orders/{order_id}"]),
)


def shop(routes: int = 0) -> FastAPI:
    """Return an app, with more routes."""
    app = FastAPI()

    @app.post("/orders")
    async def order() -> None: ...

    @app.get("/orders/{order_id}")
    async def read_order(order_id: int) -> None: ...

    for at in range(routes):
        app.get(f"/things{at:04}/{{thing_id}}")(read_order)
    return app


@pytest.fixture
def made(observed: Callable[..., Seen]) -> Callable[..., tuple[SLOPlan, dict[str, str]]]:
    """Return a function that makes bundles."""

    def make(app: FastAPI | None = None, **settings: Any) -> tuple[SLOPlan, dict[str, str]]:
        app = app or shop()
        observed(app, **{"service_name": "shop", "slos": SLOS, **settings})
        own, plan = get_plan(app)
        return plan, make_bundle(plan, own, detect_features(app, own))

    return make


def run_checker(*arguments: str | Path) -> str:
    """Run a program that must succeed; return its output."""
    program = needs(str(arguments[0]))
    done = subprocess.run([program, *arguments[1:]], capture_output=True, check=False, text=True)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_is_valid(made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path) -> None:
    """Promtool and amtool accept rules, scrape configuration and routing; the dashboard is JSON."""
    _, files = made(metrics_token="a" * 20, slo_options=SLOOptions(selector={"job": "web", "app": "shop"}))
    write(files, tmp_path)
    assert "SUCCESS" in run_checker("promtool", "check", "rules", tmp_path / "rules.yml")
    assert "SUCCESS" in run_checker("promtool", "check", "config", "--syntax-only", tmp_path / "prometheus.yml")
    assert "job_name: web" in files["prometheus.yml"]
    assert "app: shop" in files["prometheus.yml"]
    assert "credentials_file" in files["prometheus.yml"]
    assert "SUCCESS" in run_checker("amtool", "check-config", tmp_path / "alertmanager.yml")
    assert json.loads(files["dashboard.json"])["schemaVersion"] == 39
    assert [*files][:7] == [
        "rules.yml",
        "rules_test.yml",
        "dashboard.json",
        "alertmanager.yml",
        "datasources.yml",
        "prometheus.yml",
        "RETENTION.md",
    ]


def test_parts_of_a_bundle_are_those_of_the_whole(observed: Callable[..., Seen], tmp_path: Path) -> None:
    """Each part has the same files as the whole bundle; a part without runbooks calls no runbook obsolete."""
    app = shop()
    observed(app, service_name="shop", slos=SLOS)
    settings, plan = get_plan(app)
    features = detect_features(app, settings)
    whole = make_bundle(plan, settings, features)
    parts = [make_bundle(plan, settings, features, [part]) for part in PARTS]
    assert {name: text for part in parts for name, text in part.items()} == whole
    assert [*make_bundle(plan, settings, features, ["dashboard", "rules"])] == [
        "rules.yml", "rules_test.yml", "dashboard.json",
    ]  # fmt: skip
    write(whole, tmp_path)
    assert compare(parts[0], tmp_path).same
    operator = make_bundle(plan, settings, features, ["rules"], rule_format="operator")
    assert [*operator] == ["rules.yml"]
    assert "kind: PrometheusRule" in operator["rules.yml"]


def test_the_prometheus_configuration_finds_the_rules(tmp_path: Path) -> None:
    """The example's bundle is a configuration that Prometheus can start with."""
    for name in ("rules.yml", "prometheus.yml"):
        (tmp_path / name).write_text((SHOP / name).read_text("utf-8"), "utf-8")
    assert "1 rule files found" in run_checker("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_the_same_app_gives_the_same_files(observed: Callable[..., Seen]) -> None:
    """Two equal apps have equal bundles, byte for byte."""
    bundles = []
    for _ in range(2):
        app = shop(5)
        observed(app, service_name="shop", slos=SLOS)
        settings, plan = get_plan(app)
        bundles.append(make_bundle(plan, settings, detect_features(app, settings)))
    assert bundles[0] == bundles[1]
    assert [*bundles[0]] == [*bundles[1]]


def test_the_bundle_grows_linearly_with_the_routes(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """Each further route adds the same few bytes, and none to rules and dashboard where all routes count."""
    sizes = []
    for routes in (100, 200, 400):
        named = Availability("all", 99.9, routes=["/things*"])
        _, files = made(shop(routes), slos=[named])
        sizes.append(sum(map(len, files.values())))
    first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
    assert abs(second - 2 * first) < 100  # numbers have more digits
    _, few = made(shop(10), slos=[Availability("all", 99.9)])
    _, many = made(shop(400), slos=[Availability("all", 99.9)])
    assert len(few["dashboard.json"]) == len(many["dashboard.json"])
    assert few["rules.yml"].count("\n") == many["rules.yml"].count("\n")


def test_without_objectives_there_is_still_a_bundle(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """Alerts of the service, their runbooks and the dashboard need no objectives; signals may be off."""
    _, files = made(slos=(), tracing=False, logs=False)
    assert "ServiceDown" in files["rules.yml"]
    assert "runbooks/ServiceDown.md" in files
    assert "runbooks/ErrorBudgetBurn.md" not in files
    assert "Tempo" not in files["datasources.yml"]
    assert "exemplar" not in files["prometheus.yml"]
    assert "derivedFields" not in made(slos=(), tracing=False)[1]["datasources.yml"]
    assert "tracesToLogsV2" not in made(slos=(), logs=False)[1]["datasources.yml"]


def test_data_sources_link_to_each_other(observed: Callable[..., Seen]) -> None:
    """Exemplars link to Tempo, its spans to Loki, log lines back to Tempo; every dollar is escaped."""
    app = shop()
    observed(app, service_name="shop")
    settings, plan = get_plan(app)
    sources = make_datasources(plan, detect_features(app, settings))["datasources"]
    assert {source["uid"] for source in sources} == {"prometheus", "tempo", "loki"}
    text = json.dumps(sources)
    assert re.findall(r'"datasourceUid": "(\w+)"', text) == ["tempo", "loki", "tempo"]
    assert text.count("$") == 2 * text.count("$${__")


def test_retention_holds_the_period(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """Prometheus keeps five days more than the period; the page counts the recorded series."""
    _, files = made(slo_options=SLOOptions(period="28d", scrape_interval="30s"))
    assert "--storage.tsdb.retention.time=33d" in files["prometheus.yml"]
    assert "3 objectives: 37 recorded series" in files["RETENTION.md"]
    assert "2,880 samples per day" in files["RETENTION.md"]
    assert "timeInterval: 30s" in files["datasources.yml"]


def test_scrape_intervals_have_no_fraction(made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path) -> None:
    """Prometheus reads no fractions: 7.5s is written in milliseconds."""
    _, files = made(slo_options=SLOOptions(scrape_interval="7.5s"))
    write(files, tmp_path)
    assert "scrape_interval: 7500ms" in files["prometheus.yml"]
    run_checker("promtool", "check", "config", tmp_path / "prometheus.yml")


# Runbooks


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a page, as code hosts make them."""
    heads = [line.lstrip("#").strip() for line in page.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_each_alert_has_its_runbook(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """Every runbook_url names a file of the bundle, and its anchor a heading; no template is unused."""
    plan, files = made()
    alerts = [rule for group in make_rules(plan)["groups"] for rule in group["rules"] if "alert" in rule]
    for rule in alerts:
        name, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert name in files
        assert not anchor or anchor in anchors(files[name])
        assert anchor == rule["labels"].get("slo", "")
    assert {rule["alert"] for rule in alerts} == {
        path.stem for path in (ROOT / "fastapi_observe" / "slo" / "runbooks").glob("*.md")
    }


def test_each_objective_has_its_section(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """The section of an objective has its own thresholds, times to detection and budget."""
    _, files = made()
    page = files["runbooks/ErrorBudgetBurn.md"]
    checkout = page.partition("\n## checkout\n")[2].partition("\n## ")[0]
    assert "99.95 % of requests succeed (bad: 5xx, 429) over 30d." in checkout
    assert "`POST /orders`" in checkout
    assert "| 1h and 5m | page | 0.72 % (14.4 times as fast as allowed) | 26 s | 4 min | 43 min | 2 % |" in checkout
    assert "at least 1 bad request in" in checkout
    assert "the whole budget is spent in 21.6 minutes" in checkout
    availability = page.partition("\n## availability\n")[2].partition("\n## ")[0]
    assert "the SLA is 99.5 %." in availability
    assert "all measured routes, currently 2" in availability
    assert "complete within 300ms" in page


def test_many_routes_are_counted_not_listed(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """A section lists at most ten routes and counts the others."""
    _, files = made(shop(30), slos=[Availability("things", 99.9, routes=["/things*"])])
    assert "and 20 more." in files["runbooks/ErrorBudgetBurn.md"]


def test_a_dashboard_url_is_linked(made: Callable[..., tuple[SLOPlan, dict[str, str]]]) -> None:
    """Runbooks link to the dashboard if its URL is set."""
    _, files = made(slo_options=SLOOptions(dashboard_url="https://grafana.example/d/shop?slo={slo}"))
    assert "(https://grafana.example/d/shop?slo=)" in files["runbooks/ServiceDown.md"]


def test_every_query_of_the_runbooks_is_promql(
    made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path
) -> None:
    """Promtool parses each query of the runbooks."""
    _, files = made()
    found = [
        query for name, page in files.items() if name.startswith("runbooks/")
        for query in re.findall(r"```promql\n(.*?)\n```", page, re.DOTALL)
    ]  # fmt: skip
    rules = [{"record": f"query:{at}", "expr": query} for at, query in enumerate(dict.fromkeys(found))]
    (tmp_path / "queries.yml").write_text(yaml.dump({"groups": [{"name": "runbooks", "rules": rules}]}), "utf-8")
    assert f"{len(rules)} rules found" in run_checker("promtool", "check", "rules", tmp_path / "queries.yml")
    assert len(rules) > 30
    assert not [query for query in found if "<" in query.replace("< ", "")]


def test_text_between_keep_markers_is_kept(made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path) -> None:
    """Text between keep markers survives when a page is made again; changes elsewhere do not."""
    plan, files = made()
    write(files, tmp_path)
    page = tmp_path / "runbooks" / "ErrorBudgetBurn.md"
    text = page.read_text("utf-8").replace("TODO notes on checkout", "Call Ada: checkout")
    page.write_text(text.replace("# ErrorBudgetBurn", "# changed by hand"), "utf-8")
    fitted = merge_user_edits(files, tmp_path)
    assert compare(fitted, tmp_path).different == ("runbooks/ErrorBudgetBurn.md",)
    write(fitted, tmp_path)
    assert "Call Ada: checkout" in page.read_text("utf-8")
    assert "changed by hand" not in page.read_text("utf-8")
    assert compare(merge_user_edits(files, tmp_path), tmp_path).same
    fewer = make_runbooks(plan._replace(slos=plan.slos[:1]))
    kept = keep_user_sections(fewer["ErrorBudgetBurn.md"], page.read_text("utf-8"))
    assert kept.count("Call Ada: checkout") == 1
    assert "## Kept from before" in kept
    assert "notes on latency" not in kept
    assert keep_user_sections(fewer["ErrorBudgetBurn.md"], kept) == kept
    assert keep_user_sections(files["runbooks/ErrorBudgetBurn.md"], kept).count("Call Ada: checkout") == 1


def test_notes_outlive_their_objective(
    made: Callable[..., tuple[SLOPlan, dict[str, str]]],
) -> None:
    """Only an unchanged placeholder is dropped with its objective; a note below the placeholder is kept."""
    plan, files = made()
    page = files["runbooks/ErrorBudgetBurn.md"]
    todo = "TODO notes on latency: owners, dependencies, known causes.\n"
    noted = page.replace(todo, f"{todo}Call Ada\n")
    fewer = make_runbooks(plan._replace(slos=plan.slos[:1]))["ErrorBudgetBurn.md"]
    kept = keep_user_sections(fewer, noted)
    assert kept.count("Call Ada") == 1
    assert "notes on checkout" not in kept
    assert keep_user_sections(page, kept) == noted


@pytest.mark.parametrize(
    "broken",
    [
        "<!-- keep one -->\ntext\n",
        "text\n<!-- /keep -->\n",
        "<!-- keep -->\ntext\n<!-- /keep -->\n",
        "<!-- keep one -->\n<!-- keep two -->\ntext\n<!-- /keep -->\n",
        "<!-- keep one -->\na\n<!-- /keep -->\n<!-- keep one -->\nb\n<!-- /keep -->\n",
    ],
)
def test_markers_that_do_not_pair_are_an_error(broken: str) -> None:
    """Where the user's text cannot be found, nothing is overwritten."""
    with pytest.raises(MarkerError, match="keep marker"):
        keep_user_sections("made\n", broken)


# Files


def test_unmanaged_files_are_not_touched(made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path) -> None:
    """A file that was not generated stops the writing of all files; other files in the directory stay."""
    _, files = made()
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n", "utf-8")
    with pytest.raises(UnmanagedFileError, match=r"prometheus\.yml was not made by fastapi-observe"):
        merge_user_edits(files, tmp_path)
    (tmp_path / "prometheus.yml").unlink()
    (tmp_path / "runbooks").mkdir()
    (tmp_path / "runbooks" / "ServiceDown.md").write_text(
        files["runbooks/ServiceDown.md"] + "<!-- keep x -->\n", "utf-8"
    )
    with pytest.raises(UnmanagedFileError, match=r"ServiceDown\.md: a keep marker"):
        merge_user_edits(files, tmp_path)
    (tmp_path / "runbooks" / "ServiceDown.md").write_bytes(
        files["runbooks/ServiceDown.md"].replace("earlier", "M\xfcller").encode("latin-1")
    )
    with pytest.raises(UnmanagedFileError, match=r"ServiceDown\.md is not UTF-8"):
        merge_user_edits(files, tmp_path)
    (tmp_path / "runbooks" / "ServiceDown.md").unlink()
    (tmp_path / "runbooks" / "Own.md").write_text("# Own\n", "utf-8")
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    write(merge_user_edits(files, tmp_path), tmp_path)
    assert (tmp_path / "runbooks" / "Own.md").read_text("utf-8") == "# Own\n"
    assert compare(files, tmp_path).same


def test_obsolete_runbooks_are_reported(made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path) -> None:
    """A runbook whose alert no longer exists is reported and not deleted."""
    _, files = made()
    write(files, tmp_path)
    _, fewer = made(slos=())
    assert write(fewer, tmp_path).left_over == (
        "runbooks/ErrorBudgetBurn.md",
        "runbooks/ErrorBudgetLow.md",
        "runbooks/SLODataMissing.md",
    )
    assert (tmp_path / "runbooks" / "ErrorBudgetLow.md").exists()


def test_another_version_is_not_a_difference(
    made: Callable[..., tuple[SLOPlan, dict[str, str]]], tmp_path: Path
) -> None:
    """An update of fastapi-observe that changes nothing but its version number is not a difference."""
    _, files = made()
    older = {
        name: re.sub(r"(Made by fastapi-observe) \S+ from", r"\1 0.0.1 from", text) for name, text in files.items()
    }
    assert older != files
    write(older, tmp_path)
    assert compare(files, tmp_path).same


APP = """
from fastapi import FastAPI
from fastapi_observe import Availability, install
app = FastAPI()
app.get("/orders")(lambda: None)
install(app, service_name="tiny", slos=[Availability("all", 99.9, routes={routes})])
bare = FastAPI()
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Return a function that writes a module with an app; close the app afterwards."""
    from fastapi_observe.observability import INSTALLED  # noqa: PLC0415 - what the module leaves open

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = [*INSTALLED]

    def make(name: str, *routes: str) -> str:
        (tmp_path / f"{name}.py").write_text(APP.format(routes=routes), "utf-8")
        return f"{name}:app"

    yield make
    for observe in [each for each in INSTALLED if each not in before]:
        observe.close()


def test_bundle_and_check(tiny: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`slo bundle` writes, then finds nothing to do; `--check` lists differences, exits with 1 and writes nothing."""
    target = tiny("tiny_one")
    assert main(["slo", "bundle", target, "--check"]) == 1
    assert "missing   observability/rules.yml" in capsys.readouterr().out
    assert not (tmp_path / "observability").exists()
    assert main(["slo", "bundle", target]) == 0
    printed = capsys.readouterr()
    assert "new       observability/runbooks/ServiceDown.md" in printed.out
    assert (
        "left out: database, external, business, background, jobs, operations, streams; add with --include, or --url"
        in printed.err
    )
    assert main(["slo", "bundle", target]) == 0
    assert "17 files" not in capsys.readouterr().err
    assert main(["slo", "bundle", target, "--check"]) == 0
    assert "files in observability are up to date" in capsys.readouterr().out
    rules = tmp_path / "observability" / "rules.yml"
    rules.write_text(rules.read_text("utf-8").replace("0.0144", "0.144"), "utf-8")
    assert main(["slo", "bundle", target, "--check"]) == 1
    assert capsys.readouterr().out == "differs   observability/rules.yml\n"
    assert main(["slo", "bundle", target, "--include", "database"]) == 0
    assert capsys.readouterr().out.split() == [
        "new",
        "observability/runbooks/DBPoolNearlyExhausted.md",
        "changed",
        "observability/rules.yml",
        "changed",
        "observability/dashboard.json",
    ]


def test_single_files(tiny: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--only` makes a part of the bundle; runbooks that are not asked for are not obsolete."""
    target = tiny("tiny_two")
    assert main(["slo", "bundle", target, "-o", "all", "--only", "dashboard,alertmanager"]) == 0
    assert main(["slo", "bundle", target, "-o", "all", "--only", "runbooks"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["slo", "bundle", target, "--only", "rule"])
    assert "invalid part 'rule'; choose from rules, dashboard, alertmanager, datasources" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "alertmanager.yml",
        "dashboard.json",
        "runbooks",
    ]
    (tmp_path / "all" / "runbooks" / "Old.md").write_text("<!-- Made by fastapi-observe -->\n", "utf-8")
    capsys.readouterr()
    assert main(["slo", "bundle", target, "-o", "all", "--only", "dashboard", "--check"]) == 0
    capsys.readouterr()
    assert main(["slo", "bundle", target, "-o", "all", "--only", "runbooks", "--check"]) == 1
    assert capsys.readouterr().out.startswith("obsolete  all/runbooks/Old.md: its alert no longer exists")


def test_errors_of_the_bundle_command(
    tiny: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No app, no `install`, an invalid objective, an unmanaged file: one message, status 2, nothing written.

    `slo check` and `slo verify` report an invalid objective with status 1.
    """
    assert main(["slo", "bundle", "no.such:app"]) == 2
    assert "no module" in capsys.readouterr().err
    wrong = tiny("tiny_wrong", "/order")
    assert main(["slo", "bundle", wrong]) == 2
    assert main(["slo", "verify", wrong, "--prometheus", "http://127.0.0.1:9"]) == 1
    assert main(["slo", "bundle", wrong, "--only", "dashboard"]) == 2
    assert main(["slo", "check", wrong]) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if "SLO01" in line]
    assert len(problems) == 4  # once for each command
    assert {line.partition("SLO01")[0] for line in problems} == {"error: "}
    assert "did you mean" in problems[0]
    assert not (tmp_path / "observability").exists()
    target = tiny("tiny_three")
    assert main(["slo", "bundle", target.replace(":app", ":bare")]) == 2
    assert "call install(app)" in capsys.readouterr().err
    assert main(["slo", "bundle", target, "-o", "tiny_three.py/out"]) == 2
    assert (
        "cannot write tiny_three.py/out: Not a directory; choose another directory with -o" in capsys.readouterr().err
    )
    (tmp_path / "observability").mkdir()
    (tmp_path / "observability" / "rules.yml").write_text("groups: []\n", "utf-8")
    assert main(["slo", "bundle", target]) == 2
    assert "was not made by fastapi-observe" in capsys.readouterr().err


def test_the_bundle_of_the_example_is_current(tmp_path: Path) -> None:
    """`slo bundle --check` finds no difference in example_app/observability."""
    done = command(
        "slo", "bundle", "example_app.shop:app", "-o", "example_app/observability", "--check", EXAMPLE_DIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Alertmanager


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"severity": "page", "service": "shop", "slo": "checkout"}, "pager"),
        ({"severity": "ticket", "service": "shop"}, "tickets"),
        ({"severity": "info", "service": "shop"}, "none"),
        ({"alertname": "Foreign"}, "tickets"),
    ],
)
def test_alerts_go_to_their_receivers(labels: dict[str, str], receiver: str, tmp_path: Path) -> None:
    """Pages go to the pager, tickets and unknown alerts to the tickets, infos to no receiver."""
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.dump(make_alertmanager()), "utf-8")
    given = [f"{name}={value}" for name, value in labels.items()]
    assert run_checker("amtool", "config", "routes", "test", f"--config.file={file}", *given).strip() == receiver


def alert(name: str, severity: str, slo: str = "", service: str = "shop") -> dict[str, Any]:
    """Return a firing alert."""
    labels = {"alertname": name, "severity": severity, "service": service, "slo": slo}
    return {
        "labels": {key: value for key, value in labels.items() if value},
        "startsAt": datetime.now(UTC).isoformat(),
        "endsAt": (datetime.now(UTC) + timedelta(minutes=5)).isoformat(),
    }


async def inhibited(alertmanager: Api, alerts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Send alerts, wait until Alertmanager has processed them, return (name, slo) of the inhibited ones."""
    answer = await alertmanager.client.post(f"{alertmanager.url}/api/v2/alerts", json=alerts)
    assert answer.is_success, answer.text
    while True:
        known = await alertmanager.get("v2/alerts")
        await asyncio.sleep(0.02)
        if len(known) >= len(alerts) and all(each["status"]["state"] != "unprocessed" for each in known):
            break
    return {
        (each["labels"]["alertname"], each["labels"].get("slo", "")) for each in known if each["status"]["inhibitedBy"]
    }


async def test_inhibition(tmp_path: Path) -> None:
    """A page suppresses tickets of its objective and all infos; `ServiceDown` suppresses all alerts of its service."""
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.dump(make_alertmanager()), "utf-8")
    options = (f"--storage.path={tmp_path}/state", "--cluster.listen-address=")
    alerts = [
        alert("ErrorBudgetBurn", "page", "checkout"),
        alert("ErrorBudgetLow", "ticket", "checkout"),
        alert("ErrorBudgetLow", "ticket", "latency"),
        alert("InstanceDown", "ticket"),
        alert("TelemetryLogsDropped", "info"),
        alert("TelemetryLogsDropped", "info", service="payments"),
    ]
    async with serving("prometheus-alertmanager", tmp_path, file, *options) as alertmanager:
        await inhibited(alertmanager, alerts[:1])  # Alertmanager must know the source of an inhibition first
        assert await inhibited(alertmanager, alerts) == {("ErrorBudgetLow", "checkout"), ("TelemetryLogsDropped", "")}
        other = [each for each in await alertmanager.get("v2/alerts") if each["labels"]["service"] == "payments"]
        assert [each["status"]["state"] for each in other] == ["active"]
        down = alert("ServiceDown", "page")
        await inhibited(alertmanager, [down])
        known = {name for name, _ in await inhibited(alertmanager, [*alerts, down])}
        assert known == {"ErrorBudgetBurn", "ErrorBudgetLow", "InstanceDown", "TelemetryLogsDropped"}


async def test_alerts_of_other_tools_are_not_inhibited(tmp_path: Path) -> None:
    """Alerts of other tools have no label `service`; two missing labels are equal and must not match."""
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.dump(make_alertmanager()), "utf-8")
    options = (f"--storage.path={tmp_path}/state", "--cluster.listen-address=")
    foreign = [alert("ServiceDown", "page", service=""), alert("DiskFull", "ticket", service="")]
    async with serving("prometheus-alertmanager", tmp_path, file, *options) as alertmanager:
        await inhibited(alertmanager, foreign[:1])
        assert await inhibited(alertmanager, foreign) == set()
