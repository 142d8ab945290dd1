"""Settings: which source wins, what is accepted, what an error says, and that secrets stay hidden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.util.re import parse_env_headers
from pydantic import SecretStr, ValidationError

from fastapi_observe import install
from fastapi_observe.cli.settings import options_table
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.settings.renames import RENAMED_OPTIONS, renames_table
from fastapi_observe.settings.sources import option_metadata

CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without a variable that could say something."""
    for name in list(os.environ):
        if name.startswith(("OBSERVE_", "OTEL_", "FASTAPI_ENV")):
            monkeypatch.delenv(name)


def problems(**options: Any) -> tuple[str, ...]:
    """Return the lines about wrong options."""
    with pytest.raises(SettingsError) as caught:
        ObserveSettings(**options)
    return caught.value.problems


def headers_of(settings: ObserveSettings) -> dict[str, str]:
    """Return the export headers in the clear."""
    return {name: value.get_secret_value() for name, value in settings.otlp_headers.items()}


def test_each_source_wins_over_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument wins over `OBSERVE_*`, that over `OTEL_*`, that over the default, and `sources` says which it was."""
    assert (ObserveSettings().batch_size, ObserveSettings().sources()["batch_size"]) == (256, "default")
    for variable, value in (("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"), ("OBSERVE_BATCH_SIZE", "4")):
        monkeypatch.setenv(variable, value)
        settings = ObserveSettings()
        assert (settings.batch_size, settings.sources()["batch_size"]) == (int(value), variable)
    assert ObserveSettings(batch_size=5).batch_size == 5
    assert ObserveSettings(batch_size=5).sources()["batch_size"] == "argument"


def test_sources_name_every_option() -> None:
    """`sources` has an entry for every option, in their order."""
    assert list(ObserveSettings().sources()) == list(ObserveSettings.model_fields)
    assert set(ObserveSettings().sources().values()) == {"default"}


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
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
        ("OTEL_PYTHON_EXCLUDED_URLS", "/health$,^/in.*l", "exclude_urls", ("/health$", "^/in.*l")),
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "/h", "exclude_urls", ("/h",)),
        ("OBSERVE_ENV", "test", "environment", "test"),
        ("FASTAPI_ENV", "development", "environment", "development"),
        ("OBSERVE_DURATION_BUCKETS", "2, 0.5,2", "duration_buckets", (0.5, 2.0)),
        ("OBSERVE_EXCLUDE_PATHS", "/a,/b/*", "exclude_paths", ("/a", "/b/*")),
        ("OBSERVE_QUIET_LOGGERS", "", "quiet_loggers", ()),
        ("OBSERVE_LOG_ROTATION", "", "log_rotation", None),
        ("OBSERVE_LOG_COMPRESSION", "", "log_compression", None),
        ("OBSERVE_SERVICE_VERSION", "", "service_version", ""),
        ("OBSERVE_LOG_LEVEL", " WARN ", "log_level", "warn"),
        ("OBSERVE_TRACING", "no", "tracing", False),
    ],
)
def test_a_variable_sets_its_option(
    variable: str, text: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variable sets its option, converted to the option's unit, and is named as its source."""
    monkeypatch.setenv(variable, text)
    settings = ObserveSettings()
    assert getattr(settings, name) == value
    assert settings.sources()[name] == variable


