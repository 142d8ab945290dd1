"""Our handlers in loguru, which belongs to the whole process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from fastapi_observe.internal.loguru import handlers, replace_level

if TYPE_CHECKING:
    from collections.abc import Callable

    from loguru import Message, Record

LEVEL_RANGES: Final = {0: 20, 20: 30, 30: 40, 40: 50, 50: sys.maxsize}
"""First number and end of each level, debug to fatal. loguru and `logging` use the same numbers."""


class LoguruHandlers:
    """One handler in loguru for each level, while loguru's default handler is silent.

    `handle(end, record)` gets each record of a level, with the end of the level's range. `own_handlers` is loguru's
    dict of handlers as we left it: loguru makes a new one for each change.
    """

    def __init__(self, handle: Callable[[int, Record], bool]) -> None:
        self.own_handlers: Any = None
        self._handle = handle
        self._ids: dict[int, int] = {}
        automatic = os.environ.get("LOGURU_AUTOINIT", "1").lower() in {"1", "true", "yes", "y", "ok", "on"}
        self._default: int | None = 0 if automatic else None
        self._muted: tuple[Any, int] | None = None
        self._removed = False

    def mute_default(self) -> None:
        """Silence the default handler without removing it: many programs call `logger.remove(0)` first."""
        if self._default is None or self._muted is not None:
            return
        handler: Any = (handlers() or {}).get(self._default)
        try:
            self._muted = (handler, replace_level(handler, sys.maxsize))
        except (AttributeError, TypeError):  # the user has removed it, or a private name is missing
            with suppress(ValueError):
                logger.remove(self._default)
                self._removed = True
            self._default = None

    @property
    def is_default_muted(self) -> bool:
        """Whether the default handler is there and silent."""
        return self._muted is not None

    def restore_default(self) -> None:
        """Restore the default handler, unless the user has removed it."""
        if self._muted is not None:
            handler, level = self._muted
            self._muted = None
            if self._default is not None and (handlers() or {}).get(self._default) is handler:
                replace_level(handler, level)
            else:
                self._default = None
        elif self._removed and sys.stderr is not None:
            self._default = logger.add(sys.stderr)
        self._removed = False

    def add_handlers(self, lowest: int) -> None:
        """Have one handler for each level from `lowest` up; add those again that the user removed.

        Each takes the records of its own level only, so that a change of the level neither repeats nor loses a line.
        The work is done by the filter, which then rejects the record: loguru would format the line, with a stack trace
        that shows the values of variables, and would refuse to be called inside a sink.
        """
        before = handlers()
        for low, end in LEVEL_RANGES.items():
            number = self._ids.get(low)
            if number is not None and before is not None and number not in before:
                del self._ids[low]  # the user called logger.remove()
            if low < lowest:
                number = self._ids.pop(low, None)
                if number is not None:
                    with suppress(ValueError):
                        logger.remove(number)
            elif low not in self._ids:
                self._ids[low] = logger.add(
                    _discard, level=low, format="", filter=partial(self._handle, end), catch=False
                )
        after = handlers()
        self.own_handlers = after if after and all(number in after for number in self._ids.values()) else None


def _discard(message: Message) -> None:
    """Receive nothing: the filter has done the work."""
