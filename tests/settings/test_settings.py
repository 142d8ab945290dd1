"""Settings: precedence of sources, accepted values, error messages, and masked secrets."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import TracerProvider
from opentelemetry.util.re import parse_env_headers
from prometheus_client import CollectorRegistry
from pydantic import SecretStr, ValidationError
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from variables import environment, remove_variables

from fastapi_observe import install
from fastapi_observe.cli.settings import options_table
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.settings.objectives import Objective, SLOOptions
from fastapi_observe.settings.options import Options
from fastapi_observe.settings.renames import (
    REMOVED_COMMANDS,
    REMOVED_OPTIONS,
    RENAMED_COMMANDS,
    RENAMED_FLAGS,
    RENAMED_OPTIONS,
)
from fastapi_observe.settings.sources import option_metadata

CONFIGURATION = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without variables that set options."""
    remove_variables(monkeypatch)


def problems(**options: Any) -> tuple[str, ...]:
    """Return the lines of the error that the options raise."""
    with pytest.raises(SettingsError) as caught:
        ObserveSettings(**options)
    return caught.value.problems


def headers_of(settings: ObserveSettings) -> dict[str, str]:
    """Return the export headers unmasked."""
    return {name: value.get_secret_value() for name, value in settings.otlp_headers.items()}


# Sources


def test_each_source_wins_over_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument wins over `OBSERVE_*`, that over `OTEL_*`, that over the default; `sources` names the winner."""
    assert (ObserveSettings().batch_size, ObserveSettings().sources()["batch_size"]) == (256, "default")
    for variable, value in (("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"), ("OBSERVE_BATCH_SIZE", "4")):
        monkeypatch.setenv(variable, value)
        settings = ObserveSettings()
        assert (settings.batch_size, settings.sources()["batch_size"]) == (int(value), variable)
    assert ObserveSettings(batch_size=5).batch_size == 5
    assert ObserveSettings(batch_size=5).sources()["batch_size"] == "argument"


def test_a_file_sets_what_the_environment_does_not(tmp_path: Path) -> None:
    """Variables come from a `.env` file too, after those of the process; `OTEL_*` variables are treated as usual."""
    file = tmp_path / ".env"
    file.write_text(
        "# settings\nexport OBSERVE_SAMPLE_RATIO=0.2\nOBSERVE_LOG_LEVEL='warn'\nOBSERVE_SLOW_QUERY_THRESHOLD=soon\n"
        'OTEL_SERVICE_NAME="shop"\nOTEL_TRACES_SAMPLER=often\nOTEL_SPAN_LINK_COUNT_LIMITS=1\nEMPTY\n',
        encoding="utf-8",
    )
    with environment("OBSERVE_SLOW_QUERY_THRESHOLD=2"):
        settings = ObserveSettings(log_level="error", env_file=str(file))
        with environment(f"OBSERVE_ENV_FILE={file}"):
            assert ObserveSettings(log_level="error").sample_ratio == settings.sample_ratio
    with pytest.raises(SettingsError, match="slow_query_threshold: invalid value 'soon'"):
        ObserveSettings(env_file=str(file))
    assert (settings.sample_ratio, settings.log_level, settings.slow_query_threshold) == (0.2, "error", 2.0)
    assert settings.service_name == "shop"
    assert settings.sources()["sample_ratio"] == "OBSERVE_SAMPLE_RATIO"
    assert any("Ignored OTEL_TRACES_SAMPLER='often'" in message for message in settings.warnings())
    install(FastAPI(), env_file=file, log_file=tmp_path / "app.log", slow_query_threshold=1.0)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """The error names the file and the reason."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    reasons = {
        "missing": "No such file or directory",
        ".": "Is a directory",
        "binary": "not UTF-8",
        "/dev/zero": "it has more than 1 MiB",
    }
    for path, reason in reasons.items():
        with pytest.raises(SettingsError, match=f"env_file: cannot read .*{reason}; correct the path, or leave it out"):
            ObserveSettings(env_file=str(tmp_path / path))
    with environment("OBSERVE_ENV_FILE=missing"):
        assert problems() == (
            "env_file: cannot read 'missing': No such file or directory; correct the path, or unset OBSERVE_ENV_FILE",
        )


