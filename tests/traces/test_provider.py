"""The tracer provider: the user's or a new one, its sampler and resource, and its export to a real receiver."""

from __future__ import annotations

import json
import os
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import interpreter
import pytest
from collectors import Collector as Receiver
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import TraceFlags
from pydantic import SecretStr

from fastapi_observe import ObserveSettings, SettingsError, TraceContext
from fastapi_observe.export.setup import make_resource, make_transport
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.traces.provider import ObserveTracerProvider, make_provider
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of fastapi-observe and OpenTelemetry from the environment."""
    for name in list(os.environ):
        if name.startswith(("OBSERVE_", "OTEL_")):
            monkeypatch.delenv(name)


def run(code: str, **variables: str) -> Any:
    """Run code in a new process and return what it prints as JSON."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OBSERVE_"))}
    head = "import json\nfrom opentelemetry import trace\nfrom starlette.applications import Starlette\n"
    head += "from fastapi_observe import install, traced, get_observability\n"
    done = interpreter.run(head + code, environment={**kept, "OBSERVE_INSTRUMENT": "none", **variables})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Run a receiver for one test."""
    with Receiver() as one:
        yield one


def resource_of(spans: ResourceSpans) -> dict[str, Any]:
    """Return the resource attributes of an export."""
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in spans.resource.attributes}


# Joined or made


def test_becomes_the_global_provider_if_none_is_set() -> None:
    """Without a global provider the first app sets one; a second app gets its own and leaves the global one."""
    assert run(
        """
first, second = install(Starlette(), logs=False), install(Starlette(), logs=False)
print(json.dumps([trace.get_tracer_provider() is first.tracing.provider,
                  second.tracing.provider is not first.tracing.provider,
                  type(second.tracing.provider).__name__]))
"""
    ) == [True, True, "ObserveTracerProvider"]


def test_joins_the_global_provider_of_the_user() -> None:
    """The user's global provider is used, with our processors; `close` does not shut it down."""
    assert run(
        """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
mine, exporter = TracerProvider(), InMemorySpanExporter()
trace.set_tracer_provider(mine)
observe = install(Starlette(), logs=False, span_processors=[SimpleSpanProcessor(exporter)])
observe.close()
with trace.get_tracer("mine").start_as_current_span("still works"): pass
print(json.dumps([observe.tracing.provider is mine, [span.name for span in exporter.get_finished_spans()]]))
"""
    ) == [True, ["still works"]]


PROXY = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

class Proxy(trace.TracerProvider):  # as that of Logfire
    def __init__(self, real): self.real = real
    def get_tracer(self, *args, **kwargs): return self.real.get_tracer(*args, **kwargs)
    def add_span_processor(self, processor): self.real.add_span_processor(processor)
    def force_flush(self, timeout_millis=30000): return self.real.force_flush(timeout_millis)

theirs, ours, real = InMemorySpanExporter(), InMemorySpanExporter(), TracerProvider()
real.add_span_processor(SimpleSpanProcessor(theirs))
processors = [SimpleSpanProcessor(ours)]
def page(_):
    with trace.get_tracer("theirs").start_as_current_span("child"): pass
    return Response()
app, names = Starlette(routes=[Route("/", page)]), lambda memory: [span.name for span in memory.get_finished_spans()]
"""


def test_joins_a_global_provider_of_a_proxy_class() -> None:
    """A provider that wraps the SDK's is used like the SDK's, set before `install` or after it."""
    set_it, install_it = (
        "trace.set_tracer_provider(Proxy(real))\n",
        (
            "held = trace.get_tracer('held')\n"
            "observe = install(app, logs=False, sample_ratio=1.0, span_processors=processors)\n"
            "early = trace.get_tracer('early')\n"
        ),
    )
    ask = """
TestClient(app).get("/")
for tracer in (held, early): tracer.start_span("of a held tracer").end()
observe.close()
print(json.dumps([names(theirs), names(ours), observe.internal_errors.counts]))
"""
    spans = ["child", "GET /", "of a held tracer", "of a held tracer"]
    for code in (set_it + install_it, install_it + set_it):
        assert run(PROXY + code + ask) == [spans, spans, {}]


def test_a_provider_set_later_takes_over_all_apps() -> None:
    """Spans that ended before are exported by us, and a warning says that later ones are not."""
    with Receiver() as receiver:
        result = run(
            PROXY
            + f"""
