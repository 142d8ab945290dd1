"""Queries and calls inside a request: ours beside the SDK's own span, bare engines and clients, and contrib's."""

from __future__ import annotations

import os
import random
import statistics
import sys
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.inprocess import progress
from benchmarks.paired import Cost, paired, ratio_of_added
from benchmarks.process import Worker, ask, cores
from benchmarks.served import places, serving

RATIOS = {"unsampled": 0.0, "sampled": 1.0}

CONTRIB_PYTHON = "BENCH_CONTRIB_PYTHON"
"""Variable that names the Python of an environment with contrib's instrumentors, where they do not install here."""

CONTRIB = ("opentelemetry.instrumentation.sqlalchemy", "opentelemetry.instrumentation.httpx")

THREAD, CLOCK = 0, 2
"""Which of a worker's three numbers decides: CPU of the caller's thread, or the time of the clock."""

PAIRS = {"query": "query_span", "query_with": "query_span", "operation": "operation_span"}
"""What is divided by what; engines and clients are divided by the bare ones."""

REPETITIONS = {"client": 20, "engine": 500}
"""Repetitions in a request; of all others as many as ours gathers before it adds them up."""

GATHERED = 1000


class Effort(NamedTuple):
    """How much is measured: rounds of the clients in a process, of all else, processes one after another."""

    calls: int
    rounds: int
    processes: int


def run(effort: Effort) -> dict[str, Any]:
    """Measure everything."""
    progress("operations: statements")
    found: dict[str, Any] = {"statements": statements(effort)}
    server_cores, own_cores = places(1, cores())
    with serving("bare", 1, server_cores) as server, server.awake() as port:
        url = f"http://127.0.0.1:{port}/items/7"
        for name, ratio in RATIOS.items():
            progress(f"operations: alone, {name}")
            taken, versions = repeat(ratio, url, effort, own_cores[-1:])
            found[name] = beside(taken)
        found["versions"] = versions
        found["contrib"] = contrib(url, effort, own_cores[-1:])
    return found


def contrib(url: str, effort: Effort, on: list[int]) -> dict[str, Any]:
    """Measure contrib's instrumentors beside ours and bare, the three in one process, where they are installed."""
    python = os.environ.get(CONTRIB_PYTHON) or (sys.executable if _has_contrib() else None)
    if python is None:
        return {
            "skipped": "contrib's instrumentors are not installed: make an environment of its own for them with "
            f"pip install 'fastapi-observe[bench-contrib]', and name its python in {CONTRIB_PYTHON}"
        }
    found: dict[str, Any] = {}
    for name, ratio in RATIOS.items():
        progress(f"operations: beside contrib, {name}")
        try:
            taken, found["versions"] = repeat(ratio, url, effort, on, python=python, beside="contrib")
        except RuntimeError as problem:
            return {"skipped": str(problem).strip().splitlines()[-1]}
        found[name] = beside_contrib(taken, effort.processes)
    return found


def _has_contrib() -> bool:
    try:
        return all(find_spec(name) for name in CONTRIB)
    except ModuleNotFoundError:  # not even the package that they are in
        return False


Taken = dict[str, list[list[float]]]
"""The three numbers of each round, by step."""


def repeat(  # noqa: PLR0913 - what a run is made of
    ratio: float, url: str, effort: Effort, on: list[int], *, python: str = sys.executable, beside: str = "alone"
) -> tuple[Taken, dict[str, str]]:
    """Repeat all steps round by round, each round in another order; return what they took, and the versions there."""
    taken: Taken = {}
    for seed in range(effort.processes):
        shuffled = random.Random(seed)  # noqa: S311 - an order, the same in each run
        extra = {"PYTHONHASHSEED": str(seed)}
        with Worker("operation_steps", str(ratio), url, beside, extra=extra, on=on, python=python) as worker:
            for kind, rounds in (("client", effort.calls), ("", effort.rounds)):
                steps = [step for step in worker.said["steps"] if step.startswith("client") == bool(kind)]
                for _ in range(rounds):
                    for step in shuffled.sample(steps, len(steps)):
                        times = REPETITIONS.get(step.partition("_")[0], GATHERED)
                        taken.setdefault(step, []).append(worker.ask(step, times))
            faults = worker.ask("faults")
            if faults:
                raise RuntimeError(f"ours met faults of its own: the numbers mean nothing: {faults}")
            versions: dict[str, str] = worker.said["versions"]
    return taken, versions


def cost(taken: Taken, step: str, bare: str, which: int) -> Cost:
    """Return what a step costs beside another one in the same rounds."""
    return Cost([one[which] for one in taken[step]], [one[which] for one in taken[bare]])


def beside(taken: Taken) -> dict[str, Any]:
    """Return each step's cost beside what it is compared with; of clients that of the clock, and the CPU time too."""
    found = {step: cost(taken, step, other, THREAD).as_dict() for step, other in PAIRS.items()}
    for kind, which in (("engine", THREAD), ("client", CLOCK)):
        for step in (f"{kind}_ours", f"{kind}_again"):
            found[step] = cost(taken, step, f"{kind}_bare", which).as_dict()
    found["client_ours_cpu"] = cost(taken, "client_ours", "client_bare", THREAD).as_dict()
    found["client_again_cpu"] = cost(taken, "client_again", "client_bare", THREAD).as_dict()
    return found


def beside_contrib(taken: Taken, processes: int) -> dict[str, Any]:
    """Return contrib's cost beside bare, ours in the same rounds, and ours' added cost against its."""
    found: dict[str, Any] = {}
    for kind, which in (("engine", THREAD), ("client", CLOCK)):
        theirs, ours = (cost(taken, f"{kind}_{step}", f"{kind}_bare", which) for step in ("contrib", "ours"))
        part = ratio_of_added(ours, theirs, processes)
        found[kind] = {**theirs.as_dict(), "ours": ours.as_dict(), "ours_added_part": part}
    return found


def statements(effort: Effort) -> dict[str, Any]:
    """Compare reading statements with executing them, and reading hostile ones of several lengths."""
    return read_statements(ask("statement_steps", str(effort.rounds), "2000"))


def read_statements(taken: dict[str, Any]) -> dict[str, Any]:
    """Reduce the seconds of each round to what is reported."""
    typical, kinds = taken["typical"], taken["hostile"]
    found: dict[str, Any] = {
        name: {
            **paired(typical[read], typical[executed]),
            "ours_us": statistics.median(typical[read]) * 1e6,
            "sqlite_us": statistics.median(typical[executed]) * 1e6,
        }
        for name, read, executed in (
            ("same", "same read", "same executed"),
            ("uncached", "uncached read", "same executed"),
            ("new", "new read", "new executed"),
        )
    }
    found["hostile"] = {name: _by_length(rounds) for name, rounds in kinds.items()}
    return found


def _by_length(rounds: list[list[float]]) -> dict[str, Any]:
    """Return the microseconds of each length, and how much more a longer text costs than the one before."""
    lengths = list(zip(*rounds, strict=True))
    return {
        "us": [statistics.median(each) * 1e6 for each in lengths],
        "growth": [paired(more, less) for less, more in pairwise(lengths)],
    }


def worst(hostile: dict[str, Any], at: int) -> tuple[str, dict[str, float]]:
    """Return which hostile text grows fastest from one length to the next, and by how much."""
    name = max(hostile, key=lambda name: hostile[name]["growth"][at]["ratio"])
    return name, hostile[name]["growth"][at]
