"""`LogThrottle`: one message for each cause and interval, on a clock that the test moves."""

from __future__ import annotations

import threading

from fastapi_observe.internal.throttle import LOG_INTERVAL, MAX_CAUSES, LogThrottle


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


def test_one_message_for_each_cause_and_interval() -> None:
    """The same cause is allowed again after a minute; another cause has its own minute."""
    clock = Clock()
    throttle = LogThrottle(clock=clock)
    assert [throttle.allow("a"), throttle.allow("a"), throttle.allow("b")] == [True, False, True]
    clock.now += LOG_INTERVAL - 0.1
    assert not throttle.allow("a")
    clock.now += 0.1
    assert throttle.allow("a")
    assert not throttle.allow("a")


def test_suppressed_messages_are_counted() -> None:
    """The count is by cause, and starts again when it was read."""
    throttle = LogThrottle(clock=Clock())
    for cause in "aaab":
        throttle.allow(cause)
    assert [throttle.pop_suppressed(cause) for cause in "aab"] == [2, 0, 0]


def test_reset_allows_every_cause() -> None:
    """After a reset nothing is suppressed, and nothing counts as suppressed."""
    throttle = LogThrottle(clock=Clock())
    for cause in "aab":
        throttle.allow(cause)
    throttle.reset()
    assert throttle.pop_suppressed("a") == 0
    assert [throttle.allow("a"), throttle.allow("b")] == [True, True]


def test_memory_is_bounded() -> None:
    """More causes than `MAX_CAUSES` make the throttle forget, never grow; known causes do not."""
    throttle = LogThrottle(clock=Clock())
    for number in range(MAX_CAUSES):
        assert throttle.allow(str(number))
    assert not throttle.allow("0")
    assert throttle.allow("one more")
    assert throttle.allow("0")


def test_one_thread_of_many_is_allowed() -> None:
    """Threads that ask at the same time get one permission together."""
    throttle = LogThrottle(clock=Clock())
    allowed: list[bool] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        allowed.extend([throttle.allow("cause") for _ in range(100)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert allowed.count(True) == 1
    assert throttle.pop_suppressed("cause") == 799
