"""Types of options that take objects or functions, which check what a value is used for, not its class."""

from __future__ import annotations

import sys
from inspect import iscoroutinefunction
from typing import Annotated, Any, Final, get_origin

from pydantic import AfterValidator

PROCESSOR_METHODS: Final = ("on_start", "on_end", "force_flush", "shutdown")
REGISTRY_METHODS: Final = ("register", "unregister", "collect")


# An object of the wrong type would otherwise fail in each request, as an internal error of this package.


def _has_methods(value: Any, names: tuple[str, ...]) -> bool:
    """Return whether a value has these methods. A class has none: they need an instance."""
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)


def is_function(value: Any) -> bool:
    """Return whether a value can be called for its result: not a coroutine function, which returns a coroutine.

    A class is not a function either: its result is an object, which counts as true.
    """
    return (
        callable(value)
        and not isinstance(value, type)
        and not iscoroutinefunction(value)
        and not iscoroutinefunction(getattr(value, "__call__", None))  # noqa: B004 - an object with such a method
    )


def _check_processor(value: Any) -> Any:
    if not _has_methods(value, PROCESSOR_METHODS):
        raise ValueError("not a span processor")
    return value


def _check_provider(value: Any) -> Any:
    if value is not None and not _has_methods(value, ("get_tracer",)):
        raise ValueError("not a tracer provider")
    return value


def _check_registry(value: Any) -> Any:
    if value is not None and not _has_methods(value, REGISTRY_METHODS):
        raise ValueError("not a registry")
    return value


def _check_function(value: Any) -> Any:
    if value is not None and not is_function(value):
        raise ValueError("not a function")
    return value


def _check_dependency(value: Any) -> Any:
    # A Depends exists only where FastAPI was imported, an engine only where SQLAlchemy was. Neither is required.
    module = sys.modules.get("fastapi.params")
    function = value.dependency if module is not None and isinstance(value, module.Depends) else value
    if value is not None and (not callable(function) or get_origin(function) is Annotated):
        raise ValueError("not a dependency")
    return value


def _check_engine(value: Any) -> Any:
    module, asynchronous = sys.modules.get("sqlalchemy.engine"), sys.modules.get("sqlalchemy.ext.asyncio")
    if not (
        (module is not None and isinstance(value, module.Engine))
        or (asynchronous is not None and isinstance(value, asynchronous.AsyncEngine))
    ):
        raise ValueError("not an engine")
    return value


SpanProcessors = tuple[Annotated[Any, AfterValidator(_check_processor)], ...]
Provider = Annotated[Any, AfterValidator(_check_provider)]
Registry = Annotated[Any, AfterValidator(_check_registry)]
Function = Annotated[Any, AfterValidator(_check_function)]
"""A function that is not a coroutine function, or None."""
Dependency = Annotated[Any, AfterValidator(_check_dependency)]
Engines = tuple[Annotated[Any, AfterValidator(_check_engine)], ...]
