"""When a log file is rotated and which rotated files are kept, and the names of rotated files."""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

ROTATION_UNITS: Final = {
    "b": ("size", 1),
    "kb": ("size", 10**3),
    "mb": ("size", 10**6),
    "gb": ("size", 10**9),
    "second": ("age", 1),
    "minute": ("age", 60),
    "hour": ("age", 3600),
    "day": ("age", 86_400),
    "week": ("age", 604_800),
    "file": ("files", 1),
}
"""What a number with a unit limits, and the value of one."""

TIMESTAMP: Final = r"\d{8}T\d{6}\.\d{6}"
PROCESS_ID: Final = "{pid}"


class Limits(NamedTuple):
    """Limits of one file (`log_rotation`) or of all rotated files (`log_retention`): bytes, seconds, number."""

    size: int | None = None
    age: int | None = None
    files: int | None = None


def parse_limits(text: str | None) -> Limits:
    """Parse `100 MB`, `12 hours`, `10 files` or several with commas; of one kind, the smallest. None is no limit.

    The settings have checked the text (`ROTATION_PATTERN`, `RETENTION_LIMIT`).
    """
    limits: dict[str, int] = {}
    for number, unit in re.findall(r"(\d+) ?([a-z]+)", (text or "").lower()):
        kind, one = ROTATION_UNITS[unit.removesuffix("s")]
        limits[kind] = min(limits.get(kind, sys.maxsize), int(number) * one)
    return Limits(**limits)


class LogFileNames:
    """The path of a log file and of the files it is rotated to.

    `~` is expanded, and the path is made absolute, so that it does not move with the working directory. `{pid}` in it
    is replaced by the id of the process. Raises `OSError` or `RuntimeError` if the home or working directory is gone.
    """

    def __init__(self, path: str) -> None:
        self._template = Path(path).expanduser().absolute()
        name = self._template.name
        self._suffix = "" if PROCESS_ID in self._template.suffix else self._template.suffix
        # Rotated files of all processes match, so that those of ended processes are removed in their turn.
        stem = r"\d{1,10}".join(re.escape(part) for part in name.removesuffix(self._suffix).split(PROCESS_ID))
        self._rotated = re.compile(rf"{stem}\.(?P<time>{TIMESTAMP}){re.escape(self._suffix)}(?P<gz>\.gz)?")

    def process_path(self) -> Path:
        """Return the path that this process writes to."""
        return Path(str(self._template).replace(PROCESS_ID, str(os.getpid())))

    def match_rotated(self, name: str) -> tuple[str, bool] | None:
        """Return the time in the name of a rotated file and whether it is compressed, or None for any other file."""
        match = self._rotated.fullmatch(name)
        return (match["time"], match["gz"] is not None) if match else None

    def next_rotated(self, path: Path, seconds: float) -> Path:
        """Return an unused name for rotating `path` at the given time since the epoch, or a microsecond later."""
        moment = datetime.fromtimestamp(seconds, UTC)
        while True:
            timestamp = moment.strftime("%Y%m%dT%H%M%S.%f")
            target = path.with_name(f"{path.name.removesuffix(self._suffix)}.{timestamp}{self._suffix}")
            if not (os.path.lexists(target) or os.path.lexists(f"{target}.gz")):
                return target
            moment += timedelta(microseconds=1)
