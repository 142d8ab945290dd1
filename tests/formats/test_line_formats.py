"""`log_format` ecs, gcp and datadog: each key as its platform documents it, bounded lines, and our own readers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_observe.formats.choice import JSON, choose_line_format
from fastapi_observe.logs.line import MAX_LINE, encode_as, encode_line
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.slo.datasources import make_datasources
from fastapi_observe.slo.features import detect_features
from fastapi_observe.slo.grafana.dashboard import make_dashboard
from fastapi_observe.slo.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from opentelemetry.trace import SpanContext

ECS: Final = "https://www.elastic.co/docs/reference/ecs/"
GCP: Final = "https://cloud.google.com/logging/docs/"
DATADOG: Final = "https://docs.datadoghq.com/"


class DocumentedKey(NamedTuple):
    """A key of a platform: the type and form of its values, and the page that says so."""

    path: str
    type: type
    form: str
    page: str


HEX: Final = "[0-9a-f]"
TIME: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"

DOCUMENTED: Final = {
    "ecs": (
        DocumentedKey("@timestamp", str, TIME, f"{ECS}ecs-base"),
        DocumentedKey("message", str, ".+", f"{ECS}ecs-base"),
        DocumentedKey("labels.plan", str, "free", f"{ECS}ecs-base"),
        DocumentedKey("labels.seats", str, "3", f"{ECS}ecs-base"),
        DocumentedKey("ecs.version", str, r"8\.11\.0", f"{ECS}ecs-ecs"),
        DocumentedKey("log.level", str, "error", f"{ECS}ecs-log"),
        DocumentedKey("log.logger", str, r"fastapi_observe\.request", f"{ECS}ecs-log"),
        DocumentedKey("service.name", str, "shop", f"{ECS}ecs-service"),
        DocumentedKey("service.version", str, "1.2", f"{ECS}ecs-service"),
        DocumentedKey("service.environment", str, "production", f"{ECS}ecs-service"),
        DocumentedKey("trace.id", str, f"{HEX}{{32}}", f"{ECS}ecs-tracing"),
        DocumentedKey("span.id", str, f"{HEX}{{16}}", f"{ECS}ecs-tracing"),
        DocumentedKey("http.request.id", str, ".+", f"{ECS}ecs-http"),
        DocumentedKey("http.request.method", str, "POST", f"{ECS}ecs-http"),
        DocumentedKey("http.request.body.bytes", int, "4", f"{ECS}ecs-http"),
        DocumentedKey("http.response.status_code", int, "500", f"{ECS}ecs-http"),
        DocumentedKey("http.response.body.bytes", int, r"\d+", f"{ECS}ecs-http"),
        DocumentedKey("url.original", str, r"/orders/7\?page=2", f"{ECS}ecs-url"),
        DocumentedKey("url.path", str, "/orders/7", f"{ECS}ecs-url"),
        DocumentedKey("url.query", str, "page=2", f"{ECS}ecs-url"),
        DocumentedKey("user_agent.original", str, "probe/1", f"{ECS}ecs-user_agent"),
        DocumentedKey("client.address", str, "10.1.2.3", f"{ECS}ecs-client"),
        DocumentedKey("event.duration", int, r"\d+", f"{ECS}ecs-event"),
        DocumentedKey("event.outcome", str, "failure", f"{ECS}ecs-event"),
        DocumentedKey("error.type", str, "ValueError", f"{ECS}ecs-error"),
        DocumentedKey("error.message", str, "no stock", f"{ECS}ecs-error"),
        DocumentedKey("error.stack_trace", str, "(?s)Traceback.+", f"{ECS}ecs-error"),
    ),
    "gcp": (
        DocumentedKey("severity", str, "ERROR", f"{GCP}structured-logging"),
        DocumentedKey("message", str, ".+", f"{GCP}structured-logging"),
        DocumentedKey("time", str, TIME, f"{GCP}structured-logging"),
        DocumentedKey("logging.googleapis.com/trace", str, f"projects/my-shop/traces/{HEX}{{32}}",
                      f"{GCP}structured-logging"),
        DocumentedKey("logging.googleapis.com/spanId", str, f"{HEX}{{16}}", f"{GCP}structured-logging"),
        DocumentedKey("logging.googleapis.com/trace_sampled", bool, "True", f"{GCP}structured-logging"),
        DocumentedKey("httpRequest.requestMethod", str, "POST", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.requestUrl", str, r"/orders/7\?page=2",
                      f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.status", int, "500", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.requestSize", str, "4", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.responseSize", str, r"\d+", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.userAgent", str, "probe/1", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.remoteIp", str, "10.1.2.3", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("httpRequest.latency", str, r"\d+\.\d{6}s", f"{GCP}reference/v2/rest/v2/LogEntry#HttpRequest"),
        DocumentedKey("serviceContext.service", str, "shop",
                      "https://cloud.google.com/error-reporting/docs/formatting-error-messages"),
        DocumentedKey("serviceContext.version", str, "1.2",
                      "https://cloud.google.com/error-reporting/docs/formatting-error-messages"),
        DocumentedKey("stack_trace", str, "(?s)Traceback.+",
                      "https://cloud.google.com/error-reporting/docs/formatting-error-messages"),
        DocumentedKey("fields.plan", str, "free", f"{GCP}structured-logging"),
        DocumentedKey("fields.seats", int, "3", f"{GCP}structured-logging"),
    ),
    "datadog": (
        DocumentedKey("timestamp", str, TIME, f"{DATADOG}logs/log_configuration/pipelines/"),
        DocumentedKey("status", str, "error", f"{DATADOG}logs/log_configuration/attributes_naming_convention/"),
        DocumentedKey("message", str, ".+", f"{DATADOG}logs/log_configuration/attributes_naming_convention/"),
        DocumentedKey("service", str, "shop", f"{DATADOG}getting_started/tagging/unified_service_tagging/"),
        DocumentedKey("env", str, "production", f"{DATADOG}getting_started/tagging/unified_service_tagging/"),
        DocumentedKey("version", str, "1.2", f"{DATADOG}getting_started/tagging/unified_service_tagging/"),
        DocumentedKey("logger.name", str, ".+", f"{DATADOG}logs/log_configuration/attributes_naming_convention/"),
        DocumentedKey("dd.trace_id", str, r"\d{1,20}", f"{DATADOG}tracing/other_telemetry/connect_logs_and_traces/"),
        DocumentedKey("dd.span_id", str, r"\d{1,20}", f"{DATADOG}tracing/other_telemetry/connect_logs_and_traces/"),
        DocumentedKey("trace_id", str, f"{HEX}{{32}}", f"{DATADOG}opentelemetry/correlate/logs_and_traces/"),
        DocumentedKey("span_id", str, f"{HEX}{{16}}", f"{DATADOG}opentelemetry/correlate/logs_and_traces/"),
        DocumentedKey("http.method", str, "POST", f"{DATADOG}standard-attributes/"),
        DocumentedKey("http.url", str, r"/orders/7\?page=2", f"{DATADOG}standard-attributes/"),
        DocumentedKey("http.status_code", int, "500", f"{DATADOG}standard-attributes/"),
        DocumentedKey("http.useragent", str, "probe/1", f"{DATADOG}standard-attributes/"),
        DocumentedKey("http.request_id", str, ".+", f"{DATADOG}standard-attributes/"),
        DocumentedKey("network.client.ip", str, "10.1.2.3", f"{DATADOG}standard-attributes/"),
        DocumentedKey("network.bytes_read", int, "4", f"{DATADOG}standard-attributes/"),
        DocumentedKey("network.bytes_written", int, r"\d+", f"{DATADOG}standard-attributes/"),
        DocumentedKey("duration", int, r"\d+", f"{DATADOG}standard-attributes/"),
        DocumentedKey("error.kind", str, "ValueError", f"{DATADOG}standard-attributes/"),
        DocumentedKey("error.message", str, "no stock", f"{DATADOG}standard-attributes/"),
        DocumentedKey("error.stack", str, "(?s)Traceback.+", f"{DATADOG}standard-attributes/"),
    ),
}  # fmt: skip
"""The keys of a request line about a request that raised, for each format."""

FORMATS: Final = tuple(DOCUMENTED)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested objects by their paths, as the platforms index them."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        path: each
        for name, inner in value.items()
        for path, each in flatten(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def server_position(seen: Seen) -> SpanContext:
    """Return the ids of the only server span."""
    (span,) = seen.server_spans
    position = span.get_span_context()
    assert position is not None
    return position


def shop(seen: Callable[..., Seen], log_format: str, **options: Any) -> tuple[Seen, TestClient]:
    """Return an observed app with one path that fails and one that does not."""
    app = FastAPI()
    seen_app = seen(
        app, log_format=log_format, service_name="shop", service_version="1.2", **{"capture_pii": True, **options}
    )

    @app.post("/orders/{order_id}")
    async def fail(order_id: int, request: Request) -> None:
        await request.body()
        seen_app.observe.set(plan="free", seats=3)
        raise ValueError("no stock")

    @app.get("/ok")
    def ok() -> None:
        seen_app.observe.log.info("cart read", level="mine", trace_id="mine", status=["a"], items=3)

    @app.websocket("/ws")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    client = TestClient(app, raise_server_exceptions=False, client=("10.1.2.3", 5), headers={"user-agent": "probe/1"})
    return seen_app, client


@pytest.mark.parametrize("log_format", FORMATS)
def test_request_lines_have_the_documented_keys(observed: Callable[..., Seen], log_format: str) -> None:
    """The line of a request that raised has every key of the table, with values of the documented type and form."""
    seen, client = shop(observed, log_format, gcp_project="my-shop", capture_query_parameters=["page"])
    client.post("/orders/7?page=2", content=b"abcd")
    line = next(one for one in map(flatten, seen.lines) if one["message"] == "HTTP request completed")
    for key in DOCUMENTED[log_format]:
        assert type(line[key.path]) is key.type, key
        assert re.fullmatch(key.form, str(line[key.path])), (key, line[key.path])


@pytest.mark.parametrize("log_format", FORMATS)
def test_ids_are_those_of_the_span(observed: Callable[..., Seen], log_format: str) -> None:
    """Every line in a request, our own and the user's, names its trace and span as the platform writes ids."""
    seen, client = shop(observed, log_format)
    client.get("/ok")
    span = server_position(seen)
    expected = {
        "ecs": ("trace.id", f"{span.trace_id:032x}", "span.id", f"{span.span_id:016x}"),
        "gcp": (
            "logging.googleapis.com/trace", f"{span.trace_id:032x}",
            "logging.googleapis.com/spanId", f"{span.span_id:016x}",
        ),
        "datadog": ("dd.trace_id", str(span.trace_id % 2**64), "dd.span_id", str(span.span_id)),
    }  # fmt: skip
    lines = [flatten(line) for line in seen.lines if line["message"] in {"cart read", "HTTP request completed"}]
    assert len(lines) == 2
    for line in lines:
        trace, trace_id, position, span_id = expected[log_format]
        assert (line[trace], line[position]) == (trace_id, span_id)


