"""Ids for new traces and spans: random hexadecimal digits, drawn many at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[str, str]

BATCH_SIZE: Final = 64
"""Pairs that one call of the operating system's random source gives."""

_DIGITS: Final = 48


class IdSource:
    """Draws pairs of a trace id (32 hexadecimal digits) and a span id (16), none of them all zero.

    `next(source.pairs, None) or source.draw()` gives the next pair, from any thread. A forked child draws its own.
    """

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: Iterator[Pair] = iter(())
        if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows cannot fork
            os.register_at_fork(after_in_child=self.discard)

    def discard(self) -> None:
        """Give none of the pairs that were drawn before."""
        self.pairs = iter(())

    def refill(self) -> Pair:
        """Draw new pairs and return the first one."""
        text = os.urandom(BATCH_SIZE * _DIGITS // 2).hex()
        self.pairs = pairs = iter(
            [
                (text[at : at + 32], text[at + 32 : at + _DIGITS])
                for at in range(0, len(text), _DIGITS)
                if text[at : at + 32].strip("0") and text[at + 32 : at + _DIGITS].strip("0")
            ]
        )
        return next(pairs)


ID_SOURCE: Final = IdSource()
"""The ids of this process."""
