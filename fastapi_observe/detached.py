"""`DetachedScope`: a block outside the current request, for code that outlives it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context

from fastapi_observe.internal.opentelemetry import OTEL_CONTEXT, current_context
from fastapi_observe.logs.context import LOG_BLOCKS
from fastapi_observe.records.guard import fail_safe
from fastapi_observe.records.operation import CURRENT_OPERATION
from fastapi_observe.records.request import ORIGIN_KEY

if TYPE_CHECKING:
    from contextvars import ContextVar, Token


class DetachedScope:
    """Code in the `with` block, and tasks and threads that start in it, belong to no request, trace or operation.

    A trace that starts in there is linked to the span that was current before the block.
    """

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens: list[tuple[ContextVar[Any], Token[Any]]] = []

    @fail_safe("detached")
    def _enter(self) -> None:
        before = current_context()
        position = trace.get_current_span(before).get_span_context()
        origin = position if position.is_valid else before.get(ORIGIN_KEY)
        context = Context() if origin is None else Context({ORIGIN_KEY: origin})
        # Only these variables: those of the app, such as a tenant or a locale, are wanted in the task too.
        new: list[tuple[ContextVar[Any], Any]]
        new = [(OTEL_CONTEXT, context), (CURRENT_OPERATION, None), (LOG_BLOCKS, ())]
        for variable, value in new:
            self._tokens.append((variable, variable.set(value)))

    @fail_safe("detached")
    def _leave(self) -> None:
        while self._tokens:
            variable, token = self._tokens.pop()
            with contextlib.suppress(ValueError):  # left in another task, whose context has nothing to restore
                variable.reset(token)

    def __enter__(self) -> None:
        self._enter()

    def __exit__(self, *_: object) -> None:
        self._leave()
