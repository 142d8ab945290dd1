"""A collector that fails: when it is tried again, and what is told about it."""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastapi_observe.export.transport import ExportResult

PROBE_AFTER_FAILURES: Final = 3
"""Failures in a row after which the collector is only probed."""

PROBE_INTERVAL: Final = 5.0
"""Seconds between two probes."""

INITIAL_BACKOFF: Final = 1.0
"""Seconds until the second try, doubled for the third."""

JITTER: Final = 0.2
"""How far a wait is moved at random, so that many processes do not come back as one."""

_RANDOM: Final = random.Random()  # noqa: S311 - no secret; of our own: the user's draws stay as they would be
LOG_INTERVAL: Final = 60.0
"""Seconds until the same cause is told again."""


class CollectorOutage:
    """Whether exports of one signal fail at the moment, and since when."""

    def __init__(self, items: str, target: str) -> None:
        self.failures = 0
        self.retry_at = 0.0
        self.retry_after_set = False  # the collector itself has said when to come again
        self.probes = False  # only probe it
        self.items = items
        self.target = target
        self._since = 0.0
        self._lost_before = 0
        self._told: dict[str, float] = {}

    def record_failure(self, answer: ExportResult, *, probing: bool) -> None:
        """Note a failure, of a request with items or of a probe."""
        if probing and answer.reason == "http_4xx":  # it is there, and dislikes an empty request
            self.record_probe_reply()
            return
        now = monotonic()
        if not self.failures:
            self._since = now
        self.failures += 1
        self.probes = self.failures >= PROBE_AFTER_FAILURES
        wait = PROBE_INTERVAL if self.probes else INITIAL_BACKOFF * 2 ** (self.failures - 1)
        wait *= _RANDOM.uniform(1 - JITTER, 1 + JITTER)
        self.retry_after_set = answer.retry_after is not None
        self.retry_at = now + max(wait, answer.retry_after or 0.0)
        self.warn(answer.reason, f"cannot export {self.items} to {self.target}: {answer.message}; {_fate(answer)}")

    def record_probe_reply(self) -> None:
        """Note that a probe was answered: the next request carries items."""
        self.probes, self.retry_at, self.retry_after_set = False, 0.0, False

    def record_success(self, lost: int) -> None:
        """Note a success; tell the end of an outage. `lost` is how many items have been dropped so far."""
        if self.failures:
            self.record_probe_reply()
            self.failures = 0
            self._told.clear()
            seconds, since = monotonic() - self._since, lost - self._lost_before
            _log(f"exports {self.items} to {self.target} again after {seconds:.0f} s; {since} were lost")
        self._lost_before = lost

    def warn(self, cause: str, text: str) -> None:
        """Log a warning, at most once a minute for each cause."""
        now = monotonic()
        if now - self._told.get(cause, -LOG_INTERVAL) >= LOG_INTERVAL:
            self._told[cause] = now
            _log(f"{text} (told once a minute)")


def _fate(answer: ExportResult) -> str:
    if not answer.retry:
        return "they are lost"
    if answer.maybe_received and not answer.retry_later:
        return "they are sent once more, the newest of the others are kept"
    return "the newest are kept"


def _log(text: str) -> None:
    with suppress(Exception):  # telling is best effort: a handler of the user's raises what it likes
        logging.getLogger("fastapi_observe").warning("fastapi-observe %s", text)
