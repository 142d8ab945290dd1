"""`guarded`: what users call does not raise for a fault of ours; `tell`: who hears of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

CALLER_ERRORS: Final = (TypeError, ValueError)
"""What a wrong argument raises."""

UNATTRIBUTED_ERRORS: Final = InternalErrors()
"""Counts what failed where nobody knows for which app."""


def report_error(site: str, exc: BaseException, owner: object = None) -> None:
    """Count a fault of ours: for `owner` if it has `faults`, else for the app whose request this is. Never raises."""
    try:
        names = ("internal_errors", "_internal_errors", "faults", "_faults")
        internal_errors = next((getattr(owner, name) for name in names if hasattr(owner, name)), None)
        if internal_errors is None:
            record = current_record()
            internal_errors = UNATTRIBUTED_ERRORS if record is None else record.observability.internal_errors
    except Exception:  # noqa: BLE001 - this is the last resort
        internal_errors = UNATTRIBUTED_ERRORS
    internal_errors(site, exc)


class NoOp:
    """Stands for an operation, a span or a metric that could not be made: takes every call, does nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __call__(self, *args: Any, **_: Any) -> Any:
        """Leave a decorated function as it is."""
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def inject(self, headers: Any, *_: object) -> Any:
        """Return the headers without more."""
        return headers


NO_OP: Final[Any] = NoOp()


def _nothing(*_: object, **__: object) -> Any:
    return None


def return_no_op(*_: object, **__: object) -> Any:
    """Return what stands for what could not be made."""
    return NO_OP


def fail_safe(
    site: str, otherwise: Callable[..., Any] = _nothing, passes: tuple[type[Exception], ...] = ()
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Have a method give `otherwise(self, ...)` where it fails; what `passes` is told to the caller, it is their error.

    A call that does not fit the method's parameters is the caller's error too.
    """

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(self, *args, **kwargs)
            except passes:
                raise
            except Exception as exc:
                if isinstance(exc, TypeError) and exc.__traceback__ is not None and exc.__traceback__.tb_next is None:
                    raise  # the method was not even entered
                report_error(site, exc, self)
                return otherwise(self, *args, **kwargs)  # type: ignore[no-any-return]

        return call

    return decorate
