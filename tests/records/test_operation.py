"""`Operation`: outcome, duration, nesting and reporting of one measured unit of work."""

from __future__ import annotations

import asyncio

import pytest
import trio

from fastapi_observe.records.exceptions import error_type_of, exception_outcome, is_cancellation
from fastapi_observe.records.operation import Operation


class Reporter:
    """Collects the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.exception: BaseException | None = None

    def on_operation_start(self, operation: Operation, /) -> None:
        """Collect a start."""
        self.calls.append(("open", operation.outcome))

    def on_operation_end(self, operation: Operation, /) -> None:
        """Collect an end."""
        self.calls.append(("close", operation.outcome))
        self.exception = operation.exception


def operation(reporter: Reporter) -> Operation:
    """Make one."""
    return Operation(reporter, "database", "SELECT orders", {"operation": "SELECT", "table": "orders"})


def test_success() -> None:
    """A successful operation is `ok`, has a duration and no error; start and end are reported."""
    reporter = Reporter()
    with operation(reporter) as work:
        work.add_details(rows=3)
        assert (work.duration, work.started > 0) == (0.0, True)
    assert reporter.calls == [("open", ""), ("close", "ok")]
    assert work.details == {"rows": 3}
    assert (work.error_type, work.exception, work.duration > 0) == (None, None, True)


@pytest.mark.parametrize(
    ("exc", "outcome", "error_type"),
    [
        (ValueError("no"), "error", "ValueError"),
        (TimeoutError(), "timeout", "TimeoutError"),
        (asyncio.CancelledError(), "cancelled", "asyncio.exceptions.CancelledError"),
        (KeyboardInterrupt(), "error", "KeyboardInterrupt"),
    ],
)
async def test_failure(exc: BaseException, outcome: str, error_type: str) -> None:
    """An exception decides outcome and error type, and is raised as the same object."""

    async def in_async_with(work: Operation) -> None:
        async with work:
            raise exc

    async def in_with(work: Operation) -> None:
        with work:
            raise exc

    for use in (in_async_with, in_with):
        reporter = Reporter()
        work = operation(reporter)
        with pytest.raises(type(exc)) as caught:
            await use(work)
        assert caught.value is exc
        assert (work.outcome, work.error_type, reporter.exception) == (outcome, error_type, exc)
        assert work.exception is None, "the record of the request holds the operation, not the frames of its failure"
        assert reporter.calls[-1] == ("close", outcome)


def test_a_closed_generator_is_ok() -> None:
    """A generator that its consumer closes early ends with `ok`."""
    reporter = Reporter()
    work = operation(reporter)

    def rows() -> object:
        with work:
            yield 1

    generator = rows()
    next(generator)  # type: ignore[call-overload]
    generator.close()  # type: ignore[attr-defined]
    assert (work.outcome, work.error_type, work.exception) == ("ok", None, None)


def test_an_outcome_that_was_set_is_kept() -> None:
    """A client may set the outcome itself."""
    with operation(Reporter()) as work:
        work.outcome = "not_found"
    assert work.outcome == "not_found"


def test_cancellation_of_trio() -> None:
    """A cancellation of trio is recognized."""
    seen: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except BaseException as exc:
                seen.append(exc)
                raise

    trio.run(main)
    assert is_cancellation(seen[0])
    assert exception_outcome(seen[0]) == "cancelled"
    assert not is_cancellation(None)


def test_error_names_carry_their_module() -> None:
    """Only built-in exceptions have no module in their error type."""

    class OwnError(Exception):
        """One of ours."""

    assert error_type_of(KeyError()) == "KeyError"
    assert error_type_of(OwnError()).endswith("test_error_names_carry_their_module.<locals>.OwnError")
    assert error_type_of(OwnError()) != "OwnError"


def test_error_name_of_a_class_that_hides_it() -> None:
    """The name is found even if a metaclass hides the module."""

    class Hidden(type):
        @property
        def __module__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("hidden")

    class HiddenError(Exception, metaclass=Hidden):
        """Hides where it comes from."""

    assert error_type_of(HiddenError()).endswith("HiddenError")
