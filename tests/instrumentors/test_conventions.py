"""What the attributes of a span say, in the names of the semantic conventions of all times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind

from fastapi_observe.instrumentors import conventions
from fastapi_observe.instrumentors.conventions import Call, QueryDescription, layer_of, read_call

if TYPE_CHECKING:
    from collections.abc import Mapping

URL = "https://user@api.example.com:8443/a?b=c"
CASES: Final[dict[str, tuple[Mapping[str, Any], QueryDescription | Call | None]]] = {
    "http, new": (
        {"http.request.method": "GET", "url.full": URL, "http.response.status_code": 200},
        Call("api.example.com", "GET", "api.example.com", 200),
    ),
    "http, old": (
        {"http.method": "post", "http.url": URL, "http.status_code": 503},
        Call("api.example.com", "POST", "api.example.com", 503),
    ),
    "http, a template": (
        {"http.request.method": "GET", "server.address": "billing", "url.template": "/invoices/{id}"},
        Call("billing", "GET /invoices/{id}", "billing"),
    ),
    "http, unknown method, no host": ({"http.method": "BREW"}, Call("unknown", "_OTHER", "unknown")),
    "http, no URL": ({"http.method": "GET", "http.url": "http://[bad"}, Call("unknown", "GET", "unknown")),
    "sql, new": (
        {"db.system.name": "postgresql", "db.query.text": "SELECT 1", "db.collection.name": "orders"},
        QueryDescription("postgresql", None, "orders", "SELECT 1"),
    ),
    "sql, old": (
        {"db.system": "mssql", "db.statement": "SELECT 1", "db.sql.table": "orders", "db.operation": "SELECT"},
        QueryDescription("microsoft.sql_server", "SELECT", "orders", "SELECT 1"),
    ),
    "redis": ({"db.system": "redis", "db.statement": "get ?"}, QueryDescription("redis", "GET", None, "get ?")),
    "redis, a pipeline": (
        {"db.system": "redis", "db.statement": "GET ?", "db.redis.pipeline_length": 2},
        QueryDescription("redis", "PIPELINE", None, "GET ?"),
    ),
    "mongodb": (
        {"db.system": "mongodb", "db.statement": "find orders", "db.mongodb.collection": "orders"},
        QueryDescription("mongodb", "find", "orders", "find orders"),
    ),
    "a connection": ({"db.system": "postgresql", "server.address": "db"}, None),
    "rpc, old": (
        {"rpc.system": "grpc", "rpc.service": "shop.Stock", "rpc.method": "Reserve", "rpc.grpc.status_code": 0},
        Call("shop.Stock", "Reserve", outcome="ok"),
    ),
    "rpc, new": (
        {"rpc.system.name": "grpc", "rpc.method": "shop.Stock/Reserve", "rpc.response.status_code": "UNAVAILABLE"},
        Call("shop.Stock", "Reserve", outcome="connect_error", error_type="UNAVAILABLE"),
    ),
    "rpc, an unknown status": (
        {"rpc.system": "grpc", "rpc.service": "s", "rpc.method": "m", "rpc.grpc.status_code": 99},
        Call("s", "m", outcome="server_error", error_type="_OTHER"),
    ),
    "aws": (
        {"rpc.system": "aws-api", "rpc.service": "S3", "rpc.method": "GetObject", "http.status_code": 404},
        Call("S3", "GetObject", status=404),
    ),
    "messaging, new": (
        {"messaging.system": "kafka", "messaging.destination.name": "orders", "messaging.operation.type": "send"},
        Call("kafka", "send orders"),
    ),
    "messaging, old": (
        {"messaging.system": "rabbitmq", "messaging.destination": "orders", "messaging.operation": "receive"},
        Call("rabbitmq", "receive orders"),
    ),
    "messaging, a temporary destination": (
        {"messaging.system": "rabbitmq", "messaging.destination": "amq.gen-1", "messaging.temp_destination": True},
        Call("rabbitmq", "send"),
    ),
    "messaging, a template": (
        {
            "messaging.system": "mqtt",
            "messaging.destination.name": "/customers/7",
            "messaging.destination.template": "/customers/{id}",
        },
        Call("mqtt", "send /customers/{id}"),
    ),
    "messaging, its handling": ({"messaging.system": "kafka", "messaging.operation": "process"}, None),
    "messaging, no system": (
        {"taskiq.action": "send", "messaging.message.id": "7", "messaging.destination": ""},
        Call("taskiq", "call"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_attributes_describe_a_call(case: str) -> None:
    """Old and new names mean the same."""
    attributes, expected = CASES[case]
    assert read_call("call", SpanKind.PRODUCER, attributes, "taskiq.middlewares.opentelemetry_middleware") == expected


@pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.CONSUMER])
def test_attributes_of_something_else(kind: SpanKind) -> None:
    """Only a span that sends a message is a call without attributes that say so; its library is in its scope."""
    attributes = {"gen_ai.system": "x", "http.status_code": 200}
    assert read_call("call", kind, attributes, "opentelemetry.instrumentation.celery") is None
    assert layer_of(attributes, kind) is None
    producer = SpanKind.PRODUCER
    assert read_call("send/a", producer, attributes, "opentelemetry.instrumentation.celery") == Call("celery", "send/a")
    assert read_call("send/a", producer, attributes) == Call("unknown", "send/a")
    assert read_call("send/a", producer, attributes, 7) == Call("7", "send/a")  # type: ignore[arg-type]
    assert layer_of(attributes, producer) == "external"


NAMES = [name for names in vars(conventions).values() if isinstance(names, tuple) for name in names if "." in str(name)]
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()))


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.sampled_from(SpanKind), st.text(), st.text())
def test_whatever_a_library_sets_can_be_read(attributes: dict[str, Any], kind: SpanKind, name: str, scope: str) -> None:
    """Nothing raises, and all parts of a call have their types."""
    call = read_call(name, kind, attributes, scope)
    assert layer_of(attributes, kind) in {"database", "http", "external", None}
    if isinstance(call, Call):
        assert isinstance(call.service, str)
        assert isinstance(call.operation, str)
        assert call.status is None or 100 <= call.status <= 999
    elif call is not None:
        assert isinstance(call.system, str)