@pytest.mark.parametrize("log_format", FORMATS)
def test_fields_of_users_overwrite_nothing(observed: Callable[..., Seen], log_format: str) -> None:
    """A field named like a key of the line or of the platform stays where fields are."""
    seen, client = shop(observed, log_format)
    client.get("/ok")
    line = flatten(next(line for line in seen.lines if line["message"] == "cart read"))
    rest = "labels" if log_format == "ecs" else "fields"
    assert (line[f"{rest}.level"], line[f"{rest}.trace_id"]) == ("mine", "mine")
    assert line[f"{rest}.status"] == ('["a"]' if log_format == "ecs" else ["a"])
    assert line[{"ecs": "log.level", "gcp": "severity", "datadog": "status"}[log_format]].lower() == "info"


@pytest.mark.parametrize("log_format", FORMATS)
def test_every_kind_of_line_is_converted(observed: Callable[..., Seen], log_format: str) -> None:
    """WebSocket, job and operation lines and those of `logging` have no key of the plain format left."""
    seen, client = shop(observed, log_format)
    with client.websocket_connect("/ws"):
        pass
    with seen.observe.job("mail"), seen.observe.operation("send"):
        pass
    levels = {"ecs": "log.level", "gcp": "severity", "datadog": "status"}
    messages = {line["message"] for line in seen.lines}
    assert {"WebSocket connection closed", "job completed", "operation completed"} <= messages
    for line in seen.lines:
        assert levels[log_format] in line
        assert "level" not in line


