"""Starts two apps, each in its own process, and prints what they expose: `python worker_launcher.py METHOD PLACE`."""

from __future__ import annotations

import json
import multiprocessing
import socket
import sys
from typing import TYPE_CHECKING

import prometheus_client
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fastapi_observe import install

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

NAMES = {"api": 7, "admin": 3}


def serve(name: str, place: str, pipe: Connection, _listener: socket.socket) -> None:
    """Handle requests for one app, and send its metrics when the other app has handled its own."""
    app = FastAPI(title=name)
    observe = install(app, multiprocess_directory=place, log_level="fatal", otlp_endpoint=None)
    observe.metrics.gauge(f"{name}_level", "Level.").set(5)
    prometheus_client.Counter("stock", "Of both.").inc()

    @app.get("/page")
    async def page() -> int:
        return 1

    with TestClient(app) as client:
        for _ in range(NAMES[name]):
            client.get("/page")
        pipe.send("ready")
        pipe.recv()
        found = {"http_requests_total": 0.0, "stock_total": 0.0, "fastapi_observe_workers": 0.0}
        for family in text_string_to_metric_families(client.get("/metrics").text):
            for sample in family.samples:
                if sample.name in found or sample.name.endswith("_level"):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        pipe.send(found)
        pipe.recv()


def main(method: str, place: str) -> None:
    """Start both, and print what each exposes."""
    context = multiprocessing.get_context(method)
    listener = socket.create_server(("127.0.0.1", 0))
    pipes, processes = {}, []
    for name in NAMES:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, place, theirs, listener))  # type: ignore[attr-defined]
        process.start()
        processes.append(process)
    for pipe in pipes.values():
        pipe.recv()
    shown = {}
    for name, pipe in pipes.items():
        pipe.send("scrape")
        shown[name] = pipe.recv()
    for pipe in pipes.values():
        pipe.send("end")
    for process in processes:
        process.join()
    print(json.dumps(shown))  # noqa: T201 - this is the response


if __name__ == "__main__":
    main(*sys.argv[1:])
