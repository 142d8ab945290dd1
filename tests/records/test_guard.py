"""What users call does not raise for a fault of ours, and raises for theirs."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

import fastapi_observe
from fastapi_observe.clients.database.client import Query
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.operations import OperationMetrics
from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.records import guard
from fastapi_observe.records.guard import NO_OP, UNATTRIBUTED_ERRORS, fail_safe, report_error
from fastapi_observe.records.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

    from fastapi_observe import Observability

    Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _counted_here() -> Iterator[None]:
    """Count from 0 what nobody counts."""
    UNATTRIBUTED_ERRORS.counts.clear()
    yield
    UNATTRIBUTED_ERRORS.counts.clear()


def boom(*_: Any, **__: Any) -> Any:
    """Fail as a bug of ours would."""
    raise RuntimeError("a fault of ours")


class Tool:
    """Has methods that users call."""

    def __init__(self, faults: InternalErrors | None = None) -> None:
        self.faults = faults

    @fail_safe("tool.use", fallback=lambda _, number: -number, reraise=(ValueError,))
    def use(self, number: int) -> int:
        """Fail in each way."""
        if number == 0:
            raise ValueError("theirs")
        if number == 1:
            return len(number)  # type: ignore[arg-type]  # a TypeError of ours
        return number


def test_a_guarded_method_returns_something_else_where_it_fails() -> None:
    """A fault is counted for the owner; what the caller did wrong is raised, a call that does not fit too."""
    faults = InternalErrors()
    tool: Any = Tool(faults)
    assert tool.use(7) == 7
    assert tool.use(1) == -1
    assert faults.counts == {"tool.use": 1}
    with pytest.raises(ValueError, match="theirs"):
        tool.use(0)
    with pytest.raises(TypeError, match="argument"):
        tool.use()
    assert faults.counts == {"tool.use": 1}


def test_a_fault_outside_of_any_app_is_counted_elsewhere(monkeypatch: Patch) -> None:
    """Who has no faults of its own, outside any request, is counted for the process; so is it where that fails."""
    Tool().use(1)
    monkeypatch.setattr(guard, "current_record", boom)
    report_error("tool.use", RuntimeError())
    assert UNATTRIBUTED_ERRORS.counts == {"tool.use": 2}


def test_the_stand_in_takes_everything() -> None:
    """It is a block of both kinds, leaves what it decorates as it is, hands headers back, and has no dunder names."""
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


def test_helpers_that_cannot_work_are_of_no_consequence(observed: Callable[..., Seen], monkeypatch: Patch) -> None:
    """Outside any request too: the user's block runs, their exception is theirs, and the fault is counted."""
    seen = observed(FastAPI())
    observe = seen.observe
    monkeypatch.setattr(Operation, "__init__", boom)
    with observe.db.query("SELECT", table="orders") as query:
        query.set_row_count(1)
    with observe.operation("step") as step:
        step.add_details(a=1)
    with pytest.raises(ZeroDivisionError), observe.external.call("billing", "get") as call:
        call.set_status_code(1 // 0)
    monkeypatch.undo()
    monkeypatch.setattr(BoundedMetric, "labels_or_raise", boom)
    observe.metrics.counter("carts_total", "Carts.", ["kind"]).labels("new").inc()
    assert set(observe.internal_errors.counts) == {"db.query", "operation", "external.call"}
    assert UNATTRIBUTED_ERRORS.counts == {"metrics.labels": 1}
    monkeypatch.undo()


def use_with_faults(observe: Observability, monkeypatch: Patch) -> None:
    """Open a query that cannot stand aside, nor come back to its context."""
    query = observe.db.query("SELECT", table="orders").open()
    query.scope = type("Broken", (), {"suspend": boom, "resume": boom})()
    query.suspend()
    query.resume()
    with monkeypatch.context() as patch:
        patch.setattr(Query, "details", property(boom))
        query.set_row_count(1)
        query.add_details(a=1)
    query.close()


def test_an_operation_survives_each_of_its_faults(observed: Callable[..., Seen], monkeypatch: Patch) -> None:
    """Judging, suspending, resuming, telling details: whatever fails, the block goes on and is closed."""
    observe = observed(FastAPI()).observe
    with monkeypatch.context() as patch:
        patch.setattr(Operation, "_fail", boom)
        with pytest.raises(LookupError), observe.operation("step"):
            raise LookupError
    contextvars.copy_context().run(use_with_faults, observe, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(OperationMetrics, "record_operation", boom)
        with observe.operation("step"):
            pass
    sites = {"operation.outcome_for", "operation.suspend", "operation.resume", "operation.add_details"}
    assert set(observe.internal_errors.counts) == {"metrics.on_operation_end", *sites}


def test_what_the_user_does_wrong_is_told(observed: Callable[..., Seen]) -> None:
    """A guard does not hide the caller's own errors."""
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
