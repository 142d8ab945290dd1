"""Messages and stack traces of exceptions and their chains are reported without secrets and values."""

from __future__ import annotations

import sqlite3
import traceback
from typing import TypeVar

import pytest
from injection import failing

from fastapi_observe.records.exceptions import (
    MAX_CHAIN_LENGTH,
    UNPRINTABLE_STACK,
    exception_chain,
    exception_message,
    exception_stacktrace,
)
from fastapi_observe.redaction.patterns import MAX_SCANNED_LENGTH
from fastapi_observe.redaction.values import is_database_error

HIDDEN = "hunter2"
E = TypeVar("E", bound=BaseException)


def raised(exc: E, cause: BaseException | None = None) -> E:
    """Return an exception that has been raised."""
    try:
        raise exc from cause  # noqa: TRY301 - it needs a traceback
    except BaseException:  # noqa: BLE001 - any kind is given
        return exc


def test_a_secret_whose_name_would_be_cut_off() -> None:
    """A value is redacted however long it is, even if its name is far before it."""
    detail = "duplicate key\nDETAIL:  Key (name)=(" + HIDDEN * 3000 + ") already exists."
    exc = raised(ValueError(detail))
    for text in (exception_message(exc), exception_stacktrace(exc)):
        assert HIDDEN not in text
        assert "DETAIL:  REDACTED" in text
    assert "test_exceptions.py" in exception_stacktrace(exc)


def test_text_beyond_the_limit_is_not_reported() -> None:
    """Only the beginning of a very long message is reported, also in the stack trace."""
    exc = raised(ValueError("x" * MAX_SCANNED_LENGTH + HIDDEN))
    assert HIDDEN not in exception_message(exc) + exception_stacktrace(exc)
    assert "x" * 100 in exception_stacktrace(exc)


def test_causes_and_groups() -> None:
    """The message of each exception of a chain and of a group is redacted."""
    inner = ValueError(f"postgresql://ann:{HIDDEN}@db/shop")
    exc = raised(
        ExceptionGroup("two", [raised(inner), raised(KeyError("x"), raised(OSError(f"https://x/?token={HIDDEN}")))])
    )
    assert HIDDEN not in exception_stacktrace(exc)
    assert {type(each) for each in exception_chain(exc)} == {ExceptionGroup, ValueError, KeyError, OSError}


def test_a_group_of_database_errors() -> None:
    """Values that a driver repeats are also redacted in members of a group, whose lines start with bars."""
    detail = f"duplicate key\nDETAIL:  Key (name)=({HIDDEN}) already exists."
    group = raised(
        ExceptionGroup("two", [raised(ValueError(detail)), raised(sqlite3.OperationalError(f'near "{HIDDEN}"'))])
    )
    assert HIDDEN not in exception_stacktrace(group)
    assert 'near "REDACTED"' in exception_stacktrace(group)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app:hun@ter2@db/shop",
        "postgresql://app:a/hunter2@db/shop",
        "https://hunter2@github.com/x",
        "host=db password=hunter2 dbname=x",
        "postgresql://db/x?password=hunter2",
        "wss://x.example/?token=hunter2",
        "/login?token=hunter2",
        "https://x.example/#access_token=hunter2",
        "DRIVER={x};PWD=hunter2;UID=y",
        "{'Authorization': 'Bearer hunter2hunter2'}",
        "sent Bearer hunter2hunter2",
        'api_key: "hunter2"',
        "client_secret=hunter2&x=1",
        "https://" + "a" * 2000 + "?q=hunter2",
        "postgresql://app:" + "hunter2" * 100 + "@db",
        "(x) [SQL: select 'hunter2']\n[parameters: {'a': 'hunter2'}]",
        "[SQL: select 'hunter2' and what follows",
    ],
)
def test_secrets_in_a_text(text: str) -> None:
    """Known carriers of secrets are redacted in any spelling."""
    assert "ter2" not in exception_message(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        'near "hunter2": syntax error',
        "no such column: hunter2",
        "unrecognized token: \"'hunter2",
        'relation "hunter2" does not exist',
        'invalid value for parameter "work_mem": "hunter2"',
        "unterminated quoted string at or near \"'hunter2",
    ],
)
def test_values_quoted_by_databases(text: str) -> None:
    """Quoted parts of a driver's errors are redacted, those of other exceptions are not."""
    assert HIDDEN not in exception_message(sqlite3.OperationalError(text))
    assert exception_message(KeyError("don't")) == '"don\'t"'
    assert exception_message(sqlite3.OperationalError("can't open")) == "can't open"


