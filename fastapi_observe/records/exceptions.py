"""What an exception says, without the values that libraries are known to put into it."""

from __future__ import annotations

import traceback
from typing import Final

from fastapi_observe.records.redaction import redact_text

LONGEST_TEXT: Final = 65_536
"""Characters of an exception's text that are looked at: what stands behind them is shown nowhere."""

MOST_LINKED: Final = 32
"""Exceptions of one chain or group whose texts are looked at."""

UNPRINTABLE_STACK: Final = "<unprintable stacktrace>"


def message_of(exc: BaseException) -> str:
    """Return the text of an exception, or a stand-in if it has none."""
    return redact_text(_text_of(exc)[:LONGEST_TEXT])


def stack_of(exc: BaseException) -> str:
    """Return the stack trace of an exception and of those it stands for; no values of variables.

    The text of each is redacted before anything is cut, so that no cut hides what a secret is told by.
    """
    try:
        stack = "".join(traceback.format_exception(exc))
        for each in linked(exc):
            text = _text_of(each)
            shown = redact_text(text[:LONGEST_TEXT])
            if shown != text:
                stack = stack.replace(text, shown)
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return UNPRINTABLE_STACK
    return redact_text(stack)


def linked(exc: BaseException) -> list[BaseException]:
    """Return an exception with its causes, contexts and group members, at most `MOST_LINKED`."""
    found: list[BaseException] = []
    waiting = [exc]
    seen: set[int] = set()
    while waiting and len(found) < MOST_LINKED:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        found.append(each)
        waiting += [other for other in (each.__context__, each.__cause__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
    return found


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - as above
        return f"<unprintable {type.__dict__['__name__'].__get__(type(exc))}>"
