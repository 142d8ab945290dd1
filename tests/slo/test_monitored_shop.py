"""The example's bundle on a real Prometheus that scrapes the example under traffic: its dashboard and `slo verify`."""

from __future__ import annotations

import asyncio
import json
from time import monotonic, time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from monitored import ROOT, TIMEOUT, command, monitored_shop
from test_slo_dashboard import ALL_ROWS, filled, panels, queries, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from monitored import Api

BUNDLE = ROOT / "example_app" / "observability"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prometheus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Run the example under traffic, and Prometheus with its rules, for all tests of this module."""
    async with monitored_shop(tmp_path_factory.mktemp("shop"), BUNDLE) as (api, _):
        yield api


async def test_every_query_finds_data(prometheus: Api) -> None:
    """Every query of the dashboard has data, and latency has exemplars."""
    made = json.loads((BUNDLE / "dashboard.json").read_text("utf-8"))
    assert rows(made) == ALL_ROWS
    await prometheus.until("slo:error_budget_remaining:ratio")
    await prometheus.until('rate(http_requests_total{endpoint="/reports/broken"}[1m]) > 0')
    await prometheus.until("http_time_to_first_byte_seconds_bucket offset 3s")
    for title, expression in queries(made):
        if not title.startswith("annotation Pages"):  # nothing has failed
            await prometheus.until(expression)
    (latency,) = [panel for panel in panels(made) if panel["title"] == "Latency"]
    for target in latency["targets"]:
        span = {"start": str(time() - 300), "end": str(time() + 60)}
        answer = await prometheus.get("v1/query_exemplars", query=filled(target["expr"]), **span)
        found = [exemplar for series in answer["data"] for exemplar in series["exemplars"]]
        assert found
        assert all(len(exemplar["labels"]["trace_id"]) == 32 for exemplar in found)


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_correct_prometheus_has_no_problem(prometheus: Api, tmp_path: str, *, as_json: bool) -> None:
    """Every check of `slo verify` is ok, and the status is 0."""
    for name in ("checkout", "browsing"):
        await prometheus.until(f'slo:events:rate1m{{slo="{name}"}}')
    arguments = ["slo", "verify", "example_app.shop:app", "--prometheus", prometheus.url, *["--json"] * as_json]
    deadline = monotonic() + TIMEOUT
    while True:  # after a scrape that was too slow, as on a busy machine, there is no series until the next one
        done = await asyncio.to_thread(command, *arguments, EXAMPLE_DIR=str(tmp_path))
        if done.returncode == 0 or monotonic() > deadline:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    if as_json:
        assert {each["state"] for each in json.loads(done.stdout)} == {"ok"}
        return
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    for text in ('job="shop": 1 up', "35d; budgets need 30d", "objective checkout", "exemplars", "groups with"):
        assert text in done.stdout