@pytest.mark.parametrize(
    ("winner", "loser", "name"),
    [
        ("OTEL_SERVICE_NAME=a", "OTEL_RESOURCE_ATTRIBUTES=service.name=b", "service_name"),
        ("OBSERVE_ENVIRONMENT=a", "OBSERVE_ENV=b", "environment"),
        ("OBSERVE_ENV=a", "FASTAPI_ENV=b", "environment"),
        ("FASTAPI_ENV=a", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=b", "environment"),
        ("OTEL_TRACES_SAMPLER_ARG=0.5", "OTEL_TRACES_SAMPLER=traceidratio", "sample_ratio"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://a", "OTEL_EXPORTER_OTLP_ENDPOINT=http://b", "otlp_endpoint"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS=a=1", "OTEL_EXPORTER_OTLP_HEADERS=b=1", "otlp_headers"),
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS=a", "OTEL_PYTHON_EXCLUDED_URLS=b", "exclude_urls"),
    ],
)
def test_the_more_specific_variable_wins(winner: str, loser: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two variables for one option, the more specific one wins."""
    for assignment in (winner, loser):
        variable, _, text = assignment.partition("=")
        monkeypatch.setenv(variable, text)
    assert ObserveSettings().sources()[name] == winner.partition("=")[0]


@pytest.mark.parametrize(
    "variable",
    sorted(
        {
            variable.partition(":")[0]
            for field in ObserveSettings.model_fields.values()
            for variable in option_metadata(field)["otel"]
        }
    ),
)
def test_an_empty_otel_variable_is_unset(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `OTEL_*` variable that is empty or blank changes nothing."""
    monkeypatch.setenv(variable, " ")
    assert set(ObserveSettings().sources().values()) == {"default"}


def test_a_resource_without_our_keys_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_RESOURCE_ATTRIBUTES` is no source for options whose key is not in it."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=blue")
    assert set(ObserveSettings().sources().values()) == {"default"}


def test_sdk_reads_the_resource_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The OpenTelemetry SDK finds the same name and version in `OTEL_RESOURCE_ATTRIBUTES`."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=a%2Cb, service.version = 1%202 ")
    attributes, settings = OTELResourceDetector().detect().attributes, ObserveSettings()
    assert (settings.service_name, settings.service_version) == ("a,b", "1 2")
    assert (attributes["service.name"], attributes["service.version"]) == ("a,b", "1 2")


@pytest.mark.parametrize("text", ["authorization=Bearer%20x", "A=1, b = 2 ", "k=v==", "x=,y=%C3%BC"])
def test_sdk_reads_headers_alike(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The OpenTelemetry SDK reads the same headers from the same text."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    assert headers_of(ObserveSettings()) == parse_env_headers(text, liberal=True)


@pytest.mark.parametrize("value", [{"X-Key": "a"}, {"x-key": SecretStr("a")}, "X-Key=a", '{"X-Key": "a"}'])
def test_headers_have_lower_case_names(value: Any) -> None:
    """Headers are taken as a mapping, as pairs and as JSON; their names become lower case."""
    assert headers_of(ObserveSettings(otlp_headers=value)) == {"x-key": "a"}


def test_headers_from_two_sources_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers of a higher source replace those of a lower one."""
    monkeypatch.setenv("OBSERVE_OTLP_HEADERS", "a=1")
    assert headers_of(ObserveSettings(otlp_headers={"b": "2"})) == {"b": "2"}


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize("url", ["http://c:4318", "http://c:4318/", "https://c/base/"])
def test_the_exporter_finds_the_same_url(variable: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`traces_url` is what OpenTelemetry's exporter makes of the same variable."""
    monkeypatch.setenv(variable, url)
    exporter = OTLPSpanExporter()
    exporter.shutdown()  # type: ignore[no-untyped-call]
    assert ObserveSettings().traces_url == exporter._endpoint


def test_our_endpoint_is_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/v1/traces` is appended to `otlp_endpoint`, over gRPC nothing is."""
    assert ObserveSettings(otlp_endpoint="http://c:4318").traces_url == "http://c:4318/v1/traces"
    assert ObserveSettings(otlp_endpoint="http://c:4317", otlp_protocol="grpc").traces_url == "http://c:4317"
    assert ObserveSettings(otlp_endpoint="c:4317", otlp_protocol="grpc").traces_url == "c:4317"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://d/x")
    assert ObserveSettings(otlp_endpoint="http://c").traces_url == "http://c/v1/traces"


@pytest.mark.parametrize("url", ["http://c:4318/v1/traces", "http://c:4318/v1/traces/"])
def test_the_path_of_traces_is_appended_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that ends in `/v1/traces` already is where spans go, whether it is an argument or a variable."""
    assert ObserveSettings(otlp_endpoint=url).traces_url == "http://c:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    assert ObserveSettings().traces_url == "http://c:4318/v1/traces"


def test_spans_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """`traces_url` is None without endpoint, without tracing, and when `OTEL_TRACES_EXPORTER` leaves otlp out."""
    assert ObserveSettings().traces_url is None
    assert ObserveSettings(otlp_endpoint="http://c", tracing=False).traces_url is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")
    assert ObserveSettings().traces_url == "http://c/v1/traces"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console,otlp")
    assert ObserveSettings().traces_url == "http://c/v1/traces"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert ObserveSettings().traces_url is None
    assert ObserveSettings().sources()["otlp_endpoint"] == "OTEL_TRACES_EXPORTER"
    assert ObserveSettings(otlp_endpoint="http://c").traces_url == "http://c/v1/traces"


def test_all_wrong_options_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error has one line for each wrong option: what it got, from where, what it accepts, what to do."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "much")
    monkeypatch.setenv("OBSERVE_DURATION_BUCKETS", "1,x,-2")
    with pytest.raises(SettingsError) as caught:
        ObserveSettings(log_level="loud")
    assert str(caught.value).splitlines() == [
        "3 settings are wrong:",
        (
            "  sample_ratio: got 'much' from OTEL_TRACES_SAMPLER_ARG; accepts a number from 0 to 1; "
            "correct or unset OTEL_TRACES_SAMPLER_ARG"
        ),
        (
            "  duration_buckets: got '1,x,-2' (wrong: 'x', '-2') from OBSERVE_DURATION_BUCKETS; "
            "accepts positive, finite numbers, separated by commas; correct or unset OBSERVE_DURATION_BUCKETS"
        ),
        "  log_level: got 'loud' from an argument; accepts debug, info, warn, error, fatal; pass another log_level",
    ]
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, ValidationError)


@pytest.mark.parametrize(
    "assignment",
    [
        "OTEL_SDK_DISABLED=1",
        "OTEL_RESOURCE_ATTRIBUTES=shop",
        "OTEL_TRACES_SAMPLER=sometimes",
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/json",
        "OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318",
        "OTEL_EXPORTER_OTLP_HEADERS=secret",
        "OTEL_EXPORTER_OTLP_TIMEOUT=-1",
        "OTEL_BSP_SCHEDULE_DELAY=soon",
        "OTEL_BSP_SCHEDULE_DELAY=nan",
        "OTEL_BSP_MAX_QUEUE_SIZE=0",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST=.*",
        "OTEL_PYTHON_EXCLUDED_URLS=/a(",
        "OBSERVE_SERVICE_NAME=",
        "OBSERVE_REGISTRY=mine",
        "OBSERVE_SPAN_PROCESSORS=mine",
    ],
)
def test_a_wrong_variable_is_named(assignment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with a wrong value is an error that names the variable."""
    variable, _, text = assignment.partition("=")
    monkeypatch.setenv(variable, text)
    assert all(f"correct or unset {variable}" in line for line in problems())


@pytest.mark.parametrize("text", ["soon", "0", "-5", "nan", "1 s"])
@pytest.mark.parametrize(
    ("variable", "accepts"),
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "(OTEL_METRIC_EXPORT_INTERVAL: of milliseconds)"),
        ("OTEL_BSP_SCHEDULE_DELAY", "(OTEL_BSP_SCHEDULE_DELAY: of milliseconds)"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "a number of seconds above 0;"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "a number of seconds above 0;"),
    ],
)
def test_a_wrong_time_is_told_its_unit(variable: str, accepts: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's variables are not all in seconds, as our options are."""
    monkeypatch.setenv(variable, text)
    (line,) = problems()
    assert f"got {text!r} from {variable}; accepts a number of seconds above 0" in line
    assert accepts in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
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
        ("span_processors", 7),
        ("environment", None),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    """An argument with a wrong value is one line that begins with its name and tells what to do."""
    (line,) = problems(**{name: value})
    assert line.startswith(f"{name}: got ")
    assert line.endswith(f"; pass another {name}")


@pytest.mark.parametrize("text", ["500 KB", "100 MB", "1 GB", "1 day", "12 hours", None])
def test_rotation_is_a_size_or_an_age(text: str | None) -> None:
    """`log_rotation` takes a size, an age or None."""
    assert ObserveSettings(log_rotation=text).log_rotation == text


@pytest.mark.parametrize("text", ["10 files", "1 file", "7 days", None])
def test_retention_is_a_number_or_an_age(text: str | None) -> None:
    """`log_retention` takes a number of files, an age or None."""
    assert ObserveSettings(log_retention=text).log_retention == text


def test_a_misspelt_option_is_told_the_right_one() -> None:
    """An unknown name is an error that suggests the nearest option and never repeats the value."""
    assert problems(otlp_hedaers="hush") == ("otlp_hedaers: no such option; did you mean 'otlp_headers'?",)
    assert problems(zzz="hush") == ("zzz: no such option; see all with `python -m fastapi_observe settings`",)


def test_a_misspelt_variable_is_told_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that nearly spells an option is an error; other tools' `OBSERVE_*` variables are left alone."""
    monkeypatch.setenv("OBSERVE_TOKEN", "of another tool")
    ObserveSettings()
    monkeypatch.setenv("OBSERVE_SAMPLE_RATO", "1")
    assert problems() == ("OBSERVE_SAMPLE_RATO: no such option; did you mean 'OBSERVE_SAMPLE_RATIO'?",)


def test_a_former_name_of_an_option_names_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument and as a variable; the value is not repeated."""
    for old, new in RENAMED_OPTIONS.items():
        assert problems(**{old: "hush"}) == (f"{old}: this option is now {new}; pass {new} to install()",)
        variable = f"OBSERVE_{old.upper()}"
        monkeypatch.setenv(variable, "hush")
        (line,) = problems()
        assert line.startswith(f"{variable}: this option is now {new}; ")
        assert (
            line.endswith(f"set OBSERVE_{new.upper()}")
            or option_metadata(ObserveSettings.model_fields[new])["code_only"]
        )
        monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match="workers: this option is now multiprocess"):
        install(FastAPI(), workers="off")


def test_the_documentation_has_every_rename() -> None:
    """The table in docs/configuration.md is the one of `settings/renames.py`; every new name of an option exists."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    table = text.partition("<!-- renames -->\n")[2].partition("<!-- /renames -->")[0]
    assert table == renames_table()
    assert set(RENAMED_OPTIONS.values()) <= set(ObserveSettings.model_fields)
    assert not set(RENAMED_OPTIONS) & set(ObserveSettings.model_fields)


def test_a_long_value_is_cut() -> None:
    """An error repeats at most 100 characters of a value, on one line."""
    (line,) = problems(log_level="a\n" * 5000)
    assert len(line) < 250
    (line,) = problems(duration_buckets=["a" * 90] * 50)
    assert len(line) < 600
    assert "\n" not in line


@given(st.text(), st.text(alphabet="xyz/:?#@[]\n "))
def test_a_password_is_never_shown(password: str, rest: str) -> None:
    """Whatever the endpoint is, what stands before its last @ is in no repr and no error."""
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


def test_validation_keeps_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """`model_validate` reads the environment too and names it; what is no mapping is pydantic's own error."""
    monkeypatch.setenv("OBSERVE_BATCH_SIZE", "3")
    sources = ObserveSettings.model_validate({"queue_size": 4}).sources()
    assert (sources["batch_size"], sources["queue_size"]) == ("OBSERVE_BATCH_SIZE", "argument")
    with pytest.raises(ValidationError):
        ObserveSettings.model_validate("x")


def test_settings_are_frozen() -> None:
    """An option cannot be set afterwards."""
    with pytest.raises(ValidationError, match="frozen"):
        ObserveSettings().sample_ratio = 1.0  # type: ignore[misc]


def test_load_without_settings_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` alone is the environment with the overrides on top."""
    monkeypatch.setenv("OBSERVE_BATCH_SIZE", "3")
    settings = ObserveSettings.load(queue_size=4)
    assert (settings.batch_size, settings.queue_size) == (3, 4)


def test_load_puts_overrides_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load(settings, ...)` keeps every value and source of `settings`, which stay untouched, but the overridden."""
    monkeypatch.setenv("OBSERVE_BATCH_SIZE", "3")
    settings = ObserveSettings(queue_size=4, otlp_headers={"a": "b"})
    monkeypatch.setenv("OBSERVE_BATCH_SIZE", "5")
    monkeypatch.setenv("OBSERVE_LOG_LEVEL", "error")
    loaded = ObserveSettings.load(settings, sample_ratio=1)
    assert (loaded.batch_size, loaded.queue_size, loaded.sample_ratio, loaded.log_level) == (3, 4, 1.0, "info")
    assert headers_of(loaded) == {"a": "b"}
    assert {name: source for name, source in loaded.sources().items() if source != "default"} == {
        "batch_size": "OBSERVE_BATCH_SIZE",
        "queue_size": "argument",
        "sample_ratio": "argument",
        "otlp_headers": "argument",
    }
    assert settings.sample_ratio == 0.1
    assert ObserveSettings.load(settings) is settings


def test_load_keeps_how_the_endpoint_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that is used as it is stays so after `load`."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/x")
    assert ObserveSettings.load(ObserveSettings(), sample_ratio=1).traces_url == "http://c/x"


def test_load_checks_again() -> None:
    """Wrong overrides are the same error; what is no settings object is told what to pass."""
    with pytest.raises(SettingsError, match="sample_ratio: got 2 from an argument"):
        ObserveSettings.load(ObserveSettings(), sample_ratio=2)
    with pytest.raises(TypeError, match="settings is a dict; pass ObserveSettings"):
        ObserveSettings.load({"sample_ratio": 1})  # type: ignore[arg-type]


def test_the_documentation_has_every_option() -> None:
    """The table in docs/configuration.md is the one that the fields give."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    table = text.partition("<!-- options -->\n")[2].partition("<!-- /options -->")[0]
    assert table == options_table(), "run `python -m fastapi_observe settings --markdown` and put its output there"


def test_an_endpoint_may_have_a_query() -> None:
    """The path is put before the query, and the query, where some collectors want a key, is never shown."""
    settings = ObserveSettings(otlp_endpoint="http://127.0.0.1:4318/?api_key=hunter2")
    assert settings.traces_url == "http://127.0.0.1:4318/v1/traces?api_key=hunter2"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("end", ["?api_key=hunter2", "#hunter2", "/x?a#hunter2"])
def test_the_end_of_an_endpoint_is_masked(end: str) -> None:
    """Query and fragment, in a wrong one too."""
    assert "hunter2" not in repr(ObserveSettings(otlp_endpoint=f"http://c:4318{end}"))
    assert "hunter2" not in "".join(problems(otlp_endpoint=f"ftp://c{end}"))


@pytest.mark.parametrize(
    ("other", "named"), [({"metrics_port": 0}, "metrics_port"), ({"metrics_token": "a" * 20}, "metrics_token")]
)
def test_options_that_cannot_hold_together(other: dict[str, Any], named: str) -> None:
    """None is ignored unseen: the error names both, and what to do."""
    (line,) = problems(metrics_dependency=len, **other)
    assert line.startswith(f"metrics_dependency and {named}: ")
    assert "choose one of them" in line
    assert len(problems(metrics_dependency=len, metrics_port=0, metrics_token="a" * 20)) == 2
    ObserveSettings(metrics_dependency=len)
    ObserveSettings(metrics_port=0, metrics_token="a" * 20)
    with pytest.raises(SettingsError, match=f"metrics_dependency and {named}"):
        ObserveSettings.load(ObserveSettings(**other), metrics_dependency=len)


@pytest.mark.parametrize(
    "token", ["", "short", " " * 20, "a" * 20 + "\n", "two words", "p\u00e4ssword", "a" * 7 + "\x00"]
)
def test_a_token_is_visible_text(token: str) -> None:
    """What no header can carry is refused, and not repeated."""
    assert problems(metrics_token=token) == (
        (
            "metrics_token: got '**********' from an argument; accepts at least 8 visible ASCII characters, or None; "
            "pass another metrics_token"
        ),
    )


@pytest.mark.parametrize("text", ["", "  "])
def test_a_token_that_did_not_arrive_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable does not open the metrics; one that is not there is no token."""
    monkeypatch.setenv("OBSERVE_METRICS_TOKEN", text)
    (line,) = problems()
    assert "from OBSERVE_METRICS_TOKEN" in line
    monkeypatch.delenv("OBSERVE_METRICS_TOKEN")
    assert ObserveSettings().metrics_token is None


def test_a_wrong_list_of_pairs_shows_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values may be secrets, and so may what has no name."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "api_key=hunter2,hunter3,service.name=hunter4")
    lines = problems()
    assert "service_name: got 'api_key=**********,**********,service.name=**********' from OTEL_" in lines[0]
    assert "hunter" not in "".join(lines)
