"""Names, messages and stack traces of exceptions, without the values that libraries are known to put into them."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.redaction.patterns import MAX_SCANNED_LENGTH, redact_database_error
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.redaction.values import is_database_error

if TYPE_CHECKING:
    from fastapi_observe.redaction.redactor import Redactor


MAX_CHAIN_TEXT_LENGTH: Final = 32_768
"""Characters of all messages of one chain or group that are redacted, four times what is reported of a stack trace."""

MAX_CHAIN_LENGTH: Final = 32
"""Exceptions of one chain or group that are reported."""

UNPRINTABLE_STACK: Final = "<unprintable stacktrace>"


def error_type_of(exc: BaseException) -> str:
    """Return the `error_type` of an exception: its class name, with the module unless it is built in."""
    kind = type(exc)
    try:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return DEFAULT_REDACTOR.name(name)
    except Exception:  # noqa: BLE001 - a metaclass may override anything
        return str(type.__dict__["__qualname__"].__get__(kind))


def is_cancellation(exc: BaseException | None) -> bool:
    """Return whether `exc` is a cancellation of asyncio or trio."""
    # By name: trio need not be installed, and importing it here would be slow.
    return isinstance(exc, asyncio.CancelledError) or type(exc).__name__ == "Cancelled"


def exception_outcome(exc: BaseException) -> str:
    """Return the outcome of an operation that raised `exc`: `cancelled`, `timeout` or `error`."""
    if is_cancellation(exc):
        return "cancelled"
    return "timeout" if isinstance(exc, TimeoutError) else "error"


def status_label(status_code: int) -> str:
    """Return a status as a label value: 100 to 599 (RFC 9110, 15), or `_other`."""
    return str(status_code) if 100 <= status_code <= 599 else "_other"  # noqa: PLR2004 - as above


def exception_message(exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> str:
    """Return the redacted message of an exception, or a placeholder if `str(exc)` fails."""
    return _redact_message(_exception_text(exc), exc, redactor)


def exception_stacktrace(exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> str:
    """Return the end of the redacted stack trace of an exception and its chain, at most 8,192 characters.

    Values of variables are not included.
    """
    try:
        whole = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        remaining = MAX_CHAIN_TEXT_LENGTH
        for part, raised in _traceback_parts(whole, exc):
            # Each message is redacted by itself, before anything around it hides how a secret starts. `_str` is the
            # only place where it can be replaced before formatting.
            text = str(part._str)  # type: ignore[attr-defined]  # noqa: SLF001
            part._str = _redact_message(text[:remaining], raised, redactor)  # type: ignore[attr-defined]  # noqa: SLF001
            remaining = max(0, remaining - len(text))
            notes = []
            for note in list(part.__notes__ or ())[:MAX_CHAIN_LENGTH]:
                notes.append(redactor.text(str(note)[:remaining]))
                remaining = max(0, remaining - len(str(note)))
            part.__notes__ = notes
        # The whole is redacted again: lines of source code may contain secrets.
        return redactor.text(tail("".join(whole.format())))
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return UNPRINTABLE_STACK


def tail(text: str) -> str:
    """Return the last lines of a text, at most the characters that are redacted."""
    if len(text) <= MAX_SCANNED_LENGTH:
        return text
    end = text[2 - MAX_SCANNED_LENGTH :]
    return "…\n" + (end.partition("\n")[2] or end)


def exception_chain(exc: BaseException) -> list[BaseException]:
    """Return an exception with its causes, contexts and group members, at most `MAX_CHAIN_LENGTH`."""
    chain: list[BaseException] = []
    pending = [exc]
    seen: set[int] = set()
    while pending and len(chain) < MAX_CHAIN_LENGTH:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        chain.append(each)
        pending += [other for other in (each.__context__, each.__cause__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return chain


class _TracebackPart(NamedTuple):
    """One exception of a stack trace. `raised` is None where the chain was changed while it was read."""

    part: traceback.TracebackException
    raised: BaseException | None


def _traceback_parts(whole: traceback.TracebackException, exc: BaseException) -> list[_TracebackPart]:
    """Return the parts of a stack trace, one for each exception; parts beyond `MAX_CHAIN_LENGTH` are cut off."""
    parts: list[_TracebackPart] = []
    pending = [_TracebackPart(whole, exc)]
    while pending:
        each = pending.pop()
        parts.append(each)
        part, raised = each
        members = zip(
            part.exceptions or (), raised.exceptions if isinstance(raised, BaseExceptionGroup) else (), strict=False
        )
        linked = [
            (part.__cause__, raised and raised.__cause__),
            (part.__context__, raised and raised.__context__),
            *members,
        ]
        if len(parts) + len(pending) >= MAX_CHAIN_LENGTH:
            part.__cause__ = part.__context__ = None
            if part.exceptions:
                part.exceptions = []
            continue
        pending += [_TracebackPart(other, of) for other, of in linked if other is not None]
    return parts


def _redact_message(text: str, exc: BaseException | None, redactor: Redactor) -> str:
    text = redactor.text(text)
    return redact_database_error(text) if exc is not None and _may_contain_driver_text(exc) else text


def _may_contain_driver_text(exc: BaseException) -> bool:
    """Return whether the exception, or one in its chain, is a database driver's: its message may be repeated."""
    try:
        chain = exception_chain(exc)
    except Exception:  # noqa: BLE001 - exception classes may override anything; be careful then
        return True
    return any(is_database_error(type(each)) for each in chain)


def _exception_text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return f"<unprintable {type.__dict__['__name__'].__get__(type(exc))}>"
