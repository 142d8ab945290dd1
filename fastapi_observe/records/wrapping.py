"""What every decorator of ours does: run a function, coroutine or generator inside a scope of its own for each call."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, Protocol

from fastapi_observe.records.guard import NO_OP, report_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


class CallScope(Protocol):
    """What a call runs in: a span, an operation."""

    def open(self) -> object:
        """Begin, and be what is current."""

    def suspend(self) -> None:
        """Stand aside: what was current before is current again."""

    def resume(self) -> None:
        """Be what is current again."""

    def close(self, exc: BaseException | None = None) -> None:
        """Stand aside and end, with what was raised."""


_METHODS = (staticmethod, classmethod)
_NO_FUNCTIONS = (property, functools.cached_property, functools.partialmethod)


def wrap_calls(function: Any, scope: Callable[[], CallScope]) -> Any:
    """Return `function` with each call inside `scope()`: a function, coroutine function, generator or async generator.

    Between the steps of a generator its caller's context is the current one. Raises `TypeError` for a property and what
    else is no function.
    """
    if isinstance(function, _NO_FUNCTIONS) or not (callable(function) or isinstance(function, _METHODS)):
        raise TypeError(
            f"cannot measure calls of a {type(function).__name__}; decorate the function itself: put the decorator "
            "below @property and the like, and on the methods of a class"
        )
    if isinstance(function, _METHODS):
        return type(function)(wrap_calls(function.__func__, scope))
    code = underlying_function(function)
    wrap = (
        _async_generator
        if inspect.isasyncgenfunction(code)
        else _generator
        if inspect.isgeneratorfunction(code)
        else _coroutine
        if inspect.iscoroutinefunction(code)
        else _call
    )
    return wrap(function, scope)


def callable_name(function: Any) -> str:
    """Return the name of a callable, through partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__)


def underlying_function(function: Any) -> Any:
    """Return the function that tells the kind of a callable, through partials and `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__


def _begun(scope: Callable[[], CallScope]) -> Any:
    """Open a scope; where that fails, one that does nothing stands for it."""
    try:
        inside = scope()
        inside.open()
    except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
        report_error("wrapping", exc)
        return NO_OP
    return inside


def _call(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = _begun(scope)
        try:
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):  # a plain function that makes one: the work is in there
                inside.suspend()
                return _awaited(result, inside)
        except BaseException as exc:
            inside.close(exc)
            raise
        else:
            inside.close()
            return result
        finally:
            del inside  # else the exception and this frame would hold each other

    return call


def _coroutine(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        inside = _begun(scope)
        try:
            result = await function(*args, **kwargs)
        except GeneratorExit:  # nobody awaits it any more
            inside.close(asyncio.CancelledError())
            raise
        except BaseException as exc:
            inside.close(exc)
            raise
        else:
            inside.close()
            return result
        finally:
            del inside  # as above

    return coroutine


async def _awaited(result: Any, inside: CallScope) -> Any:
    """Await what a function returned, inside the scope in which it was made."""
    inside.resume()
    try:
        value = await result
    except GeneratorExit:
        inside.close(asyncio.CancelledError())
        raise
    except BaseException as exc:
        inside.close(exc)
        raise
    else:
        inside.close()
        return value
    finally:
        del inside


def _generator(function: Any, scope: Callable[[], CallScope]) -> Any:
    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Any:
        inner = function(*args, **kwargs)
        inside = _begun(scope)
        inside.suspend()
        sent = thrown = None
        try:
            while True:
                inside.resume()
                try:
                    item = inner.send(sent) if thrown is None else inner.throw(thrown)
                finally:
                    inside.suspend()
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as exc:  # noqa: BLE001 - GeneratorExit too: it is the generator's to answer
                    thrown = exc
        except StopIteration as stop:
            inside.close()
            return stop.value
        except BaseException as exc:
            inside.close(exc)
            raise
        finally:
            thrown = None  # else the exception and this frame would hold each other
            del inside

    return generator


def _async_generator(function: Any, scope: Callable[[], CallScope]) -> Any:
    """Do for an async generator what `_generator` does for a plain one."""

    @functools.wraps(function)
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        inside = _begun(scope)
        inside.suspend()
        sent = thrown = None
        try:
            while True:
                inside.resume()
                try:
                    item = await (inner.asend(sent) if thrown is None else inner.athrow(thrown))
                finally:
                    inside.suspend()
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as exc:  # noqa: BLE001 - as above
                    thrown = exc
        except StopAsyncIteration:
            inside.close()
        except BaseException as exc:
            inside.close(exc)
            raise
        finally:
            thrown = None
            del inside

    return async_generator
