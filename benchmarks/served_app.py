"""A uvicorn server with one of the measured apps: `python -m benchmarks.served_app <app> <ratio> <port> <workers>`."""

from __future__ import annotations

import os
import sys
from typing import Any


def create() -> Any:
    """Make the app that the environment names; each worker calls it."""
    from benchmarks.apps import MAKERS, refuse_telemetry  # noqa: PLC0415 - the parent of several workers needs it not

    app = MAKERS[os.environ["BENCH_APP"]]("trivial", float(os.environ["BENCH_RATIO"]))
    if os.environ["BENCH_APP"] == "bare":
        refuse_telemetry(app)
    return app


def main() -> None:
    """Serve, without an access log: none of the three apps shall write uvicorn's line."""
    import uvicorn  # noqa: PLC0415 - workers import it by themselves

    name, ratio, port, workers = sys.argv[1:]
    os.environ["BENCH_APP"], os.environ["BENCH_RATIO"] = name, ratio
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
