"""The whole chain of real parts: the example shop, Prometheus, Alertmanager and the webhook of a pager."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from collectors import Collector
from monitored import ROOT, TIMEOUT, free_port
from tools import needs

from example_app.services import run_service
from fastapi_observe.slo.prometheus.alertmanager import make_alertmanager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from example_app.services import Service

T = TypeVar("T")
CHECKOUT: Final = "/orders/{order_id}/checkout"


class Webhook:
    """A pager: keeps every notification."""

    def __init__(self) -> None:
        self.notifications: list[dict[str, Any]] = []
        notifications = self.notifications

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                notifications.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Receive notifications."""
    made = Webhook()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join(5)


@asynccontextmanager
async def running(log: Path, *command: str) -> AsyncIterator[None]:
    """Run a program while the block runs."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(*command, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def until(what: str, ask: Callable[[], Awaitable[T | None]]) -> T:
    """Repeat a request until it has a result."""
    deadline = monotonic() + TIMEOUT
    while monotonic() < deadline:
        try:
            answer = await ask()
        except httpx.HTTPError:
            answer = None
        if answer:
            return answer
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what} did not happen")


async def make_rules(directory: Path) -> None:
    """Write the rules with the command, evaluated every second instead of every 30 seconds."""
    file = directory / "rules.yml"
    arguments = ("slo", "bundle", "example_app.shop:app", "--only", "rules", "-o", str(directory))
    command = (sys.executable, "-m", "fastapi_observe", *arguments)
    environment = {**os.environ, "EXAMPLE_DIR": str(directory)}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
    assert await process.wait() == 0
    text = re.sub(r"interval: \S+", "interval: 1s", file.read_text("utf-8"))
    file.write_text(text.replace("[1m]", "[10s]"), "utf-8")


def configure(directory: Path, shop: str, alertmanager: str, receiver: str) -> None:
    """Write the configuration of Prometheus, and the generated one of Alertmanager with short waits."""
    prometheus = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [shop]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(prometheus), "utf-8")
    generated = json.dumps(make_alertmanager())
    changed = re.sub(r'"https://[\w.-]+\.invalid/"', json.dumps(receiver), generated)
    (directory / "alertmanager.yml").write_text(re.sub(r'"group_wait": "\w+"', '"group_wait": "2s"', changed), "utf-8")


class Chain:
    """The running programs, and the traffic of the shop."""

    def __init__(self, shop: Service, prometheus: int, alertmanager: int, client: httpx.AsyncClient) -> None:
        self.shop = shop
        self.prometheus = f"http://127.0.0.1:{prometheus}/api/v1"
        self.alertmanager = f"http://127.0.0.1:{alertmanager}/api/v2"
        self.client = client
        self.statuses: set[int] = set()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask Prometheus."""
        answer = await self.client.get(f"{self.prometheus}/query", params={"query": expression})
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    async def shop_for_ever(self) -> None:
        """Order and check out, again and again, as one customer."""
        url, person = self.shop.url, {"email": "me@example.com", "password": "correct horse"}
        await self.client.post(f"{url}/customers", json={**person, "name": "Me"})
        token = (await self.client.post(f"{url}/login", json=person)).json()["token"]
        headers = {"authorization": f"Bearer {token}"}
        while True:
            cart = {"lines": [{"product_id": 1, "quantity": 1}]}
            order = await self.client.post(f"{url}/orders", json=cart, headers=headers)
            paid = await self.client.post(f"{url}/orders/{order.json()['id']}/checkout", headers=headers)
            self.statuses.add(paid.status_code)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def chain(directory: Path, collector: Collector, receiver: Webhook) -> AsyncIterator[Chain]:
    """Start the shop without payments, Prometheus and Alertmanager."""
    programs = [needs("prometheus"), needs("prometheus-alertmanager")]
    await make_rules(directory)
    nobody, ports = free_port(), (free_port(), free_port())
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        shop = await stack.enter_async_context(
            run_service(
                "shop",
                0,
                directory,
                PAYMENTS_URL=f"http://127.0.0.1:{nobody}",
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            )
        )
        await shop.ready()
        here = [f"127.0.0.1:{port}" for port in ports]
        configure(directory, shop.url.removeprefix("http://"), here[1], receiver.url)
        for program, name, address, *more in (
            (programs[0], "prometheus", here[0], f"--storage.tsdb.path={directory}/data"),
            (programs[1], "alertmanager", here[1], f"--storage.path={directory}/state", "--cluster.listen-address="),
        ):
            own = ["--enable-feature=exemplar-storage"] if name == "prometheus" else []
            await stack.enter_async_context(
                running(
                    directory / f"{name}.log",
                    program,
                    f"--config.file={directory}/{name}.yml",
                    f"--web.listen-address={address}",
                    *more,
                    *own,
                )
            )
        made = Chain(shop, *ports, client)
        load = asyncio.create_task(made.shop_for_ever())
        try:
            yield made
        finally:
            if load.done():
                load.result()  # it never ends by itself
            load.cancel()
            await asyncio.wait([load])


