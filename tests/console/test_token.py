"""The token of the console: one for all workers of a server, another one for each start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from servers_of_workers import free_port
from tools import needs_package, until

from fastapi_observe.console import token
from fastapi_observe.console.token import make_token
from fastapi_observe.workers.directory import Supervisor, open_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no numeric users here")

APP = "from fastapi import FastAPI\nfrom fastapi_observe import install\napp = FastAPI()\ninstall(app)\n"


@contextmanager
def serving(directory: Path) -> Iterator[int]:
    """Run a uvicorn with two workers in development."""
    port = free_port()
    (directory / "tokened.py").write_text(APP, "utf-8")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(directory)])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "FASTAPI_ENV": "development",
        "OBSERVE_MULTIPROCESS_DIRECTORY": str(directory),
    }
    command = [sys.executable, "-m", "uvicorn", "tokened:app", "--workers", "2", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def published(directory: Path) -> dict[int, str]:
    """Return the token of each running worker, by its pid."""
    files = [json.loads(path.read_text("utf-8")) for path in directory.glob("fastapi-observe-*/console-*.json")]
    return {file["pid"]: file["token"] for file in files}


def test_workers_share_a_token(tmp_path: Path) -> None:
    """A browser on another machine may reach any worker, before and after a worker is replaced."""
    needs_package("uvicorn")
    with serving(tmp_path) as port:
        until(lambda: len(published(tmp_path)) == 2, 60)
        before = published(tmp_path)
        os.kill(min(before), signal.SIGKILL)  # uvicorn replaces it
        until(lambda: set(published(tmp_path)) - set(before), 60)
        (shared,) = {*before.values(), *published(tmp_path).values()}
        for given, status in ((shared, 200), ("another", 404)):
            headers = {"host": "192.168.0.2", "authorization": f"Bearer {given}"}
            for _ in range(8):  # each on a new connection
                response = httpx.get(
                    f"http://127.0.0.1:{port}/observe/api/info", headers=headers, trust_env=False, timeout=60
                )
                assert response.status_code == status


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give this process a supervisor."""

    def supervise(pid: int) -> None:
        monkeypatch.setattr(token, "find_supervisor", lambda _: Supervisor(pid, None))

    return supervise


def test_each_start_and_each_app_has_its_own(tmp_path: Path, supervised: Callable[[int], None]) -> None:
    """It depends on the supervisor, the app and the user; in a single process it is random."""
    directory: Any = str(tmp_path)
    assert make_token(directory, "shop") != make_token(directory, "shop")
    supervised(os.getpid())
    first = make_token(directory, "shop")
    assert make_token(directory, "shop") == first
    assert make_token(directory, "other") != first
    supervised(os.getppid())
    assert make_token(directory, "shop") != first
    assert [path.stat().st_mode & 0o777 for path in open_root(directory).iterdir()] == [0o600]


@pytest.mark.parametrize("fault", ["short", "open", "link", "directory"])
def test_a_secret_that_others_may_know_is_not_used(
    tmp_path: Path, supervised: Callable[[int], None], fault: str
) -> None:
    """The token is random then, as in a single process."""
    supervised(os.getpid())
    root = open_root(str(tmp_path))
    path = root / "console-secret"
    path.write_bytes(b"x" * (8 if fault == "short" else 32))
    path.chmod(0o644 if fault == "open" else 0o600)
    if fault == "link":
        path.rename(root / "elsewhere")
        path.symlink_to(root / "elsewhere")
    if fault == "directory":
        root.chmod(0o755)
    assert make_token(str(tmp_path), "shop") != make_token(str(tmp_path), "shop")