@pytest.mark.parametrize("log_format", FORMATS)
def test_whole_addresses_only_where_platforms_want_one(observed: Callable[..., Seen], log_format: str) -> None:
    """Without `capture_pii` the peer is a network: not a value for a key that takes an address."""
    seen, client = shop(observed, log_format, capture_pii=False)
    client.get("/ok")
    line = flatten(next(line for line in seen.lines if line["message"] == "HTTP request completed"))
    key = {"ecs": "client.address", "gcp": "fields.remote_addr", "datadog": "fields.remote_addr"}[log_format]
    assert line[key] == "10.1.2.0/24"
    assert "httpRequest.remoteIp" not in line
    assert "network.client.ip" not in line


@pytest.mark.parametrize("log_format", FORMATS)
def test_our_readers_ask_the_format(observed: Callable[..., Seen], log_format: str) -> None:
    """Data sources and dashboard search lines by the keys of the format, and its pattern finds the trace id."""
    seen, client = shop(observed, log_format, gcp_project="my-shop")
    client.get("/ok")
    settings = seen.observe.settings
    features = detect_features(client.app, settings)
    plan = make_plan(client.app, settings)
    line_format = choose_line_format(settings)
    text = json.dumps([make_datasources(plan, features), make_dashboard(plan, features)])
    label = line_format.logql_label("trace_id")
    assert f"| json | {label}=" in text
    assert line_format.logql_label("endpoint") in text
    raw = next(line for line in seen.lines if line["message"] == "HTTP request completed")
    encoded = json.dumps(raw, separators=(",", ":"))
    found = re.search(line_format.trace_id_pattern, encoded)
    assert found is not None
    assert found[1] == f"{server_position(seen).trace_id:032x}"
    labels = {re.sub(r"[^a-zA-Z0-9_]", "_", path) for path in flatten(raw)}
    for name in ("trace_id", "fields.endpoint", "level", "fields.status_code", "fields.duration_ms", "service"):
        if (log_format, name) != ("gcp", "fields.duration_ms") or "fields_duration_ms" in labels:
            assert line_format.logql_label(name) in labels, name


