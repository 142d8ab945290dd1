"""When a new log file begins, and what the files are called."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

SIZES: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
AGES: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
AMOUNT: Final = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([a-zA-Z]{1,7})\s*", re.ASCII)
TIMESTAMP: Final = r"\d{8}T\d{6}\.\d{6}"
PROCESS: Final = "{pid}"


class Rotation(NamedTuple):
    """When a new file begins: at `size` bytes or after `age` seconds, whichever is set."""

    size: int | None
    age: float | None


def parse_rotation(text: str | None) -> Rotation | None:
    """Read `100 MB`, `1 GB`, `500 KB`, `1 day`, `12 hours`; None: never. Raises `ValueError` for anything else."""
    if text is None:
        return None
    number, unit = parse_amount(text)
    if number > 0 and unit in SIZES:
        return Rotation(max(1, int(number * SIZES[unit])), None)
    if number > 0 and unit in AGES:
        return Rotation(None, number * AGES[unit])
    raise ValueError(
        f"log_rotation: got {text!r}, accepts a size such as '500 KB', '100 MB' or '1 GB', "
        "or an age such as '12 hours' or '1 day'"
    )


def parse_amount(text: str) -> tuple[float, str]:
    """Read a number and its unit, as it stands in `SIZES` or `AGES`; another unit as it was written, `""` for none."""
    match = AMOUNT.fullmatch(text)
    if match is None:
        return 0.0, ""
    unit = match[2].upper()
    age = match[2].lower().removesuffix("s")
    return float(match[1]), unit if unit in SIZES else age if age in AGES else match[2].lower()


class LogFileNames:
    """The names of the log files at `path`: one for all processes, or one for each where `{pid}` is in it.

    `path` may begin with `~`; it is made absolute, so that it stays where it is when the process changes its folder.
    Only files of exactly these names are touched. Raises `OSError` or `RuntimeError` where there is no such folder.
    """

    def __init__(self, path: str) -> None:
        self.template = Path(path).expanduser().absolute()
        name = self.template.name
        self.shared = PROCESS not in path
        suffix = self.template.suffix
        self._suffix = "" if PROCESS in suffix else suffix
        first, *more = (re.escape(part) for part in name.removesuffix(self._suffix).split(PROCESS))
        stem = rf"{first}(?P<pid>[1-9]\d{{0,9}}(?:_\d+)?){'(?P=pid)'.join(more)}" if more else first
        self._active = re.compile(stem + re.escape(self._suffix))
        self._rotated = re.compile(rf"{stem}\.(?P<stamp>{TIMESTAMP}){re.escape(self._suffix)}(?P<gz>\.gz)?")
        self.part_name = name.replace(PROCESS, "all") + ".gz.part"

    def process_path(self, pid: int, again: int = 0) -> Path:
        """Return the file of a process; `again` tells those of processes with the same id apart."""
        if self.shared:
            return self.template
        return Path(str(self.template).replace(PROCESS, f"{pid}_{again}" if again else str(pid)))

    def part(self, folder: Path) -> Path:
        """Return the file that is compressed into, the same for all processes."""
        return folder / self.part_name

    def process_id(self, name: str) -> int | None:
        """Return the id of the process that writes, or wrote, to a file of this name; None for other files."""
        match = self._active.fullmatch(name)
        return int(match["pid"].partition("_")[0]) if match and match.groups() else None

    def rotated(self, name: str) -> tuple[str, bool] | None:
        """Return the moment in the name of a rotated file, and whether it is compressed; None for other files."""
        match = self._rotated.fullmatch(name)
        return (match["stamp"], match["gz"] is not None) if match else None

    def next_rotated(self, path: Path, seconds: float) -> Path:
        """Return the name under which `path` is rotated at a moment, or soon after: one that no file has."""
        moment = datetime.fromtimestamp(seconds, UTC)
        while True:
            stamp = moment.strftime("%Y%m%dT%H%M%S.%f")
            target = path.with_name(f"{path.name.removesuffix(self._suffix)}.{stamp}{self._suffix}")
            if not (os.path.lexists(target) or os.path.lexists(f"{target}.gz")):
                return target
            moment += timedelta(microseconds=1)
