"""Ids have the digits that W3C Trace Context asks for, and are never all zeros."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from fastapi_observe.records.ids import BATCH_SIZE, SPAN_ID_BYTES, TRACE_ID_BYTES, IdSource

if TYPE_CHECKING:
    from collections.abc import Callable

draw: Callable[[int], bytes] = os.urandom


def pairs_of(source: IdSource, number: int) -> list[tuple[str, str]]:
    """Return the next pairs as a request takes them."""
    return [next(source.pairs, None) or source.refill() for _ in range(number)]


def test_a_trace_id_has_32_digits_and_a_span_id_16() -> None:
    """So are all of them, those of a second batch too, and none is drawn twice."""
    found = pairs_of(IdSource(), BATCH_SIZE + 1)
    assert all(re.fullmatch("[0-9a-f]{32} [0-9a-f]{16}", " ".join(pair)) for pair in found)
    assert len({each for pair in found for each in pair}) == 2 * len(found)


@pytest.mark.parametrize("size", [TRACE_ID_BYTES, SPAN_ID_BYTES])
def test_an_id_of_zeros_is_never_returned(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that has one is drawn again."""
    zeros = [bytes(size)]

    def draw_zeros_first(number: int) -> bytes:
        drawn = draw(number)
        if number == BATCH_SIZE * size and zeros:
            return zeros.pop() + drawn[size:]
        return drawn

    monkeypatch.setattr(os, "urandom", draw_zeros_first)
    found = pairs_of(IdSource(), BATCH_SIZE)
    assert not zeros
    assert not any(set(each) == {"0"} for pair in found for each in pair)