def test_sources_name_every_option() -> None:
    """`sources` has an entry for every option, in their order."""
    assert list(ObserveSettings().sources()) == list(ObserveSettings.model_fields)
    assert set(ObserveSettings().sources().values()) == {"default"}


def test_a_variable_sets_its_option() -> None:
    """Each variable sets its option, converted to the option's unit, and is named as its source."""
    for variable, text, name, value in (
        ("OTEL_SERVICE_NAME", "shop", "service_name", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a%20b,x=1,", "service_name", "a b"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.version=1.2", "service_version", "1.2"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=old", "environment", "old"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment=old,deployment.environment.name=new",
            "environment",
            "new",
        ),
        ("OTEL_SDK_DISABLED", "TRUE", "tracing", False),
        ("OTEL_SDK_DISABLED", "false", "tracing", True),
        ("OTEL_TRACES_SAMPLER", "Always_On", "sampler", "always_on"),
        ("OTEL_TRACES_SAMPLER", "traceidratio", "sample_ratio", 1.0),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25", "sample_ratio", 0.25),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "otlp_protocol", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "otlp_protocol", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2.5", "otlp_timeout", 2.5),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "3", "otlp_timeout", 3.0),
        ("OTEL_BSP_SCHEDULE_DELAY", "250", "batch_delay", 0.25),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15000", "otlp_metrics_interval", 15.0),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "9", "queue_size", 9),
        ("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "a, b-c", "capture_request_headers", ("a", "b-c")),
        ("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", "x", "capture_response_headers", ("x",)),
        ("OTEL_PYTHON_EXCLUDED_URLS", "/health$,/in.*l", "exclude_urls", ("/health$", "/in.*l")),
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "/h", "exclude_urls", ("/h",)),
        ("OBSERVE_ENV", "test", "environment", "test"),
        ("FASTAPI_ENV", "development", "environment", "development"),
        ("OBSERVE_DURATION_BUCKETS", "2, 0.5,2", "duration_buckets", (0.5, 2.0)),
        ("OBSERVE_EXCLUDE_PATHS", "/a,/b/*", "exclude_paths", ("/a", "/b/*")),
        ("OBSERVE_EXCLUDE_FROM", "logs=/a, logs=/b", "exclude_from", {"logs": ("/a", "/b")}),
        ("OBSERVE_EXCLUDE_FROM", '{"metrics": ["/a"]}', "exclude_from", {"metrics": ("/a",)}),
        ("OBSERVE_TRUST_INCOMING", "Always", "trust_incoming", "always"),
        ("OBSERVE_METRICS_ACCESS", "private, 203.0.113.0/24", "metrics_access", ("private", "203.0.113.0/24")),
        ("OBSERVE_QUIET_LOGGERS", "", "quiet_loggers", ()),
        ("OBSERVE_LOG_ROTATION", "", "log_rotation", None),
        ("OBSERVE_LOG_COMPRESSION", "", "log_compression", None),
        ("OBSERVE_SERVICE_VERSION", "", "service_version", ""),
        ("OBSERVE_LOG_LEVEL", " WARN ", "log_level", "warn"),
        ("OBSERVE_LOG_FORMAT", "JSON", "log_format", "json"),
        ("OBSERVE_TRACING", "no", "tracing", False),
    ):
        with environment(f"{variable}={text}"):
            settings = ObserveSettings()
        assert getattr(settings, name) == value, (variable, text)
        assert settings.sources()[name] == variable
        assert settings.warnings() == ()


