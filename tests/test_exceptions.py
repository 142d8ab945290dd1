"""What an exception says: its own text and those of the exceptions it stands for, without values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_observe.records.exceptions import (
    LONGEST_TEXT,
    MOST_LINKED,
    UNPRINTABLE_STACK,
    linked,
    message_of,
    stack_of,
)

if TYPE_CHECKING:
    import pytest

HIDDEN = "hunter2"


def raised(exc: BaseException, cause: BaseException | None = None) -> BaseException:
    """Return an exception that has been raised."""
    try:
        raise exc from cause  # noqa: TRY301 - it needs a traceback
    except BaseException as caught:  # noqa: BLE001 - any kind is given
        return caught


def test_a_secret_whose_name_would_be_cut_off() -> None:
    """A value is hidden however long it is: what tells that it is one may be far before it."""
    detail = "duplicate key\nDETAIL:  Key (name)=(" + HIDDEN * 3000 + ") already exists."
    exc = raised(ValueError(detail))
    for text in (message_of(exc), stack_of(exc)):
        assert HIDDEN not in text
        assert "DETAIL:  REDACTED" in text
    assert "test_exceptions.py" in stack_of(exc)


def test_what_stands_behind_the_bound_is_shown_nowhere() -> None:
    """Of a very long text only the beginning is shown, in the stack trace too."""
    exc = raised(ValueError("x" * LONGEST_TEXT + HIDDEN))
    assert HIDDEN not in message_of(exc) + stack_of(exc)
    assert "x" * 100 in stack_of(exc)


def test_causes_and_groups() -> None:
    """The text of each exception of a chain and of a group is looked at."""
    inner = ValueError(f"postgresql://ann:{HIDDEN}@db/shop")
    exc = raised(
        ExceptionGroup("two", [raised(inner), raised(KeyError("x"), raised(OSError(f"https://x/?token={HIDDEN}")))])
    )
    assert HIDDEN not in stack_of(exc)
    assert {type(each) for each in linked(exc)} == {ExceptionGroup, ValueError, KeyError, OSError}


def test_few_are_looked_at() -> None:
    """A chain that never ends, or ends in itself, is bounded."""
    first = last = ValueError()
    for _ in range(MOST_LINKED + 5):
        last.__context__ = after = ValueError()
        last = after
    assert len(linked(first)) == MOST_LINKED
    loop = ValueError()
    other = ValueError()
    loop.__context__, other.__context__ = other, loop
    assert len(linked(loop)) == 2


class UnprintableError(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


def test_exceptions_that_cannot_be_shown() -> None:
    """A stand-in tells what it was."""
    assert message_of(UnprintableError()) == "<unprintable UnprintableError>"
    assert "UnprintableError" in stack_of(raised(UnprintableError()))


def test_a_stack_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception class may override anything."""
    monkeypatch.setattr("traceback.format_exception", lambda _: 1 / 0)
    assert stack_of(ValueError()) == UNPRINTABLE_STACK
