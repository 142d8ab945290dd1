"""`Service`: runs one of the two services as a process and reads its log lines."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "127.0.0.1"
START_SECONDS = 60
STOP_SECONDS = 10
MAX_LINE_BYTES = 2**20


class Service:
    """A uvicorn process and the lines it has printed. With `echo`, further lines are printed as they come."""

    def __init__(self, name: str, listener: socket.socket, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.url = f"http://{HOST}:{listener.getsockname()[1]}"
        self.process = process
        self.log = log
        self.lines: list[str] = []
        self.echo = False
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Read lines into memory and the log file until the process closes its output."""
        if self.process.stdout is None:
            return
        with self.log.open("a", encoding="utf-8") as file:
            async for raw in self.process.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                file.write(line + "\n")
                file.flush()
                self.lines.append(line)
                if self.echo:
                    say(f"{self.name:<8} {line}")

    async def ready(self) -> None:
        """Wait until the service responds. Raises SystemExit with its last lines if it ends before that."""
        async with httpx.AsyncClient(base_url=self.url, timeout=START_SECONDS, trust_env=False) as client:
            await asyncio.wait(
                [asyncio.create_task(self.process.wait()), response := asyncio.create_task(first_response(client))],
                return_when=asyncio.FIRST_COMPLETED,
                timeout=START_SECONDS,
            )
            if not response.done():
                response.cancel()
                await asyncio.wait([self._reader], timeout=1)
                raise SystemExit("\n".join([f"{self.name} did not start; its last lines:", *self.lines[-20:]]))
            await response

    async def stop(self) -> None:
        """Terminate the process, kill it if that takes too long, and read its last lines."""
        if self.process.returncode is None:
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await self._reader


async def first_response(client: httpx.AsyncClient) -> None:
    """Wait for a 200 from /healthz."""
    while True:
        try:
            if (await client.get("/healthz")).is_success:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.05)


@asynccontextmanager
async def run_service(name: str, port: int, directory: Path, **environment: str) -> AsyncIterator[Service]:
    """Run `example_app.<name>` under uvicorn on `port` (0 chooses a free one) for the duration of the block."""
    try:
        # Listening here reserves a free port and reports one in use before anything runs.
        listener = socket.create_server((HOST, port))
    except OSError as exc:
        raise SystemExit(
            f"{name} cannot listen on {HOST}:{port}: {os.strerror(exc.errno or 0)}; use --{name}-port 0"
        ) from exc
    # uvicorn treats an inherited socket as a UNIX socket and leaves Nagle's algorithm on, which costs 40 ms for each
    # response. Connections inherit the option from the listener.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "uvicorn", f"example_app.{name}:app", "--fd", str(listener.fileno())),
            *("--app-dir", str(Path(__file__).parents[1])),
            pass_fds=[listener.fileno()],
            env={**os.environ, "EXAMPLE_DIR": str(directory), **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_BYTES,
        )
        service = Service(name, listener, process, directory / f"{name}.log")
    try:
        yield service
    finally:
        await service.stop()


def say(text: str = "") -> None:
    """Print a line and flush it, for pipes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
