"""What an exception says, without the values that libraries are known to put into it."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Final

from fastapi_observe.redaction.patterns import MAX_TEXT_LENGTH, redact_database_error
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.redaction.values import is_database_error

if TYPE_CHECKING:
    from fastapi_observe.redaction.redactor import Redactor


def error_type_of(exc: BaseException) -> str:
    """Return the `error_type` of an exception: its class name, with its module unless built in."""
    kind = type(exc)
    try:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return DEFAULT_REDACTOR.name(name)
    except Exception:  # noqa: BLE001 - a metaclass may override anything
        return str(type.__dict__["__qualname__"].__get__(kind))


def is_cancellation(exc: BaseException | None) -> bool:
    """Tell whether `exc` is a cancellation of asyncio or of trio."""
    return isinstance(exc, asyncio.CancelledError) or type(exc).__name__ == "Cancelled"


def exception_outcome(exc: BaseException) -> str:
    """Name the outcome of work that ended with `exc`: `cancelled`, `timeout` or `error`."""
    if is_cancellation(exc):
        return "cancelled"
    return "timeout" if isinstance(exc, TimeoutError) else "error"


def status_label(status_code: int) -> str:
    """Return a status as text that may be a label: 100 to 599 (RFC 9110, 15), or `_other`."""
    return str(status_code) if 100 <= status_code <= 599 else "_other"  # noqa: PLR2004 - as above


MAX_CHAIN_TEXT_LENGTH: Final = 32_768
"""Characters that are looked at in all texts of one chain or group together: four times what is shown of a stack."""

MAX_CHAIN_LENGTH: Final = 32
"""Exceptions of one chain or group whose texts are looked at and shown."""

UNPRINTABLE_STACK: Final = "<unprintable stacktrace>"


def exception_message(exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> str:
    """Return the text of an exception, or a stand-in if it has none."""
    return _shown(_exception_text(exc), exc, redactor)


def exception_stacktrace(exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> str:
    """Return the end of the stack trace of an exception and of those it stands for; no values of variables.

    The text of each is redacted before anything is put around it or cut, so that nothing hides what tells a secret; in
    the end all is, at most 8,192 characters, since lines of source may hold secrets too.
    """
    try:
        whole = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        left = MAX_CHAIN_TEXT_LENGTH
        for told, of in _traceback_parts(whole, exc):
            # The only place where the text can be changed.
            text = str(told._str)  # type: ignore[attr-defined]  # noqa: SLF001
            told._str = _shown(text[:left], of, redactor)  # type: ignore[attr-defined]  # noqa: SLF001
            left = max(0, left - len(text))
            notes = []
            for note in list(told.__notes__ or ())[:MAX_CHAIN_LENGTH]:
                notes.append(redactor.text(str(note)[:left]))
                left = max(0, left - len(str(note)))
            told.__notes__ = notes
        return redactor.text(tail("".join(whole.format())))
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return UNPRINTABLE_STACK


def tail(text: str) -> str:
    """Return the last lines of a text, as much of it as is looked at."""
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    end = text[2 - MAX_TEXT_LENGTH :]
    return "…\n" + (end.partition("\n")[2] or end)


def exception_chain(exc: BaseException) -> list[BaseException]:
    """Return an exception with its causes, contexts and group members, at most `MOST_LINKED`."""
    found: list[BaseException] = []
    waiting = [exc]
    seen: set[int] = set()
    while waiting and len(found) < MAX_CHAIN_LENGTH:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        found.append(each)
        waiting += [other for other in (each.__context__, each.__cause__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
    return found


def _traceback_parts(
    whole: traceback.TracebackException, exc: BaseException
) -> list[tuple[traceback.TracebackException, BaseException | None]]:
    """Return the parts of a stack trace, one for each exception, with it; what is beyond the bound is cut."""
    found: list[tuple[traceback.TracebackException, BaseException | None]] = []
    waiting: list[tuple[traceback.TracebackException, BaseException | None]] = [(whole, exc)]
    while waiting:
        told, of = waiting.pop()
        found.append((told, of))
        members = zip(told.exceptions or (), of.exceptions if isinstance(of, BaseExceptionGroup) else (), strict=False)
        parts = [(told.__cause__, of and of.__cause__), (told.__context__, of and of.__context__), *members]
        if len(found) + len(waiting) >= MAX_CHAIN_LENGTH:
            told.__cause__ = told.__context__ = None
            if told.exceptions:
                told.exceptions = []
            continue
        waiting += [(part, other) for part, other in parts if part is not None]
    return found


def _shown(text: str, exc: BaseException | None, redactor: Redactor) -> str:
    """Redact the text of an exception; of one that a driver's error led to as if it were that: it may repeat it."""
    text = redactor.text(text)
    return redact_database_error(text) if exc is not None and _may_contain_driver_text(exc) else text


def _may_contain_driver_text(exc: BaseException) -> bool:
    """Tell whether the text of an exception may be, or repeat, that of a database's driver."""
    try:
        found = exception_chain(exc)
    except Exception:  # noqa: BLE001 - exception classes may override anything; then nothing is sure
        return True
    return any(is_database_error(type(each)) for each in found)


def _exception_text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return f"<unprintable {type.__dict__['__name__'].__get__(type(exc))}>"
