"""Background tasks are measured where Starlette runs each of them, while anything is installed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
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
    return seen.observe.routes._app


def test_an_internal_error_does_not_stop_the_task(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task runs unmeasured; the fault is counted."""
    ran: list[int] = []
    seen = observed(shop(lambda: ran.append(1)))
    monkeypatch.setattr(seen.observe, "background_operation", lambda *_: 1 / 0)
    TestClient(seen_app(seen)).get("/items/7")
    assert ran == [1]
    assert seen.observe.internal_errors.counts == {"background": 1}


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
