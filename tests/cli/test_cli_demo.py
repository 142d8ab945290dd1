"""The command `demo`: a shop with bounded traffic, which the console has something to say about."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tools import until

from fastapi_observe.cli.main import main
from fastapi_observe.demo.traffic import DEMO_REQUESTS, Traffic


def test_the_demo_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    """It listens on loopback, sends requests to itself, fails and is slow, exports nothing, and ends with Ctrl-C."""
    environment = {
        **os.environ,
        "OBSERVE_MULTIPROCESS_DIRECTORY": str(tmp_path),
        "OBSERVE_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OBSERVE_BLOCKED_LOOP_THRESHOLD": "0.1",  # the tests' default switches it off
        "OBSERVE_LOG_FILE": str(tmp_path / "demo.log"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])),
        "NO_COLOR": "1",
    }
    output = tmp_path / "output"
    with output.open("wb") as file:
        command = [sys.executable, "-m", "fastapi_observe", "demo", "--port", "0"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603 - a command of this test
    try:
        until(lambda: "runs on http://127.0.0.1:" in output.read_text(), 60)
        found = re.search(r"runs on (http://127\.0\.0\.1:\d+) until Ctrl-C", output.read_text())
        assert found is not None
        url = found[1]
        held: dict[str, Any] = {}
        wanted = {"200", "201", "404", "422", "500", "repeated", "exception", "blocked loop"}
        seen: set[str] = set()

        def has_everything() -> bool:
            held.update(httpx.get(f"{url}/observe/api/live", timeout=20).json())
            seen.update(str(each["status"]) for each in held["requests"])
            seen.update("repeated" for each in held["requests"] if each.get("repeated"))
            seen.update("exception" for each in held["requests"] if each["exception"])
            seen.update(problem["kind"] for problem in held["problems"])
            return wanted <= seen

        until(lambda: output.read_text().count("GET /products") > 1, 60)
        with suppress(AssertionError):  # the comparison says what is missing
            until(has_everything, 120)
        assert wanted - seen == set()
        assert held["service"]["name"] == "demo-shop"
        assert not [each for each in held["exports"] if each["signal"] == "traces"]
        failed = httpx.get(f"{url}/observe/api/traces/failed", timeout=60).json()
        frames = failed["summaries"][0]["exception"][0]["frames"]
        assert any(frame["own"] and frame["file"].endswith("shop.py") for frame in frames)
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(30)
    assert status == 0
    text = output.read_text()
    assert "Traceback" not in text
    assert "Development console: " in text
    assert not (tmp_path / "demo.log").exists()
    assert not list(tmp_path.glob("*/console-*"))


def test_traffic_is_bounded() -> None:
    """One request at a time, with a pause before each; a server that is not there is tried again."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        traffic = Traffic(unused.getsockname()[1])
        traffic.start()
        traffic.stop()
    assert traffic.sent == 0
    assert all(path.startswith("/") for _, path in DEMO_REQUESTS)


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """It is said which, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"cannot listen on port {port}: ")
    for port in ("70000", "-1", "x"):
        with pytest.raises(SystemExit, match="2"):
            main(["demo", f"--port={port}"])


@pytest.mark.parametrize("missing", ["uvicorn", "fastapi_observe.demo.shop"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    """The message names the extra."""
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo"]) == 2
    assert "pip install 'fastapi-observe[demo]'" in capsys.readouterr().err
