"""A real uvicorn, in a thread of the test process."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[int]:
    """Serve an app on `port`, by default a free one, and yield it. At the end, running requests are completed."""
    # h11 because httptools responds to unknown methods by itself.
    options = {"port": 0, "http": "h11", "timeout_graceful_shutdown": 5, **options}
    config = uvicorn.Config(app, host="127.0.0.1", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