def test_the_more_specific_variable_wins() -> None:
    """Of two variables for one option, the more specific one wins."""
    for winner, loser, name in (
        ("OTEL_SERVICE_NAME=a", "OTEL_RESOURCE_ATTRIBUTES=service.name=b", "service_name"),
        ("OBSERVE_ENVIRONMENT=a", "OBSERVE_ENV=b", "environment"),
        ("OBSERVE_ENV=a", "FASTAPI_ENV=b", "environment"),
        ("FASTAPI_ENV=a", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=b", "environment"),
        ("OTEL_TRACES_SAMPLER_ARG=0.5", "OTEL_TRACES_SAMPLER=traceidratio", "sample_ratio"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://a", "OTEL_EXPORTER_OTLP_ENDPOINT=http://b", "otlp_endpoint"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS=a=1", "OTEL_EXPORTER_OTLP_HEADERS=b=1", "otlp_headers"),
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS=a", "OTEL_PYTHON_EXCLUDED_URLS=b", "exclude_urls"),
    ):
        with environment(winner, loser):
            assert ObserveSettings().sources()[name] == winner.partition("=")[0]


def test_an_empty_otel_variable_is_unset() -> None:
    """An `OTEL_*` variable that is empty or blank changes nothing, and is not reported."""
    names = {
        variable.partition(":")[0]
        for field in ObserveSettings.model_fields.values()
        for variable in option_metadata(field).otel
    }
    with environment(*(f"{name}= " for name in names)):
        settings = ObserveSettings()
    assert set(settings.sources().values()) == {"default"}
    assert settings.warnings() == ()


def test_other_resource_attributes_set_no_option() -> None:
    """`OTEL_RESOURCE_ATTRIBUTES` is not a source of an option whose key is not in it."""
    with environment("OTEL_RESOURCE_ATTRIBUTES=team=blue"):
        assert set(ObserveSettings().sources().values()) == {"default"}


def test_the_sdk_reads_the_same_resource() -> None:
    """The OpenTelemetry SDK finds the same name and version in `OTEL_RESOURCE_ATTRIBUTES`."""
    with environment("OTEL_RESOURCE_ATTRIBUTES=service.name=a%2Cb, service.version = 1%202 "):
        attributes, settings = OTELResourceDetector().detect().attributes, ObserveSettings()
    assert (settings.service_name, settings.service_version) == ("a,b", "1 2")
    assert (attributes["service.name"], attributes["service.version"]) == ("a,b", "1 2")


def test_the_sdk_reads_the_same_headers() -> None:
    """The OpenTelemetry SDK reads the same headers from the same string."""
    for text in ("authorization=Bearer%20x", "A=1, b = 2 ", "k=v==", "x=,y=%C3%BC"):
        with environment(f"OTEL_EXPORTER_OTLP_HEADERS={text}"):
            assert headers_of(ObserveSettings()) == parse_env_headers(text, liberal=True)


def test_headers_have_lower_case_names() -> None:
    """Headers are accepted as a mapping, as pairs and as JSON; their names become lower case."""
    values: tuple[Any, ...] = ({"X-Key": "a"}, {"x-key": SecretStr("a")}, "X-Key=a", '{"X-Key": "a"}')
    for value in values:
        assert headers_of(ObserveSettings(otlp_headers=value)) == {"x-key": "a"}


def test_headers_of_two_sources_are_not_mixed() -> None:
    """Headers of a source replace those of a source with lower precedence."""
    with environment("OBSERVE_OTLP_HEADERS=a=1"):
        assert headers_of(ObserveSettings(otlp_headers={"b": "2"})) == {"b": "2"}


# The endpoint


def test_the_exporter_finds_the_same_url() -> None:
    """`traces_url` equals the URL that OpenTelemetry's exporter makes of the same variable."""
    for variable in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        for url in ("http://c:4318", "http://c:4318/", "https://c/base/"):
            with environment(f"{variable}={url}"):
                exporter = OTLPSpanExporter()
                exporter.shutdown()  # type: ignore[no-untyped-call]
                assert ObserveSettings().traces_url == exporter._endpoint


def test_the_endpoint_is_a_base() -> None:
    """`/v1/traces` is appended to `otlp_endpoint` once; over gRPC nothing is."""
    assert ObserveSettings(otlp_endpoint="http://c:4318").traces_url == "http://c:4318/v1/traces"
    assert ObserveSettings(otlp_endpoint="http://c:4317", otlp_protocol="grpc").traces_url == "http://c:4317"
    assert ObserveSettings(otlp_endpoint="c:4317", otlp_protocol="grpc").traces_url == "c:4317"
    with environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://d/x"):
        assert ObserveSettings(otlp_endpoint="http://c").traces_url == "http://c/v1/traces"
    for url in ("http://c:4318/v1/traces", "http://c:4318/v1/traces/"):
        assert ObserveSettings(otlp_endpoint=url).traces_url == "http://c:4318/v1/traces"
        with environment(f"OTEL_EXPORTER_OTLP_ENDPOINT={url}"):
            assert ObserveSettings().traces_url == "http://c:4318/v1/traces"


def test_spans_are_not_exported() -> None:
    """`traces_url` is None without endpoint, without tracing, and if `OTEL_TRACES_EXPORTER` leaves otlp out."""
    assert ObserveSettings().traces_url is None
    assert ObserveSettings(otlp_endpoint="http://c", tracing=False).traces_url is None
    endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://c"
    with environment(endpoint):
        assert ObserveSettings().traces_url == "http://c/v1/traces"
    with environment(endpoint, "OTEL_TRACES_EXPORTER=console,otlp"):
        assert ObserveSettings().traces_url == "http://c/v1/traces"
    with environment(endpoint, "OTEL_TRACES_EXPORTER=none"):
        assert ObserveSettings().traces_url is None
        assert ObserveSettings().sources()["otlp_endpoint"] == "OTEL_TRACES_EXPORTER"
        assert ObserveSettings(otlp_endpoint="http://c").traces_url == "http://c/v1/traces"


def test_an_endpoint_may_have_a_query() -> None:
    """The path is put before the query. The query, in which some collectors expect a key, is masked."""
    settings = ObserveSettings(otlp_endpoint="http://127.0.0.1:4318/?api_key=hunter2")
    assert settings.traces_url == "http://127.0.0.1:4318/v1/traces?api_key=hunter2"
    assert "hunter2" not in repr(settings)


# Invalid values


def test_all_invalid_options_are_one_error() -> None:
    """One error has one line for each invalid option: value, source, accepted values, next step."""
    with (
        environment("OBSERVE_SAMPLE_RATIO=much", "OBSERVE_DURATION_BUCKETS=1,x,-2"),
        pytest.raises(SettingsError) as caught,
    ):
        ObserveSettings(log_level="loud")
    assert str(caught.value).splitlines() == [
        "3 invalid settings:",
        (
            "  sample_ratio: invalid value 'much' (from OBSERVE_SAMPLE_RATIO); expected a number from 0 to 1; "
            "fix or unset OBSERVE_SAMPLE_RATIO"
        ),
        (
            "  duration_buckets: invalid value '1,x,-2' (invalid: 'x', '-2') (from OBSERVE_DURATION_BUCKETS); "
            "expected positive, finite numbers, separated by commas; fix or unset OBSERVE_DURATION_BUCKETS"
        ),
        "  log_level: invalid value 'loud' (argument); expected debug, info, warn, error or fatal",
    ]
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, ValidationError)


def test_an_invalid_variable_is_named() -> None:
    """An `OBSERVE_*` variable with an invalid value is an error that names the variable."""
    for assignment in (
        "OBSERVE_SERVICE_NAME=",
        "OBSERVE_SAMPLER=sometimes",
        "OBSERVE_OTLP_ENDPOINT=collector:4318",
        "OBSERVE_OTLP_HEADERS=secret",
        "OBSERVE_QUEUE_SIZE=0",
        "OBSERVE_EXCLUDE_URLS=/a(",
        "OBSERVE_LOG_COMPRESSION=zip",
    ):
        variable = assignment.partition("=")[0]
        with environment(assignment):
            (line,) = problems()
        assert line.endswith(f"; fix or unset {variable}")
    with environment("OBSERVE_REGISTRY=mine"):  # this option has no variable, and no value of it is repeated
        (line,) = problems()
        assert line.endswith(
            "; this option is set in code only: unset OBSERVE_REGISTRY, and pass registry to install()"
        )


def test_an_invalid_argument_is_named() -> None:
    """An argument with an invalid value is one line that starts with its name and describes accepted values."""
    values: tuple[tuple[str, Any], ...] = (
        ("sample_ratio", float("nan")),
        ("sample_ratio", 1.1),
        ("otlp_timeout", float("inf")),
        ("duration_buckets", ()),
        ("duration_buckets", (1.0, float("inf"))),
        ("otlp_endpoint", ""),
        ("otlp_endpoint", "http://"),
        ("otlp_endpoint", "http://c:port"),
        ("otlp_endpoint", "http://a b"),
        ("otlp_headers", {"a b": "c"}),
        ("otlp_headers", {"a": "b\nc"}),
        ("otlp_headers", "{"),
        ("otlp_headers", 7),
        ("exclude_urls", ("(",)),
        ("exclude_paths", ("health",)),
        ("metrics_path", "metrics"),
        ("request_id_header", "a b"),
        ("log_rotation", "3 parsecs"),
        ("log_retention", "0 files"),
        ("log_level", True),
        ("log_level", -1),
        ("span_processors", 7),
        ("slos", [7]),
        ("slo_options", 7),
        ("trust_incoming", 7),
        ("environment", None),
    )
    for name, value in values:
        (line,) = problems(**{name: value})
        assert line.startswith(f"{name}: invalid value ")
        assert " (argument); expected " in line


def test_levels_are_accepted_as_libraries_spell_them() -> None:
    """Names of `logging`, uvicorn and loguru in any case, and their numbers, as an argument and as a variable."""
    for spelled, level in (
        ("trace", "debug"),
        ("DEBUG", "debug"),
        (5, "debug"),
        (10, "debug"),
        ("INFO", "info"),
        ("success", "info"),
        (20, "info"),
        (25, "info"),
        ("warning", "warn"),
        ("WARNING", "warn"),
        (30, "warn"),
        ("Error", "error"),
        (40, "error"),
        ("critical", "fatal"),
        ("CRITICAL", "fatal"),
        ("FATAL", "fatal"),
        (50, "fatal"),
    ):
        assert ObserveSettings(log_level=spelled).log_level == level
        with environment(f"OBSERVE_LOG_LEVEL={spelled}"):
            assert ObserveSettings().log_level == level


def test_rotation_is_a_size_or_an_age() -> None:
    """`log_rotation` accepts a size, an age or None; the space and the case do not matter."""
    for text in ("500 KB", "50KB", "50kb", "100 MB", "1 GB", "1 day", "12hours", "12 Hours", None):
        assert ObserveSettings(log_rotation=text).log_rotation == text


def test_retention_is_a_number_an_age_or_a_size() -> None:
    """`log_retention` accepts a number of files, an age, a size, several of them, or None."""
    for text in ("10 files", "1 file", "7 days", "2gb", "10files,7Days, 1 GB", None):
        assert ObserveSettings(log_retention=text).log_retention == text


def test_a_misspelled_option_suggests_the_right_one() -> None:
    """An unknown name is an error that suggests the nearest option and never repeats the value."""
    assert problems(otlp_hedaers="hush") == ("otlp_hedaers: no such option; did you mean 'otlp_headers'?",)
    assert problems(zzz="hush") == (
        "zzz: no such option; run `python -m fastapi_observe settings` to list all options",
    )


def test_a_misspelled_variable_suggests_the_right_one() -> None:
    """A variable that nearly spells an option is an error; other tools' `OBSERVE_*` variables are left alone."""
    with environment("OBSERVE_TOKEN=of another tool"):
        ObserveSettings()
    with environment("OBSERVE_SAMPLE_RATO=1"):
        assert problems() == ("OBSERVE_SAMPLE_RATO: no such option; did you mean 'OBSERVE_SAMPLE_RATIO'?",)


def test_a_former_name_of_an_option_names_the_new_one() -> None:
    """As an argument and as a variable; the value is not repeated."""
    for old, new in RENAMED_OPTIONS.items():
        assert problems(**{old: "hush"}) == (f"{old}: this option is now {new}; pass {new} to install()",)
        variable = f"OBSERVE_{old.upper()}"
        with environment(f"{variable}=hush"):
            (line,) = problems()
        code_only = option_metadata(ObserveSettings.model_fields[new]).code_only
        step = f"pass {new} to install()" if code_only else f"set OBSERVE_{new.upper()}"
        assert line == f"{variable}: this option is now {new}; unset it, and {step}"
    with pytest.raises(SettingsError, match="workers: this option is now multiprocess"):
        install(FastAPI(), workers="off")  # type: ignore[call-arg]


def test_a_removed_option_names_what_there_is_instead() -> None:
    """As an argument and as a variable; the value is not repeated."""
    for name, instead in REMOVED_OPTIONS.items():
        assert problems(**{name: "hush"}) == (f"{name}: this option was removed: {instead}; leave it out",)
        variable = f"OBSERVE_{name.upper()}"
        with environment(f"{variable}=hush"):
            assert problems() == (f"{variable}: this option was removed: {instead}; unset it",)


def test_an_invalid_value_is_named_once() -> None:
    """A value of none of several types is not repeated for each; each invalid item of a list is named once."""
    expected = "expected auto, names separated by commas, or None"
    assert problems(instrument=5) == (f"instrument: invalid value 5 (argument); {expected}",)
    assert problems(instrument=[5, "redis", 5]) == (
        f"instrument: invalid value [5, 'redis', 5] (invalid: 5) (argument); {expected}",
    )
    assert problems(console=[7]) == ("console: invalid value [7] (argument); expected auto, true or false",)


def test_a_long_value_is_cut() -> None:
    """An error repeats at most 100 characters of a value, on one line."""
    (line,) = problems(log_level="a\n" * 5000)
    assert len(line) < 250
    (line,) = problems(duration_buckets=["a" * 90] * 50)
    assert len(line) < 600
    assert "\n" not in line


def test_options_that_exclude_each_other() -> None:
    """No option is ignored silently: the error names both."""
    for other, named in (({"metrics_port": 0}, "metrics_port"), ({"metrics_token": "a" * 20}, "metrics_token")):
        (line,) = problems(metrics_dependency=len, **other)
        assert line.startswith("metrics_dependency ")
        assert named in line
        with pytest.raises(SettingsError, match=f"metrics_dependency .*{named}"):
            ObserveSettings.load(ObserveSettings(**other), metrics_dependency=len)
    assert len(problems(metrics_dependency=len, metrics_port=0, metrics_token="a" * 20)) == 2
    ObserveSettings(metrics_dependency=len)
    ObserveSettings(metrics_port=0, metrics_token="a" * 20)


def test_metrics_at_an_address_of_the_console() -> None:
    """The console could not be reached where the metrics answer. Elsewhere below or above it they hide nothing."""
    refused = (("/metrics", "/metrics"), ("/a", "/a/"), ("/a", "/a/api/live"), ("/a", "/a/assets/x.js"))
    for console, metrics in refused:
        paths = {"console_path": console, "metrics_path": metrics}
        (line,) = problems(environment="development", **paths)
        assert line == (
            f"metrics_path '{metrics}' is an address of the development console (console_path '{console}'); set one of "
            "them to another path"
        )
        unused: dict[str, Any]
        for unused in ({"environment": "production"}, {"metrics": False}, {"metrics_port": 0}, {"console": False}):
            ObserveSettings(**({"environment": "development"} | paths | unused))
        assert problems(console=True, console_token="a" * 20, **paths) == (line,)
    for console, metrics in (("/a", "/a/metrics"), ("/metrics/a", "/metrics"), ("/a", "/ab"), ("/a", "/b")):
        ObserveSettings(environment="development", console_path=console, metrics_path=metrics)


def test_a_token_is_visible_ascii() -> None:
    """A token that no header can carry is rejected, and not repeated."""
    for name, token in product(
        ("metrics_token", "console_token"),
        ("", "short", " " * 20, "a" * 20 + "\n", "two words", "p\u00e4ssword", "a" * 7 + "\x00"),
    ):
        assert problems(**{name: token}) == (
            (f"{name}: invalid value '**********' (argument); expected at least 8 visible ASCII characters, or None"),
        )


def test_an_empty_token_is_an_error() -> None:
    """An empty variable does not open the metrics; an unset one means no token."""
    for text in ("", "  "):
        with environment(f"OBSERVE_METRICS_TOKEN={text}"):
            (line,) = problems()
        assert "(from OBSERVE_METRICS_TOKEN)" in line
    assert ObserveSettings().metrics_token is None


# Secrets


@given(st.text(), st.text(alphabet="xyz/:?#@[]\n "))
def test_a_password_is_never_shown(password: str, rest: str) -> None:
    """Whatever the endpoint is, the part before its last @ is in no repr and no error."""
    secret = f"hush{password}hush"
    for url in (f"http://user:{secret}@collector", f"{secret}@{rest}", f"//{secret}@{rest}"):
        try:
            shown = repr(ObserveSettings(otlp_endpoint=url))
        except SettingsError as error:
            shown = str(error)
        assert "hush" not in shown


def test_secrets_are_masked_everywhere() -> None:
    """Header values and the endpoint's password are in no repr, str, masked view or error."""
    secret: dict[str, Any] = {"otlp_headers": {"authorization": "hush"}, "otlp_endpoint": "http://me:hush@c:4318"}
    settings = ObserveSettings(**secret)
    assert settings.masked()["otlp_endpoint"] == "http://**********@c:4318"
    assert settings.traces_url == "http://me:hush@c:4318/v1/traces"
    for shown in (repr(settings), str(settings), repr(settings.masked())):
        assert "hush" not in shown
    assert "hush" not in "".join(problems(otlp_headers="hush", otlp_endpoint="ftp://me:hush@c"))
    assert "hush" not in "".join(problems(otlp_headers={"a b": "hush"}, otlp_endpoint=b"me:hush@c" * 40))
    with pytest.raises(ValidationError) as caught:
        ObserveSettings.model_validate({"otlp_headers": "hush"})
    assert "hush" not in str(caught.value)


def test_the_end_of_an_endpoint_is_masked() -> None:
    """Query and fragment are masked, in an invalid endpoint too."""
    for end in ("?api_key=hunter2", "#hunter2", "/x?a#hunter2"):
        assert "hunter2" not in repr(ObserveSettings(otlp_endpoint=f"http://c:4318{end}"))
        assert "hunter2" not in "".join(problems(otlp_endpoint=f"ftp://c{end}"))


# The object


def test_validation_keeps_the_sources() -> None:
    """`model_validate` reads the environment too and names it; a value that is not a mapping is pydantic's error."""
    with environment("OBSERVE_BATCH_SIZE=3"):
        sources = ObserveSettings.model_validate({"queue_size": 4}).sources()
    assert (sources["batch_size"], sources["queue_size"]) == ("OBSERVE_BATCH_SIZE", "argument")
    with pytest.raises(ValidationError):
        ObserveSettings.model_validate("x")


def test_settings_are_frozen() -> None:
    """An option cannot be set afterwards."""
    with pytest.raises(ValidationError, match="frozen"):
        ObserveSettings().sample_ratio = 1.0  # type: ignore[misc]


def test_load_without_settings_reads_the_environment() -> None:
    """`load` alone returns the settings of the environment, with the overrides applied."""
    with environment("OBSERVE_BATCH_SIZE=3"):
        settings = ObserveSettings.load(queue_size=4)
    assert (settings.batch_size, settings.queue_size) == (3, 4)


def test_load_applies_overrides() -> None:
    """`load(settings, ...)` keeps every other value, source and warning of `settings`, which it does not change."""
    with environment("OBSERVE_BATCH_SIZE=3", "OTEL_BSP_EXPORT_TIMEOUT=1"):
        settings = ObserveSettings(queue_size=4, otlp_headers={"a": "b"})
    with environment("OBSERVE_BATCH_SIZE=5", "OBSERVE_LOG_LEVEL=error"):
        loaded = ObserveSettings.load(settings, sample_ratio=1)
    assert (loaded.batch_size, loaded.queue_size, loaded.sample_ratio, loaded.log_level) == (3, 4, 1.0, "info")
    assert headers_of(loaded) == {"a": "b"}
    assert {name: source for name, source in loaded.sources().items() if source != "default"} == {
        "batch_size": "OBSERVE_BATCH_SIZE",
        "queue_size": "argument",
        "sample_ratio": "argument",
        "otlp_headers": "argument",
    }
    assert "OTEL_BSP_EXPORT_TIMEOUT" in "".join(loaded.warnings())
    assert settings.sample_ratio == 0.1
    assert ObserveSettings.load(settings) is settings


def test_load_keeps_the_kind_of_the_endpoint() -> None:
    """An endpoint that is used without a path appended stays so after `load`."""
    with environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c/x"):
        settings = ObserveSettings()
    assert ObserveSettings.load(settings, sample_ratio=1).traces_url == "http://c/x"


def test_load_validates() -> None:
    """Invalid overrides are the same error; an object that is not settings is a `TypeError`."""
    with pytest.raises(SettingsError, match=r"sample_ratio: invalid value 2 \(argument\)"):
        ObserveSettings.load(ObserveSettings(), sample_ratio=2)
    with pytest.raises(TypeError, match="settings must be ObserveSettings, got dict"):
        ObserveSettings.load({"sample_ratio": 1})  # type: ignore[arg-type]


def test_install_accepts_the_options_that_exist() -> None:
    """`Options`, the type of `install`'s arguments, has the names of `ObserveSettings` and the same choices."""
    namespace = {
        "AsyncEngine": AsyncEngine,
        "CollectorRegistry": CollectorRegistry,
        "Engine": Engine,
        "Objective": Objective,
        "SLOOptions": SLOOptions,
        "SecretStr": SecretStr,
        "SpanProcessor": SpanProcessor,
        "TracerProvider": TracerProvider,
    }
    types = get_type_hints(Options, localns=namespace)
    assert list(types) == list(ObserveSettings.model_fields)
    for name, field in ObserveSettings.model_fields.items():
        if get_origin(field.annotation) is Literal and name != "log_level":
            assert types[name] == field.annotation


def test_install_logs_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    """Each message about ignored `OTEL_*` variables is one line of level `warn` at start."""
    with environment("OTEL_TRACES_SAMPLER=xray", "OTEL_BSP_EXPORT_TIMEOUT=1"):
        install(FastAPI(title="shop")).close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["level"], line["message"].split()[0]) for line in lines if line["level"] != "info"] == [
        ("warn", "Ignored"),
        ("warn", "fastapi-observe"),
    ]


