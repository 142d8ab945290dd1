"""Runs scripts in processes of their own, forked from one that has already imported what they need.

A new interpreter takes a second of the processor to import FastAPI and the package; a fork takes none. The script runs
as `__main__` and ends as a program does, with its exit handlers. What depends on the order of imports, or on what the
package reads from the environment when it is imported, needs a new interpreter instead.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

IMPORTS = (
    "asyncio",
    "fastapi.testclient",
    "fastapi_observe.cli.main",
    "httpx",
    "loguru",
    "sqlalchemy.ext.asyncio",
    "uvicorn",
    "fastapi_observe",
    "fastapi_observe.export.http",
    "fastapi_observe.export.setup",
    "fastapi_observe.logs.file.file",
    "fastapi_observe.logs.service",
    "fastapi_observe.metrics.service",
    "fastapi_observe.traces.service",
)
"""What scripts start with."""


class Interpreter:
    """A process that forks for each script."""

    def __init__(self) -> None:
        own, other = socket.socketpair()
        self._socket = own
        with other:
            self._process = subprocess.Popen(  # noqa: S603 - this file
                [sys.executable, __file__, str(other.fileno())], pass_fds=[other.fileno()], stdin=subprocess.DEVNULL
            )
        self._replies = own.makefile("r")
        atexit.register(self.close)

    def close(self) -> None:
        """Let the process end."""
        self._replies.close()
        self._socket.close()
        self._process.wait()

    def start(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Fork for a script. Returns the id of the process."""
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._socket, [data], descriptors)
        self._socket.sendall(data[sent:])
        return int(self._replies.readline())

    def wait(self) -> int:
        """Return the status of the process that was started last, when it has ended."""
        return int(self._replies.readline())


@cache
def interpreter() -> Interpreter:
    """Return the interpreter of this test process. It ends with that process."""
    return Interpreter()


def run(
    script: str,
    *arguments: object,
    environment: dict[str, str] | None = None,
    directory: Path | None = None,
    stdout: int | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end and return its output, and that of the processes it has left."""
    out, out_of = os.pipe()
    err, err_of = os.pipe()
    request = {
        "script": textwrap.dedent(script),
        "arguments": [str(each) for each in arguments],
        "environment": dict(os.environ) if environment is None else environment,
        "directory": str(directory or Path.cwd()),
        "path": sys.path,
    }
    try:
        pid = interpreter().start(request, [out_of if stdout is None else stdout, err_of])
    finally:
        os.close(out_of)
        os.close(err_of)
    out_text, err_text = _read((out, err), lambda: os.kill(pid, signal.SIGKILL), timeout)
    status = interpreter().wait()
    return subprocess.CompletedProcess(script, os.waitstatus_to_exitcode(status), out_text, err_text)


def _read(descriptors: tuple[int, int], kill: Callable[[], None], timeout: float) -> list[str]:
    """Read pipes to their ends, without a thread: a test may have none. If that takes too long, call `kill`."""
    found = dict.fromkeys(descriptors, b"")
    deadline = monotonic() + timeout
    with DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - monotonic()))
            if not ready:
                kill()
                raise AssertionError(f"the script did not end within {timeout} seconds: {found}")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                found[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return [text.decode() for text in found.values()]


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the forked process, None at the end."""
    data = b""
    descriptors: list[int] = []
    while True:
        received, found, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        descriptors += found
        data += received
        if not received:
            return None
        if not data.endswith(b"\n"):
            continue
        pid = os.fork()
        if not pid:
            connection.close()
            for target, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, target)
                os.close(descriptor)
            request: dict[str, Any] = json.loads(data)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        data, descriptors = b"", []
        connection.sendall(b"%d\n" % pid)
        connection.sendall(b"%d\n" % os.waitpid(pid, 0)[1])


def main() -> None:
    """Import, then fork for each script."""
    for name in IMPORTS:
        import_module(name)
    gc.freeze()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.argv[:] = ["-c", *request["arguments"]]
    sys.path[:] = ["", *request["path"]]
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(request["script"], "<string>", "exec"), vars(module))  # noqa: S102 - our own script


if __name__ == "__main__":
    main()
