"""CPU time of one request: bare, ours and each peer, interleaved round by round; ratios are paired within a round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.apps import PEERS, PROCESS_WIDE, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent


class Worker:
    """A process of `benchmarks.worker`; its standard output is a real file."""

    def __init__(self, variant: str, ratio: float, names: list[str], environment: dict[str, str] | None = None) -> None:
        read, write = os.pipe()
        self._lines = tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "benchmarks.worker", variant, str(ratio), *names],
            stdin=subprocess.PIPE,
            stdout=self._lines,
            stderr=subprocess.DEVNULL,
            pass_fds=(write,),
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {}), "BENCH_ANSWERS": str(write), "PYTHONHASHSEED": "0"},
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self._read()

    def _read(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the worker {self._process.args!r} ended; run it by hand to see why")
        return json.loads(line)

    def spend(self, name: str, times: int) -> float:
        """Have the worker send requests; return the CPU seconds of one."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write(f"{name} {times}\n")
        self._process.stdin.flush()
        return float(self._read())

    def lines(self) -> int:
        """Count the lines that the worker has really written."""
        return Path(self._lines.name).read_bytes().count(b"\n")

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.close()
        self._process.wait(20)
        self._answers.close()
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one request in each round, and of the bare app in the same rounds."""

    name: str
    spent: list[float]
    bare: list[float]

    @property
    def ratio(self) -> float:
        """Median of the paired ratios."""
        return statistics.median(one / base for one, base in zip(self.spent, self.bare, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the paired ratios."""
        quartiles = statistics.quantiles([one / base for one, base in zip(self.spent, self.bare, strict=True)], n=4)
        return quartiles[0], quartiles[2]

    @property
    def added(self) -> float:
        """Median of the CPU seconds that were added to the bare app's."""
        return statistics.median(one - base for one, base in zip(self.spent, self.bare, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Return what the report needs."""
        low, high = self.spread
        return {
            "ratio": self.ratio,
            "low": low,
            "high": high,
            "added_us": self.added * 1e6,
            "bare_us": statistics.median(self.bare) * 1e6,
        }


def measure(
    variant: str,
    ratio: float,
    names: list[str],
    *,
    rounds: int,
    calls: int,
    environment: dict[str, str] | None = None,
) -> dict[str, Cost]:
    """Interleave `bare` and `names` in one process, round by round; what patches the process gets one of its own."""
    together = ["bare", *(name for name in names if name not in PROCESS_WIDE)]
    alone = [name for name in names if name in PROCESS_WIDE]
    with Worker(variant, ratio, together, environment) as worker:
        others = {name: Worker(variant, ratio, [name], environment) for name in alone}
        try:
            spent: dict[str, list[float]] = {name: [] for name in ("bare", *names)}
            for number in range(rounds):
                for name in _rotated([*together, *alone], number):
                    spent[name].append(others.get(name, worker).spend(name, calls))
        finally:
            for other in others.values():
                other.close()
    return {name: Cost(name, spent[name], spent["bare"]) for name in names}


def _rotated(names: list[str], by: int) -> Iterator[str]:
    at = by % len(names)
    yield from names[at:] + names[:at]


def ours_in_every_variant(rounds: int, calls: int) -> dict[str, dict[str, Any]]:
    """Measure ours in each variant at 10 % and 100 % sampling."""
    found: dict[str, dict[str, Any]] = {}
    for variant in REQUESTS:
        for ratio in (0.1, 1.0):
            costs = measure(variant, ratio, ["ours"], rounds=rounds, calls=calls)
            found[f"{variant} {ratio:.0%}"] = costs["ours"].as_dict()
    return found


def peers(rounds: int, calls: int) -> dict[str, dict[str, Any]]:
    """Measure each peer beside ours on the trivial endpoint, each pair in one run."""
    found: dict[str, dict[str, Any]] = {}
    for name, (_, _, sampled) in PEERS.items():
        for ratio in (0.1, 1.0) if sampled else (0.1,):
            costs = measure("trivial", ratio, ["ours", name], rounds=rounds, calls=calls)
            found[f"{name} {ratio:.0%}"] = {
                **costs[name].as_dict(),
                "ours_ratio": costs["ours"].ratio,
                "ours_added_us": costs["ours"].added * 1e6,
            }
    return found
