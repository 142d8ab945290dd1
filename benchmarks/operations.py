"""Queries and calls inside a request: ours compared with the SDK's span, bare engines and clients, and contrib's."""

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
"""Environment variable with the Python of another environment that has contrib's instrumentors."""

CONTRIB = ("opentelemetry.instrumentation.sqlalchemy", "opentelemetry.instrumentation.httpx")

THREAD, CLOCK = 0, 2
"""Index of the number that is compared: CPU time of the caller's thread, or wall-clock time."""

PAIRS = {"query": "query_span", "query_with": "query_span", "operation": "operation_span"}
"""Step and its divisor. Engines and clients are divided by the bare ones."""

REPETITIONS = {"client": 20, "engine": 500}
"""Repetitions per request; other steps use `DEFAULT_REPETITIONS`."""

DEFAULT_REPETITIONS = 1000


class Effort(NamedTuple):
    """The amount of measurement: rounds of clients per process, rounds of other steps, processes in sequence."""

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
            found[name] = compare(taken)
        found["versions"] = versions
        found["contrib"] = contrib(url, effort, own_cores[-1:])
    return found


def contrib(url: str, effort: Effort, on: list[int]) -> dict[str, Any]:
    """Measure contrib's instrumentors with ours and bare in one process, where they are installed."""
    python = os.environ.get(CONTRIB_PYTHON) or (sys.executable if _has_contrib() else None)
    if python is None:
        return {
            "skipped": "contrib's instrumentors are not installed; create a separate environment with "
            f"pip install 'fastapi-observe[bench-contrib]' and set {CONTRIB_PYTHON} to its python"
        }
    found: dict[str, Any] = {}
    for name, ratio in RATIOS.items():
        progress(f"operations: beside contrib, {name}")
        try:
            taken, found["versions"] = repeat(ratio, url, effort, on, python=python, mode="contrib")
        except RuntimeError as problem:
            return {"skipped": str(problem).strip().splitlines()[-1]}
        found[name] = compare_contrib(taken, effort.processes)
    return found


def _has_contrib() -> bool:
    try:
        return all(find_spec(name) for name in CONTRIB)
    except ModuleNotFoundError:  # their parent package is missing
        return False


Taken = dict[str, list[list[float]]]
"""The three numbers of each round, by step."""


def repeat(  # noqa: PLR0913 - the parts of a run
    ratio: float, url: str, effort: Effort, on: list[int], *, python: str = sys.executable, mode: str = "alone"
) -> tuple[Taken, dict[str, str]]:
    """Repeat all steps in interleaved rounds, in random order. Returns times, and versions of the environment."""
    taken: Taken = {}
    for seed in range(effort.processes):
        shuffled = random.Random(seed)  # noqa: S311 - an order, the same in each run
        extra = {"PYTHONHASHSEED": str(seed)}
        with Worker("operation_steps", str(ratio), url, mode, extra=extra, on=on, python=python) as worker:
            for kind, rounds in (("client", effort.calls), ("", effort.rounds)):
                steps = [step for step in worker.said["steps"] if step.startswith("client") == bool(kind)]
                for _ in range(rounds):
                    for step in shuffled.sample(steps, len(steps)):
                        times = REPETITIONS.get(step.partition("_")[0], DEFAULT_REPETITIONS)
                        taken.setdefault(step, []).append(worker.ask(step, times))
            internal_errors = worker.ask("internal_errors")
            if internal_errors:
                raise RuntimeError(f"internal errors in ours, so the results are invalid: {internal_errors}")
            versions: dict[str, str] = worker.said["versions"]
    return taken, versions


def cost(taken: Taken, step: str, bare: str, which: int) -> Cost:
    """Return the cost of a step compared with another one in the same rounds."""
    return Cost([one[which] for one in taken[step]], [one[which] for one in taken[bare]])


def compare(taken: Taken) -> dict[str, Any]:
    """Return the cost of each step compared with its divisor; for clients, wall-clock and CPU time."""
    found = {step: cost(taken, step, other, THREAD).as_dict() for step, other in PAIRS.items()}
    for kind, which in (("engine", THREAD), ("client", CLOCK)):
        for step in (f"{kind}_ours", f"{kind}_again"):
            found[step] = cost(taken, step, f"{kind}_bare", which).as_dict()
    found["client_ours_cpu"] = cost(taken, "client_ours", "client_bare", THREAD).as_dict()
    found["client_again_cpu"] = cost(taken, "client_again", "client_bare", THREAD).as_dict()
    return found


def compare_contrib(taken: Taken, processes: int) -> dict[str, Any]:
    """Return the costs of contrib and of ours compared with bare, and our added cost relative to contrib's."""
    found: dict[str, Any] = {}
    for kind, which in (("engine", THREAD), ("client", CLOCK)):
        theirs, ours = (cost(taken, f"{kind}_{step}", f"{kind}_bare", which) for step in ("contrib", "ours"))
        part = ratio_of_added(ours, theirs, processes)
        found[kind] = {**theirs.as_dict(), "ours": ours.as_dict(), "ours_added_part": part}
    return found


def statements(effort: Effort) -> dict[str, Any]:
    """Compare parsing statements with executing them, and parsing hostile ones of several lengths."""
    return read_statements(ask("statement_steps", str(effort.rounds), "2000"))


def read_statements(taken: dict[str, Any]) -> dict[str, Any]:
    """Summarize the seconds of all rounds for the report."""
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
    """Return the microseconds of each length, and the ratio of each length to the one before."""
    lengths = list(zip(*rounds, strict=True))
    return {
        "us": [statistics.median(each) * 1e6 for each in lengths],
        "growth": [paired(more, less) for less, more in pairwise(lengths)],
    }


def worst(hostile: dict[str, Any], at: int) -> tuple[str, dict[str, float]]:
    """Return which hostile text grows fastest from one length to the next, and by how much."""
    name = max(hostile, key=lambda name: hostile[name]["growth"][at]["ratio"])
    return name, hostile[name]["growth"][at]
