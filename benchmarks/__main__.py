"""`python -m benchmarks`: measures, then writes results.json, RESULTS.md and results.svg; `check` compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import check, costs, inprocess, operations, production, served
from benchmarks.machine import describe
from benchmarks.picture import draw
from benchmarks.report import write

FOLDER = Path(__file__).parent
SECTIONS = ("inprocess", "peers", "served", "costs", "operations", "production")
CHECKED = ("inprocess", "costs")
"""What a check measures anew, unless told: the rest takes too long for CI."""


def measure(section: str, *, quick: bool) -> dict[str, Any]:
    """Measure one section."""
    if section in {"inprocess", "peers"}:
        effort = inprocess.Effort(5, 200, 2) if quick else inprocess.Effort(8, 300, 3)
        return inprocess.run(effort) if section == "inprocess" else inprocess.peers(effort)
    if section == "served":
        return served.run(served.Effort(2, 2) if quick else served.Effort(4, 4))
    if section == "operations":
        return operations.run(operations.Effort(30, 5, 1) if quick else operations.Effort(100, 15, 3))
    if section == "production":
        return production.run(production.Effort(2, 2) if quick else production.Effort(7, 3), 2 if quick else 3)
    return costs.run(costs.Effort(3, 10_000, 10, 5, 500) if quick else costs.Effort(15, 100_000, 30, 15, 2000))


def run(sections: tuple[str, ...], *, quick: bool) -> dict[str, Any]:
    """Measure the sections, each with the date and the machine."""
    return {name: {"made": {**describe(), "quick": quick}, **measure(name, quick=quick)} for name in sections}


def main() -> int:
    """Read the command line and obey."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "check"], default="run")
    parser.add_argument("--quick", action="store_true", help="few rounds; written only where --output says")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section (may be repeated)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: that of the benchmarks)")
    parser.add_argument("--strict", action="store_true", help="check: exit with 1 if a figure is worse")
    parser.add_argument("--draw", action="store_true", help="measure nothing; write report and picture anew")
    told = parser.parse_args()
    folder = told.output or FOLDER
    kept = FOLDER / "results.json" if not (folder / "results.json").exists() else folder / "results.json"
    committed: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if told.command == "check":
        return _check(committed, tuple(told.only or CHECKED), strict=told.strict)
    if told.quick and told.output is None:
        sys.stdout.write(write(run(tuple(told.only or SECTIONS), quick=True)))
        return 0
    results = {name: one for name, one in committed.items() if name in SECTIONS}
    folder.mkdir(parents=True, exist_ok=True)
    for section in () if told.draw else told.only or SECTIONS:  # each is kept when it is done: a run can be cut off
        results |= run((section,), quick=told.quick)
        _keep(results, folder)
    _keep(results, folder)
    return 0


def _keep(results: dict[str, Any], folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "RESULTS.md").write_text(write(results))
    if "inprocess" in results:
        (folder / "results.svg").write_text(draw(results))
    inprocess.progress(f"written: {folder / 'RESULTS.md'}")


def _check(committed: dict[str, Any], sections: tuple[str, ...], *, strict: bool) -> int:
    """Print a quick run beside the committed results."""
    if not committed:
        inprocess.progress("there are no committed results to compare with: run `make bench`")
        return 0
    rows = list(check.compare(committed, run(sections, quick=True)))
    sys.stdout.write(check.table(rows) + "\n")
    sys.stdout.write(f"A figure is called worse or better beyond {check.MARGIN:.0%}. This is information, no gate.\n")
    return int(strict and any(row[-1] == "worse" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
