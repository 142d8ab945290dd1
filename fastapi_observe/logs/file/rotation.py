"""When a log file is rotated, and the names of rotated files."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

SIZE_UNITS: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
AGE_UNITS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
AMOUNT: Final = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([a-zA-Z]{1,7})\s*", re.ASCII)
TIMESTAMP: Final = r"\d{8}T\d{6}\.\d{6}"
PROCESS_ID: Final = "{pid}"


class Rotation(NamedTuple):
    """Start a new file at `size` bytes or after `age` seconds, whichever is set."""

    size: int | None
    age: float | None


def parse_rotation(text: str | None) -> Rotation | None:
    """Parse `100 MB`, `1 GB`, `500KB`, `1 day` or `12 hours`. None disables rotation.

    Raises `ValueError` for anything else.
    """
    if text is None:
        return None
    number, unit = parse_amount(text)
    if number > 0 and unit in SIZE_UNITS:
        return Rotation(max(1, int(number * SIZE_UNITS[unit])), None)
    if number > 0 and unit in AGE_UNITS:
        return Rotation(None, number * AGE_UNITS[unit])
    raise ValueError(
        f"log_rotation: invalid value {text!r}; use a size such as '500 KB', '100 MB' or '1 GB', "
        "or an age such as '12 hours' or '1 day'"
    )


def parse_amount(text: str) -> tuple[float, str]:
    """Return a number and its unit: a key of `SIZE_UNITS` or `AGE_UNITS`, or the unit as given in lower case.

    Returns `(0.0, "")` if `text` is not a number with a unit.
    """
    match = AMOUNT.fullmatch(text)
    if match is None:
        return 0.0, ""
    unit = match[2].upper()
    age = match[2].lower().removesuffix("s")
    return float(match[1]), unit if unit in SIZE_UNITS else age if age in AGE_UNITS else match[2].lower()


class LogFileNames:
    """The path of a log file and of the files it is rotated to.

    `~` is expanded, and the path is made absolute, so that it does not move with the working directory. `{pid}` in it
    is replaced by the id of the process. Raises `OSError` or `RuntimeError` if the home or working directory is gone.
    """

    def __init__(self, path: str) -> None:
        self.template = Path(path).expanduser().absolute()
        name = self.template.name
        self._suffix = "" if PROCESS_ID in self.template.suffix else self.template.suffix
        # Rotated files of all processes match, so that those of ended processes are removed in their turn.
        stem = r"\d{1,10}".join(re.escape(part) for part in name.removesuffix(self._suffix).split(PROCESS_ID))
        self._rotated = re.compile(rf"{stem}\.(?P<time>{TIMESTAMP}){re.escape(self._suffix)}(?P<gz>\.gz)?")

    def process_path(self) -> Path:
        """Return the path that this process writes to."""
        return Path(str(self.template).replace(PROCESS_ID, str(os.getpid())))

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
