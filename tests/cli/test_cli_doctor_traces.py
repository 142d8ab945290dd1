"""The command `doctor`: why no spans leave the app, and the next step."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import interpreter
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from variables import remove_variables

from fastapi_observe.doctor.check import Check
from fastapi_observe.doctor.probe import probe_exports
from fastapi_observe.doctor.process import check_sampling
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COMMAND: Final = "import sys; from fastapi_observe.cli.main import main; sys.exit(main(sys.argv[1:]))"
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
URL: Final = "http://127.0.0.1:4318"
INSTALL: Final = """
from fastapi import FastAPI
from fastapi_observe import install
app = FastAPI(title="shop")
install(app)
"""
PROVIDER: Final = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
"""
EXPORTER: Final = """
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
"""
OTLP_EXPORTER: Final = """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor
trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine."""
    remove_variables(monkeypatch)


def doctor(directory: Path, parts: Sequence[str], **variables: str) -> dict[str, Check]:
    """Run the command for an app, and return its checks by subject."""
    (directory / "shop.py").write_text("".join(parts), encoding="utf-8")
    arguments = ("doctor", "shop:app", "--json")
    run = interpreter.run(COMMAND, *arguments, environment={**os.environ, **variables}, directory=directory)
    return {each["subject"]: Check(**each) for each in json.loads(run.stdout)}


