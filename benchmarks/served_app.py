"""A uvicorn server with a measured app. Arguments: app, sampling ratio, port, workers, variant (`trivial`)."""

from __future__ import annotations

import os
import sys
from typing import Any


def create() -> Any:
    """Create the app named by the environment. Each worker calls it."""
    from benchmarks.apps import MAKERS, refuse_telemetry  # noqa: PLC0415 - not needed by the parent of several workers

    variant = os.environ["BENCH_VARIANT"]
    app = MAKERS[os.environ["BENCH_APP"]](variant, float(os.environ["BENCH_RATIO"]))
    if os.environ["BENCH_APP"] == "bare":
        refuse_telemetry(app)
    if variant != "trivial":
        _add_plain(app)
    return app


def _add_plain(app: Any) -> None:
    """Add a route that responds with the given number of bytes, for comparison with a scrape."""
    from starlette.responses import PlainTextResponse  # noqa: PLC0415 - as above

    async def plain(size: int) -> PlainTextResponse:
        return PlainTextResponse(b"x" * size)

    app.get("/plain/{size}")(plain)
    app.router.routes.insert(0, app.router.routes.pop())  # first in the route search, as `/metrics` is


def main() -> None:
    """Serve without uvicorn's access log."""
    import uvicorn  # noqa: PLC0415 - workers import it by themselves

    name, ratio, port, workers, *rest = sys.argv[1:]
    os.environ["BENCH_APP"], os.environ["BENCH_RATIO"] = name, ratio
    os.environ["BENCH_VARIANT"] = rest[0] if rest else "trivial"
    uvicorn.run(
        "benchmarks.served_app:create",
        factory=True,
        host="127.0.0.1",
        port=int(port),
        workers=int(workers),
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
