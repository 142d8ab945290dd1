"""Bounded traffic for the demo: one request at a time, a few per second, to this machine."""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Final

PAUSE: Final = 0.3
"""Seconds between two requests."""

TIMEOUT: Final = 10.0

DEMO_REQUESTS: Final = (
    ("GET", "/products"),
    ("GET", "/products/1"),
    ("POST", "/orders/3/checkout"),
    ("GET", "/orders"),
    ("GET", "/products/2/discount"),
    ("POST", "/orders/7/checkout"),
    ("GET", "/products/4?currency=EUR"),
    ("GET", "/reports/sales"),
    ("POST", "/orders/5/checkout"),
    ("GET", "/products/9"),
    ("GET", "/products/3/discount"),
    ("POST", "/orders/1/checkout"),
    ("GET", "/export"),
    ("GET", "/products/cup"),
)
"""Sent again and again, in this order."""


class Traffic:
    """Sends requests to a port of this machine, in a thread, from `start` to `stop`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-traffic", daemon=True)
        self.sent = 0

    def start(self) -> None:
        """Send requests from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Send no further request, and wait for the last one."""
        self._stopped.set()
        self._thread.join(TIMEOUT)

    def _run(self) -> None:
        for method, path in itertools.cycle(DEMO_REQUESTS):
            if self._stopped.wait(PAUSE):
                return
            with suppress(OSError, HTTPException):  # the server is starting or ending
                self._send(method, path)

    def _send(self, method: str, path: str) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            connection.request(method, path, headers={"Connection": "close", "User-Agent": "demo"})
            connection.getresponse().read()
            self.sent += 1
        finally:
            connection.close()
