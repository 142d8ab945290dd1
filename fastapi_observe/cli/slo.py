"""The commands `slo check`, `slo report`, `slo bundle` and `slo verify`: the objectives of an app."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.cli.doctor import standard_output_to_standard_error
from fastapi_observe.cli.output import EXIT_ERROR, EXIT_PROBLEM, add_json_argument, align, parse_names
from fastapi_observe.cli.scrape import ScrapeError, add_token_arguments, parse_families, read_lines, read_token
from fastapi_observe.slo import bundle
from fastapi_observe.slo.features import SELECTABLE, detect_features
from fastapi_observe.slo.loading import LoadError, load_plan
from fastapi_observe.slo.prometheus.verify import UnreachableError, verify
from fastapi_observe.slo.report import check_rows, report_rows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from fastapi_observe.cli.output import Commands
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.plan import SLOPlan

    Run = Callable[[argparse.Namespace, Any, ObserveSettings, SLOPlan], int]

DIRECTORY: Final = "observability"
INVALID: Final = "Exits with 1 if an objective is invalid, with 2 if the app cannot be imported."


def add_slo(commands: Commands) -> Commands:
    """Add the commands. Returns those of the group."""
    text = "check the objectives of an app, generate files from them, verify them"
    group = commands.add_parser("slo", help=text, description=f"{text[0].upper()}{text[1:]}.")
    inner = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_command(
        inner,
        "check",
        show_check,
        help="show the requests that each objective counts, and every problem",
        epilog=INVALID,
    )
    _add_command(
        inner,
        "report",
        show_report,
        help="show the failures that each alert needs, and when it fires",
        epilog=INVALID,
    )
    _add_bundle(inner)
    _add_verify(inner)
    return inner


def _add_command(commands: Commands, name: str, run: Run, *, help: str, epilog: str) -> argparse.ArgumentParser:  # noqa: A002 - as argparse calls it
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog)
    parser.add_argument("app", metavar="MODULE:APP", help="such as shop.main:app")

    def load_and_run(args: argparse.Namespace) -> int:
        try:
            with standard_output_to_standard_error():
                loaded = load_plan(args.app)
            return run(args, *loaded)
        except (LoadError, ScrapeError, UnreachableError, bundle.UnmanagedFileError, ValueError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_ERROR

    parser.set_defaults(run=load_and_run)
    return parser


def _add_bundle(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "bundle",
        write_bundle,
        help="generate rules with tests, dashboard, alert routing and runbooks",
        epilog="Deletes no file, changes no file that fastapi-observe did not generate, and keeps the sections of "
        "runbooks that you wrote. Exits with 1 if --check finds a difference, with 2 if nothing is generated, "
        "such as for an invalid objective.",
    )
    parser.add_argument(
        "-o", "--output", default=DIRECTORY, metavar="DIRECTORY", help=f"where to write (default: {DIRECTORY})"
    )
    parser.add_argument(
        "--only",
        type=parse_names("part", bundle.PARTS),
        default=(),
        metavar="PARTS",
        help=f"generate these only, separated by commas: {', '.join(bundle.PARTS)}",
    )
    parser.add_argument("--check", action="store_true", help="do not write; list files that differ and exit with 1")
    parser.add_argument(
        "--url",
        metavar="URL",
        help="metrics of the running app, such as http://127.0.0.1:8000/metrics, to find what it creates in its "
        "lifespan and in requests",
    )
    add_token_arguments(parser, "bearer token of the metrics")
    parser.add_argument(
        "--include",
        action="extend",
        type=parse_names("feature", SELECTABLE),
        default=[],
        metavar="FEATURES",
        help=f"include these, separated by commas, although they are not detected: {', '.join(SELECTABLE)}",
    )
    parser.add_argument(
        "--exclude",
        action="extend",
        type=parse_names("feature", SELECTABLE),
        default=[],
        metavar="FEATURES",
        help="leave these out, although they are detected",
    )
    parser.add_argument(
        "--format",
        choices=("prometheus", "operator"),
        default="prometheus",
        help="rule file, or a PrometheusRule for the Prometheus Operator (without tests)",
    )
    parser.add_argument(
        "--no-keep-firing", action="store_true", help="omit keep_firing_for (Prometheus before 2.42, vmalert)"
    )


def _add_verify(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "verify",
        show_verification,
        help="check that a running Prometheus has the rules, scrapes the app and keeps enough data",
        epilog="Exits with 1 if there is a problem, with 2 if Prometheus or the app cannot be read.",
    )
    parser.add_argument("--prometheus", required=True, metavar="URL", help="such as http://127.0.0.1:9090")
    add_token_arguments(parser, "bearer token of Prometheus")
    add_json_argument(parser)


def show_check(args: argparse.Namespace, _app: Any, _settings: ObserveSettings, plan: SLOPlan) -> int:
    """Print the requests that each objective counts, and all problems."""
    _print_rows(check_rows(plan))
    _print_none(args, plan)
    return EXIT_PROBLEM if _print_problems(plan) else 0


def show_report(args: argparse.Namespace, _app: Any, _settings: ObserveSettings, plan: SLOPlan) -> int:
    """Print the figures of each alert."""
    if _print_problems(plan):
        return EXIT_PROBLEM
    _print_rows(report_rows(plan))
    _print_none(args, plan)
    return 0


def _print_none(args: argparse.Namespace, plan: SLOPlan) -> None:
    if not plan.slos:
        sys.stderr.write(f"{args.app} has no objectives; pass slos=[...] to install(), or use @slo\n")


def write_bundle(args: argparse.Namespace, app: Any, settings: ObserveSettings, plan: SLOPlan) -> int:
    """Write the files, or compare them with those in the directory."""
    if _print_problems(plan):
        return EXIT_ERROR
    if args.no_keep_firing:
        plan = plan._replace(options=dataclasses.replace(plan.options, keep_firing=False))
    running = []
    if args.url is not None:
        lines = read_lines(args.url, read_token(args), allow_http_token=args.allow_http_token)
        running = [*parse_families(args.url, lines)]
    features = detect_features(app, settings, include=args.include, exclude=args.exclude, running=running)
    generated = bundle.make_bundle(
        plan._replace(pools=features.pools), settings, features, args.only, rule_format=args.format
    )
    directory = Path(args.output)
    files = bundle.merge_user_edits(generated, directory)
    try:
        diff = bundle.compare(files, directory) if args.check else bundle.write(files, directory)
    except OSError as error:
        raise ValueError(f"cannot write {directory}: {error.strerror}; choose another directory with -o") from error
    if not args.check and "dashboard.json" in generated and features.not_detected:
        missing = ", ".join(features.not_detected)
        sys.stderr.write(f"Not detected in this app, and left out: {missing}; add with --include, or --url\n")
    return _print_diff(diff, directory, len(generated), check=args.check)


def _print_diff(diff: bundle.BundleDiff, directory: Path, count: int, *, check: bool) -> int:
    words = ("missing", "differs") if check else ("new", "changed")
    for names, word in zip((diff.missing, diff.different), words, strict=True):
        for name in names:
            sys.stdout.write(f"{word:<9} {directory / name}\n")
    for name in diff.left_over:
        sys.stdout.write(f"obsolete  {directory / name}: its alert no longer exists, you can delete it\n")
    if diff.same:
        sys.stdout.write(f"{count} files in {directory} are up to date\n")
        return 0
    return EXIT_PROBLEM if check else 0


def show_verification(args: argparse.Namespace, _app: Any, settings: ObserveSettings, plan: SLOPlan) -> int:
    """Print the result of each check."""
    if plan.errors and _print_problems(plan):
        return EXIT_PROBLEM
    token = read_token(args)
    with standard_output_to_standard_error():  # lines about the requests to Prometheus
        findings = verify(plan, settings, args.prometheus, token=token, allow_http_token=args.allow_http_token)
    if args.json:
        sys.stdout.write(json.dumps([finding._asdict() for finding in findings], indent=2) + "\n")
    else:
        _print_rows(
            [
                (finding.state, finding.check, finding.message + (f" → {finding.hint}" if finding.hint else ""))
                for finding in findings
            ]
        )
    return EXIT_PROBLEM if any(finding.state == "problem" for finding in findings) else 0


def _print_problems(plan: SLOPlan) -> bool:
    """Print all problems to standard error. Returns whether there is an error among them."""
    for problem in plan.problems:
        sys.stderr.write(f"{problem.level}: {problem}\n")
    return bool(plan.errors)


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    sys.stdout.write("".join([f"{line}\n" for line in align(rows)]))
