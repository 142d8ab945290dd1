"""An incident played through the real rules with promtool, and when each alert tells of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.slo.burn_rates import EVALUATION_INTERVAL
from fastapi_observe.slo.prometheus import promql, yaml
from fastapi_observe.slo.prometheus.incident import SAMPLE_INTERVAL, incident_series, read_incident
from fastapi_observe.slo.prometheus.rules import rule_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi_observe.slo.plan import ResolvedObjective, SLOPlan
    from fastapi_observe.slo.prometheus.incident import IncidentPhase

GOT: Final = re.compile(r'(\w+)=\\?"((?:[^"\\]|\\.)*?)\\?"')
SAMPLES: Final = re.compile(r"^\s*got:\s*(.*)$", re.MULTILINE)
VALUE: Final = re.compile(r"(\{[^}]*\})\\?\"?\s*(?:Value:\s*)?([0-9.Ee+-]+)")
LIMIT: Final = 600
"""Seconds that promtool may take."""


class Detection(NamedTuple):
    """An alert that the rules have: when it first fired, how long in all, in seconds; None and 0 if it did not."""

    alert: str
    severity: str
    window: str
    fired: int | None
    last: int | None
    lasted: int


def simulate(plan: SLOPlan, slo: ResolvedObjective, described: str, rate: float) -> list[Detection]:
    """Play an incident such as `1h ok, 20m 30%, 1h ok` at `rate` requests a second.

    Raises `ValueError` for what is no incident, `FileNotFoundError` without promtool on PATH, `RuntimeError` with its
    words if it fails.
    """
    phases = read_incident(described, Decimal(str(rate)))
    program = shutil.which("promtool")
    if program is None:
        raise FileNotFoundError("promtool is not on PATH: it comes with Prometheus (apt-get install prometheus)")
    end = sum(phase.seconds for phase in phases)
    alone = plan._replace(slos=(slo,))
    firing = f'ALERTS{{alertstate="firing",{promql.selector((("service", plan.service),))}}}'
    by = "by (alertname, severity, window)"
    span = f"[{end}s:{EVALUATION_INTERVAL}s]"
    queries = [
        f"min {by} (min_over_time(timestamp({firing}){span}))",
        f"max {by} (max_over_time(timestamp({firing}){span}))",
        f"max {by} (count_over_time({firing}{span}))",
    ]
    printed = _play(program, alone, incident_series(plan, slo, phases), queries, end)
    first, last, counts = (_samples(each) for each in printed)
    return [
        Detection(*labels, first.get(labels), last.get(labels), counts.get(labels, 0) * EVALUATION_INTERVAL)
        for labels in _alerts(slo)
    ]


def _alerts(slo: ResolvedObjective) -> Iterable[tuple[str, str, str]]:
    yield from (("ErrorBudgetBurn", window.severity, window.long) for window, _ in slo.windows)
    yield "ErrorBudgetLow", "ticket", ""
    yield "SLODataMissing", "ticket", ""
    yield "ServiceDown", "page", ""


def _play(program: str, plan: SLOPlan, series: list[dict[str, Any]], queries: Sequence[str], end: int) -> list[str]:
    """Let promtool say what the queries give: a test that expects a value they never have prints it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.yml").write_text(rule_file(plan), "utf-8")
        wrong = [{"labels": "never", "value": -1}]
        test = {
            "interval": f"{SAMPLE_INTERVAL}s",
            "input_series": series,
            "promql_expr_test": [{"expr": query, "eval_time": f"{end}s", "exp_samples": wrong} for query in queries],
        }
        whole = {"rule_files": ["rules.yml"], "evaluation_interval": f"{EVALUATION_INTERVAL}s", "tests": [test]}
        (Path(folder) / "tests.yml").write_text(yaml.dump(whole), "utf-8")
        done = subprocess.run(  # noqa: S603 - the program that the user has on PATH, with files of ours
            [program, "test", "rules", "tests.yml"],
            cwd=folder, capture_output=True, check=False, encoding="utf-8", timeout=LIMIT,
        )  # fmt: skip
    found = SAMPLES.findall(done.stdout + done.stderr)
    if len(found) != len(queries):
        raise RuntimeError(f"promtool said something else than expected:\n{done.stdout}{done.stderr}")
    return found


def _samples(printed: str) -> dict[tuple[str, str, str], int]:
    """Read what promtool printed: `{alertname="...", window="1h"} 3.9E+03, ...`, in newer versions with other words."""
    found = {}
    for labels, value in VALUE.findall(printed):
        named = dict(GOT.findall(labels))
        found[named.get("alertname", ""), named.get("severity", ""), named.get("window", "")] = int(float(value))
    return found


def incident_start(phases: Sequence[IncidentPhase]) -> int:
    """Return the second at which the first phase that is no quiet one begins; the end if there is none."""
    at = 0
    for phase in phases:
        if phase.failing or not phase.up:
            break
        at += phase.seconds
    return at


def incident_end(phases: Sequence[IncidentPhase]) -> int:
    """Return the second at which the last phase that is no quiet one ends."""
    at = found = 0
    for phase in phases:
        at += phase.seconds
        if phase.failing or not phase.up:
            found = at
    return found


def detection_table(found: Sequence[Detection], phases: Sequence[IncidentPhase]) -> list[tuple[str, ...]]:
    """Return rows for people: each alert, how long after the beginning it fired and after the end it cleared."""
    begin, end = incident_start(phases), incident_end(phases)
    whole = sum(phase.seconds for phase in phases)
    rows: list[tuple[str, ...]] = [("alert", "severity", "window", "fired", "cleared", "lasted")]
    for each in found:
        if each.fired is None or each.last is None:
            rows.append((each.alert, each.severity, each.window or "-", "never", "-", "-"))
            continue
        cleared = "not yet" if each.last >= whole else f"{_signed(each.last + EVALUATION_INTERVAL - end)} the end"
        rows.append((
            each.alert, each.severity, each.window or "-", f"{_signed(each.fired - begin)} the beginning", cleared,
            _time(each.lasted),
        ))  # fmt: skip
    return rows


def _signed(number: int) -> str:
    return f"{_time(abs(number))} {'after' if number >= 0 else 'before'}"


def _time(number: int) -> str:
    hours, rest = divmod(number, 3600)
    minutes, rest = divmod(rest, 60)
    return "".join(f"{value}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if value) or "0s"
