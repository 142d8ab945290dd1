"""Public methods do not raise internal errors, and raise the caller's errors."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from injection import failing

import fastapi_observe
from fastapi_observe.clients.database.client import Query
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.operations import OperationMetrics
from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.records.guard import NO_OP, UNATTRIBUTED_ERRORS, fail_safe, report_error
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

    from fastapi_observe import Observability


@pytest.fixture(autouse=True)
def _counted_here() -> Iterator[None]:
    """Reset the count of errors without an app."""
    UNATTRIBUTED_ERRORS.counts.clear()
    yield
    UNATTRIBUTED_ERRORS.counts.clear()


class Tool:
    """A class with a public method."""

    def __init__(self, internal_errors: InternalErrors | None = None) -> None:
        self.internal_errors = internal_errors

    @fail_safe("tool.use", fallback=lambda _, number: -number, reraise=(ValueError,))
    def use(self, number: int) -> int:
        """Fail in each way."""
        if number == 0:
            raise ValueError("theirs")
        if number == 1:
            return len(number)  # type: ignore[arg-type]  # an internal TypeError
        return number


def test_a_fail_safe_method_returns_its_fallback() -> None:
    """An internal error is counted for the owner; the caller's errors and wrong arguments are raised."""
    internal_errors = InternalErrors()
    tool: Any = Tool(internal_errors)
    assert tool.use(7) == 7
    assert tool.use(1) == -1
    assert internal_errors.counts == {"tool.use": 1}
    with pytest.raises(ValueError, match="theirs"):
        tool.use(0)
    with pytest.raises(TypeError, match="argument"):
        tool.use()
    assert internal_errors.counts == {"tool.use": 1}


def test_an_internal_error_without_an_app() -> None:
    """Without an owner and outside any request it is counted for the process."""
    Tool().use(1)
    with failing(current_record):
        report_error("tool.use", RuntimeError())
    assert UNATTRIBUTED_ERRORS.counts == {"tool.use": 2}


def test_the_no_op_accepts_everything() -> None:
    """It is a context manager, returns decorated functions and headers unchanged, and has no dunder attributes."""
    with NO_OP as inside:
        assert inside.set_row_count(3).labels("x").inc() is NO_OP

    async def use() -> None:
        async with NO_OP as inside:
            inside.set_status_code(200)

    asyncio.run(use())
    assert NO_OP(len) is len
    assert NO_OP("of no use") is NO_OP
    assert NO_OP.inject({"a": "b"}) == {"a": "b"}
    with pytest.raises(AttributeError):
        NO_OP.__len__()


def test_helpers_that_fail_do_not_affect_the_caller(observed: Callable[..., Seen]) -> None:
    """The user's block runs, its exception is raised, and the internal error is counted."""
    seen = observed(FastAPI())
    observe = seen.observe
    with failing(Operation):
        with observe.db.query("SELECT", table="orders") as query:
            query.set_row_count(1)
        with observe.operation("step") as step:
            step.add_details(a=1)
        with pytest.raises(ZeroDivisionError), observe.external.call("billing", "get") as call:
            call.set_status_code(1 // 0)
    carts = observe.metrics.counter("carts_total", "Carts.", ["kind"])
    with failing(BoundedMetric.labels_or_raise):
        carts.labels("new").inc()
    assert set(observe.internal_errors.counts) == {"db.query", "operation", "external.call"}
    assert UNATTRIBUTED_ERRORS.counts == {"metrics.labels": 1}


def use_with_internal_errors(observe: Observability) -> None:
    """Open a query whose details cannot be made."""
    query = observe.db.query("SELECT", table="orders").open()
    with failing(Query.details):
        query.set_row_count(1)
        query.add_details(a=1)
    query.close()


def test_an_operation_survives_each_internal_error(observed: Callable[..., Seen]) -> None:
    """Whichever step fails, the block continues and the operation ends."""
    observe = observed(FastAPI()).observe
    with failing("records.operation:Operation._fail"), pytest.raises(LookupError), observe.operation("step"):
        raise LookupError
    contextvars.copy_context().run(use_with_internal_errors, observe)
    with failing(OperationMetrics.record_operation), observe.operation("step"):
        pass
    sites = {"operation.outcome_for", "operation.add_details"}
    assert set(observe.internal_errors.counts) == {"metrics.on_operation_end", *sites}


def test_errors_of_the_caller_are_raised(observed: Callable[..., Seen]) -> None:
    """`fail_safe` does not hide wrong arguments."""
    observe: Any = observed(FastAPI()).observe
    wrong_kind: Any = property(len)
    for wrong in (
        lambda: observe.operation(""),
        lambda: observe.operation(7),
        lambda: fastapi_observe.operation(""),
        lambda: observe.operation("step")(7),
        lambda: fastapi_observe.traced(wrong_kind),
        lambda: observe.metrics.counter("1", "Wrong."),
        lambda: observe.metrics.counter("x_total", "X.", ["a"]).labels("b", "c"),
        lambda: observe.metrics.counter("x_total", "X.", ["a"]).inc(),
        lambda: observe.metrics.gauge("level", "Level.").set("high"),
        lambda: observe.metrics.gauge("level", "Level.").inc("high"),
        lambda: observe.metrics.histogram("seconds", "S.").observe("long"),
        lambda: observe.metrics.business.revenue(-1, "EUR"),
        observe.tracing.add_event,
        lambda: observe.external.call("billing", "get").set_status_code("ok"),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
    assert observe.internal_errors.counts == {}
