"""Fault injection: lists the functions of the package, records which of them run, and makes one of them fail."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import threading
from contextlib import ExitStack, contextmanager
from functools import cache
from time import sleep
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import fastapi_observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, ModuleType
    from typing import Self

PACKAGE: Final = fastapi_observe.__name__
NO_REQUEST: Final = ("cli", "__main__")
"""Modules that do not run while an app serves requests."""


class OurFaultError(RuntimeError):
    """An internal error that was injected."""


class Site(NamedTuple):
    """A function of the package, or the code `inner` of a function inside it."""

    function: FunctionType
    inner: CodeType | None = None

    @property
    def code(self) -> CodeType:
        """The code that runs."""
        return self.inner or self.function.__code__


def modules() -> Iterator[ModuleType]:
    """Import every module of the package whose requirements are installed."""
    for found in pkgutil.walk_packages(fastapi_observe.__path__, f"{PACKAGE}."):
        if found.name.removeprefix(f"{PACKAGE}.") not in NO_REQUEST:
            try:
                yield importlib.import_module(found.name)
            except ImportError:
                continue


def sites() -> dict[str, Site]:
    """Return every function and method of the package by name, inner functions included."""
    found: dict[str, Site] = {}
    for module in modules():
        for function in _functions_of(module, module.__name__):
            name = f"{module.__name__.removeprefix(f'{PACKAGE}.')}:{function.__qualname__}"
            found[name] = Site(function)
            for inner in _codes_in(function.__code__):
                found[f"{name.partition(':')[0]}:{inner.co_qualname}"] = Site(function, inner)
    return found


def _functions_of(owner: Any, module: str) -> Iterator[FunctionType]:
    for value in list(vars(owner).values()):
        if isinstance(value, type) and value.__module__ == module and value is not owner:
            yield from _functions_of(value, module)
            continue
        for each in (value.fget, value.fset) if isinstance(value, property) else (value,):
            made = getattr(each, "__func__", each)
            function = inspect.unwrap(made) if callable(made) else None
            if isinstance(function, FunctionType) and function.__module__ == module and "<" not in function.__name__:
                yield function


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if "<" not in constant.co_name and constant.co_flags & inspect.CO_NEWLOCALS:
                yield constant
            yield from _codes_in(constant)


class Watched:
    """Records which code runs inside the `with` block, in this thread and in threads started inside it."""

    def __init__(self) -> None:
        self.called: dict[CodeType, set[str]] = {}

    def _record(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.called.setdefault(frame.f_code, set()).add(threading.current_thread().name)

    def __enter__(self) -> Self:
        threading.setprofile(self._record)
        sys.setprofile(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


# Replacements of the same kind as the function, so that they fail when they are called, awaited or iterated.


def _plain(*args: Any, **kwargs: Any) -> Any:
    fault: Any = "FAULT"
    return fault(*args, **kwargs)


def _generator(*args: Any, **kwargs: Any) -> Any:
    fault: Any = "FAULT"
    return (yield from fault(*args, **kwargs))


async def _coroutine(*args: Any, **kwargs: Any) -> Any:
    fault: Any = "FAULT"
    return await fault(*args, **kwargs)


async def _async_generator(*args: Any, **kwargs: Any) -> Any:
    fault: Any = "FAULT"
    async for item in fault(*args, **kwargs):
        yield item


def _replacement(code: CodeType, fault: Callable[..., Any]) -> CodeType:
    template = _plain
    if code.co_flags & inspect.CO_ASYNC_GENERATOR:
        template = _async_generator
    elif code.co_flags & inspect.CO_COROUTINE:
        template = _coroutine
    elif code.co_flags & inspect.CO_GENERATOR:
        template = _generator
    made = template.__code__
    constants = tuple(fault if constant == "FAULT" else constant for constant in made.co_consts)
    return made.replace(co_consts=constants, co_freevars=code.co_freevars, co_name=code.co_name)


def _replaced(code: CodeType, old: CodeType, new: CodeType) -> CodeType:
    constants = tuple(
        new if each is old else _replaced(each, old, new) if isinstance(each, CodeType) else each
        for each in code.co_consts
    )
    return code.replace(co_consts=constants)


class Injected:
    """Replaces a function by `fault(original, *args, **kwargs)` inside the `with` block.

    Its code object is replaced, so that every reference to the function is affected. `original` is None for an inner
    function.
    """

    def __init__(self, site: Site, fault: Callable[..., Any]) -> None:
        function: Any = site.function  # Any: mypy would bind it as a method
        self.calls = 0
        self._inside = 0
        self._function = function
        self._before = function.__code__
        original: FunctionType | None = None
        if site.inner is None:
            original = FunctionType(
                function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
            )
            original.__kwdefaults__ = function.__kwdefaults__

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return fault(original, *args, **kwargs)

        made = _replacement(site.code, call)
        self._after = made if site.inner is None else _replaced(function.__code__, site.inner, made)

    def __enter__(self) -> Self:
        self._inside += 1
        self._function.__code__ = self._after
        return self

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if not self._inside:
            self._function.__code__ = self._before


def raises(*_: Any, **__: Any) -> Any:
    """Raise at once."""
    raise OurFaultError


@contextmanager
def failing(*targets: Any, error: Exception | None = None) -> Iterator[None]:
    """Let functions of the package raise inside the `with` block, each a function, a class (its `__init__`) or a name.

    A name is one of `sites`. What guards a function, such as `fail_safe`, stays. Without an `error` they raise
    `OurFaultError`.
    """

    def fail(*_: Any, **__: Any) -> Any:
        raise error or OurFaultError

    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(Injected(_site(target), fail))
        yield


def replacing(target: Any, fault: Callable[..., Any]) -> Injected:
    """Replace a function, as `failing` names it, by `fault(original, *args, **kwargs)` inside the `with` block."""
    return Injected(_site(target), fault)


def _site(target: Any) -> Site:
    if isinstance(target, str):
        return _known_sites()[target]
    if isinstance(target, type):
        function: Any = vars(target)["__init__"]
    else:
        function = target.fget if isinstance(target, property) else getattr(target, "__func__", target)
    return Site(inspect.unwrap(function))


_known_sites = cache(sites)


def slow(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the original after 2 ms."""
    sleep(0.002)
    return original(*args, **kwargs)


def raises_late(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the original, if it is a plain function, then raise."""
    if original is not None:
        original(*args, **kwargs)
    raise OurFaultError
