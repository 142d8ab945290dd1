"""The subcommands about objectives: `rules`, `simulate` and `slo`."""

from __future__ import annotations

import difflib
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi_observe.slo.loading import LoadError, load_plan
from fastapi_observe.slo.prometheus.incident import read_incident
from fastapi_observe.slo.prometheus.rule_tests import test_file
from fastapi_observe.slo.prometheus.rules import rule_file
from fastapi_observe.slo.prometheus.simulate import detection_table, simulate
from fastapi_observe.slo.report import check_rows, report_rows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from fastapi_observe.slo.plan import SLOPlan

EXIT_FAILED = 1
"""Exit status for files that differ and for objectives with errors."""

WRONG = 2
"""Exit status for what cannot be done: no such app, no promtool."""


def add_slo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands `rules`, `simulate` and `slo`."""
    _add_rules(commands)
    _add_simulate(commands)
    group = commands.add_parser("slo", help="check and explain the objectives of an app")
    inner = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = inner.add_parser(
        "check",
        help="show what each objective counts and everything that is wrong",
        epilog="Exits with 1 if an objective has an error.",
    )
    _with_app(check, show_check)
    report = inner.add_parser("report", help="show what each alert needs, and when it fires")
    _with_app(report, show_report)


def _with_app(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace, SLOPlan], int]) -> None:
    parser.add_argument("app", metavar="module:app", help="the app, as servers name it")

    def loaded(args: argparse.Namespace) -> int:
        try:
            _, _, plan = load_plan(args.app)
        except LoadError as error:
            sys.stderr.write(f"{error}\n")
            return WRONG
        return run(args, plan)

    parser.set_defaults(run=loaded)


def _add_rules(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "rules",
        help="write recording rules and alerts for Prometheus, and their tests",
        epilog="Exits with 1 if an objective has an error, or with --check if a file is not what would be written.",
    )
    parser.add_argument("-o", "--output", type=Path, help="the rule file; without it the rules are printed")
    parser.add_argument("--tests", type=Path, help="also write tests of the rules, for `promtool test rules`")
    parser.add_argument("--format", choices=("prometheus", "operator"), default="prometheus", dest="form")
    parser.add_argument("--no-keep-firing", action="store_true", help="for Prometheus before 2.42 and for vmalert")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs in the files")
    _with_app(parser, write_rules)


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "simulate",
        help="play an incident through the rules with promtool, and show which alerts tell of it",
        epilog='An incident is a list of phases: "1h ok, 20m 30%%, 8h silent, 5m down".',
    )
    parser.add_argument("--slo", help="the objective; needed if there are several")
    parser.add_argument("--incident", default="1h ok, 20m 100%, 1h ok", help="what happens (default: %(default)s)")
    parser.add_argument("--rps", type=float, default=10.0, help="requests a second (default: %(default)s)")
    _with_app(parser, show_simulation)


def write_rules(args: argparse.Namespace, plan: SLOPlan) -> int:
    """Write, print or check the rule file and the file of its tests."""
    if _print_problems(plan):
        return EXIT_FAILED
    if args.tests and (args.output is None or args.form == "operator"):
        sys.stderr.write("--tests needs -o and the format prometheus: promtool reads no other\n")
        return WRONG
    if args.tests and args.tests.resolve() == args.output.resolve():
        sys.stderr.write("--tests and -o are the same file: give each its own\n")
        return WRONG
    if args.no_keep_firing:
        from dataclasses import replace  # noqa: PLC0415 - one option only

        plan = plan._replace(options=replace(plan.options, keep_firing=False))
    files = {args.output: rule_file(plan, form=args.form)}
    if args.tests:
        files[args.tests] = test_file(plan, _relative_rules_path(args.tests, args.output))
    if args.output is None and not args.check:
        sys.stdout.write(files[None])
        return 0
    try:
        return _write_or_check(files, check=args.check)
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return WRONG


def _write_or_check(files: dict[Path | None, str], *, check: bool) -> int:
    if check:
        found = [path for path, text in files.items() if differs(path, text)]
        return EXIT_FAILED if found else 0
    for path, text in files.items():
        if path is not None:  # pragma: no branch - that one is printed
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return 0


def _relative_rules_path(tests: Path, rules: Path) -> str:
    """Return the path of the rules as the file of tests names it, which promtool reads from where it stands."""
    here, there = tests.resolve().parent, rules.resolve()
    for up, folder in enumerate((here, *here.parents)):
        if there.is_relative_to(folder):
            return "../" * up + there.relative_to(folder).as_posix()
    return there.as_posix()  # pragma: no cover - another drive


def differs(path: Path | None, text: str) -> bool:
    """Say on stderr how a file differs from what would be written; return whether it does."""
    if path is None:
        sys.stderr.write("--check needs -o, the file to compare with\n")
        return True
    if not path.exists():
        sys.stderr.write(f"{path} is missing\n")
        return True
    lines = difflib.unified_diff(
        path.read_text("utf-8").splitlines(), text.splitlines(), str(path), "what would be written", lineterm="", n=1
    )
    shown = [*lines]
    if shown:
        sys.stderr.write("\n".join([*shown, f"{path} is not current: make it again without --check", ""]))
    return bool(shown)


def show_simulation(args: argparse.Namespace, plan: SLOPlan) -> int:
    """Print when each alert fires and clears."""
    if _print_problems(plan):
        return EXIT_FAILED
    found = [slo for slo in plan.slos if args.slo in (None, slo.name)]
    if len(found) != 1:
        names = ", ".join(slo.name for slo in plan.slos) or "none"
        sys.stderr.write(f"--slo has to name one objective; this app has: {names}\n")
        return WRONG
    try:
        phases = read_incident(args.incident, Decimal(str(args.rps)))
        detections = simulate(plan, found[0], args.incident, args.rps)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return WRONG
    _print(detection_table(detections, phases))
    return 0


def show_check(_: argparse.Namespace, plan: SLOPlan) -> int:
    """Print what each objective counts, and all that was found; errors make it fail."""
    _print(check_rows(plan))
    return EXIT_FAILED if _print_problems(plan) else 0


def show_report(_: argparse.Namespace, plan: SLOPlan) -> int:
    """Print the numbers of each alert."""
    if _print_problems(plan):
        return EXIT_FAILED
    _print(report_rows(plan))
    return 0


def _print_problems(plan: SLOPlan) -> bool:
    """Say on stderr what was found; return whether there is an error among it."""
    for problem in plan.problems:
        sys.stderr.write(f"{problem.level}: {problem}\n")
    return bool(plan.errors)


def _print(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")
