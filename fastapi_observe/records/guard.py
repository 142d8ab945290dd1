"""`guarded`: what users call does not raise for a fault of ours; `tell`: who hears of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from fastapi_observe.internal.errors import Faults
from fastapi_observe.records.request import current_exchange

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

USERS: Final = (TypeError, ValueError)
"""What a wrong argument raises."""

ELSEWHERE: Final = Faults()
"""Counts what failed where nobody knows for which app."""


def tell(site: str, exc: BaseException, owner: object = None) -> None:
    """Count a fault of ours: for `owner` if it has `faults`, else for the app whose request this is. Never raises."""
    try:
        faults = getattr(owner, "faults", None) or getattr(owner, "_faults", None)
        if faults is None:
            exchange = current_exchange()
            faults = ELSEWHERE if exchange is None else exchange.observability.faults
    except Exception:  # noqa: BLE001 - this is the last resort
        faults = ELSEWHERE
    faults(site, exc)


class StandIn:
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


STAND_IN: Final[Any] = StandIn()


def _nothing(*_: object, **__: object) -> Any:
    return None


def stand_in(*_: object, **__: object) -> Any:
    """Return what stands for what could not be made."""
    return STAND_IN


def guarded(
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
                tell(site, exc, self)
                return otherwise(self, *args, **kwargs)  # type: ignore[no-any-return]

        return call

    return decorate
