"""An open-loop load generator: requests are due at given times, independent of responses.

Latency counts from the time a request was due, so a server that stalls cannot hide it (coordinated omission). The
generator spins on its own core while a response is outstanding or a request is due soon, which gives microsecond
resolution. Arguments: port, requests per second, seconds, connections, `even` or `poisson`, optionally the path.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
from collections import deque
from time import perf_counter

from benchmarks.paired import percentile

PATH = "/items/7"
REQUEST = "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmark/1.0\r\nAccept: */*\r\n\r\n"
SPIN = 0.0015
"""Seconds before a due time in which the generator spins, since sleeping is less exact."""

RESPONSE_TIMEOUT = 5.0
"""Seconds to wait for the last responses."""


class Load:
    """A number of connections, and the requests that wait for a free one."""

    def __init__(self, port: int, connections: int, path: str = PATH) -> None:
        self._request = REQUEST.format(path).encode()
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            opened = socket.create_connection(("127.0.0.1", port), timeout=RESPONSE_TIMEOUT)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(opened.fileno(), select.EPOLLIN)
            self._sockets[opened.fileno()] = opened
        self._free = deque(self._sockets)
        self._due: dict[int, float] = {}
        self._received: dict[int, bytes] = dict.fromkeys(self._sockets, b"")
        self.latencies: list[float] = []

    def run(self, moments: list[float]) -> None:
        """Send a request at each time (seconds from now) and receive the responses."""
        waiting: deque[float] = deque()
        coming = deque(moments)
        start = perf_counter()
        end = start + moments[-1] + RESPONSE_TIMEOUT
        while (coming or waiting or self._due) and perf_counter() < end:
            now = perf_counter() - start
            while coming and coming[0] <= now:
                waiting.append(coming.popleft())
            while waiting and self._free:
                connection = self._free.popleft()
                self._due[connection] = start + waiting.popleft()
                self._sockets[connection].sendall(self._request)
            idle = coming and not self._due and not waiting
            pause = start + coming[0] - perf_counter() - SPIN if idle else 0
            for connection, _ in self._poll.poll(max(0, pause)):
                self._receive(connection)

    def _receive(self, connection: int) -> None:
        """Receive data. A complete response frees the connection."""
        data = self._received[connection] + self._sockets[connection].recv(65536)
        head, found, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]) if found else 0
        if not found or len(body) < length:
            self._received[connection] = data
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode("latin-1"))
        self._received[connection] = b""
        self.latencies.append(perf_counter() - self._due.pop(connection))
        self._free.append(connection)


def due_times(rate: float, seconds: float, arrivals: str) -> list[float]:
    """Return the due times: at equal distances, or random as from independent users."""
    if arrivals == "even":
        return [number / rate for number in range(1, int(rate * seconds) + 1)]
    chance, moments, now = random.Random(7), [], 0.0  # noqa: S311 - the same moments in each run
    while now < seconds:
        now += chance.expovariate(rate)
        moments.append(now)
    return moments


def main() -> None:
    """Run and print the latencies in seconds."""
    port, rate, seconds, connections, arrivals, *path = sys.argv[1:]
    load = Load(int(port), int(connections), *path)
    moments = due_times(float(rate), float(seconds), arrivals)
    load.run(moments)
    shown: dict[str, float] = {"due": len(moments), "answered": len(load.latencies)}
    if load.latencies:
        shown |= {"p50": percentile(load.latencies, 0.5), "p99": percentile(load.latencies, 0.99)}
    print(json.dumps(shown))  # noqa: T201 - read by the parent


if __name__ == "__main__":
    main()
