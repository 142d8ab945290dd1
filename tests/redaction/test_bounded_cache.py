"""`BoundedCache` remembers a bounded number of short keys."""

from __future__ import annotations

from fastapi_observe.redaction.cache import BoundedCache


def test_a_full_cache_is_emptied() -> None:
    """At most `max_entries` keys are stored; the next one empties the cache first."""
    cache: BoundedCache[str, int] = BoundedCache(2, 8)
    assert [cache.remember(str(number), number) for number in range(3)] == [0, 1, 2]
    assert cache == {"2": 2}


def test_long_keys_are_not_stored() -> None:
    """The value of a key that is too long is returned and not stored."""
    cache: BoundedCache[bytes, str] = BoundedCache(2, 3)
    assert cache.remember(b"long", "value") == "value"
    assert cache.remember(b"abc", "value") == "value"
    assert cache.get(b"long") is None
    assert cache == {b"abc": "value"}
