"""`wrap_calls` runs each call of a decorated function inside a scope; `AsyncWith` is for scopes of `async with`."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastapi_observe.records.guard import NO_OP, report_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

T = TypeVar("T")


class CallScope(Protocol):
    """A span or an operation around one call."""

    def open(self) -> object:
        """Start, and become the current scope."""

    def suspend(self) -> None:
        """Restore the scope that was current before."""

    def resume(self) -> None:
        """Become the current scope again."""

    def close(self, exc: BaseException | None = None) -> None:
        """Restore the scope that was current before, and end with the exception that was raised."""


class AsyncWith:
    """Makes `async with` do what `with` does."""

    __slots__ = ()

    async def __aenter__(self: AbstractContextManager[T]) -> T:
        return self.__enter__()

    async def __aexit__(
        self: AbstractContextManager[Any],
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, exc, traceback)


_METHODS = (staticmethod, classmethod)
_NOT_DECORATABLE = (property, functools.cached_property, functools.partialmethod)


def wrap_calls(function: Any, scope: Callable[[], CallScope]) -> Any:
    """Return `function` with each call inside its own `scope()`.

    Accepts functions, coroutine functions, generators, async generators and methods. While a generator is suspended,
    the scope of its caller is current. Raises `TypeError` for a property or another object that is not a function.
    """
    if isinstance(function, _NOT_DECORATABLE) or not (callable(function) or isinstance(function, _METHODS)):
        raise TypeError(
            f"cannot decorate a {type(function).__name__}; place the decorator directly above the function, below "
            "@property, @cached_property and the like; decorate the methods of a class, not the class"
        )
    if isinstance(function, _METHODS):
        return type(function)(wrap_calls(function.__func__, scope))
    code = underlying_function(function)
    wrap = (
        _wrap_async_generator
        if inspect.isasyncgenfunction(code)
        else _wrap_generator
        if inspect.isgeneratorfunction(code)
        else _wrap_coroutine
        if inspect.iscoroutinefunction(code)
        else _wrap_function
    )
    return wrap(function, scope)


def callable_name(function: Any) -> str:
    """Return the qualified name of a callable. Partials have the name of their function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__)


def underlying_function(function: Any) -> Any:
    """Return the function that runs when a callable is called: partials are unwrapped, objects give `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__


def _open_scope(scope: Callable[[], CallScope]) -> Any:
    """Open a scope. Returns the no-op if that fails."""
    try:
        opened = scope()
        opened.open()
    except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
        report_error("wrapping", exc)
        return NO_OP
    return opened


# In all wrappers below, `del opened` breaks the reference cycle of exception, traceback, frame and scope.


def _wrap_function(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        opened = _open_scope(scope)
        try:
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):  # a plain function that returns a coroutine: the work is done in there
                opened.suspend()
                return _await_inside(result, opened)
        except BaseException as exc:
            opened.close(exc)
            raise
        else:
            opened.close()
            return result
        finally:
            del opened

    return call


def _wrap_coroutine(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        opened = _open_scope(scope)
        try:
            result = await function(*args, **kwargs)
        except GeneratorExit:  # the coroutine was closed before its end
            opened.close(asyncio.CancelledError())
            raise
        except BaseException as exc:
            opened.close(exc)
            raise
        else:
            opened.close()
            return result
        finally:
            del opened

    return coroutine


async def _await_inside(result: Any, opened: CallScope) -> Any:
    """Await the coroutine that a function returned, inside the scope of that call."""
    opened.resume()
    try:
        value = await result
    except GeneratorExit:
        opened.close(asyncio.CancelledError())
        raise
    except BaseException as exc:
        opened.close(exc)
        raise
    else:
        opened.close()
        return value
    finally:
        del opened


# Generators cannot use `yield from`: the scope must be suspended at each `yield` and resumed after it.


def _wrap_generator(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Any:
        inner = function(*args, **kwargs)
        opened = _open_scope(scope)
        opened.suspend()
        sent = thrown = None
        try:
            while True:
                opened.resume()
                try:
                    item = inner.send(sent) if thrown is None else inner.throw(thrown)
                finally:
                    opened.suspend()
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as exc:  # noqa: BLE001 - GeneratorExit too: the inner generator handles it
                    thrown = exc
        except StopIteration as stop:
            opened.close()
            return stop.value
        except BaseException as exc:
            opened.close(exc)
            raise
        finally:
            thrown = None
            del opened

    return generator


def _wrap_async_generator(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        opened = _open_scope(scope)
        opened.suspend()
        sent = thrown = None
        try:
            while True:
                opened.resume()
                try:
                    item = await (inner.asend(sent) if thrown is None else inner.athrow(thrown))
                finally:
                    opened.suspend()
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as exc:  # noqa: BLE001 - as above
                    thrown = exc
        except StopAsyncIteration:
            opened.close()
        except BaseException as exc:
            opened.close(exc)
            raise
        finally:
            thrown = None
            del opened

    return async_generator