@pytest.mark.parametrize("log_format", FORMATS)
def test_the_console_reads_lines_of_any_format(observed: Callable[..., Seen], log_format: str) -> None:
    """A trace of the console has its lines with this package's keys, as `show` prints them."""
    seen, client = shop(
        observed, log_format, environment="development", console=True, console_token="a" * 20, trust_incoming="always"
    )
    client.get("/ok")
    trace_id = f"{server_position(seen).trace_id:032x}"
    answer = client.get(f"/observe/api/traces/{trace_id}", headers={"authorization": f"Bearer {'a' * 20}"})
    (line,) = [line for line in answer.json()["lines"] if line["message"] == "cart read"]
    assert (line["level"], line["trace_id"], line["fields"]["items"]) == ("info", trace_id, 3)


def test_a_gcp_trace_is_found_by_its_id_alone(observed: Callable[..., Seen]) -> None:
    """The resource name of a trace ends with its id, so the query matches the end."""
    seen, _ = shop(observed, "gcp", gcp_project="my-shop")
    query = choose_line_format(seen.observe.settings).logql_trace_filter("abc")
    assert query == 'logging_googleapis_com_trace=~".*abc"'


def test_the_project_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's variable names the project; without it the trace id is alone; a path is not a project."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-shop")
    assert ObserveSettings.load(None).gcp_project == "my-shop"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "a/b c")
    with pytest.raises(SettingsError, match="gcp_project"):
        ObserveSettings.load(None)


