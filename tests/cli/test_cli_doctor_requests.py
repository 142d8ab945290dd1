"""What the requests of `doctor --url` leave in the app that they check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from servers import serving
from variables import remove_variables

from fastapi_observe import install
from fastapi_observe.cli.main import main
from fastapi_observe.requests.access import CONSOLE_HEADER, DOCTOR_AGENT, PUBLIC_PEER

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine."""
    remove_variables(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("options", [{}, {"exclude_paths": ["/health"]}])
def test_a_denied_request_of_doctor(
    observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str], options: dict[str, list[str]]
) -> None:
    """It has no request line and no span, and is counted. Any other denied request is reported."""
    app = FastAPI(title="shop")
    seen = observed(app, metrics_access="private", **options)
    headers = {"user-agent": f"{DOCTOR_AGENT}!", "x-forwarded-for": PUBLIC_PEER}
    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        assert main(["doctor", "--url", url]) == 0
        assert "is served to this machine, not to a public client" in capsys.readouterr().out
        assert not seen.spans
        assert not seen.request_lines
        assert [*seen.samples("http_requests_total").values()] == [1]
        httpx.get(f"{url}/metrics", headers=headers, trust_env=False, timeout=60)
        httpx.get(f"{url}/missing", headers={**headers, "user-agent": DOCTOR_AGENT}, trust_env=False)
    assert len(seen.request_lines) == 2
    assert len(seen.server_spans) == 2


def test_the_console_of_a_running_app(capsys: pytest.CaptureFixture[str]) -> None:
    """The response with the metrics has its path, which is sent to `doctor` only."""
    app = FastAPI(title="shop")
    install(app, environment="development", console_path="/inside", capture_logging=False, instrument=[])
    with serving(app) as port:
        url = f"http://127.0.0.1:{port}"
        main(["doctor", "--url", url])
        found = [
            httpx.get(f"{url}/metrics", headers={"user-agent": agent}, trust_env=False, timeout=60)
            for agent in ("x", DOCTOR_AGENT)
        ]
    assert "duplicates" in capsys.readouterr().out
    assert [each.headers.get(CONSOLE_HEADER.decode()) for each in found] == [None, "/inside"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_route_for_any_path_does_not_serve_the_metrics(
    capsys: pytest.CaptureFixture[str],
    installed: bool,  # noqa: FBT001
) -> None:
    """A response with status 200 that is no text of metrics tells a public client nothing."""
    app = FastAPI(title="shop")
    if installed:
        install(app, capture_logging=False)

    @app.get("/{path:path}")
    async def page(path: str) -> HTMLResponse:
        return HTMLResponse(f"<p>{len(path)}")

    with serving(app) as port:
        assert main(["doctor", "--url", f"http://127.0.0.1:{port}"]) == 0
    served = "is served to this machine, not to a public client" if installed else "is not a response with metrics"
    assert f"/metrics {served}" in capsys.readouterr().out


def test_a_console_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON that is nested too deep to be read is not the console's; the other checks go on."""
    app = FastAPI(title="shop")

    @app.get("/observe/api/info")
    async def info() -> Response:
        return Response("[" * 100_000, media_type="application/json")

    with serving(app) as port:
        assert main(["doctor", "--url", f"http://127.0.0.1:{port}"]) == 0
    out = capsys.readouterr().out
    assert "the check failed" not in out
    assert "metrics access" in out