import logging
logged = []
class Handler(logging.Handler):
    def emit(self, record): logged.append(record.getMessage())
logging.getLogger("fastapi_observe").addHandler(Handler())
first = install(app, logs=False, sample_ratio=1.0, otlp_endpoint="{receiver.url}")
second = install(Starlette(), logs=False, sample_ratio=1.0)
with first.tracing.span("before"): pass
trace.set_tracer_provider(real)
with first.tracing.span("of the first"), second.tracing.span("of the second"): pass
flushed = first.flush()
first.close(); second.close()
print(json.dumps([names(theirs), trace.get_tracer_provider() is real, len(logged), "tracer_provider" in logged[0]]))
"""
        )
        assert result == [["of the second", "of the first"], True, 1, True]
        assert [*receiver.names] == ["before"]


def test_after_close_the_global_provider_hands_on() -> None:
    """After `close` nothing of this package is global; tracers that were obtained before use the provider set later."""
    assert run(
        PROXY
        + """
first, second = install(Starlette(), logs=False), install(Starlette(), logs=False)
ours = trace.get_tracer_provider()
held = trace.get_tracer("held")
first.close()
taken_over = trace.get_tracer_provider() is second.tracing.provider
second.close()
held.start_span("lost").end()
inert = type(trace.get_tracer_provider()).__name__
trace.set_tracer_provider(real)
held.start_span("a").end()
with held.start_as_current_span("b"): pass
ours.get_tracer("later").start_span("c").end()
third = install(app, logs=False)
print(json.dumps([taken_over, inert, names(theirs), third.tracing.provider is real]))
third.close()
"""
    ) == [True, "ProxyTracerProvider", ["a", "b", "c"], True]


def test_a_tracer_is_made_once(observed: Callable[..., Seen]) -> None:
    """`get_tracer` in a function returns the tracer of the first call: each would stay registered for forks."""
    provider = observed(FastAPI(), otlp_endpoint=None).observe.tracing.provider
    for attributes in (None, {"a": 1}):
        first = provider.get_tracer("library", "1", None, attributes)
        assert provider.get_tracer("library", "1", None, attributes) is first
        assert provider.get_tracer("library", "2", None, attributes) is not first
    assert provider.get_tracer("library", "1") is not provider.get_tracer("library", "1", None, {"a": 1})


def test_the_global_provider_without_its_private_names() -> None:
    """Where OpenTelemetry's names are gone, the provider is set once and stays."""
    assert run(
        """
real = trace._TRACER_PROVIDER_SET_ONCE
del trace._TRACER_PROVIDER_SET_ONCE
set_provider, trace.set_tracer_provider = trace.set_tracer_provider, lambda provider: seen.append(provider)
seen = []
observe = install(Starlette(), logs=False)
observe.close()
print(json.dumps([seen == [observe.tracing.provider], observe.tracing.provider.get_tracer("x").__class__.__name__]))
"""
    ) == [True, "ProxyTracer"]


def test_two_apps_have_two_instance_ids() -> None:
    """Each installed app is an instance of its own, in a forked child too, unless the environment names it."""
    code = """
import os
from starlette.applications import Starlette
first, second = install(Starlette(), logs=False), install(Starlette(), logs=False)
ids = lambda: [one.tracing.provider.resource.attributes["service.instance.id"] for one in (first, second)]
parent = ids()
read, write = os.pipe()
if not os.fork():
    os.write(write, json.dumps(ids()).encode())
    os._exit(0)
child = json.loads(os.read(read, 1000))
os.wait()
print(json.dumps([len({*parent, *child}), parent[0] == parent[1]]))
"""
    assert run(code) == [4, False]
    assert run(code, OTEL_RESOURCE_ATTRIBUTES="service.instance.id=pod-7")[1] is True