# Documentation


def test_the_documentation_has_every_option() -> None:
    """The table in docs/reference/configuration.md equals the one made from the fields."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    table = text.partition("<!-- options -->\n")[2].partition("<!-- /options -->")[0]
    assert table == options_table(), "run `python -m fastapi_observe settings --markdown` and put its output there"


def test_the_documentation_has_every_rename() -> None:
    """The table in docs/reference/configuration.md has the names of `settings/renames.py`; the new names exist."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    table = text.partition("<!-- renames -->\n")[2].partition("<!-- /renames -->")[0]
    for kind, renames in (("option", RENAMED_OPTIONS), ("command", RENAMED_COMMANDS), ("flag", RENAMED_FLAGS)):
        rows = re.findall(rf"^\| {kind} \| `(.+)` \| `(.+)` \|$", table, re.MULTILINE)
        assert dict(rows) == renames
    assert dict(re.findall(r"^\| removed \| `(.+)` \| (.+) \|$", table, re.MULTILINE)) == REMOVED_OPTIONS
    assert dict(re.findall(r"^\| removed command \| `(.+)` \| (.+) \|$", table, re.MULTILINE)) == REMOVED_COMMANDS
    assert not set(REMOVED_OPTIONS) & set(ObserveSettings.model_fields)
    assert set(RENAMED_OPTIONS.values()) <= set(ObserveSettings.model_fields)
    assert not set(RENAMED_OPTIONS) & set(ObserveSettings.model_fields)
