"""Requests per second and latencies behind uvicorn: bare, ours and the stack alternately on the same core."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.inprocess import progress
from benchmarks.load import PATH
from benchmarks.paired import paired
from benchmarks.process import ROOT, cores, environment, pinned

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = ("bare", "ours", "stack")
RATIO = "0.1"
CONNECTIONS = 32
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Effort(NamedTuple):
    """The amount of measurement."""

    rounds: int
    seconds: float


class Server:
    """A running server. With one worker it is stopped (SIGSTOP) while another server is measured.

    Several workers are not stopped, since their parent replaces a worker that does not respond.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, *, stops: bool) -> None:
        self.port = port
        self._group = process.pid
        self._stops = stops
        self._signal(signal.SIGSTOP)

    def _signal(self, what: signal.Signals) -> None:
        if self._stops:
            os.killpg(self._group, what)

    @contextmanager
    def awake(self) -> Iterator[int]:
        """Continue the server for the duration of the block."""
        self._signal(signal.SIGCONT)
        try:
            yield self.port
        finally:
            self._signal(signal.SIGSTOP)


@contextmanager
def serving(  # noqa: PLR0913 - the parts of a server
    name: str,
    workers: int,
    on: list[int],
    *,
    ratio: str = RATIO,
    variant: str = "trivial",
    extra: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Run a server of the app on these cores, with standard output in a real file and `extra` in its environment."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.served_app", name, ratio, str(port), str(workers), variant]
    with tempfile.TemporaryFile() as lines, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - a module of this package
            pinned(command, on), stdout=lines, stderr=errors, cwd=ROOT, env=environment(extra), start_new_session=True
        )
        try:
            _wait_for(port, process, errors)
            yield Server(process, port, stops=workers == 1)
        finally:
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], errors: Any) -> None:
    """Wait until the server responds. Raises RuntimeError if it ends, or does not respond within 30 seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as opened:
                opened.sendall(b"GET /items/7 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if opened.recv(100).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            time.sleep(0.1)
    errors.seek(0)
    raise RuntimeError(f"the server does not respond: {errors.read().decode(errors='replace')[-2000:]}")


def wrk(port: int, seconds: float, on: list[int]) -> dict[str, float]:
    """Load the server to its limit. Returns requests per second and latencies in seconds."""
    threads = min(2, max(1, len(on)))
    command = [
        shutil.which("wrk") or "wrk",
        *(f"-t{threads}", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency"),
        f"http://127.0.0.1:{port}/items/7",
    ]
    found = subprocess.run(pinned(command, on), capture_output=True, text=True, check=True)  # noqa: S603 - see above
    return read_wrk(found.stdout)


def read_wrk(text: str) -> dict[str, float]:
    """Parse the output of wrk. Raises RuntimeError if a request failed."""
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"requests failed under load:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None:
        raise RuntimeError(f"wrk printed no result:\n{text}")
    latencies = {
        f"p{part}": float(value) * UNITS[unit]
        for part, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", text)
    }
    return {"rps": float(rate[1]), **latencies}


def paced(  # noqa: PLR0913, PLR0917 - the parts of a load
    port: int, rate: float, seconds: float, on: list[int], arrivals: str, path: str = PATH
) -> dict[str, float]:
    """Load the server at a fixed rate. Returns latencies in seconds."""
    numbers = [str(number) for number in (port, rate, seconds, CONNECTIONS)]
    command = [sys.executable, "-m", "benchmarks.load", *numbers, arrivals, path]
    found = subprocess.run(  # noqa: S603 - a module of this package
        pinned(command, on), capture_output=True, text=True, check=True, cwd=ROOT, env=environment()
    )
    shown: dict[str, float] = json.loads(found.stdout)
    if shown["answered"] < shown["due"]:
        raise RuntimeError(f"only {shown['answered']} of {shown['due']} requests were answered")
    return shown


def run(effort: Effort, workers: tuple[int, ...] = (1, 2, 4)) -> dict[str, Any]:
    """Measure with each number of workers. Latencies at half of bare's peak are measured with one worker only."""
    if shutil.which("wrk") is None:
        return {"skipped": "wrk is not installed (Debian and Ubuntu: apt install wrk)"}
    return {str(number): _with_workers(number, effort) for number in workers}


def places(number: int, available: list[int]) -> tuple[list[int], list[int]]:
    """Divide the cores between `number` workers and the load. They share cores if there are too few."""
    if len(available) > number:
        return available[:number], available[number:]
    return available[:number], available[-2:]


def _with_workers(number: int, effort: Effort) -> dict[str, Any]:
    server_cores, load_cores = places(number, cores())
    shared = bool(set(server_cores) & set(load_cores)) or shutil.which("taskset") is None
    found: dict[str, Any] = {"server_cores": server_cores, "load_cores": load_cores, "shared": shared}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, number, server_cores)) for name in APPS}
        for server in servers.values():
            with server.awake() as port:
                wrk(port, 1, load_cores)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in APPS}
        for at in range(effort.rounds):
            progress(f"served: {number} worker(s), round {at + 1} of {effort.rounds}")
            for name in _rotated(at):
                with servers[name].awake() as port:
                    taken[name].append(wrk(port, effort.seconds, load_cores))
        found["peak"] = _compare_with_bare(taken, ("rps", "p50", "p99"))
        if number == 1:
            rate = found["peak"]["bare"]["rps"] / 2
            found["half"] = {arrivals: _at_rate(servers, rate, effort, load_cores, arrivals) for arrivals in ARRIVALS}
            found["half_rate"] = rate
    return found


ARRIVALS = ("even", "poisson")


def _rotated(by: int) -> tuple[str, ...]:
    at = by % len(APPS)
    return APPS[at:] + APPS[:at]


def _at_rate(
    servers: dict[str, Server], rate: float, effort: Effort, load_cores: list[int], arrivals: str
) -> dict[str, Any]:
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in APPS}
    late: dict[str, str] = {}
    for at in range(effort.rounds):
        progress(f"served: {rate:.0f} requests per second, {arrivals}, round {at + 1} of {effort.rounds}")
        for name in (name for name in _rotated(at) if name not in late):
            with servers[name].awake() as port:
                try:
                    taken[name].append(paced(port, rate, effort.seconds, load_cores[-1:], arrivals))
                except RuntimeError as problem:  # slower than the rate, so there is no latency
                    late[name] = str(problem)
    return {
        **_compare_with_bare({name: found for name, found in taken.items() if name not in late}, ("p50", "p99")),
        **{name: {"skipped": why} for name, why in late.items()},
    }


def _compare_with_bare(taken: dict[str, list[dict[str, float]]], names: tuple[str, ...]) -> dict[str, Any]:
    """Return each app's medians and its paired ratios to bare."""
    return {
        app: {
            **{name: statistics.median(one[name] for one in rounds) for name in names},
            **{
                f"{name}_ratio": paired([one[name] for one in rounds], [one[name] for one in taken["bare"]])
                for name in names
            },
        }
        for app, rounds in taken.items()
    }
