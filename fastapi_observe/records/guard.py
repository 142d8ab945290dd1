"""`fail_safe`: keeps internal errors away from the user's code; `report_error` counts and logs them."""

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
"""Exceptions for wrong arguments, which `fail_safe` may raise to the caller."""

UNATTRIBUTED_ERRORS: Final = InternalErrors()
"""Counts internal errors that cannot be attributed to an installed app."""


def report_error(site: str, exc: BaseException, owner: object = None) -> None:
    """Count and log an internal error, for the app of `owner` or else of the current request. Never raises."""
    try:
        names = ("internal_errors", "_internal_errors")
        internal_errors = next((getattr(owner, name) for name in names if hasattr(owner, name)), None)
        if internal_errors is None:
            record = current_record()
            internal_errors = UNATTRIBUTED_ERRORS if record is None else record.observability.internal_errors
    except Exception:  # noqa: BLE001 - this is the last resort
        internal_errors = UNATTRIBUTED_ERRORS
    internal_errors(site, exc)


class NoOp:
    """Replaces an operation, span or metric that could not be created. Accepts every call and does nothing."""

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
        """Return a decorated function unchanged."""
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def inject(self, headers: Any, *_: object) -> Any:
        """Return the headers unchanged."""
        return headers


NO_OP: Final[Any] = NoOp()


def return_no_op(*_: object, **__: object) -> Any:
    """Return the `NoOp`. A fallback for `fail_safe`."""
    return NO_OP


def return_none(*_: object, **__: object) -> Any:
    """Return None. The default fallback of `fail_safe`."""
    return None


def fail_safe(
    site: str, fallback: Callable[..., Any] = return_none, reraise: tuple[type[Exception], ...] = ()
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Decorate a method that users call: an exception is reported and `fallback(self, ...)` is returned instead.

    Exceptions in `reraise`, and the `TypeError` of a call that does not match the method's parameters, are the caller's
    errors and are raised.
    """

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(self, *args, **kwargs)
            except reraise:
                raise
            except Exception as exc:
                # A traceback of one frame ends here: the method was not entered, its parameters did not match.
                if isinstance(exc, TypeError) and exc.__traceback__ is not None and exc.__traceback__.tb_next is None:
                    raise
                report_error(site, exc, self)
                return fallback(self, *args, **kwargs)  # type: ignore[no-any-return]

        return call

    return decorate
