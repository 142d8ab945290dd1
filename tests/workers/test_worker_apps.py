"""Which processes are workers of one app, and which are other apps that the same process has started."""

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
def test_two_apps_of_one_launcher_are_counted_apart(method: str, tmp_path: Path) -> None:
    """Each app shows its own requests, gauges and prometheus_client metrics, and counts its own processes."""
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


def test_an_app_is_told_by_its_names_and_where_it_is_made() -> None:
    """The same names from the same file are one app, in every process; another name or file is another app."""
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
