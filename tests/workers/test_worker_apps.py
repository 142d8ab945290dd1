"""Processes that are workers of one app, and processes of other apps with the same parent."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fcntl")

from servers_of_workers import Server, free_port
from tools import until

from fastapi_observe.workers.directory import app_identity

if TYPE_CHECKING:
    from types import FunctionType

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_two_apps_with_one_launcher(method: str, tmp_path: Path) -> None:
    """Each app exposes its own requests, gauges and prometheus_client metrics, and its own number of workers."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    process = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(Path(__file__).with_name("worker_launcher.py")), method, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == {
        "api": {"http_requests_total": 7, "stock_total": 1, "fastapi_observe_workers": 1, "api_level": 5},
        "admin": {"http_requests_total": 3, "stock_total": 1, "fastapi_observe_workers": 1, "admin_level": 5},
    }


LAUNCHER = """
import multiprocessing, sys
import uvicorn
from fastapi import FastAPI
from fastapi_observe import install

app = FastAPI()
install(app, log_level="fatal", otlp_endpoint=None)


@app.get("/")
async def index() -> int:
    return 1


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    target = app if sys.argv[1] == "fork" else "launcher:app"
    for port in sys.argv[2:]:
        options = {"port": int(port), "log_level": "error"}
        context.Process(target=uvicorn.run, args=(target,), kwargs=options).start()
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_two_ports_of_one_launcher_are_two_targets(method: str, tmp_path: Path) -> None:
    """Processes that share no listening socket are servers of their own: each exposes its own requests."""
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    ports = [free_port(), free_port()]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(HERE.parent)]),
        "OBSERVE_MULTIPROCESS_DIRECTORY": str(tmp_path),
    }
    process = subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, "launcher.py", method, *map(str, ports)], cwd=tmp_path, env=variables, start_new_session=True
    )
    try:
        servers = [Server(process, port, tmp_path) for port in ports]
        for server in servers:
            until(lambda server=server: _responds(server), 60)  # type: ignore[misc]
        before = [server.total("http_requests_total") for server in servers]
        for server, requests in zip(servers, (10, 5), strict=True):
            for _ in range(requests):
                server.get("/")
        after = [server.total("http_requests_total") for server in servers]
        assert [now - then for now, then in zip(after, before, strict=True)] == [10, 5]
        assert "fastapi_observe_metrics_degraded" not in servers[0].samples()
        assert not list(tmp_path.glob("fastapi-observe-*"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _responds(server: Server) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return server.get("/")[0] == 200
    return False


def test_identity_of_an_app() -> None:
    """The same names in the same file are the same app in every process. Another name or file is another app."""
    code = "def made(identity, *names):\n    return identity(*names)\n"
    made = []
    for file in ("/srv/api/main.py", "/srv/admin/main.py"):
        space: dict[str, FunctionType] = {}
        exec(compile(code, file, "exec"), space)  # noqa: S102 - a function of another file
        made.append(space["made"])
    api, admin = made
    assert api(app_identity, "shop", "Shop") == api(app_identity, "shop", "Shop")
    assert (
        len(
            {api(app_identity, "shop", "Shop"), api(app_identity, "shop", "Admin"), admin(app_identity, "shop", "Shop")}
        )
        == 3
    )
    assert len(api(app_identity, "shop\udc80", "Shop")) == 8
