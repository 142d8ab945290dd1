"""Other telemetry around and inside an installed app, in every combination, run in a new process.

`python span_cases.py user|own|own-ride RATIO` prints for each case what was reported: the global provider can be set
once in a process only. `user`: the application has set a provider; `own`: it has not, so `install` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

warnings.simplefilter("ignore")

import httpx  # noqa: E402 - after the filter: some versions warn when they are imported
from driver import ask  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from opentelemetry import trace  # noqa: E402
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribMiddleware  # noqa: E402
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402, TC002 - FastAPI reads annotations
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from fastapi_observe import install  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Asked = Callable[[], Coroutine[Any, Any, None]]

FEW, MANY = 5, 400
"""Requests of a case at a ratio of 0 or 1, and in between."""

EXPORTER = InMemorySpanExporter()
NO_MESSAGES = {"exclude_spans": ["receive", "send"]}
"""Arguments of contrib's middleware, without its spans of single messages."""


class Case:
    """Builds apps, installs on them, and remembers the installs to read and close."""

    def __init__(self, ratio: float) -> None:
        self.observes: list[Any] = []
        self._ratio = ratio

    def install(self, app: Any, **overrides: Any) -> Any:
        """Install on an app with the settings of the case."""
        options: dict[str, Any] = {"sample_ratio": self._ratio, **overrides}
        if not isinstance(trace.get_tracer_provider(), TracerProvider):
            options["span_processors"] = (SimpleSpanProcessor(EXPORTER),)
        self.observes.append(install(app, **options))
        return app

    def fastapi(self, **options: Any) -> FastAPI:
        """Return a FastAPI app with one route, and one in a mounted app."""
        app, sub = FastAPI(**options), FastAPI()

        async def item(request: Request, item_id: int) -> int:
            return item_id

        app.get("/items/{item_id}")(item)
        sub.get("/items/{item_id}")(item)
        app.mount("/sub", sub)
        app.state.sub = sub
        return app

    def starlette(self) -> Starlette:
        """Return a Starlette app with one route."""

        async def item(request: Request) -> PlainTextResponse:
            return PlainTextResponse("1")

        return Starlette(routes=[Route("/items/{item_id}", item)])


def asking(app: Any, path: str = "/items/1") -> Asked:
    """Return a function that sends one request to an app."""

    async def once() -> None:
        answer = await ask(app, path)
        assert answer.status == 200, answer

    return once


def starlette_middleware() -> Any:
    """Return Starlette's own middleware (Starlette 1.10); `ImportError` where it is missing."""
    return importlib.import_module("starlette.middleware.opentelemetry").OpenTelemetryMiddleware


def native_on(case: Case) -> Asked:
    """FastAPI's native telemetry, which is on when there is a global provider, is switched off."""
    return asking(case.install(case.fastapi()))


def native_ridden(case: Case) -> Asked:
    """FastAPI's native telemetry stays on, its span is adopted."""
    return asking(case.install(case.fastapi(), server_span="fastapi"))


def native_off(case: Case) -> Asked:
    """FastAPI's native telemetry is switched off by the user."""
    app = case.fastapi(telemetry={"tracing": False, "metrics": False, "logs": False})
    return asking(case.install(app, server_span="fastapi"))


def plain_starlette(case: Case) -> Asked:
    """Starlette without any other telemetry."""
    return asking(case.install(case.starlette()))


def starlette_outside(case: Case) -> Asked:
    """Starlette's own middleware around the installed app."""
    return asking(starlette_middleware()(case.install(case.starlette())))


def starlette_inside(case: Case) -> Asked:
    """Starlette's own middleware among the user's."""
    app = case.starlette()
    app.add_middleware(starlette_middleware())
    return asking(case.install(app))


def starlette_around_fastapi(case: Case) -> Asked:
    """Starlette's own middleware around FastAPI, whose native telemetry would make a second server span."""
    return asking(starlette_middleware()(case.install(case.fastapi())))


def contrib_outside(case: Case) -> Asked:
    """Contrib's middleware around the installed app."""
    return asking(ContribMiddleware(case.install(case.fastapi())))


def contrib_inside(case: Case) -> Asked:
    """Contrib's middleware among the user's."""
    app = case.fastapi()
    app.add_middleware(ContribMiddleware)
    return asking(case.install(app))


def instrumented_before(case: Case) -> Asked:
    """Contrib's instrumentor, then install."""
    app = case.fastapi()
    FastAPIInstrumentor.instrument_app(app)
    return asking(case.install(app))


def instrumented_after(case: Case) -> Asked:
    """install, then contrib's instrumentor."""
    app = case.install(case.fastapi())
    FastAPIInstrumentor.instrument_app(app)
    return asking(app)


def starlette_instrumented(case: Case) -> Asked:
    """Contrib's middleware is added to a Starlette app after install."""
    app = case.install(case.starlette())
    app.add_middleware(ContribMiddleware)
    return asking(app)


def instrumented_failing(case: Case) -> Asked:
    """Raise in an endpoint of an app that contrib instruments."""
    app = case.fastapi()

    async def fail(item_id: int) -> None:
        raise LookupError(item_id)

    app.router.routes.clear()
    app.get("/items/{item_id}")(fail)
    FastAPIInstrumentor.instrument_app(app)
    case.install(app)

    async def once() -> None:
        assert (await ask(app, "/items/1")).status == 500

    return once


def described_by_contrib(case: Case) -> Asked:
    """Contrib's middleware describes the server span."""
    return asking(case.install(case.fastapi(), server_span="contrib", contrib_options=NO_MESSAGES))


