"""`monotonic`: a clock for deadlines that tests of an app cannot freeze or move."""

from __future__ import annotations

import os
import time


def _ticks() -> float:
    return os.times().elapsed


# freezegun and time-machine replace `time.monotonic`, wherever it was imported: a deadline of a frozen clock is never
# reached. They leave `times(2)` alone. It counts in steps of 10 ms. On Windows it always returns 0.
monotonic = _ticks if os.name == "posix" else time.monotonic
"""Return seconds since an arbitrary moment in the past, in steps of at most 10 ms."""