async def test_one_notification_leads_to_the_trace(tmp_path: Path) -> None:
    """Payments are down: one page names objective and route, its exemplar is exported, tickets are suppressed."""
    with Collector() as collector, webhook() as receiver:
        async with chain(tmp_path, collector, receiver) as running_chain:
            (notification,) = await until("a notification", lambda: _first(receiver.notifications))
            tickets = await until("a ticket", lambda: _tickets(running_chain))
            exemplars = await until("an exemplar", lambda: _exemplars(running_chain))
            await until("the export", lambda: _exported(collector, exemplars))
            budget = await running_chain.query('slo_error_budget_remaining_ratio{slo="checkout"}')
            config = await running_chain.query("fastapi_observe_slo_config_info")
    assert receiver.notifications == [notification]
    assert running_chain.statuses == {502}
    assert notification["groupLabels"] == {"service": "shop", "slo": "checkout"}
    assert notification["status"] == "firing"
    assert {alert["labels"]["severity"] for alert in notification["alerts"]} == {"page"}
    assert {alert["labels"]["window"] for alert in notification["alerts"]} == {"1h", "6h"}
    for alert in notification["alerts"]:
        assert "shop/checkout" in alert["annotations"]["summary"]
        assert f"POST {CHECKOUT}" in alert["annotations"]["summary"]
        assert alert["annotations"]["runbook_url"] == "runbooks/ErrorBudgetBurn.md#checkout"
    assert all(ticket["status"]["state"] == "suppressed" for ticket in tickets)
    assert float(budget[0]["value"][1]) < 0
    rules = (tmp_path / "rules.yml").read_text("utf-8")
    assert config[0]["metric"]["hash"] in rules


async def _first(notifications: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return notifications[:1]


async def _tickets(running_chain: Chain) -> list[dict[str, Any]]:
    """Return the tickets of Alertmanager once it has processed them."""
    found = (await running_chain.client.get(f"{running_chain.alertmanager}/alerts")).json()
    tickets = [alert for alert in found if alert["labels"].get("severity") == "ticket"]
    return [] if any(ticket["status"]["state"] == "unprocessed" for ticket in tickets) else tickets


async def _exemplars(running_chain: Chain) -> set[str]:
    """Return the traces of the exemplars of failed checkouts."""
    query = f'http_requests_total{{endpoint="{CHECKOUT}",status_code="502"}}'
    span = {"start": str(time() - 600), "end": str(time() + 60)}
    answer = await running_chain.client.get(
        f"{running_chain.prometheus}/query_exemplars", params={"query": query, **span}
    )
    return {each["labels"]["trace_id"] for series in answer.json()["data"] for each in series["exemplars"]}


async def _exported(collector: Collector, traces: set[str]) -> bool:
    """Return whether the server spans of all these traces were exported."""
    name = f"POST {CHECKOUT}"
    return traces <= {span.trace_id.hex() for span in collector.spans if span.name == name}
