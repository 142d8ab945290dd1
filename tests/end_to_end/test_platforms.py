"""Other operating systems: an app is served where functions that only Linux, or only POSIX, has are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]

SCRIPT: Final = """
import mmap, os, select, signal, sys, time
import fastapi, httpx, loguru, opentelemetry.sdk.trace, prometheus_client, psutil, pydantic_settings, uvicorn
from fastapi.testclient import TestClient

system, environment = sys.argv[1:]
missing = {
    os: ["posix_fallocate"],
    select: [],
    signal: [],
    time: [],
}
if system == "windows":
    sys.modules["fcntl"] = sys.modules["resource"] = None
    missing[os] += [
        "fork", "register_at_fork", "mkfifo", "geteuid", "getuid", "fchmod", "fchown", "statvfs", "uname", "getloadavg",
        "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "get_blocking", "set_blocking", "sched_getaffinity",
    ]
    missing[select] += ["poll", "epoll"]
    missing[signal] += ["SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "pthread_sigmask"]
    missing[time] += ["clock_gettime"]
    anonymous = mmap.mmap

    def mapped(fileno, *args, **options):
        if fileno != -1:
            raise OSError("files cannot be mapped")
        return anonymous(fileno, *args, **options)

    mmap.mmap = mapped
for module, names in missing.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

from fastapi_observe import install

app = fastapi.FastAPI()
options = {"log_file": "app.log", "log_format": "json", "log_rotation": "4 KB"}
install(app, environment=environment, **options)

@app.get("/orders")
def orders() -> dict[str, str]:
    return {}

@app.get("/broken")
def broken() -> None:
    raise RuntimeError("no connection")

with TestClient(app, client=("127.0.0.1", 5), raise_server_exceptions=False) as client:
    statuses = {client.get("/orders").status_code for _ in range(20)} | {client.get("/broken").status_code}
    assert statuses == {200, 500}, statuses
    text = client.get("/metrics").text
    assert 'http_requests_total{method="GET",endpoint="/orders",status_code="200"} 20' in text, text
    assert "fastapi_observe_internal_errors_total{" not in text, text
    console = client.get("/observe/", headers={"host": "127.0.0.1"}).status_code
    assert console == (200 if environment == "development" else 404), console
"""


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_an_app_is_served(system: str, tmp_path: Path) -> None:
    """Requests, metrics, the log file with its rotation, standard output and the console work, without an error."""
    for environment in ("production", "development"):
        directory = tmp_path / environment
        directory.mkdir()
        run = subprocess.run(  # noqa: S603 - the script above
            [sys.executable, "-c", SCRIPT, system, environment],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, "")
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        requests = [line for line in lines if line["logger"] == "fastapi_observe.request"]
        assert len(requests) == (22 if environment == "production" else 21)  # the console's own pages have no line
        assert len([*directory.iterdir()]) > 1
        address = "Development console"  # has a token, and is only printed
        assert sorted(in_files(directory)) == sorted(line for line in run.stdout.splitlines() if address not in line)


def in_files(directory: Path) -> Iterator[str]:
    """Yield the lines of the log file and of the rotated ones."""
    for path in directory.glob("app*.log"):
        yield from path.read_text("utf-8").splitlines()


def test_each_missing_function_is_documented() -> None:
    """The page on platforms names what the package asks the operating system for before it uses it."""
    page = (ROOT / "docs" / "reference" / "platforms.md").read_text("utf-8")
    names = ("posix_fallocate", "fcntl", "mkfifo", "geteuid", "O_NOFOLLOW", "register_at_fork", "clock_gettime", "poll")
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "fastapi_observe").rglob("*.py"))
    for name in names:
        assert name in page
        assert name in sources
