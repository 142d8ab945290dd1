"""Undocumented names of Starlette, FastAPI and OpenTelemetry: what happens in a version that lacks one of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry import context as otel_context
from starlette import routing
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe.internal import fastapi as fastapi_names
from fastapi_observe.internal.fastapi import declared_fields, disable_native_telemetry, validation_error_types
from fastapi_observe.internal.opentelemetry import OTEL_CONTEXT, find_context_variable, find_suppression_key
from fastapi_observe.internal.starlette import compile_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen


async def page(_: Any) -> PlainTextResponse:
    """Respond to any request."""
    return PlainTextResponse("page")


def test_without_the_stack_builder_the_middleware_is_added(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Starlette whose builder has another name: requests are measured by the outermost user middleware."""
    build: Any = Starlette.build_middleware_stack

    async def call(app: Any, scope: Any, receive: Any, send: Any) -> None:
        if app.middleware_stack is None:
            app.middleware_stack = build(app)
        await app.middleware_stack(scope, receive, send)

    monkeypatch.delattr(Starlette, "build_middleware_stack")
    monkeypatch.setattr(Starlette, "__call__", call)
    app = Starlette(routes=[Route("/x", page)])
    app.add_middleware(GZipMiddleware)
    middleware = list(app.user_middleware)
    seen = observed(app)
    app.mount("/sub", Starlette(routes=[Route("/y", page)]))
    client = TestClient(app)
    assert client.get("/x").text == "page"
    assert client.get("/sub/y").text == "page"
    endpoints = {dict(labels)["endpoint"] for labels in seen.samples("http_requests_total")}
    assert endpoints == {"/x", "/sub/y"}
    seen.observe.close()
    assert app.user_middleware == middleware
    assert TestClient(app).get("/x").text == "page"


@pytest.mark.parametrize("available", [True, False])
def test_templates_are_compiled_with_and_without_starlette(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> None:
    """A parameter matches one segment, a path parameter the rest, everything else itself."""
    if not available:
        monkeypatch.delattr(routing, "compile_path")
    pattern = compile_template("/a.b/{name}/files/{rest:path}")
    assert pattern.match("/a.b/x/files/y/z")
    for other in ("/axb/x/files/y", "/a.b/x/y/files/z", "/a.b/x/files"):
        assert not pattern.match(other)
    assert not compile_template("/a").match("/a/b")


def test_native_telemetry_that_is_not_there() -> None:
    """An app without FastAPI's telemetry, or with another form of it, is left alone."""
    assert disable_native_telemetry(Starlette()) is None
    app: Any = FastAPI()
    app._telemetry = "another form"
    assert disable_native_telemetry(app) is None
    app._telemetry = {"tracing": True, "else": 1}
    undo = disable_native_telemetry(app)
    assert app._telemetry == {"tracing": False, "else": 1}
    assert undo is not None
    undo()
    assert app._telemetry == {"tracing": True, "else": 1}


def test_validation_errors_without_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FastAPI was never imported there are no validation errors."""
    assert len(validation_error_types()) == 2
    monkeypatch.delitem(sys.modules, "fastapi.exceptions")
    assert validation_error_types() == ()


def test_declared_fields_without_a_dependant() -> None:
    """A route that does not list its parameters, as Starlette's, has none; a field without a type has no annotation."""
    assert list(declared_fields(Route("/x", page))) == []

    class Field:
        name = alias = "shop"

    class Dependant:
        query_params = (Field(),)

    (field,) = declared_fields(type("OtherRoute", (), {"dependant": Dependant()})())
    assert (field.name, field.annotation) == ("shop", None)


def test_routes_without_contexts() -> None:
    """Routes that are not kept apart by included routers, and contexts without a route, are listed as they are."""
    router = APIRouter()
    router.add_api_route("/x", page, response_model=None)
    context = object()
    included = type("Included", (), {"effective_route_contexts": lambda _: [context]})()
    assert list(fastapi_names.flatten_routes([included, router.routes[0]])) == [context, router.routes[0]]
    assert fastapi_names.frontend_path(None) is None


def test_another_context_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token without a variable: the public functions of OpenTelemetry are used."""
    assert find_context_variable() is OTEL_CONTEXT
    tokens = [object(), object()]
    detached: list[Any] = []
    monkeypatch.setattr(otel_context, "attach", lambda _: tokens[len(detached)])
    monkeypatch.setattr(otel_context, "detach", detached.append)
    variable = find_context_variable()
    variable.reset(variable.set(variable.get()))
    assert detached == tokens


def test_a_suppression_key_that_is_gone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A new key has no effect on other instrumentation; a warning says so."""
    assert find_suppression_key() == otel_context._SUPPRESS_INSTRUMENTATION_KEY
    monkeypatch.delattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY")
    assert find_suppression_key().startswith("suppress_instrumentation")
    assert "no key to suppress instrumentation" in caplog.text
