"""`slo verify`: the problems of a real Prometheus, and the errors of other servers, each with the next step."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import sleep
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from injection import replacing
from monitored import command, every_second, free_port, prometheus, scraping
from servers import serving

from fastapi_observe import Availability, Latency, SLOOptions
from fastapi_observe.internal.networks import address_in
from fastapi_observe.slo import http_get
from fastapi_observe.slo.loading import get_plan
from fastapi_observe.slo.prometheus.api import Prometheus
from fastapi_observe.slo.prometheus.rules import rule_file
from fastapi_observe.slo.prometheus.verify import Finding, UnreachableError, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.plan import SLOPlan

Of = tuple["ObserveSettings", "SLOPlan"]


@pytest.fixture
def tiny(observed: Callable[..., Seen]) -> Callable[..., tuple[FastAPI, Of]]:
    """Return a function that installs an app with objectives."""

    def make(**settings: Any) -> tuple[FastAPI, Of]:
        app = FastAPI()

        @app.get("/orders")
        async def list_orders() -> None: ...

        slos = [Availability("all", 99.9), Latency("fast", 95, within="300ms", routes=["GET /orders"])]
        observed(app, **{"service_name": "tiny", "slos": slos, **settings})
        return app, get_plan(app)

    return make


def by_name(found: list[Finding]) -> dict[str, Finding]:
    """Return findings by their check."""
    return {each.check: each for each in found}


def problems(found: list[Finding]) -> set[str]:
    """Return the checks with a problem; each has a next step."""
    assert all(bool(each.hint) == (each.state == "problem") for each in found)
    return {each.check for each in found if each.state == "problem"}


async def test_a_prometheus_without_the_bundle(tiny: Callable[..., tuple[FastAPI, Of]], tmp_path: Path) -> None:
    """No rules and targets, 15 days, no exemplars, no Alertmanager: each is a problem with a next step.

    The same Prometheus has the rules of another app without objectives, whose only target is down.
    """
    _, (settings, plan) = tiny()
    _, (other_settings, other) = tiny(service_name="other", slos=())
    (tmp_path / "rules.yml").write_text(every_second(rule_file(other)), "utf-8")
    config = scraping(f"127.0.0.1:{free_port()}", job="other", rules=["rules.yml"])
    del config["alerting"]
    async with prometheus(tmp_path, config) as api:
        await api.until("up == 0")
        found = verify(plan, settings, api.url)
        down = by_name(verify(other, other_settings, api.url))
    assert problems(found) == {
        "rules", "targets", "running app", "objective all", "objective fast", "retention", "exemplars", "alertmanager",
    }  # fmt: skip
    named = by_name(found)
    assert named["targets"].message == 'job="tiny" matches no target; values of job: other'
    assert named["retention"].message == "samples are kept for 15d, but budgets need 30d"
    assert "--storage.tsdb.retention.time=35d" in named["retention"].hint
    assert named["running app"].message == "the running app exposes no configuration of objectives"
    assert named["alertmanager"].message == "no Alertmanager is configured, alerts are not delivered"
    assert named["version"].state == "ok"
    assert down["targets"].message.startswith('1 of 1 targets of job="other" cannot be scraped: 127.0.0.1:')
    assert "connection refused" in down["targets"].message
    assert down["rules"].state == "ok"
    assert "running app" not in down


async def test_rules_and_app_of_other_versions(tiny: Callable[..., tuple[FastAPI, Of]], tmp_path: Path) -> None:
    """Old rules, an app with another configuration and a scrape interval that is too long are reported."""
    app, (settings, plan) = tiny(tracing=False)
    older = plan._replace(slos=plan.slos[:1], hash="000000000000")
    (tmp_path / "rules.yml").write_text(every_second(rule_file(older)), "utf-8")
    with serving(app) as port:
        config = scraping(f"127.0.0.1:{port}", job="tiny", rules=["rules.yml"])
        async with prometheus(tmp_path, config, "--storage.tsdb.retention.size=1GB") as asked:
            await asked.until("slo:events:rate1m")
            other = plan._replace(hash="ffffffffffff", base="1s")
            found = by_name(verify(other, settings, asked.url))
            same = by_name(verify(plan, settings, asked.url))
            unseen = plan.slos[1]._replace(endpoints=(("GET", "/gone"),))
            renamed = by_name(verify(plan._replace(slos=(plan.slos[0], unseen)), settings, asked.url))
    assert "fastapi-observe:tiny:slo:fast" in found["rules"].message
    assert (
        found["rules hash"].message == "the rules were made from configuration 000000000000, the app has ffffffffffff"
    )
    assert found["running app"].message == f"the running app has configuration {plan.hash}, this code ffffffffffff"
    assert found["scrape interval"].message == "scraped every 1s: the base window of 1s holds fewer than 4 scrapes"
    assert 'SLOOptions(scrape_interval="1s")' in found["scrape interval"].hint
    assert found["retention"].message == "limited by size only; make sure that it holds the period of the budgets"
    assert "exemplars" not in found
    assert same["running app"].state == same["scrape interval"].state == same["objective all"].state == "ok"
    assert same["objective fast"].message == "its series exist but are not recorded"
    assert renamed["objective fast"].message.endswith('le="0.3"} has no series for GET /gone')


class FakePrometheus(BaseHTTPRequestHandler):
    """Responds by path like versions of Prometheus that cannot be run here."""

    answers: dict[str, Any]

    def do_GET(self) -> None:
        """Send the response of a path."""
        path = self.path.partition("?")[0].removeprefix("/api/v1/")
        status, body = self.answers.get(path, (404, b"not found"))
        self.send_response(status)
        if status == 302:
            self.send_header("location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps({"status": "success", "data": body}).encode())

    def log_message(self, *_: Any) -> None:
        """Write no log."""


@contextmanager
def fake_prometheus(**answers: Any) -> Iterator[str]:
    """Serve the given responses; yield the URL."""
    by_path = {name.replace("__", "/"): answer for name, answer in answers.items()}
    handler = type("Given", (FakePrometheus,), {"answers": by_path})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


async def test_the_names_of_opentelemetry(tiny: Callable[..., tuple[FastAPI, Of]], tmp_path: Path) -> None:
    """With `metric_names="semconv"` the objectives of a real Prometheus have their series, and are recorded."""
    app, (settings, plan) = tiny(metric_names="semconv")
    (tmp_path / "rules.yml").write_text(every_second(rule_file(plan)), "utf-8")
    with serving(app) as port:
        config = scraping(f"127.0.0.1:{port}", job="tiny", rules=["rules.yml"])
        async with prometheus(tmp_path, config) as asked, httpx.AsyncClient(trust_env=False, timeout=60) as client:
            for _ in range(3):
                await client.get(f"http://127.0.0.1:{port}/orders")
            await asked.until("count(slo:events:rate1m) == 2")  # rules of one group are evaluated one after the other
            found = by_name(verify(plan, settings, asked.url))
    assert found["objective all"].message == found["objective fast"].message == "its series exist and are recorded"
    assert found["running app"].state == "ok"


def test_an_old_and_slow_prometheus(tiny: Callable[..., tuple[FastAPI, Of]]) -> None:
    """A version without keep_firing_for, a failing rule, a slow group and unknown groups are reported."""
    _, (settings, plan) = tiny(slos=())
    rule = {"name": "ServiceDown", "query": "up", "health": "err", "lastError": "many-to-many"}
    group = {"name": "fastapi-observe:tiny:service", "rules": [rule], "evaluationTime": 61.0, "interval": 30}
    old = {**group, "name": "fastapi-observe:tiny:slo:gone", "rules": [], "evaluationTime": 0}
    with fake_prometheus(
        status__flags=(200, {"storage.tsdb.retention.time": "1y2w", "enable-feature": "exemplar-storage"}),
        status__buildinfo=(200, {"version": "2.40.1"}),
        rules=(200, {"groups": [group, old]}),
        targets=(200, {"activeTargets": []}),
        label__job__values=(200, []),
        alertmanagers=(200, {"activeAlertmanagers": [{"url": f"http://{at}"} for at in range(12)]}),
    ) as url:
        found = verify(plan, settings, url, token="secret")  # noqa: S106 - of this test
        keeps = verify(plan._replace(options=SLOOptions(keep_firing=False)), settings, url)
    evaluation = [each.message for each in found if each.check == "evaluation"]
    named = by_name(found)
    assert named["version"].message == "Prometheus 2.40.1 does not support keep_firing_for"
    assert by_name(keeps)["version"].state == "ok"
    assert evaluation[0] == "ServiceDown in fastapi-observe:tiny:service: many-to-many"
    assert evaluation[1] == "fastapi-observe:tiny:service takes 61.0 s, longer than its interval"
    assert "fastapi-observe:tiny:slo:gone" in named["rules"].message
    assert named["rules hash"].message.startswith("the rules were made from configuration unknown")
    assert named["targets"].message.endswith("values of job: none")
    assert named["retention"].message == "379d; budgets need 30d"
    assert named["alertmanager"].message.endswith("http://9 and 2 more (not contacted)")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b""), "responded 401 to status/flags; pass --token"),
        ((503, b""), "responded 503"),
        ((302, b""), "responded 302"),
        ((200, b"<html>"), "is not a Prometheus"),
        ((200, b"[]"), "is not a Prometheus"),
    ],
)
def test_responses_of_other_servers(answer: tuple[int, bytes], said: str) -> None:
    """Any other response is an error with the next step; redirects are not followed."""
    with fake_prometheus(status__flags=answer) as url, pytest.raises(UnreachableError, match=said):
        Prometheus(url).get("status/flags")


@pytest.mark.parametrize("data", [{}, [], "x", None, {"groups": [{"x": 1}], "version": 3}])
def test_json_of_another_shape(data: Any, tiny: Callable[..., tuple[FastAPI, Of]]) -> None:
    """JSON of another shape is an error, wherever it is read."""
    _, (settings, plan) = tiny()
    paths = ("status__flags", "status__buildinfo", "rules", "targets", "query", "alertmanagers")
    said = (200, json.dumps({"data": data}).encode())
    with (
        fake_prometheus(**dict.fromkeys(paths, said)) as url,
        pytest.raises(UnreachableError, match=r"is not a Prometheus|does not respond as Prometheus does"),
    ):
        verify(plan, settings, url)


@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"])
def test_servers_that_do_not_speak_http(said: bytes) -> None:
    """A server of another protocol, and one that violates HTTP, are errors."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UnreachableError, match=r"broken response .*; use the URL of an HTTP server"):
            Prometheus(f"http://127.0.0.1:{server.getsockname()[1]}").get("status/flags")
        thread.join(5)
    with pytest.raises(UnreachableError, match="Invalid port"):
        Prometheus("http://127.0.0.1:port").get("status/flags")


