"""`StreamedBody`: wraps the body of a streamed response, so that the call ends when the body was read or closed."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi_observe.records.exceptions import is_cancellation
from fastapi_observe.records.guard import fail_safe

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncIterator, Iterator

    from fastapi_observe.clients.http.record import HttpCall


class StreamedBody:
    """Base class of the sync and the async body. Other attributes are those of the wrapped body."""

    def __init__(self, body: Any, call: HttpCall, abandoned: deque[tuple[HttpCall, float]]) -> None:
        self._body = body
        self._call = call
        self._abandoned = abandoned
        self._received = 0

    def __getattr__(self, name: str) -> Any:
        if name == "_body":  # not set yet, in `copy` and `pickle`: without this check the lookup would not end
            raise AttributeError(name)
        return getattr(self._body, name)  # httpx2 reads `elapsed` from the body

    def __del__(self) -> None:
        # A body that was neither read nor closed. A finalizer may run while any lock is held, so it must not report the
        # call: it appends to a deque, which takes no lock, and the next call reports it.
        if "_call" in self.__dict__ and not self._call.ended:
            self._abandoned.append((self._call, perf_counter()))

    @fail_safe("http.body")
    def _on_error(self, exc: BaseException | None) -> None:
        if exc is not None and not isinstance(exc, GeneratorExit):  # a caller that stops reading is not an error
            self._call.close(exc)

    @fail_safe("http.body")
    def _on_end(self) -> None:
        self._call.received = self._received
        self._call.close()

    @fail_safe("http.body")
    def _on_close(self, exc: BaseException | None = None) -> None:
        self._call.close(exc if is_cancellation(exc) else None)


class AsyncBody(StreamedBody):
    """The body of a response to an `AsyncClient`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = self._body.__aiter__()
        try:
            async for part in parts:
                self._received += len(part)
                yield part
        except BaseException as exc:
            self._on_error(exc)
            raise
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()
        self._on_end()

    async def aclose(self) -> None:
        """Close the body and end the call."""
        # Set if the reading task was cancelled between two parts: httpx closes the response while it handles that.
        cancelled = sys.exception()
        try:
            await self._body.aclose()
        except BaseException as exc:
            self._on_error(exc)
            raise
        self._on_close(cancelled)


class SyncBody(StreamedBody):
    """The body of a response to a `Client`."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            for part in self._body:
                self._received += len(part)
                yield part
        except BaseException as exc:
            self._on_error(exc)
            raise
        self._on_end()

    def close(self) -> None:
        """Close the body and end the call."""
        try:
            self._body.close()
        except BaseException as exc:
            self._on_error(exc)
            raise
        self._on_close()


@cache
def body_classes(module: str) -> tuple[type[AsyncBody], type[SyncBody]]:
    """Return the classes for `httpx` or `httpx2`: each library accepts only subclasses of its own streams."""
    library = sys.modules[module]
    return (
        type("ObservedAsyncBody", (AsyncBody, library.AsyncByteStream), {}),
        type("ObservedBody", (SyncBody, library.SyncByteStream), {}),
    )
