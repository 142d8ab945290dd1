"""For tests of your app: `capture(app)` collects its telemetry and makes assertions about it.

With pytest, the fixture `observed` does the same for the app of the test; see docs/how-to/testing.md.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections import Counter, defaultdict
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

from opentelemetry.sdk.trace import SpanProcessor
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from opentelemetry.sdk.trace import ReadableSpan
    from starlette.applications import Starlette

    from fastapi_observe.observability import Observability

MIN_SECRET_LENGTH: Final = 4
"""Minimum characters of a secret. Shorter ones are found anywhere."""


class CapturedTelemetry:
    """The telemetry of an installed app in a `with` block: spans, log lines, metrics, standard output and error.

    All traces are sampled in the block. The telemetry can also be read after the block.
    """

    def __init__(self, observability: Observability, on_line: Callable[[dict[str, Any]], object] | None = None) -> None:
        self._observe = observability
        self._on_line = on_line
        self._spans: list[ReadableSpan] = []
        self._lines: list[bytes] = []
        self._metrics = ""
        self._output = {"standard output": io.StringIO(), "standard error": io.StringIO()}
        self._undo: list[Any] = []
        self._tokens: list[Token[tuple[CapturedTelemetry, ...]]] = []

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended."""
        return list(self._spans)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log lines."""
        self._observe.logs.flush(1.0)
        return [json.loads(line) for line in self._lines]

    @property
    def metrics(self) -> str:
        """The response of `/metrics`: the current one, or after the block the last one."""
        if self._undo and self._observe.settings.metrics:
            headers, body = self._observe.metrics.render("", "")
            self._metrics = (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()
        return self._metrics

    def sample(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of `/metrics` with this name and these labels (and any others); 0 if none."""
        families = text_string_to_metric_families(self.metrics)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def assert_queries(self, *, max: int) -> None:  # noqa: A002 - assert_queries(max=3) reads as it should
        """Raise `AssertionError` if a trace has more than `max` database queries. The message has the statements."""
        queries: dict[int, list[str]] = defaultdict(list)
        for span in self._spans:
            attributes = span.attributes or {}
            if span.context is not None and ("db.system.name" in attributes or "db.system" in attributes):
                text = attributes.get("db.query.text", attributes.get("db.statement", span.name))
                queries[span.context.trace_id].append(str(text))
        for trace_id, statements in queries.items():
            if len(statements) > max:
                repeated = "".join(f"\n  {count} x {text}" for text, count in Counter(statements).most_common())
                found = f"{len(statements)} {'query' if len(statements) == 1 else 'queries'}"
                raise AssertionError(f"trace {trace_id:032x} has {found}, more than max={max}:{repeated}")

    def assert_no_leak(self, secret: str) -> None:
        """Raise `AssertionError` with the places if `secret` was reported, verbatim or percent-encoded.

        Raises `ValueError` for a secret of fewer than four characters.
        """
        if len(secret) < MIN_SECRET_LENGTH:
            raise ValueError(f"a secret of {len(secret)} characters is found anywhere; use four characters or more")
        forms = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
        forms |= {json.dumps(secret)[1:-1]}
        shown = f"{secret[:2]}… ({len(secret)} characters)"
        any_form = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))

        def mask(text: str) -> str:  # the failure is printed, often in public logs of CI
            return any_form.sub(lambda _: shown, text)

        places = [mask(place) for place, text in self._texts(mask) if any_form.search(text)]
        if places:
            raise AssertionError(f"{shown} leaked into " + "; ".join(dict.fromkeys(places)))

    def _texts(self, mask: Callable[[str], str]) -> Iterator[tuple[str, str]]:
        for line in self.lines:
            message = mask(str(line.get("message", "")))
            what = f"the log line {message[:40]!r} of {line.get('logger')}"
            yield from _strings(line, what)
        for span in self._spans:
            yield from _of_span(span)
        yield "/metrics", self.metrics
        for name, stream in self._output.items():
            yield name, stream.getvalue()

    def __enter__(self) -> Self:
        observe, collector = self._observe, _Collector(self._spans)
        tracing, logs = observe.tracing, observe.logs
        logs.flush(1.0)
        if hasattr(tracing.provider, "add_span_processor"):
            tracing.provider.add_span_processor(collector)
        push = logs.push

        def collect(line: bytes) -> None:
            self._lines.append(line)
            if self._on_line is not None:
                self._on_line(json.loads(line))
            if push is not None:
                push(line)

        logs.push = collect
        self._undo = [collector.shutdown, tracing.sample_all(), logs.encode_immediately()]
        self._undo.append(lambda: setattr(logs, "push", push))
        for name, stream in zip(("stdout", "stderr"), self._output.values(), strict=True):
            real = getattr(sys, name)
            setattr(sys, name, _Tee(real, stream))
            self._undo.append(lambda name=name, real=real: setattr(sys, name, real))
        self._tokens.append(_CAPTURES.set((*_CAPTURES.get(), self)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._observe.logs.flush(1.0)
        _ = self.metrics
        while self._undo:
            self._undo.pop()()
        _CAPTURES.reset(self._tokens.pop())


def capture(app: Starlette) -> CapturedTelemetry:
    """Collect the telemetry of an installed app, inside a `with` block.

    Raises `RuntimeError` if nothing is installed on the app.
    """
    observe = getattr(app.state, "observe", None)
    if observe is None:
        raise RuntimeError("fastapi-observe is not installed on this app; call install(app) before capture(app)")
    return CapturedTelemetry(observe)


def assert_no_leak(secret: str) -> None:
    """Raise `AssertionError` if an app whose telemetry is being captured has reported `secret`.

    Raises `RuntimeError` outside `with capture(app)`.
    """
    if not _CAPTURES.get():
        raise RuntimeError("nothing is captured here; call assert_no_leak inside `with capture(app):`")
    for each in _CAPTURES.get():
        each.assert_no_leak(secret)


class _Collector(SpanProcessor):
    """Collects the spans that end until it is shut down."""

    def __init__(self, spans: list[ReadableSpan]) -> None:
        self._spans: list[ReadableSpan] | None = spans

    def on_end(self, span: ReadableSpan) -> None:
        """Collect a span."""
        if self._spans is not None:
            self._spans.append(span)

    def shutdown(self) -> None:
        """Stop collecting."""
        self._spans = None


class _Tee:
    """Replaces a standard stream and copies what is written to it."""

    def __init__(self, real: Any, copy: io.StringIO) -> None:
        self._real = real
        self._copy = copy

    def write(self, text: str) -> int:
        """Write to the stream and the copy."""
        self._copy.write(text)
        return int(self._real.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield f"{place}: a name", str(name)
            yield from _strings(each, f"{place}: {str(name)[:32]}")
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each, place)
    else:
        yield place, str(value)


def _of_span(span: ReadableSpan) -> Iterator[tuple[str, str]]:
    place = f"the span {(span.name or '')[:20]!r}"
    yield f"{place}: its name", span.name
    yield f"{place}: its status", span.status.description or ""
    yield from _strings(dict(span.attributes or {}), place)
    for event in span.events:
        yield from _strings({event.name: dict(event.attributes or {})}, f"{place}: event")
    for link in span.links:
        yield from _strings(dict(link.attributes or {}), f"{place}: link")
    yield from _strings(dict(span.resource.attributes), f"{place}: resource")


_CAPTURES: Final[ContextVar[tuple[CapturedTelemetry, ...]]] = ContextVar("fastapi_observe.testing", default=())
"""The captures around the calling code, the innermost last."""


def __getattr__(name: str) -> Any:
    """Raise an error with the new name of a renamed function or class."""
    new_name = {"watch": "capture", "Watch": "CapturedTelemetry"}.get(name)
    if new_name is not None:
        raise ImportError(f"fastapi_observe.testing.{name} was renamed to fastapi_observe.testing.{new_name}")
    raise AttributeError(f"module 'fastapi_observe.testing' has no attribute {name!r}")