def test_a_response_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then reaches the time limit."""
    monkeypatch.setattr(http_get, "TOTAL_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer, suppress(OSError):
                peer.recv(65_536)
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    peer.sendall(b" ")
                    sleep(0.01)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UnreachableError, match="no response in time"):
            Prometheus(f"http://127.0.0.1:{server.getsockname()[1]}").get("status/flags")
        thread.join(5)
        assert not thread.is_alive()


def test_a_token_is_not_sent_in_clear() -> None:
    """A token is sent over plain http to a private address only, unless the user allows it."""
    with fake_prometheus(status__flags=(200, {})) as url:
        assert Prometheus(url, "secret").get("status/flags") == {}
        with replacing(address_in, lambda *_: False):
            with pytest.raises(UnreachableError, match="over plain http to a public address; use https"):
                Prometheus(url, "secret").get("status/flags")
            assert Prometheus(url, "secret", allow_http_token=True).get("status/flags") == {}


def test_errors_of_the_verify_command(tmp_path: Path) -> None:
    """The status is 2 if Prometheus or the app cannot be read."""
    done = command(
        "slo",
        "verify",
        "example_app.shop:app",
        "--prometheus",
        f"http://127.0.0.1:{free_port()}",
        EXAMPLE_DIR=str(tmp_path),
    )
    assert done.returncode == 2
    assert "Connection refused; start the server, or correct host and port" in done.stderr
    assert command("slo", "verify", "no.such:app", "--prometheus", "http://127.0.0.1:9090").returncode == 2
    for wrong in ("127.0.0.1:9090", "http://me:secret@127.0.0.1", "http://"):
        with pytest.raises(UnreachableError, match="invalid Prometheus URL"):
            Prometheus(wrong)
