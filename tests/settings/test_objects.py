"""Options that take objects or functions: `install` refuses wrong ones, and accepts any object with the methods."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, Self
from unittest.mock import MagicMock

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine
from variables import remove_variables

from fastapi_observe import install
from fastapi_observe.redaction.redactor import Redactor
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.settings.sources import SECRET, option_metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen


class CallableObject:
    """A class whose objects can be called, and whose class can be called with anything."""

    def __init__(self, *arguments: Any) -> None: ...

    def __call__(self, *arguments: Any) -> bool:
        """Return False, which an object of this class is not."""
        return False


class AsyncCallable:
    """An object whose call returns a coroutine."""

    async def __call__(self, *arguments: Any) -> bool:
        """Return a coroutine."""
        raise NotImplementedError


class Raising:
    """An object that raises something else than `AttributeError` for an attribute that it does not have."""

    def __getattr__(self, name: str) -> Any:
        """Raise."""
        raise RuntimeError(name)


async def coroutine_function(*arguments: Any) -> bool:
    """Return a coroutine, which counts as true."""
    raise NotImplementedError


def generator_function(*arguments: Any) -> Iterator[bool]:
    """Return a generator, which counts as true."""
    yield False


async def async_generator_function(*arguments: Any) -> AsyncIterator[bool]:
    """Return an asynchronous generator."""
    yield False


WRONG: Final[tuple[Any, ...]] = (
    5,
    0,
    "x",
    b"x",
    [5],
    ["x"],
    [None],
    [[]],
    {1: 2},
    object(),
    [object()],
    CallableObject,
    [CallableObject],
    Raising(),
    [Raising()],
    AsyncCallable(),
    [AsyncCallable()],
    coroutine_function,
    [coroutine_function],
    functools.partial(coroutine_function, 1),
    generator_function,
    [generator_function],
    async_generator_function,
    functools.partial(async_generator_function, 1),
)
"""No option that takes objects or functions accepts one of these, except `ACCEPTED`."""

ACCEPTED: Final[dict[str, tuple[Any, ...]]] = {
    # FastAPI calls classes, awaits coroutines, and enters generators.
    "metrics_dependency": (
        *(CallableObject, AsyncCallable, coroutine_function, functools.partial),
        *(generator_function, async_generator_function),
    ),
    # The factories of the instrumentator return None for a metric that already exists.
    "instrumentator_functions": ([None],),
}


def takes_objects(name: str) -> bool:
    """Return whether an option takes objects or functions."""
    metadata = option_metadata(ObserveSettings.model_fields[name])
    return metadata.code_only or "function" in metadata.accepts


OBJECT_OPTIONS: Final = [name for name in ObserveSettings.model_fields if takes_objects(name)]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without variables that set options."""
    remove_variables(monkeypatch)


def is_accepted(name: str, value: Any) -> bool:
    """Return whether a value of `WRONG` is right for this option."""
    return any(value == each or type(value) is each for each in ACCEPTED.get(name, ()))


def test_every_option_of_objects_says_what_it_accepts() -> None:
    """Its type does not say it."""
    assert {"span_processors", "engines", "redact", "trust_incoming"} <= set(OBJECT_OPTIONS)
    for name in OBJECT_OPTIONS:
        assert option_metadata(ObserveSettings.model_fields[name]).accepts, name


@pytest.mark.parametrize("name", OBJECT_OPTIONS)
def test_a_wrong_object_is_refused_at_install(name: str) -> None:
    """The error names the option, the value and what is accepted. Nothing is installed."""
    for value in WRONG:
        app = FastAPI()
        options: dict[str, Any] = {name: value} | ({"server_span": "contrib"} if name == "contrib_options" else {})
        if is_accepted(name, value):
            install(app, **options).close()
            continue
        with pytest.raises(SettingsError) as caught:
            install(app, **options)
        (line,) = caught.value.problems
        assert line.startswith(f"{name}: invalid value ")
        assert " (argument); expected " in line
        assert not hasattr(app.state, "observe")


@pytest.mark.parametrize("name", ObserveSettings.model_fields)
def test_no_option_accepts_any_object(name: str) -> None:
    """Each option is checked, so that the type of a new one cannot be left open."""
    values: tuple[Any, ...] = (object(), [object()])
    for value in values:
        with pytest.raises(SettingsError, match=f"\n  {name}: invalid value "):
            ObserveSettings(**{name: value})


@pytest.mark.parametrize("name", [name for name in ObserveSettings.model_fields if name not in OBJECT_OPTIONS])
def test_bytes_are_refused(name: str) -> None:
    """For strings, in lists and in mappings. A token or a header is named as bytes, and masked."""
    values: tuple[Any, ...] = (
        b"/tmp/hush12345",
        bytearray(b"/hush12345"),
        [b"/hush12345"],
        {"logs": [b"/hush12345"]},
        {"a": b"hush12345"},
    )
    for value in values:
        with pytest.raises(SettingsError) as caught:
            ObserveSettings(**{name: value})
        (line,) = caught.value.problems
        assert line.startswith(f"{name}: invalid value ")
        assert " (argument); expected " in line
        if name in SECRET:
            assert " (bytes) " in line
            assert "hush" not in line


