"""CPU time of one request: bare, ours and each peer, interleaved round by round; ratios are paired within a round."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.apps import LINES, PEERS, PROCESS_WIDE, VARIANTS
from benchmarks.paired import Cost, ratio_of_added
from benchmarks.process import Worker, ask
from benchmarks.worker import WARM_UP

if TYPE_CHECKING:
    from collections.abc import Iterable

RATIOS = (0.1, 1.0)


class Effort(NamedTuple):
    """The amount of measurement: rounds per process, requests to each app per round, processes in sequence."""

    rounds: int
    calls: int
    processes: int


class MiscountError(Exception):
    """The number of lines or spans does not match the number of requests, so the results are invalid."""


def progress(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command-line tool


def measure(
    ratio: float, names: list[str], effort: Effort, *, extra: dict[str, str] | None = None, apart: Iterable[str] = ()
) -> dict[str, list[float]]:
    """Measure apps in interleaved rounds, in a random order, and return the CPU seconds of one request in each round.

    Apps share a process, except those that patch the whole process and those in `apart`; the rounds of these are
    interleaved with the others, too. Everything is repeated in several processes, since memory layout and hash order
    change results by some percent.

    Raises MiscountError if a log line is missing at the end.
    """
    alone = [name for name in names if name in apart or name.partition("@")[0] in PROCESS_WIDE]
    together = [name for name in names if name not in alone]
    groups = [group for group in (together, *([name] for name in alone)) if group]
    spent: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(effort.processes):
        _measure_once(ratio, groups, effort, spent, {**(extra or {}), "PYTHONHASHSEED": str(seed)})
    return spent


def _measure_once(
    ratio: float, groups: list[list[str]], effort: Effort, spent: dict[str, list[float]], extra: dict[str, str]
) -> None:
    """Add the rounds of one process for each group to `spent`."""
    workers: list[Worker] = []
    names = list(spent)
    try:
        workers += (Worker("worker", str(ratio), *group, extra=extra) for group in groups)
        of = {name: worker for group, worker in zip(groups, workers, strict=True) for name in group}
        shuffled = random.Random(extra["PYTHONHASHSEED"])  # noqa: S311 - an order, the same in each run
        for _ in range(effort.rounds):
            for name in shuffled.sample(names, len(names)):
                spent[name].append(of[name].ask(name, effort.calls))
        each = WARM_UP + effort.rounds * effort.calls
        for group, worker in zip(groups, workers, strict=True):
            _check_lines(group, each, worker.end())
    finally:
        for worker in workers:
            worker.close()


def _check_lines(group: list[str], each: int, written: int) -> None:
    """Raise MiscountError unless every app that writes lines has written one for each request."""
    due = each * sum(name.partition("@")[0] in LINES for name in group)
    if written != due:
        raise MiscountError(f"{group}: {due} lines expected, {written} are in the file")


def cost(spent: dict[str, list[float]], name: str, bare: str) -> Cost:
    """Return the cost of `name` compared with `bare`."""
    return Cost(spent[name], spent[bare])


def run(effort: Effort, variants: Iterable[str] = VARIANTS) -> dict[str, Any]:
    """Measure ours: in each variant, with 1,000 routes against 10, exporting, and in a separate process from bare."""
    found: dict[str, Any] = {"bareness": ask("bareness"), "variants": {}, "apart": {}}
    for ratio in RATIOS:
        for variant in variants:
            progress(f"in process: {variant}, {ratio:.0%} sampled")
            bare, ours = f"bare@{variant}", f"ours@{variant}"
            spent = measure(ratio, [bare, ours], effort)
            found["variants"][f"{variant} {ratio:.0%}"] = cost(spent, ours, bare).as_dict()
        progress(f"in process: exporting, {ratio:.0%} sampled")
        found["variants"][f"exporting {ratio:.0%}"] = exporting(ratio, effort)
        progress(f"in process: bare app in a process of its own, {ratio:.0%} sampled")
        names = ["bare@trivial", "ours@trivial"]
        spent = measure(ratio, names, effort, apart=names)
        found["apart"][f"trivial {ratio:.0%}"] = cost(spent, names[1], names[0]).as_dict()
    found["routes"] = routes(effort)
    found["noise"] = {variant: noise(variant, effort) for variant in ("trivial", "routes-1000-last")}
    found["driver_us"] = _median_us(measure(0.1, ["nothing@trivial"], effort)["nothing@trivial"])
    return found


def _median_us(values: list[float]) -> float:
    return Cost(values, values).as_dict()["bare_us"]  # type: ignore[no-any-return]


def noise(variant: str, effort: Effort) -> dict[str, Any]:
    """Measure two bare apps against each other: what the method finds where there is nothing to find."""
    progress(f"in process: bare against bare, {variant}")
    bare, again = f"bare@{variant}", f"bare_again@{variant}"
    return cost(measure(0.1, [bare, again], effort), again, bare).as_dict()


def routes(effort: Effort) -> dict[str, Any]:
    """Compare what ours adds to an app of 1,000 routes and to one of 10, all in the same rounds; also for the stack."""
    progress("in process: 1,000 routes against 10")
    variants = ("routes-10", "routes-1000", "routes-1000-last")
    apps = ("bare", "ours", "stack")
    spent = measure(0.1, [f"{app}@{variant}" for variant in variants for app in apps], effort)
    found: dict[str, Any] = {}
    for app in apps[1:]:
        costs = [cost(spent, f"{app}@{variant}", f"bare@{variant}") for variant in variants]
        found[app] = {
            "same position": ratio_of_added(costs[1], costs[0], effort.processes),
            "last route": ratio_of_added(costs[2], costs[0], effort.processes),
            **{variant: one.as_dict() for variant, one in zip(variants, costs, strict=True)},
        }
    return found


def exporting(ratio: float, effort: Effort) -> dict[str, Any]:
    """Measure ours with spans going to a real OTLP receiver in another process.

    So many requests a round that about two full batches (of 256 spans) are exported in it, as under load.
    """
    effort = Effort(max(3, effort.rounds // 3), int(512 / ratio), effort.processes)
    with Worker("receiver") as receiver:
        extra = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.said}"}
        spent = measure(ratio, ["bare@trivial", "ours_exporting@trivial"], effort, extra=extra)
        received = receiver.ask("count")
    requests = effort.processes * (WARM_UP + effort.rounds * effort.calls)
    if not 0.8 * ratio * requests <= received <= min(requests, 1.2 * ratio * requests):
        raise MiscountError(f"the receiver got {received} spans of {requests} requests at a ratio of {ratio}")
    one = cost(spent, "ours_exporting@trivial", "bare@trivial").as_dict()
    return {**one, "requests": requests, "spans_received": received}


def peers(effort: Effort, names: Iterable[str] = PEERS) -> dict[str, Any]:
    """Measure each peer together with ours and bare on the trivial endpoint, in the same rounds."""
    found: dict[str, Any] = {}
    for name in names:
        for ratio in RATIOS:
            progress(f"peers: {name}, {ratio:.0%} sampled")
            try:
                spent = measure(ratio, ["bare@trivial", "ours@trivial", f"{name}@trivial"], effort)
            except RuntimeError as problem:
                progress(f"  skipped: {problem}")
                found[f"{name} {ratio:.0%}"] = {"skipped": str(problem).strip().splitlines()[-1]}
                continue
            peer = cost(spent, f"{name}@trivial", "bare@trivial")
            ours = cost(spent, "ours@trivial", "bare@trivial")
            found[f"{name} {ratio:.0%}"] = {
                **peer.as_dict(),
                "ours": ours.as_dict(),
                "ours_added_part": ratio_of_added(ours, peer, effort.processes),
            }
    return found
