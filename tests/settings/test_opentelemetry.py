"""`OTEL_*` variables without effect: invalid values and variables that are not read are reported, never an error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from variables import environment, remove_variables

from fastapi_observe import install
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.settings.sources import SettingsError


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without variables that set options."""
    remove_variables(monkeypatch)


def test_an_invalid_value_is_ignored() -> None:
    """Invalid values of OpenTelemetry's variables leave the default and give one message each."""
    for assignment in (
        "OTEL_SDK_DISABLED=1",
        "OTEL_TRACES_SAMPLER=xray",
        "OTEL_TRACES_SAMPLER=parentbased_jaeger_remote",
        "OTEL_TRACES_SAMPLER=my.custom:Sampler",
        "OTEL_TRACES_SAMPLER_ARG=endpoint=http://x,initialSamplingRate=0.25",
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/json",
        "OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318",
        "OTEL_EXPORTER_OTLP_TIMEOUT=-1",
        "OTEL_EXPORTER_OTLP_TIMEOUT=10s",
        "OTEL_TRACES_EXPORTER=jaeger",
        "OTEL_BSP_SCHEDULE_DELAY=0",
        "OTEL_BSP_SCHEDULE_DELAY=nan",
        "OTEL_METRIC_EXPORT_INTERVAL=soon",
        "OTEL_BSP_MAX_QUEUE_SIZE=0",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST=.*",
        "OTEL_PYTHON_EXCLUDED_URLS=/a(",
    ):
        variable, _, value = assignment.partition("=")
        with environment(assignment):
            settings = ObserveSettings()
        assert set(settings.sources().values()) == {"default"}, assignment
        (message,) = settings.warnings()
        assert message.startswith(f"Ignored {variable}={value!r}")
        assert ": expected " in message
    with environment("OTEL_TRACES_EXPORTER=jaeger"):
        assert ObserveSettings().warnings()[0].endswith(": expected otlp, console or none.")


def test_units_of_times_are_named() -> None:
    """Not all of OpenTelemetry's variables are in seconds, as the options are."""
    for variable in ("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_BSP_SCHEDULE_DELAY"):
        with environment(f"{variable}=soon"):
            (message,) = ObserveSettings().warnings()
        assert message.endswith(f": expected a number of seconds above 0 ({variable}: milliseconds).")


def test_values_for_which_opentelemetry_raises_are_ignored() -> None:
    """A value for which the SDK raises when a provider or tracer is made is left out there, and reported."""
    for assignment in (
        "OTEL_ATTRIBUTE_COUNT_LIMIT=many",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT=1.5",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT=0x10",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=-1",
        "OTEL_SPAN_EVENT_COUNT_LIMIT=x",
        "OTEL_SPAN_LINK_COUNT_LIMIT=x",
        "OTEL_PYTHON_METER_PROVIDER=none",
        "OTEL_PYTHON_TRACER_PROVIDER=mine",
        "OTEL_PROPAGATORS=b3,tracecontext",
    ):
        variable, _, value = assignment.partition("=")
        app = FastAPI()
        with environment(assignment):
            observe = install(app, sample_ratio=1.0)
            try:
                (message,) = observe.settings.warnings()
                with TestClient(app) as client:
                    assert client.get("/").status_code == 404
                with trace.get_tracer("theirs").start_as_current_span("work") as span:
                    assert span.is_recording()
                assert os.environ[variable] == value  # other programs that the app starts may know it
            finally:
                observe.close()
        assert message.startswith(f"Ignored {variable}='{value.partition(',')[0]}': expected "), message


def test_valid_values_that_opentelemetry_reads_are_left_to_it() -> None:
    """Limits of spans count, an empty one is none, and propagators by name or none are not reported."""
    with environment("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT= 40 ", "OTEL_SPAN_EVENT_COUNT_LIMIT=", "OTEL_PROPAGATORS=None"):
        assert ObserveSettings().warnings() == ()
    with environment("OTEL_PROPAGATORS=baggage, tracecontext", "OTEL_PYTHON_TRACER_PROVIDER=sdk_tracer_provider"):
        assert ObserveSettings().warnings() == ()


@pytest.mark.parametrize(
    "assignment", ["OTEL_PROPAGATORS=b3multi,baggage", "OTEL_PROPAGATORS=jaeger", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=x"]
)
def test_an_import_survives_them(assignment: str) -> None:
    """Imported before FastAPI, the package imports OpenTelemetry without the values for which that raises."""
    code = """
import fastapi_observe, sys
from fastapi import FastAPI
from opentelemetry import propagate
observe = fastapi_observe.install(FastAPI(), log_requests=False)
sys.stderr.write(" ".join([*sorted(propagate.get_global_textmap().fields), observe.settings.warnings()[0]]))
"""
    variable, _, value = assignment.partition("=")
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "OBSERVE_"))}
    environ["OBSERVE_INSTRUMENT"] = "none"
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env={**environ, variable: value}
    )
    assert done.returncode == 0, done.stderr
    fields = "baggage" if "baggage" in value else "baggage traceparent tracestate"
    assert done.stderr.startswith(f"{fields} Ignored {variable}='{value.partition(',')[0]}': ")


def test_the_next_variable_is_used_instead() -> None:
    """An ignored variable counts as unset, so that the next one in the order of precedence sets the option."""
    with environment(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/json",
        "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=//",
        "OTEL_EXPORTER_OTLP_ENDPOINT=c:4317",
    ):
        settings = ObserveSettings()
    assert (settings.otlp_protocol, settings.otlp_endpoint) == ("grpc", "//")
    assert settings.sources()["otlp_protocol"] == "OTEL_EXPORTER_OTLP_PROTOCOL"
    with environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=//", "OTEL_EXPORTER_OTLP_ENDPOINT=http://c"):
        settings = ObserveSettings()
    assert settings.traces_url == "http://c/v1/traces"