def test_an_endpoint_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step takes back what hides `OTEL_EXPORTER_OTLP_ENDPOINT`, or sets it."""
    read = f", so that {ENDPOINT} is read"
    cases: tuple[tuple[dict[str, str], dict[str, Any], str, str], ...] = (
        ({}, {}, "otlp_endpoint is not set", f"set {ENDPOINT}"),
        (
            {ENDPOINT: URL},
            {"otlp_endpoint": None},
            "(otlp_endpoint of install)",
            f"remove otlp_endpoint from install{read}",
        ),
        (
            {ENDPOINT: URL, "OBSERVE_OTLP_ENDPOINT": ""},
            {},
            "(OBSERVE_OTLP_ENDPOINT)",
            f"unset OBSERVE_OTLP_ENDPOINT{read}",
        ),
        (
            {ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "none"},
            {},
            "OTEL_TRACES_EXPORTER does not contain otlp",
            "set OTEL_TRACES_EXPORTER=otlp, or unset it",
        ),
    )
    for variables, options, found, step in cases:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            (check,) = probe_exports(ObserveSettings(**options))
        assert (check.verdict, check.step) == ("look", step)
        assert check.found.startswith("no trace is exported: ")
        assert check.found.endswith(found)
    processor = SimpleSpanProcessor(InMemorySpanExporter())
    assert [check.verdict for check in probe_exports(ObserveSettings(span_processors=[processor]))] == ["ok"]


def test_tracing_is_off_but_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What switches tracing off is named; without an endpoint, or with another signal to export, nothing is."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not [*probe_exports(ObserveSettings())]
    found = "otlp_endpoint is set (otlp_endpoint of install), but tracing is off"
    expected = Check("export", "look", f"{found} (OTEL_SDK_DISABLED)", "unset OTEL_SDK_DISABLED to export traces")
    for environment in ("production", "development"):
        assert [*probe_exports(ObserveSettings(otlp_endpoint=URL, environment=environment))] == [expected]
    (check,) = probe_exports(ObserveSettings(otlp_endpoint=URL, tracing=False))
    assert check.found == f"{found} (tracing of install)"
    assert check.step == "remove tracing from install to export traces"
    checks = [*probe_exports(ObserveSettings(otlp_endpoint="http://127.0.0.1:9", otlp_metrics=True))]
    assert {each.subject for each in checks} == {"export of metrics"}


def test_a_sampler_that_samples_nothing() -> None:
    """No ratio and no tail sampling are to be looked at, as is the sampler `always_off`."""
    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        (
            {"sample_ratio": 0},
            "ok",
            "exports 0% of new traces (sample_ratio of install); and every request of these kinds: errors, ",
        ),
        ({"sample_ratio": 0.005, "tail_sampling": None}, "ok", "exports 0.5% of new traces (sample_ratio of install)"),
        (
            {"sample_ratio": 0, "tail_sampling": None},
            "look",
            "no new trace is exported: sample_ratio is 0 (sample_ratio",
        ),
        (
            {"sample_ratio": 0, "tail_sampling": None, "sampler": "traceidratio"},
            "look",
            "no trace is exported: sample_ratio is 0 (sample_ratio of install)",
        ),
        ({"sampler": "always_off"}, "look", "no trace is exported: sampler is always_off (sampler of install)"),
        ({"sampler": "parentbased_always_off", "tail_sampling": None}, "look", "no new trace is exported: sampler is "),
        (
            {"sampler": "parentbased_always_off", "sample_ratio": 1},
            "look",
            "exports 0% of new traces: sampler is parentbased_always_off (sampler of install); and every request of ",
        ),
        ({"sampler": "always_on", "sample_ratio": 0}, "ok", "exports every trace (sampler of install)"),
    )
    for options, verdict, found in cases:
        (check,) = check_sampling(ObserveSettings(**options))
        assert (check.verdict, check.found.startswith(found)) == (verdict, True), check


def test_a_caller_that_decides() -> None:
    """A sampler based on the parent follows trusted callers, also with a ratio of 1; no other sampler does."""
    every = "exports every trace"
    exception = ", except those that a trusted caller did not sample"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"sample_ratio": 1, "tail_sampling": None}, every + exception),
        (
            {"sample_ratio": 1, "tail_sampling": ["slow"]},
            f"{every}{exception}; of these, requests of these kinds: slow",
        ),
        ({"sample_ratio": 1, "trust_incoming": "never"}, every),
        ({"sample_ratio": 1, "sampler": "traceidratio"}, every),
        ({"tail_sampling": None}, "exports 10% of new traces; a trusted caller decides about its own traces"),
        ({"tail_sampling": None, "trust_incoming": "never"}, "exports 10% of new traces"),
    )
    for options, found in cases:
        assert [*check_sampling(ObserveSettings(**options))] == [Check("sampling", "ok", found)]


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_provider_of_the_user(tmp_path: Path, order: str) -> None:
    """Its spans are exported, whatever otlp_endpoint is; one that is set too has no effect."""
    provider = PROVIDER + EXPORTER
    parts = (provider, INSTALL) if order == "before" else (INSTALL, provider)
    checks = doctor(tmp_path, parts)
    assert "export" not in checks
    assert checks["sampling"].found == "the sampler of your tracer provider decides"
    found = (
        "spans go to your tracer provider (opentelemetry.sdk.trace.TracerProvider), whose span processors export them"
    )
    assert checks["export of traces"] == Check("export of traces", "ok", found)
    check = doctor(tmp_path, parts, OBSERVE_OTLP_ENDPOINT=URL)["export of traces"]
    assert (check.verdict, check.found) == (
        "look",
        f"{found}; otlp_endpoint has no effect on spans (OBSERVE_OTLP_ENDPOINT)",
    )

    check = doctor(tmp_path, (*parts, OTLP_EXPORTER), OTEL_EXPORTER_OTLP_ENDPOINT=URL)["export of traces"]
    assert (check.verdict, check.found) == ("ok", found)  # it reads the same variable


def test_a_provider_without_a_processor(tmp_path: Path) -> None:
    """It exports nothing, which is to be looked at except in development, where the console shows the traces."""
    found = "no trace is exported: your tracer provider (opentelemetry.sdk.trace.TracerProvider) has no span processor"
    for environment, verdict in (("production", "look"), ("development", "ok")):
        check = doctor(tmp_path, (PROVIDER, INSTALL), OBSERVE_ENV=environment)["export of traces"]
        assert (check.verdict, check.found) == (verdict, found)
    check = doctor(tmp_path, (PROVIDER, INSTALL), OBSERVE_OTLP_ENDPOINT=URL)["export of traces"]
    assert check.found == f"{found}; otlp_endpoint has no effect on spans (OBSERVE_OTLP_ENDPOINT)"
    assert check.step.startswith("add a span processor with an exporter to it, or ")


@pytest.mark.parametrize(
    ("resource", "verdict", "name"),
    [("", "look", "unknown_service"), ("Resource.create({'service.name': 'shop'})", "ok", "")],
)
def test_a_provider_with_another_service_name(tmp_path: Path, resource: str, verdict: str, name: str) -> None:
    """Its spans are those of another service than metrics and logs, unless its resource has the same name."""
    provider = "from opentelemetry.sdk.resources import Resource\n" + PROVIDER.replace(
        "TracerProvider())", f"TracerProvider(resource={resource or None}))"
    )
    check = doctor(tmp_path, (provider, EXPORTER, INSTALL))["service"]
    assert check.verdict == verdict
    if name:
        assert check.found.startswith(f"your tracer provider reports spans as service {name}")
        assert check.found.endswith("; metrics and logs are those of shop")
        assert check.step == 'pass resource=Resource.create({"service.name": "shop"}) to your tracer provider'
    assert doctor(tmp_path, (provider, INSTALL), OTEL_SERVICE_NAME="shop")["service"].verdict == "ok"
    assert doctor(tmp_path, (provider, INSTALL), OBSERVE_TRACING="false")["service"].verdict == "ok"
