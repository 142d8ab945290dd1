"""For tests of your app: `watch(app)` sees all that it reports, `assert_no_leak` tells whether a secret is in it."""

from __future__ import annotations

import gzip
import io
import json
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

from opentelemetry.sdk.trace import SpanProcessor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from opentelemetry.sdk.trace import ReadableSpan
    from starlette.applications import Starlette

    from fastapi_observe.observability import Observability

MIN_SECRET_LENGTH: Final = 4
"""Characters of a secret that can be looked for: shorter ones are found anywhere."""


class CapturedTelemetry:
    """All that an installed app reports inside a `with` block: spans, log lines, metrics, standard output and error.

    Every trace is kept meanwhile, whatever the settings say. What was seen can be asked for after the block too.
    """

    def __init__(self, app: Starlette) -> None:
        observe = getattr(app.state, "observe", None)
        if observe is None:
            raise RuntimeError("fastapi-observe is not installed on this app: call install(app) before watch(app)")
        self._observe: Observability = observe
        self._spans: list[ReadableSpan] = []
        self._lines: list[bytes] = []
        self._metrics = ""
        self._output = {"standard output": io.StringIO(), "standard error": io.StringIO()}
        self._undo: list[Any] = []
        self._tokens: list[Token[tuple[CapturedTelemetry, ...]]] = []

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended."""
        return list(self._spans)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every log line."""
        self._observe.logs.flush(1.0)
        return [json.loads(line) for line in self._lines]

    @property
    def metrics(self) -> str:
        """`/metrics`: as it is now, after the block as it was at its end."""
        if self._undo and self._observe.settings.metrics:
            headers, body = self._observe.metrics.render("", "")
            self._metrics = (gzip.decompress(body) if b"content-encoding" in dict(headers) else body).decode()
        return self._metrics

    def assert_no_leak(self, secret: str) -> None:
        """Raise `AssertionError` if `secret` was reported anywhere, as it is or percent-encoded; it says where.

        Raises `ValueError` for a secret of fewer than four characters.
        """
        if len(secret) < MIN_SECRET_LENGTH:
            raise ValueError(f"a secret of {len(secret)} characters is found anywhere: take one of four or more")
        forms = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
        forms |= {json.dumps(secret)[1:-1]}
        places = [place for place, text in self._texts() if any(form in text for form in forms)]
        if places:
            shown = f"{secret[:2]}… ({len(secret)} characters)"
            raise AssertionError(f"{shown} leaked into " + "; ".join(dict.fromkeys(places)))

    def _texts(self) -> Iterator[tuple[str, str]]:
        for line in self.lines:
            what = f"the log line {line.get('message', '')[:20]!r} of {line.get('logger')}"
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

        def take(line: bytes) -> None:
            self._lines.append(line)
            if push is not None:
                push(line)

        logs.push = take
        self._undo = [collector.shutdown, tracing.sample_all(), lambda: setattr(logs, "push", push)]
        for name, stream in zip(("stdout", "stderr"), self._output.values(), strict=True):
            real = getattr(sys, name)
            setattr(sys, name, _Tee(real, stream))
            self._undo.append(lambda name=name, real=real: setattr(sys, name, real))
        self._tokens.append(_WATCHING.set((*_WATCHING.get(), self)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._observe.logs.flush(1.0)
        _ = self.metrics
        while self._undo:
            self._undo.pop()()
        _WATCHING.reset(self._tokens.pop())


def capture(app: Starlette) -> CapturedTelemetry:
    """Look at all that an installed app reports in a `with` block; what was seen can be asked for after it too.

    Raises `RuntimeError` if nothing is installed on it.
    """
    return CapturedTelemetry(app)


def assert_no_leak(secret: str) -> None:
    """Raise `AssertionError` if an app that is watched around this call has reported `secret`.

    Raises `RuntimeError` outside any `with watch(app)`.
    """
    if not _WATCHING.get():
        raise RuntimeError("nothing is watched here: call assert_no_leak inside `with watch(app):`")
    for each in _WATCHING.get():
        each.assert_no_leak(secret)


class _Collector(SpanProcessor):
    """Keeps the spans that end until it is shut down."""

    def __init__(self, spans: list[ReadableSpan]) -> None:
        self._spans: list[ReadableSpan] | None = spans

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span."""
        if self._spans is not None:
            self._spans.append(span)

    def shutdown(self) -> None:
        """Keep no more."""
        self._spans = None


class _Tee:
    """Stands for a standard stream: what is written to it is copied."""

    def __init__(self, real: Any, copy: io.StringIO) -> None:
        self._real = real
        self._copy = copy

    def write(self, text: str) -> int:
        """Write to both."""
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


_WATCHING: Final[ContextVar[tuple[CapturedTelemetry, ...]]] = ContextVar("fastapi_observe.testing", default=())
"""What is watched around the calling code."""