def test_two_apps_share_the_global_provider() -> None:
    """It is that of the first; spans of OpenTelemetry's API in requests of the second are of that one's provider."""
    code = """
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans = InMemorySpanExporter()
for name in "first", "second":
    app = FastAPI(title=name)
    observe = install(app, sample_ratio=1.0, logs=False, span_processors=[SimpleSpanProcessor(spans)])
@app.get("/")
def page():
    with trace.get_tracer("theirs").start_as_current_span("theirs"), observe.operation("ours"):
        pass
TestClient(app).get("/")
found = {span.name: span for span in spans.get_finished_spans()}
names = [found[name].resource.attributes["service.name"] for name in ("theirs", "ours", "GET /")]
print(json.dumps([names, len({span.context.trace_id for span in found.values()})]))
"""
    assert run(code) == [["second", "second", "second"], 1]


def test_joins_the_provider_that_is_given() -> None:
    """`tracer_provider` is used instead of the global provider, with our processors, and is not shut down."""
    exporter, given = InMemorySpanExporter(), TracerProvider()
    settings = ObserveSettings(tracer_provider=given, span_processors=(SimpleSpanProcessor(exporter),))
    assert make_provider(settings, InternalErrors()) == (given, False)
    tracing = TracingService(settings, InternalErrors())
    tracing.close()
    with tracing.span("s"):
        pass
    assert len(exporter.get_finished_spans()) == 2  # the processor was added twice


def test_sdk_disabled_makes_no_spans() -> None:
    """With OTEL_SDK_DISABLED no span is made, no thread runs and nothing global is touched."""
    assert run(
        """
import threading
observe = install(Starlette(), logs=False, otlp_endpoint="http://127.0.0.1:9")
with observe.tracing.span("s") as span:
    @traced
    def work(): return trace.get_current_span().is_recording()
    recording = [span.is_recording(), work()]
print(json.dumps([recording, type(trace.get_tracer_provider()).__name__,
                  [t.name for t in threading.enumerate() if "Span" in t.name], observe.tracing.flush(1)]))
observe.close()
""",
        OTEL_SDK_DISABLED="true",
    ) == [[False, False], "ProxyTracerProvider", [], True]


def test_traced_outside_a_request() -> None:
    """Outside requests `@traced` uses the provider of the only app; with no app or several the global one."""
    assert run(
        """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporters = [InMemorySpanExporter() for _ in range(3)]
providers = []
for exporter in exporters:
    providers.append(TracerProvider())
    providers[-1].add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(providers[0])
@traced
def work(): ...
work()
one = install(Starlette(), logs=False, tracer_provider=providers[1])
work()
two = install(Starlette(), logs=False, tracer_provider=providers[2])
work()
one.close()
work()
print(json.dumps([len(exporter.get_finished_spans()) for exporter in exporters]))
"""
    ) == [2, 1, 1]


def test_without_tracing_the_provider_is_a_no_op() -> None:
    """With `tracing=False` spans record nothing, even with processors."""
    exporter = InMemorySpanExporter()
    settings = ObserveSettings(tracing=False, span_processors=(SimpleSpanProcessor(exporter),))
    tracing = TracingService(settings, InternalErrors())
    with tracing.span("s") as span:
        assert not span.is_recording()
    assert exporter.get_finished_spans() == ()
    tracing.close()


# Sampler and ids


@pytest.mark.parametrize(
    ("sampler", "root", "remote_sampled", "remote_unsampled"),
    [
        ("parentbased_traceidratio", False, True, False),
        ("parentbased_always_on", True, True, False),
        ("parentbased_always_off", False, True, False),
        ("traceidratio", False, False, False),
        ("always_on", True, True, True),
        ("always_off", False, False, False),
    ],
)
def test_every_sampler(sampler: Any, root: bool, remote_sampled: bool, remote_unsampled: bool) -> None:  # noqa: FBT001
    """Each sampler decides as its name says: for a new trace, and with a sampled and an unsampled remote parent."""
    tracing = TracingService(ObserveSettings(sampler=sampler, sample_ratio=0), InternalErrors())
    parents = [None, *(TraceContext("a" * 32, "b" * 16, sampled=sampled) for sampled in (True, False))]
    seen = []
    for parent in parents:
        context = None if parent is None else parent.to_context()
        seen.append(tracing.tracer.start_span("s", context).get_span_context().trace_flags.sampled)
    assert seen == [root, remote_sampled, remote_unsampled]
    tracing.close()


