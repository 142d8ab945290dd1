"""Our handlers in loguru, which belongs to the whole process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from loguru import Message, Record

LEVEL_RANGES: Final = {0: 20, 20: 30, 30: 40, 40: 50, 50: sys.maxsize}
"""Where each level begins and ends, debug to fatal; loguru and the standard library number alike."""


class LoguruHandlers:
    """Has one handler in loguru for each level; loguru's default handler is silent meanwhile.

    `known` are loguru's handlers as we left them: loguru makes a new dict for each change.
    """

    def __init__(self, take: Callable[[int, Record], bool]) -> None:
        self.own_handlers: Any = None
        self._take = take
        self._bands: dict[int, int] = {}
        automatic = os.environ.get("LOGURU_AUTOINIT", "1").lower() in {"1", "true", "yes", "y", "ok", "on"}
        self._default: int | None = 0 if automatic else None
        self._muted: tuple[Any, int] | None = None
        self._removed = False

    def mute_default(self) -> None:
        """Silence the default handler. It keeps its place: programs begin with `logger.remove(0)`."""
        if self._default is None or self._muted is not None:
            return
        handler: Any = (_handlers() or {}).get(self._default)
        try:
            before = handler._levelno  # noqa: SLF001 - see _set_level
            _set_level(handler, sys.maxsize)
            self._muted = (handler, before)
        except (AttributeError, TypeError):  # the user removed it, or loguru's inside is not as known
            with suppress(ValueError):
                logger.remove(self._default)
                self._removed = True
            self._default = None

    def restore_default(self) -> None:
        """Let the default handler be heard again, unless the user removed it."""
        if self._muted is not None:
            handler, before = self._muted
            self._muted = None
            if (_handlers() or {}).get(self._default) is handler:
                _set_level(handler, before)
            else:
                self._default = None
        elif self._removed and sys.stderr is not None:
            self._default = logger.add(sys.stderr)
        self._removed = False

    def add_handlers(self, lowest: int) -> None:
        """Keep one handler for each level from `lowest` up; those that the user removed are made anew.

        Each takes the records of its own level only, so that a change of the level neither doubles nor loses a line.
        The work is done by the filter, which then says no: loguru would format the line (and a stack trace with the
        values of variables) and refuse to be called inside a sink.
        """
        known = _handlers()
        for low, high in LEVEL_RANGES.items():
            number = self._bands.get(low)
            if number is not None and known is not None and number not in known:
                del self._bands[low]  # the user called logger.remove()
            if low < lowest:
                number = self._bands.pop(low, None)
                if number is not None:
                    with suppress(ValueError):
                        logger.remove(number)
            elif low not in self._bands:
                self._bands[low] = logger.add(
                    _nowhere, level=low, format="", filter=partial(self._take, high), catch=False
                )
        now = _handlers()
        self.own_handlers = now if now and all(number in now for number in self._bands.values()) else None


def _handlers() -> Any:
    return getattr(getattr(logger, "_core", None), "handlers", None)


def _set_level(handler: Any, level: int) -> None:
    """Give `handler` another level, which loguru has no call for."""
    core: Any = logger._core  # type: ignore[attr-defined]  # noqa: SLF001
    with core.lock:
        handler._levelno = level  # noqa: SLF001
        core.min_level = min((each.levelno for each in core.handlers.values()), default=sys.maxsize)


def _nowhere(message: Message) -> None:
    """Receive nothing: the filter has done the work."""