def described_by_contrib_inside_contrib(case: Case) -> Asked:
    """Contrib's middleware describes the span, and is around the installed app too."""
    return asking(
        ContribMiddleware(case.install(case.fastapi(), server_span="contrib", contrib_options=NO_MESSAGES)),
    )


def described_by_contrib_twice(case: Case) -> Asked:
    """Contrib's middleware describes the span, and is among the user's too."""
    app = case.fastapi()
    app.add_middleware(ContribMiddleware)
    return asking(case.install(app, server_span="contrib", contrib_options=NO_MESSAGES))


def described_by_contrib_and_instrumented(case: Case) -> Asked:
    """Contrib's middleware describes the span of an app that contrib's instrumentor has instrumented."""
    app = case.fastapi()
    FastAPIInstrumentor.instrument_app(app)
    return asking(case.install(app, server_span="contrib", contrib_options=NO_MESSAGES))


def described_by_contrib_mounted(case: Case) -> Asked:
    """Contrib's middleware describes the span of an installed app in which another such app is mounted."""
    app = case.fastapi()
    case.install(app.state.sub, server_span="contrib", contrib_options=NO_MESSAGES)
    return asking(case.install(app, server_span="contrib", contrib_options=NO_MESSAGES), "/sub/items/1")


def mounted(case: Case) -> Asked:
    """Serve a mounted FastAPI app, which has native telemetry of its own."""
    return asking(case.install(case.fastapi()), "/sub/items/1")


def mounted_ridden(case: Case) -> Asked:
    """Serve a mounted FastAPI app with native telemetry on everywhere."""
    return asking(case.install(case.fastapi(), server_span="fastapi"), "/sub/items/1")


def mounted_instrumented(case: Case) -> Asked:
    """Serve a mounted app that contrib instruments."""
    app = case.fastapi()
    FastAPIInstrumentor.instrument_app(app.state.sub)
    return asking(case.install(app), "/sub/items/1")


def mounted_in_starlette(case: Case) -> Asked:
    """Serve a FastAPI app mounted in an installed Starlette app."""
    app = case.starlette()
    app.mount("/sub", case.fastapi())
    return asking(case.install(app), "/sub/items/1")


def installed_twice(case: Case) -> Asked:
    """Serve an installed app mounted in an installed app."""
    app = case.fastapi()
    case.install(app.state.sub)
    return asking(case.install(app), "/sub/items/1")


def called_inside_a_span(case: Case) -> Asked:
    """Call an app in process, from inside a span of the caller's."""
    transport = httpx.ASGITransport(case.install(case.fastapi()))
    tracer = trace.get_tracer("caller")

    async def once() -> None:
        with tracer.start_as_current_span("caller"):
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                assert (await client.get("/items/1")).status_code == 200

    return once


CASES = (
    native_on,
    native_ridden,
    native_off,
    plain_starlette,
    starlette_outside,
    starlette_inside,
    starlette_around_fastapi,
    contrib_outside,
    contrib_inside,
    instrumented_before,
    instrumented_after,
    starlette_instrumented,
    instrumented_failing,
    described_by_contrib,
    described_by_contrib_inside_contrib,
    described_by_contrib_twice,
    described_by_contrib_and_instrumented,
    described_by_contrib_mounted,
    mounted,
    mounted_ridden,
    mounted_instrumented,
    mounted_in_starlette,
    installed_twice,
    called_inside_a_span,
)
FIRST = {"own": native_on, "own-ride": mounted_ridden}
"""Cases where the provider of `install` becomes the global one: one in a process."""


async def run(make: Callable[[Case], Asked], ratio: float) -> dict[str, Any] | None:
    """Run one case. Returns None if its subject does not exist in this version."""
    EXPORTER.clear()
    case = Case(ratio)
    output = io.StringIO()
    requests = MANY if 0 < ratio < 1 else FEW
    try:
        with contextlib.redirect_stdout(output):
            once = make(case)
            for _ in range(requests):
                # Each request in a context of its own, as a server does it.
                await asyncio.create_task(once())
            for observe in case.observes:
                observe.flush()
    except ImportError:
        return None
    texts = [observe.metrics.render("", "")[1].decode() for observe in case.observes]
    faults = [observe.internal_errors.counts for observe in case.observes]
    for observe in reversed(case.observes):
        observe.close()
    lines = [json.loads(line) for line in output.getvalue().splitlines() if line.startswith("{")]
    spans = EXPORTER.get_finished_spans()
    return {
        "requests": requests,
        "lines": [line["trace_id"] for line in lines if line["message"] == "HTTP request completed"],
        "endpoints": sorted({line["fields"]["endpoint"] for line in lines if "endpoint" in line["fields"]}),
        "server": [format(span.context.trace_id, "032x") for span in spans if span.kind.name == "SERVER"],
        "names": sorted({span.name for span in spans if span.kind.name == "SERVER"}),
        "inside": sorted({span.name for span in spans if span.kind.name == "INTERNAL"}),
        "exceptions": sum(event.name == "exception" for span in spans for event in span.events),
        "counted": sum(
            float(row.rpartition(" ")[2])
            for text in texts
            for row in text.splitlines()
            if row.startswith("http_requests_total{")
        ),
        "faults": [each for each in faults if each],
    }


async def main(mode: str, ratio: float) -> None:
    """Run the cases of a mode and print their results."""
    if mode == "user":
        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)))
        provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
        trace.set_tracer_provider(provider)
    cases = CASES if mode == "user" else (FIRST[mode],)
    sys.stdout.write(json.dumps({case.__name__: await run(case, ratio) for case in cases}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