def test_an_engine_without_sqlalchemy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the option, not the missing module."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "sqlalchemy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(SettingsError, match="engines: invalid value"):
        install(FastAPI(), engines=["sqlite://"])  # type: ignore[list-item]


def test_a_mock_of_an_engine_is_refused() -> None:
    """It is an instance of the class, without the attributes of one. A mock of an engine has them."""
    for wrong in (MagicMock(spec=Engine), MagicMock(spec=AsyncEngine)):
        with pytest.raises(SettingsError, match="engines: invalid value"):
            ObserveSettings(engines=(wrong,))
    install(FastAPI(), engines=[MagicMock(spec=create_engine("sqlite://"))]).close()


def test_an_iterator_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that take lists accept one. An invalid variable, for which all options are read again, loses nothing."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "many")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "soon")
    processor = Processor()
    settings = ObserveSettings(
        span_processors=(each for each in [processor]),
        engines=map(create_engine, ["sqlite://"]),
        redact_names=iter(["customer"]),
        metrics_access=iter(["private", "192.0.2.0/24"]),
        duration_buckets=iter([1.0, 2.0]),
        exclude_from={"logs": iter(["/internal"])},
    )
    assert settings.span_processors == (processor,)
    assert len(settings.engines) == 1
    assert settings.redact_names == ("customer",)
    assert settings.metrics_access == ("private", "192.0.2.0/24")
    assert settings.duration_buckets == (1.0, 2.0)
    assert settings.exclude_from == {"logs": ("/internal",)}
    with pytest.raises(SettingsError, match=r"engines: invalid value \('x', 'y'\)"):
        ObserveSettings(engines=iter(["x", "y"]))


def test_a_class_of_strings_redacts() -> None:
    """Its objects are strings. Any other class is refused."""

    class Hidden(str):
        __slots__ = ()

        def __new__(cls, _text: str) -> Self:
            return super().__new__(cls, "hidden")

    redactor = Redactor.from_settings(ObserveSettings(redact=Hidden))
    assert redactor.text("7 apples") == "hidden"
    assert ObserveSettings(redact=str).redact is str


def test_a_dependency_needs_a_function() -> None:
    """An annotated type and a `Depends` of nothing would answer each scrape with an error."""
    for wrong in (Depends(), Depends("x"), Annotated[None, Depends(len)]):  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="metrics_dependency: invalid value"):
            ObserveSettings(metrics_dependency=wrong)
    ObserveSettings(metrics_dependency=Depends(CallableObject))


class Provider:
    """A tracer provider that is not derived from OpenTelemetry's class."""

    def __init__(self) -> None:
        self.get_tracer = TracerProvider().get_tracer


class Processor:
    """A span processor with the methods of the specification only."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Record the call, as the other methods do."""
        self.calls.append("start")

    def on_end(self, span: Any) -> None:
        """Record the name too."""
        self.calls.append(span.name)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Do nothing: there is nothing to flush."""
        return True

    def shutdown(self) -> None:
        """Record the call."""
        self.calls.append("shutdown")


class Registry:
    """A registry that is not derived from the class of prometheus_client, and false as a condition."""

    def __init__(self) -> None:
        inner = CollectorRegistry()
        self.register, self.unregister, self.collect = inner.register, inner.unregister, inner.collect

    def __len__(self) -> int:
        return 0


def test_objects_with_the_methods_are_accepted(observed: Callable[..., Seen]) -> None:
    """They need not be derived from the class that the option is about, and cause no internal error."""
    for options in ({"tracer_provider": Provider()}, {"registry": Registry()}, {"span_processors": [Processor()]}):
        seen = observed(app := FastAPI(), sample_ratio=1.0, **{"span_processors": ()} | options)
        with TestClient(app, client=("127.0.0.1", 1)) as client:
            assert client.get("/nothing").status_code == 404
            assert "http_requests_total" in client.get("/metrics").text
        seen.observe.close()
        assert seen.observe.internal_errors.counts == {}
        for processor in seen.observe.settings.span_processors:
            assert processor.calls == ["start", "GET", "shutdown"]
        given: Any = options.get("registry")
        assert given in {None, seen.observe.metrics.registry}


def test_processors_need_a_provider_that_takes_them() -> None:
    """A provider with `get_tracer` alone does not. Without tracing neither is used."""
    with pytest.raises(SettingsError, match="span_processors need a tracer_provider with add_span_processor"):
        install(FastAPI(), tracer_provider=Provider(), span_processors=[Processor()])  # type: ignore[arg-type, list-item]
    ObserveSettings(tracing=False, tracer_provider=trace.NoOpTracerProvider(), span_processors=(Processor(),))
