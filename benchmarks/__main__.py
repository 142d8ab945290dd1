"""`python -m benchmarks`: measure, then write results.json, RESULTS.md and results.svg; `check` compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import check, costs, inprocess, instructions, operations, production, served
from benchmarks.machine import describe
from benchmarks.picture import INSTRUCTIONS, draw
from benchmarks.report import write

if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = Path(__file__).parent
SECTIONS = ("inprocess", "peers", "served", "costs", "operations", "production", "instructions")
CHECKED_SECTIONS = ("inprocess", "costs")
"""Sections that `check` measures by default; the others take too long for CI."""


def measure(section: str, *, quick: bool) -> dict[str, Any]:
    """Measure one section."""
    if section in {"inprocess", "peers"}:
        effort = inprocess.Effort(5, 200, 2) if quick else inprocess.Effort(8, 300, 3)
        return inprocess.run(effort) if section == "inprocess" else inprocess.peers(effort)
    if section == "served":
        return served.run(served.Effort(2, 2) if quick else served.Effort(4, 4))
    if section == "operations":
        return operations.run(operations.Effort(30, 5, 1) if quick else operations.Effort(100, 15, 3))
    if section == "instructions":
        return instructions.run()
    if section == "production":
        return production.run(production.Effort(2, 2) if quick else production.Effort(7, 3), 2 if quick else 3)
    return costs.run(costs.Effort(3, 10_000, 10, 5, 500) if quick else costs.Effort(15, 100_000, 30, 15, 2000))


def run(sections: tuple[str, ...], *, quick: bool) -> dict[str, Any]:
    """Measure the sections. Each result has the date and the machine."""
    return {name: {"made": {**describe(), "quick": quick}, **measure(name, quick=quick)} for name in sections}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "check"], default="run")
    parser.add_argument(
        "--quick", action="store_true", help="run few rounds; print the report, or write it to --output"
    )
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section (repeatable)")
    parser.add_argument("--output", type=Path, help="directory for the results (default: benchmarks)")
    parser.add_argument("--strict", action="store_true", help="with check: exit with 1 if a figure is worse")
    parser.add_argument("--draw", action="store_true", help="do not measure; write report and picture again")
    args = parser.parse_args(arguments)
    directory = args.output or DIRECTORY
    previous = DIRECTORY / "results.json" if not (directory / "results.json").exists() else directory / "results.json"
    committed: dict[str, Any] = json.loads(previous.read_text()) if previous.exists() else {}
    if args.command == "check":
        return _check(committed, tuple(args.only or CHECKED_SECTIONS), strict=args.strict)
    if args.quick and args.output is None:
        sys.stdout.write(write(run(tuple(args.only or SECTIONS), quick=True)))
        return 0
    results = {name: one for name, one in committed.items() if name in SECTIONS}
    directory.mkdir(parents=True, exist_ok=True)
    for section in () if args.draw else args.only or SECTIONS:  # saved one by one, so that a run can be interrupted
        if section == "instructions" and not _can_count():
            continue
        results |= run((section,), quick=args.quick)
        _save(results, directory)
    _save(results, directory)
    return 0


def _can_count() -> bool:
    """Return whether instructions can be counted; otherwise report what is missing."""
    missing = instructions.missing_tools()
    if missing:
        inprocess.progress(f"skipped: instructions; install {', '.join(missing)}")
    return not missing


def _save(results: dict[str, Any], directory: Path) -> None:
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "RESULTS.md").write_text(write(results))
    if "inprocess" in results:
        (directory / "results.svg").write_text(draw(results))
    if "instructions" in results:
        picture = draw(instructions.pictured(results["instructions"]), INSTRUCTIONS)
        (directory / "instructions.svg").write_text(picture)
    inprocess.progress(f"written: {directory / 'RESULTS.md'}")


def _check(committed: dict[str, Any], sections: tuple[str, ...], *, strict: bool) -> int:
    """Print a quick run next to the committed results."""
    if not committed:
        inprocess.progress("There are no committed results to compare with; run `make bench`.")
        return 0
    if sections == ("instructions",):
        if _can_count():
            now = run(sections, quick=True)["instructions"]
            sys.stdout.write("\n".join(instructions.changes(committed.get("instructions", {}), now)) + "\n")
        return 0
    rows = list(check.compare(committed, run(sections, quick=True)))
    sys.stdout.write(check.table(rows) + "\n")
    sys.stdout.write(
        f"A figure counts as worse or better beyond {check.MARGIN:.0%}. This is information only without --strict.\n"
    )
    return int(strict and any(row[-1] == "worse" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
