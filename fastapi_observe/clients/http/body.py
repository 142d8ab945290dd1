"""The body of a streamed answer: the call ends with it."""

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
    """What the sync and the async body share.

    A body that nobody closes is noticed when it is collected. That may happen inside any lock, so it is only put down
    in `forgotten`, for the next call to report: appending to a deque takes no lock.
    """

    def __init__(self, body: Any, call: HttpCall, abandoned: deque[tuple[HttpCall, float]]) -> None:
        self._body = body
        self._call = call
        self._forgotten = abandoned
        self._received = 0

    def __getattr__(self, name: str) -> Any:
        if name == "_body":  # asked for before it is there: by copy, by pickle
            raise AttributeError(name)
        return getattr(self._body, name)  # `elapsed` stands here in httpx2

    def __del__(self) -> None:
        if "_call" in self.__dict__ and not self._call.ended:
            self._forgotten.append((self._call, perf_counter()))

    @fail_safe("http.body")
    def _failed(self, exc: BaseException | None) -> None:
        """End the call with what broke the body; one who has read enough breaks nothing."""
        if exc is not None and not isinstance(exc, GeneratorExit):
            self._call.close(exc)

    @fail_safe("http.body")
    def _complete(self) -> None:
        self._call.received = self._received
        self._call.close()

    @fail_safe("http.body")
    def _closed(self, exc: BaseException | None = None) -> None:
        """End the call of a body that was closed, perhaps because of a cancellation."""
        self._call.close(exc if is_cancellation(exc) else None)


class AsyncBody(StreamedBody):
    """The body of an answer to an `AsyncClient`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = self._body.__aiter__()
        try:
            async for part in parts:
                self._received += len(part)
                yield part
        except BaseException as exc:
            self._failed(exc)
            raise
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()
        self._complete()

    async def aclose(self) -> None:
        """Close the body, and with it the call."""
        cancelled = sys.exception()  # of the code that was reading, between two parts
        try:
            await self._body.aclose()
        except BaseException as exc:
            self._failed(exc)
            raise
        self._closed(cancelled)


class SyncBody(StreamedBody):
    """The body of an answer to a `Client`."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            for part in self._body:
                self._received += len(part)
                yield part
        except BaseException as exc:
            self._failed(exc)
            raise
        self._complete()

    def close(self) -> None:
        """Close the body, and with it the call."""
        try:
            self._body.close()
        except BaseException as exc:
            self._failed(exc)
            raise
        self._closed()


@cache
def bodies(module: str) -> tuple[type[AsyncBody], type[SyncBody]]:
    """Return the classes for `httpx` or `httpx2`: each takes only streams of its own kind."""
    of = sys.modules[module]
    return (
        type("ObservedAsyncBody", (AsyncBody, of.AsyncByteStream), {}),
        type("ObservedBody", (SyncBody, of.SyncByteStream), {}),
    )