@pytest.mark.parametrize("log_format", FORMATS)
def test_the_log_file_has_the_same_format(observed: Callable[..., Seen], log_format: str, tmp_path: Any) -> None:
    """File and standard output get the same bytes."""
    seen, client = shop(observed, log_format, log_file=str(tmp_path / "app.log"), log_compression=None)
    client.get("/ok")
    lines = seen.lines
    assert [json.loads(line) for line in (tmp_path / "app.log").read_text("utf-8").splitlines()] == lines


def test_a_format_that_fails_costs_no_line(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error in the conversion is counted, and the line is written with the plain keys."""

    def fail(_: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("injected")

    monkeypatch.setattr("fastapi_observe.logs.service.choose_line_format", lambda _: JSON._replace(convert=fail))
    seen, client = shop(observed, "ecs")
    monkeypatch.undo()
    client.get("/ok")
    assert [line["level"] for line in seen.lines if line["message"] == "cart read"] == ["info"]
    assert seen.total("fastapi_observe_internal_errors_total") >= 2  # a line of the app, one of its request


def plain_line(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a line as this package writes it."""
    return {
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "level": "error",
        "message": "m",
        "logger": "l",
        "service": "s",
        "environment": "e",
        "version": "",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "fields": fields,
        **more,
    }


OWN_NAMES: Final = st.sampled_from(
    [
        "method",
        "url",
        "status_code",
        "duration_ms",
        "outcome",
        "sampled",
        "endpoint",
        "remote_addr",
        "a.b",
        "error_type",
    ]
)
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("log_format", FORMATS)
@given(st.dictionaries(OWN_NAMES | st.text(), VALUES))
@example({"duration_ms": 18446744073710.0, "status_code": 2**64 - 1, "close_code": -(2**63)})
def test_any_line_is_converted(log_format: str, fields: dict[str, Any]) -> None:
    """Whatever values fields have, also under our own names, the line is JSON in one row, with the values in it."""
    settings = ObserveSettings.load(None, log_format=log_format)  # type: ignore[arg-type]
    line_format = choose_line_format(settings)
    plain = encode_line(plain_line(fields))
    data = encode_as(line_format, plain)
    assert len(data.decode().splitlines()) == 1
    converted = json.loads(data)
    if isinstance(fields.get("status_code"), str) and log_format == "gcp":
        assert "httpRequest" not in converted or "status" not in converted["httpRequest"]


@pytest.mark.parametrize("log_format", FORMATS)
def test_long_lines_stay_within_the_limit(log_format: str) -> None:
    """A line that fits as plain JSON and grows beyond the limit is shortened again."""
    line_format = choose_line_format(ObserveSettings.load(None, log_format=log_format))  # type: ignore[arg-type]
    nested = {f"k{number}": {"q": '"' * 500} for number in range(60)}
    line = plain_line(nested, exception={"type": "E", "message": "é" * 2000, "stacktrace": "\u2028" * 8000})
    data = encode_as(line_format, encode_line(line))
    assert len(data) <= MAX_LINE
    assert "\u2028" not in data.decode()
    wide = encode_as(line_format, encode_line(plain_line({f"k{number}": ['"' * 120] for number in range(64)})))
    assert len(wide) <= MAX_LINE
    assert json.loads(wide)["message"] == "m"