def test_the_sample_ratio_holds() -> None:
    """A ratio of 0.2 samples a fifth of new traces, and whole traces."""
    tracing = TracingService(ObserveSettings(sample_ratio=0.2, max_traces_per_second=None), InternalErrors())
    kept = 0
    for _ in range(4000):
        with tracing.span("root") as root, tracing.span("child") as child:
            assert root.is_recording() == child.is_recording()
            kept += root.is_recording()
    assert 650 < kept < 950  # within six standard deviations of 800
    tracing.close()


@pytest.mark.skipif(not hasattr(TraceFlags, "RANDOM_TRACE_ID"), reason="older OpenTelemetry has no random flag")
def test_new_trace_ids_have_the_random_flag() -> None:
    """New trace ids have the random flag of W3C Trace Context Level 2, and it is propagated."""
    tracing = TracingService(ObserveSettings(sample_ratio=1.0), InternalErrors())
    with tracing.span("s") as span:
        assert span.get_span_context().trace_flags == 3
        here = tracing.current()
        assert here is not None
        assert here.random
        assert here.to_headers()["traceparent"] == tracing.inject({})["traceparent"]
    tracing.close()


# Resource


def test_resource_describes_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, version and environment; `OTEL_RESOURCE_ATTRIBUTES` adds to it and may name the instance."""
    settings = ObserveSettings(service_name="shop", service_version="1.2", environment="staging")
    attributes = make_resource(settings).attributes
    assert attributes["service.name"] == "shop"
    assert attributes["service.version"] == "1.2"
    assert attributes["deployment.environment.name"] == "staging"
    assert attributes["telemetry.sdk.language"] == "python"
    assert attributes["telemetry.distro.name"] == "fastapi-observe"
    assert "service.version" not in make_resource(ObserveSettings()).attributes
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-7,cloud.region=eu,service.name=other")
    attributes = make_resource(settings).attributes
    assert (attributes["service.instance.id"], attributes["cloud.region"]) == ("pod-7", "eu")
    assert attributes["service.name"] == "shop"


@pytest.mark.skipif(
    "service.instance.id" not in Resource.create().attributes, reason="older OpenTelemetry names no instance by itself"
)
def test_resource_names_the_instance() -> None:
    """Each process is an instance of its service with a random name."""
    assert uuid.UUID(str(make_resource(ObserveSettings()).attributes["service.instance.id"])).version == 4


# Export


def test_exports_over_http(receiver: Receiver) -> None:
    """Spans arrive gzipped at /v1/traces with the configured headers, the resource and every attribute type."""
    settings = ObserveSettings(
        sample_ratio=1.0,
        service_name="shop",
        otlp_endpoint=receiver.url,
        otlp_headers={"x-tenant": SecretStr("acme")},
    )
    tracing = TracingService(settings, InternalErrors())
    with tracing.span("file \udce4", text="ä", long="x" * 2000, number=3, ratio=0.5, yes=True, names=["a"]):
        tracing.add_event("read", line="\udce4")
    assert tracing.flush(5)
    tracing.close()
    assert receiver.paths == ["/v1/traces"]
    headers = receiver.headers[0]
    assert (headers["content-encoding"], headers["x-tenant"]) == ("gzip", "acme")
    (resource_spans,) = receiver.requests[0].resource_spans
    assert resource_of(resource_spans)["service.name"] == "shop"
    (scope_spans,) = resource_spans.scope_spans
    assert scope_spans.scope.name == "fastapi_observe"
    (span,) = scope_spans.spans
    values = {pair.key: pair.value for pair in span.attributes}
    assert span.name == "file \\udce4"
    assert (values["text"].string_value, values["number"].int_value, values["ratio"].double_value) == ("ä", 3, 0.5)
    assert values["yes"].bool_value
    assert values["names"].array_value.values[0].string_value == "a"


def test_spans_arrive_without_a_flush(receiver: Receiver) -> None:
    """`close` exports the queued spans."""
    tracing = TracingService(
        ObserveSettings(sample_ratio=1.0, otlp_endpoint=receiver.url, batch_delay=60, queue_size=10), InternalErrors()
    )
    for _ in range(3):
        with tracing.span("s"):
            pass
    tracing.close()
    assert sum(len(scope.spans) for each in receiver.requests for scope in each.resource_spans[0].scope_spans) == 3


def test_without_an_endpoint_nothing_is_started() -> None:
    """Without an endpoint there is no exporter, no processor and no thread."""
    before = set(threading.enumerate())
    provider, owned = make_provider(ObserveSettings(), InternalErrors())
    assert isinstance(provider, ObserveTracerProvider)
    assert provider.queue is None
    assert owned
    assert set(threading.enumerate()) <= before
    assert provider._active_span_processor._span_processors == ()
    provider.shutdown()


class Collector(TraceServiceServicer):
    """An OTLP/gRPC receiver."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.metadata: list[dict[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name in the protocol
        """Note what arrives."""
        self.metadata.append(dict(context.invocation_metadata()))
        for each in request.resource_spans:
            self.names += [span.name for scope in each.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


def test_exports_over_grpc() -> None:
    """With the extra, spans travel over gRPC, with the configured headers."""
    collector = Collector()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        settings = ObserveSettings(
            sample_ratio=1.0,
            otlp_protocol="grpc",
            otlp_endpoint=f"http://127.0.0.1:{port}",
            otlp_headers={"X-Tenant": SecretStr("acme")},
        )
        tracing = TracingService(settings, InternalErrors())
        with tracing.span("over grpc"):
            pass
        assert tracing.flush(5)
        tracing.close()
        server.stop(None).wait()
    assert collector.names == ["over grpc"]
    assert collector.metadata[0]["x-tenant"] == "acme"


def test_grpc_without_the_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says what to install."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(RuntimeError, match=r"pip install 'fastapi-observe\[grpc\]'"):
        make_transport(ObserveSettings(otlp_protocol="grpc"), "http://127.0.0.1:9", "traces")


def test_a_provider_without_force_flush() -> None:
    """A provider of the API alone has nothing to flush."""
    tracing = TracingService(ObserveSettings(tracer_provider=trace.NoOpTracerProvider()), InternalErrors())
    assert tracing.flush(1)
    tracing.close()


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"otlp_endpoint": "http://collector.example.com", "otlp_headers": "authorization=secret-words"}, True),
        ({"otlp_endpoint": "http://user:secret-words@collector.example.com"}, True),
        ({"otlp_endpoint": "http://collector.example.com/?api_key=secret-words"}, True),
        ({"otlp_endpoint": "http://collector:4318/?api_key=secret-words"}, False),
        ({"otlp_endpoint": "http://8.8.8.8:4318", "otlp_headers": "authorization=secret-words"}, True),
        ({"otlp_endpoint": "http://134744072", "otlp_headers": "authorization=secret-words"}, True),
        (
            {
                "otlp_endpoint": "http://c.example.com",
                "otlp_headers": "a=secret-words",
                "otlp_allow_plaintext_credentials": True,
            },
            False,
        ),
        ({"otlp_endpoint": "https://c.example.com", "otlp_headers": "authorization=secret-words"}, False),
        ({"otlp_endpoint": "http://c.example.com"}, False),
        ({"otlp_endpoint": "http://collector:4318", "otlp_headers": "authorization=secret-words"}, False),
        ({"otlp_endpoint": "http://10.0.0.1:4318", "otlp_headers": "authorization=secret-words"}, False),
        ({"otlp_endpoint": "http://[::1]:4318", "otlp_headers": "authorization=secret-words"}, False),
        ({"otlp_endpoint": "c.example.com:4317", "otlp_headers": "a=secret-words", "otlp_protocol": "grpc"}, False),
        (
            {"otlp_endpoint": "http://c.example.com:4317", "otlp_headers": "a=secret-words", "otlp_protocol": "grpc"},
            True,
        ),
    ],
)
def test_credentials_are_not_sent_unencrypted(options: dict[str, Any], *, refused: bool) -> None:
    """Credentials for a public host over plain http raise an error with the next step and without the credentials."""
    settings = ObserveSettings(**options)
    if not refused:
        TracingService(settings, InternalErrors()).close()
        return
    with pytest.raises(
        SettingsError, match=r"unencrypted to the public host .* set otlp_allow_plaintext_credentials=True"
    ) as raised:
        TracingService(settings, InternalErrors())
    assert "secret-words" not in str(raised.value)
