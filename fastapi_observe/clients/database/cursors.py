"""Queries whose rows are fetched step by step, with code of the user between the steps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

    from fastapi_observe.clients.database.client import Query

_END: Final = object()


class StreamedQuery:
    """A query that is suspended between its steps. `with stream:` is one step; an exception in a step ends the query.

    `end_query(query, exception, rows, result)` ends it, where `rows(result)` is the number of rows. If `query` is None,
    an outer query measures this one, and nothing is done.
    """

    __slots__ = ("_end_query", "_query", "rows")

    def __init__(self, end_query: Callable[..., None], query: Query | None) -> None:
        self._end_query = end_query
        self._query = query
        self.rows = 0
        if query is not None:
            query.suspend()

    @property
    def is_open(self) -> bool:
        """Whether a query is measured and has not ended."""
        return self._query is not None and not self._query.ended

    def __enter__(self) -> Self:
        if self._query is not None and not self._query.ended:
            self._query.resume()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        if self._query is None or self._query.ended:
            return
        if exc is None:
            self._query.suspend()
        elif isinstance(exc, StopIteration | StopAsyncIteration):
            self.end()
        else:
            self._end_query(self._query, exc)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend the query inside a step, for code that is not part of it."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def add_rows(self, rows: int, requested: float) -> None:
        """Count rows. Fewer than requested are the last ones, and end the query."""
        self.rows += rows
        if rows < requested:
            self.end()

    def end(self) -> None:
        """End the query with the rows counted so far. Idempotent."""
        if self._query is not None and not self._query.ended:
            self._end_query(self._query, None, int, self.rows)


def measure_rows(
    open_stream: Callable[[], StreamedQuery], rows: Generator[Any, None, None]
) -> Generator[Any, None, None]:
    """Yield the rows of a generator, each as a step of the query that `open_stream` opens for the first of them."""
    stream = open_stream()
    try:
        while True:
            with stream:
                row = next(rows, _END)
            if row is _END:
                return
            stream.rows += 1
            yield row
    finally:
        rows.close()
        stream.end()


async def measure_rows_async(
    open_stream: Callable[[], StreamedQuery], rows: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    """Yield the rows of an async generator, as `measure_rows` does."""
    stream = open_stream()
    try:
        while True:
            with stream:
                row = await anext(rows, _END)
            if row is _END:
                return
            stream.rows += 1
            yield row
    finally:
        await rows.aclose()
        stream.end()
