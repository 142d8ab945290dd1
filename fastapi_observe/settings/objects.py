"""Types of options that take objects or functions, which check what a value is used for, not its class."""

from __future__ import annotations

import sys
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Annotated, Any, Final, get_origin

from pydantic import AfterValidator

PROCESSOR_METHODS: Final = ("on_start", "on_end", "force_flush", "shutdown")
REGISTRY_METHODS: Final = ("register", "unregister", "collect")
_WITHOUT_RESULT: Final = (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction)
"""Checks for functions whose call returns before their code has run."""


# An object of the wrong type would otherwise fail in each request, as an internal error of this package.


def _has_methods(value: Any, names: tuple[str, ...]) -> bool:
    """Return whether a value has these methods. A class has none: they need an instance."""
    try:
        return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)
    except Exception:  # noqa: BLE001 - an object may raise anything for an attribute that it does not have
        return False


def is_function(value: Any) -> bool:
    """Return whether a value can be called for its result: not a coroutine function or a generator function.

    Their results count as true, whatever the function decides. So does that of a class, which is an object.
    """
    try:
        call = getattr(value, "__call__", None)  # noqa: B004 - an object may have such a method
        has_no_result = any(check(each) for check in _WITHOUT_RESULT for each in (value, call))
    except Exception:  # noqa: BLE001 - see _has_methods
        return False
    return callable(value) and not isinstance(value, type) and not has_no_result


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


def _check_redact(value: Any) -> Any:
    is_string_class = isinstance(value, type) and issubclass(value, str)  # such as `str`: its objects are strings
    return value if is_string_class else _check_function(value)


def _check_dependency(value: Any) -> Any:
    # A Depends exists only where FastAPI was imported, an engine only where SQLAlchemy was. Neither is required.
    module = sys.modules.get("fastapi.params")
    function = value.dependency if module is not None and isinstance(value, module.Depends) else value
    if value is not None and (not callable(function) or get_origin(function) is Annotated):
        raise ValueError("not a dependency")
    return value


def _check_engine(value: Any) -> Any:
    module, asynchronous = sys.modules.get("sqlalchemy.engine"), sys.modules.get("sqlalchemy.ext.asyncio")
    is_async = asynchronous is not None and isinstance(value, asynchronous.AsyncEngine)
    engine = getattr(value, "sync_engine", None) if is_async else value
    # A mock of the class is an instance too, but has nothing that is set when an engine is made.
    if module is None or not isinstance(engine, module.Engine) or not hasattr(engine, "dialect"):
        raise ValueError("not an engine")
    return value


SpanProcessors = tuple[Annotated[Any, AfterValidator(_check_processor)], ...]
Provider = Annotated[Any, AfterValidator(_check_provider)]
Registry = Annotated[Any, AfterValidator(_check_registry)]
Function = Annotated[Any, AfterValidator(_check_function)]
"""A function that is not a coroutine function or a generator function, or None."""
Redact = Annotated[Any, AfterValidator(_check_redact)]
Dependency = Annotated[Any, AfterValidator(_check_dependency)]
Engines = tuple[Annotated[Any, AfterValidator(_check_engine)], ...]
