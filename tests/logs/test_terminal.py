"""A real server on a real terminal: what a developer sees, without setting anything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from servers_of_workers import free_port
from tools import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pty = pytest.importorskip("pty")

APP = """
from fastapi import FastAPI
from fastapi_observe import DatabaseDep, install

app = FastAPI(title="shop")
install(app)

@app.get("/boom")
async def boom(db: DatabaseDep):
    for _ in range(3):
        async with db.query("SELECT", table="items"):
            pass
    try:
        raise ConnectionError("reset")
    except ConnectionError as exc:
        raise RuntimeError("card network said no") from exc
"""


class Terminal:
    """A server whose standard output and error are a terminal, and what it has written there."""

    def __init__(self, directory: Path, **environment: str) -> None:
        (directory / "main.py").write_text(textwrap.dedent(APP))
        self.port = free_port()
        self._written = b""
        ours, theirs = pty.openpty()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OBSERVE_", "OTEL_"))}
        inherited["OBSERVE_INSTRUMENT"] = "none"
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(self.port)]
        self.process = subprocess.Popen(  # noqa: S603 - a command of this test
            command,
            cwd=directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**inherited, "PYTHONPATH": paths, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "", **environment},
        )
        os.close(theirs)
        self._descriptor = ours
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                read = os.read(self._descriptor, 65536)
            except OSError:  # the other end is closed
                return
            if not read:
                return
            self._written += read

    @property
    def text(self) -> str:
        """What was written so far."""
        return self._written.decode().replace("\r\n", "\n")

    def end(self) -> str:
        """End the server; return all that it has written."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self._thread.join(10)
        os.close(self._descriptor)
        return self.text


@pytest.fixture
def terminal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """Start the server with the environment of the test, in its own directory for shared files."""
    shared = tmp_path / "shared"
    shared.mkdir()
    started = Terminal(tmp_path, OBSERVE_MULTIPROCESS_DIRECTORY=str(shared), **request.param)
    try:
        until(lambda: "Application startup complete" in started.text)
        httpx.get(f"http://127.0.0.1:{started.port}/boom?token=x", timeout=60)
        until(lambda: "GET /boom" in started.text)
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait(10)


@pytest.mark.parametrize("terminal", [{"FASTAPI_ENV": "development"}], indirect=True)
def test_development(terminal: Terminal) -> None:
    """A failure has its line with the query, its tree, its exception once, and the link to the console, in color."""
    text = terminal.end()
    assert "\x1b[31m" in text
    plain = re.sub(r"\x1b\[\d*m", "", text)
    block = plain[plain.index("GET /boom") :]
    assert block.startswith("GET /boom?token=x")
    assert re.search(r"^ {13}└ SELECT items ×3 .*← main\.py:\d+$", block, re.MULTILINE)  # noqa: RUF001 - as printed
    link = re.search(
        rf"^ {{13}}→ http://127\.0\.0\.1:{terminal.port}/observe/#trace=[0-9a-f]{{32}}$", block, re.MULTILINE
    )
    assert link is not None
    assert plain.count("card network said no") == 2  # the message, and the line of source
    assert plain.count("caused by ConnectionError: reset") == 1
    assert "Traceback" not in plain
    assert "Exception in ASGI application" not in plain
    assert f"Development console: http://127.0.0.1:{terminal.port}/observe/" in plain


@pytest.mark.parametrize("terminal", [{"NO_COLOR": "1", "OTEL_TRACES_EXPORTER": "console"}], indirect=True)
def test_production(terminal: Terminal) -> None:
    """A terminal gets text anywhere: the query is redacted, there is no link, and without color if NO_COLOR is set."""
    text = terminal.end()
    assert "\x1b" not in text
    assert "GET /boom?token=REDACTED" in text
    assert len(re.findall(r"└ SELECT items ×3", text)) == 1  # noqa: RUF001
    assert "#trace=" not in text
    assert not re.search(r"^\{", text, re.MULTILINE)
