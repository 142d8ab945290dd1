"""Background tasks are measured where Starlette runs each of them, while anything is installed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import starlette.background
import wrapt
from fastapi import BackgroundTasks, FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import TraceContext, background

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

ORIGINAL = BackgroundTask.__call__


def test_starlette_is_replaced_while_anything_is_installed(observed: Callable[..., Seen]) -> None:
    """All installs share one replacement; the last one to close restores Starlette's method."""
    first = observed(Starlette())
    replaced = BackgroundTask.__call__
    assert replaced is not ORIGINAL
    second = observed(Starlette())
    assert BackgroundTask.__call__ is replaced
    first.observe.close()
    assert BackgroundTask.__call__ is replaced
    second.observe.close()
    assert BackgroundTask.__call__ is ORIGINAL


def test_uninstrument_keeps_a_patch_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that another package installed since then is kept."""

    async def theirs(task: BackgroundTask) -> None:
        """Do nothing."""

    monkeypatch.setattr(BackgroundTask, "__call__", theirs)
    background.uninstrument()
    assert BackgroundTask.__call__ is theirs


async def test_a_task_outside_a_request_runs_as_before(observed: Callable[..., Seen]) -> None:
    """It is not reported, and its exception is raised unchanged."""
    seen = observed(Starlette())
    ran: list[int] = []
    await BackgroundTask(ran.append, 7)()
    with pytest.raises(ZeroDivisionError):
        await BackgroundTask(lambda: 1 / 0)()
    assert ran == [7]
    assert seen.total("background_tasks_total") == 0


def shop(*tasks: Any) -> FastAPI:
    """Build an app that leaves tasks behind each request."""

    async def endpoint(name: str, left: BackgroundTasks) -> None:
        """Leave the tasks."""
        for task in tasks:
            left.add_task(task)

    app = FastAPI()
    app.get("/items/{name}")(endpoint)
    return app


def test_tasks_are_reported_under_their_endpoint(observed: Callable[..., Seen]) -> None:
    """Sync and async tasks are counted, timed and part of the trace, and not part of the request's duration."""
    at: list[TraceContext | None] = []

    async def waits() -> None:
        at.append(TraceContext.current())

    def works() -> None:
        at.append(TraceContext.current())

    def breaks() -> None:
        raise KeyError("x")

    seen = observed(shop(waits, functools.partial(works), breaks, works))
    with pytest.raises(KeyError):
        TestClient(seen_app(seen)).get("/items/7")
    assert seen.samples("background_tasks_total") == {
        (("endpoint", "/items/{name}"), ("outcome", "ok")): 2,
        (("endpoint", "/items/{name}"), ("outcome", "error")): 1,
    }
    assert seen.sample("http_requests_total", method="GET", endpoint="/items/{name}", status_code="200") == 1
    assert {moment.trace_id for moment in at if moment} == {line["trace_id"] for line in seen.request_lines}


def seen_app(seen: Seen) -> Any:
    """Return the app that was observed."""
    return seen.observe.app


def test_a_task_of_a_failed_request_finds_its_endpoint(observed: Callable[..., Seen]) -> None:
    """After a 5xx the request is reported when its tasks are done; they are counted under its endpoint all the same."""
    from starlette.responses import PlainTextResponse  # noqa: PLC0415 - beside its use

    async def endpoint(name: str) -> PlainTextResponse:
        """Answer 503 and leave a task."""
        return PlainTextResponse("later", 503, background=BackgroundTask(lambda: None))

    app = FastAPI()
    app.get("/items/{name}", response_model=None)(endpoint)
    seen = observed(app)
    TestClient(app).get("/items/7")
    assert seen.sample("background_tasks_total", endpoint="/items/{name}", outcome="ok") == 1


class Mailer:
    """A callable object."""

    def __call__(self) -> None:
        """Send nothing."""


def plain() -> None:
    """Do nothing."""


@pytest.mark.parametrize(("task", "name"), [(plain, "background plain"), (Mailer(), "background Mailer")])
def test_names_of_tasks(observed: Callable[..., Seen], task: Any, name: str) -> None:
    """A span is called after its function; a callable object after its class."""
    seen = observed(shop(task))
    TestClient(seen_app(seen)).get("/items/7")
    assert name in {span.name for span in seen.spans}


def traced_task_of(task: Any) -> Any:
    """Return a task that runs another one, without its name, as ddtrace's does."""

    async def traced_task(*args: Any, **kwargs: Any) -> None:
        task(*args, **kwargs)

    return traced_task


def add_traced(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
    """Add a wrapped task, as ddtrace's wrapper of `BackgroundTasks.add_task` does."""
    return wrapped(traced_task_of(args[0]), *args[1:], **kwargs)


@pytest.mark.parametrize("patched", ["before install", "after install"])
def test_a_task_that_a_tracer_wraps_keeps_its_name(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch, patched: str
) -> None:
    """The operation of a task has the name of the user's function, in whichever order both wrap it."""
    kind = starlette.background.BackgroundTasks  # FastAPI's own class calls it
    monkeypatch.setattr(kind, "add_task", kind.add_task)  # restored after the test
    app = FastAPI()

    @app.get("/")
    def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(send_mail, 7)

    if patched == "before install":
        wrapt.wrap_function_wrapper(kind, "add_task", add_traced)
    seen = observed(app)
    if patched == "after install":
        wrapt.wrap_function_wrapper(kind, "add_task", add_traced)
    TestClient(app).get("/")
    assert [span.name for span in seen.spans if span.name.startswith("background")] == ["background send_mail"]
    seen.observe.close()


def send_mail(_: int) -> None:
    """Do nothing."""


def test_an_unset_variable_of_a_task_is_not_read(observed: Callable[..., Seen]) -> None:
    """A task whose closure has a variable without a value yet runs under its own name."""

    def endpoint(_: Any) -> Response:
        def task() -> None:
            ran.append(1)
            func()  # noqa: F821 - deleted below

        func = print
        response = Response(background=BackgroundTask(task))
        del func
        return response

    ran: list[int] = []
    app = Starlette(routes=[Route("/", endpoint)])
    seen = observed(app)
    with pytest.raises(NameError):
        TestClient(app).get("/")
    assert ran == [1]
    assert [span.name.rpartition(".")[2] for span in seen.spans if span.name.startswith("background")] == ["task"]
    assert seen.observe.internal_errors.counts == {}


async def test_contrib_adds_no_span_of_its_own(observed: Callable[..., Seen]) -> None:
    """A task of an app that contrib instruments too is one span."""
    app = FastAPI()

    @app.get("/")
    def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(send_mail, 7)

    FastAPIInstrumentor.instrument_app(app)
    seen = observed(app)
    TestClient(app).get("/")
    assert sorted(span.name for span in seen.spans) == ["GET /", "background send_mail"]
    seen.observe.close()
    FastAPIInstrumentor.uninstrument_app(app)
