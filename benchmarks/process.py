"""The other processes of a measurement: workers that take orders, and where they may run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
    "OBSERVE_INSTRUMENT": "none",  # those of the tests' environment; an app without them is measured
    "OBSERVE_METRICS_ACCESS": "private",  # the default; without it, a line at start says so, which is one too many
}
"""The environment of every measured process: the same hash seed and this source tree."""


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a measured process, without the developer's OBSERVE_* and OTEL_* settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OBSERVE_"))}
    return {**kept, **ENVIRONMENT, **(extra or {})}


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pinned(command: list[str], on: list[int] | None) -> list[str]:
    """Return the command that runs `command` on these cores only; unchanged without taskset."""
    taskset = shutil.which("taskset")
    return command if taskset is None or not on else [taskset, "-c", ",".join(map(str, on)), *command]


@contextmanager
def urgent() -> Iterator[bool]:
    """Run processes started in the block with real-time priority. Yields whether that is allowed.

    Threads of such a process switch only when one of them waits, which is harder for it than normal scheduling.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def ask(module: str, *arguments: str, extra: dict[str, str] | None = None, on: list[int] | None = None) -> Any:
    """Run a module of this package in a fresh process and return its JSON response. Its standard output is a file."""
    with Worker(module, *arguments, extra=extra, on=on, wait=False) as worker:
        return worker.read()


class Worker:
    """A process of a module of this package. Its standard output is a real file; responses come through a pipe.

    `python` may be that of another environment.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        extra: dict[str, str] | None = None,
        on: list[int] | None = None,
        wait: bool = True,
        python: str = sys.executable,
    ) -> None:
        read, write = os.pipe()
        self._lines: IO[bytes] = tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log")  # noqa: SIM115 - close()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as above
        self._command = pinned([python, "-m", f"benchmarks.{module}", *arguments], on)
        self._process = subprocess.Popen(  # noqa: S603 - a module of this package
            self._command,
            stdin=subprocess.PIPE,
            stdout=self._lines,
            stderr=self._errors,
            pass_fds=(write,),
            text=True,
            cwd=ROOT,
            env=environment({**(extra or {}), "BENCH_ANSWERS": str(write)}),
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self.said: Any = self.read() if wait else None

    def read(self) -> Any:
        """Return the next response."""
        line = self._answers.readline()
        if not line:
            self._process.wait(30)
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-3000:]
            raise RuntimeError(f"{' '.join(self._command)} ended:\n{said}")
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        """Send a command and return its response."""
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("the worker has no standard input")
        stdin.write(" ".join(map(str, words)) + "\n")
        stdin.flush()
        return self.read()

    def end(self) -> int:
        """End the worker and return the number of lines in its standard output.

        Without those about a blocked event loop: a worker that measures calls the app in a loop that never waits.
        """
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        lines = Path(self._lines.name).read_bytes().splitlines()
        return sum(b"The event loop was blocked" not in line for line in lines)

    def close(self) -> None:
        """End the worker and remove its files."""
        self.end()
        self._answers.close()
        self._lines.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers() -> IO[str]:
    """Return the file to which a worker writes its responses."""
    return os.fdopen(int(os.environ["BENCH_ANSWERS"]), "w", buffering=1)
