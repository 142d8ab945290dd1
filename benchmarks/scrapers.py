"""Clients that request one path repeatedly. Arguments: port, path, clients, `every`, seconds, status, token.

Each client sends one request in `every` seconds, with a random offset; with 0 it sends the next request right after the
response. Responses must have this status. The token is sent unless it is empty.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from time import perf_counter

from benchmarks.paired import percentile

ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\nAccept-Encoding: gzip"
)
"""Headers of a Prometheus server."""


class Clients:
    """Results of all clients."""

    def __init__(self, port: int, path: str, status: str = "200", token: str = "") -> None:
        self.took: list[float] = []
        self.size = 0
        self._port = port
        self._status = f"HTTP/1.1 {status} ".encode()
        bearer = f"Authorization: Bearer {token}\r\n" if token else ""
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {ACCEPT}\r\n{bearer}\r\n".encode()

    async def ask(self, first: float, every: float, end: float) -> None:
        """Run one client until `end`. Its first request is due at `first`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        due = first
        while due < end:
            await asyncio.sleep(due - perf_counter())
            began = perf_counter()
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(self._status):
                raise RuntimeError(head.decode("latin-1"))
            self.size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(self.size)
            self.took.append(perf_counter() - began)
            due = max(due + every, perf_counter())
        writer.close()


async def main() -> None:
    """Run all clients and print responses per second and response times."""
    port, path, clients, every, seconds, status, token = sys.argv[1:]
    found = Clients(int(port), path, status, token)
    chance = random.Random(7)  # noqa: S311 - the same moments in each run
    start = perf_counter() + 0.1
    moments = [start + chance.uniform(0, max(float(every), 0.01)) for _ in range(int(clients))]
    await asyncio.gather(*(found.ask(first, float(every), start + float(seconds)) for first in moments))
    took = perf_counter() - start
    shown = {"rate": len(found.took) / took, "size": found.size}
    print(json.dumps(shown | {"p50": percentile(found.took, 0.5), "longest": max(found.took)}))  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    asyncio.run(main())
