"""`monotonic`: a clock for deadlines that tests of an app cannot freeze or move."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# A deadline on a frozen clock is never reached. freezegun and hiro replace `time.monotonic`, also where it was imported
# under another name, and modules imported later only see the replacement. None of them, nor time-machine, replaces the
# system call's own clock. `partial` hides the function from freezegun, which compares the attributes of all modules.
monotonic: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    if hasattr(time, "clock_gettime")
    else partial(time.monotonic)  # Windows
)
"""Return the seconds of a monotonic clock, as `time.monotonic` does."""