@pytest.mark.parametrize(
    "unit", ["https://", "http://a", "://", "password=", "[SQL: ", "?a=", "Bearer ", "'", '"', "\nDETAIL: "]
)
def test_a_long_text_takes_no_time(unit: str) -> None:
    """Each pattern keeps what it has read: a megabyte of what it begins with ends at once."""
    assert exception_message(ValueError(unit * 200_000))
    exception_stacktrace(raised(ExceptionGroup("many", [ValueError(unit * 20_000) for _ in range(30)])))


def test_long_chains_are_bounded() -> None:
    """A very long chain and a circular one are cut off."""
    many = raised(ExceptionGroup("many", [ValueError(f"number {number}") for number in range(2 * MAX_CHAIN_LENGTH)]))
    assert exception_stacktrace(many).count("ValueError: number") <= MAX_CHAIN_LENGTH
    first = last = ValueError()
    for _ in range(MAX_CHAIN_LENGTH + 5):
        last.__context__ = after = ValueError()
        last = after
    assert len(exception_chain(first)) == MAX_CHAIN_LENGTH
    loop = ValueError()
    other = ValueError()
    loop.__context__, other.__context__ = other, loop
    assert len(exception_chain(loop)) == 2


def test_groups_in_groups() -> None:
    """Members of a group beyond the limit are left out."""
    groups = [ExceptionGroup("inner", [ValueError(f"number {number}")]) for number in range(2 * MAX_CHAIN_LENGTH)]
    assert exception_stacktrace(raised(ExceptionGroup("outer", groups))).count("ValueError: number") < MAX_CHAIN_LENGTH


def test_notes() -> None:
    """Notes are redacted like the message; the number of notes is limited."""
    exc = raised(ValueError("wrong"))
    exc.add_note(f"password={HIDDEN}")
    for number in range(2 * MAX_CHAIN_LENGTH):
        exc.add_note(f"note {number}")
    assert HIDDEN not in exception_stacktrace(exc)
    assert "password=REDACTED" in exception_stacktrace(exc)
    assert exception_stacktrace(exc).count("note ") == MAX_CHAIN_LENGTH - 1


def test_a_stack_that_is_long_shows_its_last_lines() -> None:
    """Whole lines are removed at the start; no line is cut in the middle."""
    exc = raised(ValueError("the end"), raised(KeyError("x" * 7000), raised(KeyError("y" * 7000))))
    assert len(exception_stacktrace(exc)) <= MAX_SCANNED_LENGTH
    assert exception_stacktrace(exc).startswith("…\n")
    assert exception_stacktrace(exc).endswith("ValueError: the end\n")


class OddMeta(type):
    """Makes classes without the name of their module."""

    @property
    def __mro__(cls) -> tuple[type, ...]:
        raise LookupError


def test_a_class_that_hides_its_bases() -> None:
    """A class that raises when its bases are read does not count as a database error."""

    class OddError(Exception, metaclass=OddMeta):
        pass

    assert not is_database_error(OddError)
    assert is_database_error(sqlite3.Error)


class UnprintableError(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


def test_messages_that_cannot_be_read() -> None:
    """A placeholder has the name of the exception class."""
    assert exception_message(UnprintableError()) == "<unprintable UnprintableError>"
    assert "UnprintableError" in exception_stacktrace(raised(UnprintableError()))


def test_a_stack_trace_that_cannot_be_read() -> None:
    """An exception class may override anything."""
    with failing(traceback.TracebackException.format):
        assert exception_stacktrace(ValueError()) == UNPRINTABLE_STACK
