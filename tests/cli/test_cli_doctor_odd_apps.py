"""The command `doctor` with an app that disturbs the process it is imported in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import interpreter
import pytest

ROOT: Final = Path(__file__).parents[2]

MODULE: Final = """
import logging, os, sys, types
from fastapi import FastAPI
from fastapi_observe import install
app = FastAPI(title="shop")
install(app, exclude_paths=["/docs"])
logging.getLogger("broken.x").propagate = False
"""


def test_lines_about_the_set_up(tmp_path: Path) -> None:
    """Lines of level info of fastapi-observe about itself are not shown among the checks; all others are."""
    code = "logging.getLogger('odd').warning('of the app')\nlogging.getLogger('fastapi_observe').warning('of ours')\n"
    (tmp_path / "odd.py").write_text(MODULE + code, encoding="utf-8")
    script = """
    import logging, sys
    from fastapi_observe.cli.main import main
    main(["doctor", "odd:app"])
    assert not logging.getLogger("fastapi_observe").filters
    """
    run = interpreter.run(script, directory=tmp_path)
    assert [json.loads(line)["message"] for line in run.stderr.splitlines()] == ["of the app", "of ours"]


@pytest.mark.parametrize(
    ("code", "status", "found"),
    [
        ("os._exit(0)", 2, "importing odd failed at odd.py:8: SystemExit: os._exit(0)"),
        ("if os.fork() == 0: os._exit(0)", 0, "internal errors"),
        ("sys.stdout.close()", 0, "internal errors"),
        ("sys.modules['broken'] = types.ModuleType('broken'); sys.modules['broken'].__spec__ = 7", 0, "broken.x"),
    ],
)
def test_an_odd_app(tmp_path: Path, code: str, status: int, found: str) -> None:
    """One that ends the process is named. One that closes standard output or has a broken module is checked."""
    (tmp_path / "odd.py").write_text(MODULE + code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "fastapi_observe", "doctor", "odd:app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == status, run.stderr
    assert found in (run.stderr if status else run.stdout)
    assert "Traceback" not in run.stderr
    assert "the check failed" not in run.stdout
