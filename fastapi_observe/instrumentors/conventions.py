"""A call as the attributes of its span describe it, by OpenTelemetry's semantic conventions, old names and new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from opentelemetry.trace import SpanKind

from fastapi_observe.records.request import known_method

if TYPE_CHECKING:
    from collections.abc import Mapping

STATEMENTS: Final = ("db.query.text", "db.statement")
"""Attributes that hold a statement, the new name first, as in all tables below."""

_SYSTEM: Final = ("db.system.name", "db.system")
_COMMAND: Final = ("db.operation.name", "db.operation")
_TABLE: Final = ("db.collection.name", "db.sql.table", "db.mongodb.collection", "db.cassandra.table")
_METHOD: Final = ("http.request.method", "http.method")
_STATUS: Final = ("http.response.status_code", "http.status_code")
_URL: Final = ("url.full", "http.url")
_ADDRESS: Final = ("server.address", "net.peer.name", "http.host")
_RPC_SYSTEM: Final = ("rpc.system.name", "rpc.system")
_RPC_STATUS: Final = ("rpc.response.status_code", "rpc.grpc.status_code")
_MESSAGE_OPERATION: Final = ("messaging.operation.type", "messaging.operation", "messaging.operation.name")
_DESTINATION: Final = ("messaging.destination.template", "messaging.destination.name", "messaging.destination")
_TEMPORARY: Final = ("messaging.destination.temporary", "messaging.destination.anonymous", "messaging.temp_destination")

_SYSTEMS: Final = {
    "dynamodb": "aws.dynamodb",
    "mssql": "microsoft.sql_server",
    "oracle": "oracle.db",
    "redshift": "aws.redshift",
}
"""Old names of database systems."""

_GRPC_STATUS: Final = """OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS
    PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE
    DATA_LOSS UNAUTHENTICATED""".split()  # noqa: SIM905 - a list would be a page long
"""Names of gRPC's status codes, by their number."""

_GRPC_OUTCOMES: Final = {
    "OK": "ok",
    "DEADLINE_EXCEEDED": "timeout",
    "UNAVAILABLE": "connect_error",
    "CANCELLED": "cancelled",
    **dict.fromkeys(
        (
            "INVALID_ARGUMENT",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "FAILED_PRECONDITION",
            "OUT_OF_RANGE",
            "UNAUTHENTICATED",
        ),
        "client_error",
    ),
}
_HANDLING: Final = frozenset({"process", "deliver"})
"""Operations of messages that are work of the receiver, not a call."""


class QueryDescription(NamedTuple):
    """A query, as `DatabaseClient.query` takes it. `command` is the operation of a language other than SQL."""

    system: str
    command: str | None
    table: str | None
    statement: str | None


class Call(NamedTuple):
    """A call to another service.

    `service` and `operation` are names from code, or a host if `host` is set. `status` is the HTTP status, `outcome`
    and `error_type` are those of gRPC.
    """

    service: str
    operation: str
    host: str | None = None
    status: int | None = None
    outcome: str = ""
    error_type: str | None = None


def read_call(
    name: str, kind: SpanKind, attributes: Mapping[str, Any], scope: str = ""
) -> QueryDescription | Call | None:
    """Return the call that a span describes; None if it is not one. `scope` is the instrumentation scope."""
    if _text(attributes, _SYSTEM):
        return _read_query(attributes)
    if _text(attributes, ("messaging.system",)):
        return _read_message(name, kind, attributes)
    if _text(attributes, _RPC_SYSTEM):
        return _read_rpc(attributes)
    call = read_http(attributes)
    if call is None and kind is SpanKind.PRODUCER:  # taskiq and Celery do not name the messaging system
        library = str(scope).removeprefix("opentelemetry.instrumentation.").partition(".")[0]
        call = Call(library or "unknown", name)
    return call


