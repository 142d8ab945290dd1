"""Queries whose rows come step by step, with something else of the user's between the steps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator

    from fastapi_observe.clients.database.client import Query

_END: Final = object()


class StreamedQuery:
    """The operation of such a query; `with stream:` is one step, and an exception out of a step is its end.

    `end` closes it: `end(query, exception, rows, result)`, where `rows(result)` is the number of rows. Without a query
    there is nothing to measure.
    """

    __slots__ = ("_end", "_query", "rows")

    def __init__(self, end: Callable[..., None], query: Query | None) -> None:
        self._end = end
        self._query = query
        self.rows = 0
        if query is not None:
            query.suspend()

    @property
    def open(self) -> bool:
        """Whether something is measured, and has not ended."""
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
            self._end(self._query, exc)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand aside, inside a step, for what is not part of it."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def add_rows(self, rows: int, wanted: float) -> None:
        """Note how many rows came; fewer than were wanted are the last."""
        self.rows += rows
        if rows < wanted:
            self.end()

    def end(self) -> None:
        """End it, with the rows that came."""
        if self._query is not None and not self._query.ended:
            self._end(self._query, None, int, self.rows)


def measure_rows(begin: Callable[[], StreamedQuery], rows: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Pass the rows of a generator on, each of them one step of what `begin` opens when the first is asked for."""
    stream = begin()
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
    begin: Callable[[], StreamedQuery], rows: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    """Do for an async generator what `each` does for a plain one."""
    stream = begin()
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
