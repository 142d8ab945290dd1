"""Processes that are workers of one app, and processes of other apps with the same parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fcntl")

from fastapi_observe.workers.directory import app_identity

if TYPE_CHECKING:
    from types import FunctionType

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_two_apps_with_one_launcher(method: str, tmp_path: Path) -> None:
    """Each app exposes its own requests, gauges and prometheus_client metrics, and its own number of workers."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    process = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(HERE / "worker_launcher.py"), method, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == {
        "api": {"http_requests_total": 7, "stock_total": 1, "fastapi_observe_workers": 1, "api_level": 5},
        "admin": {"http_requests_total": 3, "stock_total": 1, "fastapi_observe_workers": 1, "admin_level": 5},
    }


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