def test_grpc_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without grpcio, an `OTEL_*` variable that asks for gRPC is ignored; an option that does is an error."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    protocols = ("OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc")
    with environment(*protocols, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317"):
        settings = ObserveSettings()
        assert ObserveSettings.load(settings, service_name="x").otlp_protocol == "http/protobuf"
        assert ObserveSettings(otlp_endpoint=None).warnings() == ()
    assert settings.traces_url == "http://127.0.0.1:4317/v1/traces"
    assert [message.partition(". ")[0] for message in settings.warnings()] == [
        f"Ignored {name}='grpc': it needs an extra; run pip install 'fastapi-observe[grpc]'"
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    ]
    assert ObserveSettings(otlp_protocol="grpc").otlp_protocol == "grpc"  # nothing is exported
    with pytest.raises(SettingsError, match=r"fastapi-observe\[grpc\]"):
        ObserveSettings(otlp_endpoint="http://127.0.0.1:4317", otlp_protocol="grpc")
    with environment("OBSERVE_OTLP_PROTOCOL=grpc"), pytest.raises(SettingsError, match=r"fastapi-observe\[grpc\]"):
        ObserveSettings(otlp_endpoint="http://127.0.0.1:4317")


def test_an_invalid_option_is_still_an_error() -> None:
    """Messages about ignored variables do not hide an error, and an argument wins over them."""
    with environment("OTEL_TRACES_SAMPLER=xray"):
        assert ObserveSettings(sampler="always_on").warnings() == ()


def test_values_are_masked() -> None:
    """A variable of pairs is repeated by its names alone; headers and credentials of URLs are not repeated at all."""
    with environment(
        "OTEL_RESOURCE_ATTRIBUTES=api_key=hunter2,hunter3,service.name=hunter4",
        "OTEL_EXPORTER_OTLP_HEADERS=hunter5",
        "OTEL_EXPORTER_OTLP_ENDPOINT=ftp://me:hunter6@c",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS=authorization=hunter7",
    ):
        messages = ObserveSettings().warnings()
    assert len(messages) == 4
    assert "OTEL_RESOURCE_ATTRIBUTES='api_key=**********,**********,service.name=**********' (for " in "".join(messages)
    assert "hunter" not in "".join(messages)


def test_unread_variables_are_named_once() -> None:
    """One message names all variables that the specification defines for what this package does, but it does not read.

    Variables of other instrumentations and of Kubernetes' services are left alone, and so are values that ask for what
    happens anyway.
    """
    unread = (
        "OTEL_BSP_EXPORT_TIMEOUT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "OTEL_LOGS_EXPORTER",
        "OTEL_METRICS_EXPORTER",
        "OTEL_PYTHON_FASTAPI_TRACED_REQUEST_ATTRS",
        "OTEL_SEMCONV_STABILITY_OPT_IN",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    )
    with environment(
        *(f"{name}=otlp" for name in unread),
        "OTEL_COLLECTOR_SERVICE_HOST=10.0.0.1",
        "OTEL_COLLECTOR_PORT_4317_TCP_ADDR=10.0.0.1",
        "OTEL_PYTHON_REDIS_EXCLUDED_URLS=x",
        "OTEL_EXPORTER_OTLP_CERTIFICATE=/ca.pem",
        "OTEL_EXPORTER_OTLP_TRACES_INSECURE=true",
        "OTEL_PROPAGATORS=tracecontext",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10",
        "OTEL_BLRP_SCHEDULE_DELAY=",
    ):
        (message,) = ObserveSettings().warnings()
    assert f"does not read {', '.join(unread)}. " in message
    with environment("OTEL_LOGS_EXPORTER=none", "OTEL_METRICS_EXPORTER=Prometheus"):
        assert ObserveSettings().warnings() == ()


def test_the_console_exporter_prints_traces() -> None:
    """`OTEL_TRACES_EXPORTER=console` prints traces and exports none; with `otlp` in the list it does both."""
    with environment("OTEL_TRACES_EXPORTER=console", "OTEL_EXPORTER_OTLP_ENDPOINT=http://c"):
        settings = ObserveSettings()
    assert settings.traces_url is None
    assert settings.print_traces
    assert settings.warnings() == ()
    assert settings.sources()["print_traces"] == "OTEL_TRACES_EXPORTER"
    with environment("OTEL_TRACES_EXPORTER=Console, otlp", "OTEL_EXPORTER_OTLP_ENDPOINT=http://c"):
        settings = ObserveSettings()
    assert settings.traces_url is not None
    assert settings.print_traces
    with environment("OTEL_TRACES_EXPORTER=otlp"):
        assert not ObserveSettings().print_traces


def test_the_zipkin_exporter_is_unsupported() -> None:
    """`OTEL_TRACES_EXPORTER=zipkin` exports nothing; the message has two ways to see traces locally."""
    with environment("OTEL_TRACES_EXPORTER=zipkin"):
        (message,) = ObserveSettings().warnings()
    assert message.startswith("OTEL_TRACES_EXPORTER=zipkin is not supported")
    assert "OTEL_TRACES_EXPORTER=console" in message
    assert "jaegertracing/jaeger" in message


def test_anchored_patterns_cannot_match() -> None:
    """A pattern of `exclude_urls` that is anchored to the path is reported: it is searched in the whole URL."""
    with environment("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS=^/a,/b,^/c"):
        (message,) = ObserveSettings().warnings()
    assert message.startswith("exclude_urls: '^/a', '^/c' cannot match")
    assert ObserveSettings(exclude_urls=["/a$"]).warnings() == ()