def layer_of(
    attributes: Mapping[str, Any], kind: SpanKind = SpanKind.CLIENT
) -> Literal["database", "http", "external"] | None:
    """Return whether a span is of a query, of an HTTP request or of another call. None is not known yet."""
    if _text(attributes, _SYSTEM):
        return "database"
    if _text(attributes, _RPC_SYSTEM) or _text(attributes, ("messaging.system",)):
        return "external"
    if _text(attributes, _METHOD):
        return "http"
    return "external" if kind is SpanKind.PRODUCER else None


def read_http(attributes: Mapping[str, Any]) -> Call | None:
    """Return the call that an HTTP request is."""
    method = _text(attributes, _METHOD)
    if method is None:
        return None
    host = http_host(attributes) or "unknown"
    template = _text(attributes, ("url.template",))
    method = known_method(method.upper())
    operation = method if template is None else f"{method} {template}"
    return Call(host, operation, host, _http_status(attributes))


def http_host(attributes: Mapping[str, Any]) -> str | None:
    """Return the host that an HTTP request is sent to."""
    url = _text(attributes, _URL)
    try:
        host = None if url is None else urlsplit(url).hostname
    except ValueError:  # not a URL
        host = None
    return host or _text(attributes, _ADDRESS)


def _read_query(attributes: Mapping[str, Any]) -> QueryDescription | None:
    system = str(_text(attributes, _SYSTEM)).lower()
    statement, command = _text(attributes, STATEMENTS), _text(attributes, _COMMAND)
    if statement is None and command is None:
        return None  # a connection, not a query
    if command is None and system in {"redis", "valkey"}:
        is_pipeline = "\n" in str(statement) or _number(attributes, ("db.redis.pipeline_length",))
        command = "PIPELINE" if is_pipeline else str(statement).partition(" ")[0].upper()
    elif command is None and system == "mongodb":
        command = str(statement).partition(" ")[0]
    return QueryDescription(_SYSTEMS.get(system, system), command, _text(attributes, _TABLE), statement)


def _read_message(name: str, kind: SpanKind, attributes: Mapping[str, Any]) -> Call | None:
    default = "send" if kind is SpanKind.PRODUCER else "receive"
    operation = _text(attributes, _MESSAGE_OPERATION) or (
        name.partition(" ")[0] if kind is SpanKind.CLIENT else default
    )
    if operation in _HANDLING:
        return None
    destination = _text(attributes, _DESTINATION)
    if destination is not None and not any(attributes.get(each) for each in _TEMPORARY):
        operation = f"{operation} {destination}"
    return Call(str(_text(attributes, ("messaging.system",))), operation, status=_http_status(attributes))


def _read_rpc(attributes: Mapping[str, Any]) -> Call:
    service, method = _text(attributes, ("rpc.service",)), _text(attributes, ("rpc.method",))
    if service is None and method is not None and "/" in method:  # new: one name with both
        service, _, method = method.strip("/").rpartition("/")
    system = str(_text(attributes, _RPC_SYSTEM))
    code = next((attributes[name] for name in _RPC_STATUS if name in attributes), None)
    outcome, error_type = _grpc_outcome(code) if system == "grpc" and code is not None else ("", None)
    return Call(
        service or system,
        method or "call",
        status=_http_status(attributes),
        outcome=outcome,
        error_type=error_type,
    )


def _grpc_outcome(code: object) -> tuple[str, str | None]:
    name = str(code)
    if name.isdecimal() and int(name[:4]) < len(_GRPC_STATUS):
        name = _GRPC_STATUS[int(name)]
    outcome = _GRPC_OUTCOMES.get(name, "server_error")
    is_known = name in _GRPC_STATUS
    return outcome, None if outcome in {"ok", "client_error"} else name if is_known else "_OTHER"


def _text(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of the attributes that is a string, and not empty."""
    for name in names:
        value = attributes.get(name)
        if value and isinstance(value, str):
            return value
    return None


def _number(attributes: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of the attributes that is a number, or the string of one."""
    for name in names:
        value = attributes.get(name)
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and len(value) < len("1000")):
            return int(value)
    return None


def _http_status(attributes: Mapping[str, Any]) -> int | None:
    status = _number(attributes, _STATUS)
    return status if status is not None and 100 <= status <= 999 else None  # noqa: PLR2004 - three digits
