"""A fresh process that starts an app and reports the duration of each step: `python -m benchmarks.startup <app>`."""
# ruff: noqa: PLC0415 - the imports are measured

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from time import perf_counter

answers = os.fdopen(int(os.environ["BENCH_ANSWERS"]), "w", buffering=1)


def main() -> None:
    """Import, build, install and serve one request, and report the seconds of each."""
    marks = [perf_counter()]
    import fastapi

    marks.append(perf_counter())
    known = set(sys.modules)
    if sys.argv[1] == "ours":
        import fastapi_observe  # noqa: F401 - the import is measured
    marks.append(perf_counter())
    modules = len(set(sys.modules) - known)
    app = fastapi.FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False}) if _native() else None
    app = app or fastapi.FastAPI()

    @app.get("/items/{item_id}")
    async def read_item(item_id: str) -> dict[str, str]:
        return {"id": item_id}

    marks.append(perf_counter())
    if sys.argv[1] == "ours":
        from fastapi_observe import install

        install(app)
    marks.append(perf_counter())
    seconds = [second - first for first, second in pairwise(marks)]
    import asyncio

    from benchmarks.apps import REQUESTS
    from benchmarks.worker import caller

    call = caller(app, REQUESTS["trivial"])
    spent: list[float] = []

    async def first() -> None:
        began = perf_counter()
        await call()
        spent.append(perf_counter() - began)

    asyncio.run(first())
    names = ("fastapi", "package", "build", "install", "first_request")
    found = dict(zip(names, [*seconds, *spent], strict=True))
    answers.write(json.dumps({**found, "modules": modules}) + "\n")


def _native() -> bool:
    import inspect

    import fastapi

    return "telemetry" in inspect.signature(fastapi.FastAPI.__init__).parameters


if __name__ == "__main__":
    main()
