"""The subcommands about what stands around an app: dashboard, alertmanager, runbooks, bundle, verify, cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.slo.grafana.features import Features
    from fastapi_observe.slo.plan import SLOPlan

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it
    FileMaker = Callable[[SLOPlan, ObserveSettings, Features], dict[str, str]]

EXIT_DIFFERS = 1
EXIT_ERROR = 2
"""Exit statuses: something differs or is wrong, and nothing could be done at all."""

FOLDER = "observability"
FEATURES = ("database", "external", "business", "background", "streams")


def add_bundle(commands: Commands) -> None:
    """Add the subcommands."""
    _add_files(commands, "dashboard", "make the Grafana dashboard of an app", _dashboard)
    _add_files(commands, "alertmanager", "make the configuration of Alertmanager", _alertmanager)
    _add_files(commands, "runbooks", "make a runbook for each alert; what people wrote in them is kept", _runbooks)
    _add_files(commands, "bundle", "make everything: rules, tests, dashboard, alerts, runbooks", _bundle)
    verify = commands.add_parser(
        "verify",
        help="check a running Prometheus against an app",
        description="Check that a running Prometheus has the rules of an app, sees it, and keeps what objectives need.",
        epilog="Exits with 1 if there is a problem, with 2 if Prometheus or the app cannot be asked.",
    )
    verify.add_argument("app", metavar="MODULE:APP", help="such as shop.main:app")
    verify.add_argument("--prometheus", required=True, metavar="URL", help="such as http://127.0.0.1:9090")
    verify.add_argument("--token", help="bearer token for Prometheus")
    verify.add_argument(
        "--allow-http-token", action="store_true", help="send the token over plain http to a public host too"
    )
    verify.add_argument("--json", action="store_true", help="the same as JSON, for machines")
    verify.set_defaults(run=run_verify)
    cost = commands.add_parser(
        "cost",
        help="tell what observing a running app costs, and what can be switched off",
        description="Read a /metrics endpoint and tell what it costs to store, by metric and by route.",
        epilog="Lines and spans are those since the process started. Exits with 2 if the URL cannot be read.",
    )
    cost.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000/metrics")
    cost.add_argument("--token", help="bearer token for the metrics")
    cost.add_argument(
        "--allow-http-token", action="store_true", help="send the token over plain http to a public address too"
    )
    cost.add_argument("--scrape-interval", default="15s", metavar="TIME", help="of Prometheus (default: 15s)")
    cost.add_argument("--bytes-per-line", type=float, default=650, metavar="N", help="of a log line (default: 650)")
    for what in ("samples", "lines", "spans"):
        cost.add_argument(f"--price-per-million-{what}", type=float, default=0.0, metavar="PRICE", dest=what)
    cost.add_argument("--json", action="store_true", help="the same as JSON, for machines")
    cost.set_defaults(run=run_cost)


def _add_files(commands: Commands, name: str, text: str, make: FileMaker) -> None:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="Nothing is deleted, and no file is touched that fastapi-observe did not make. "
        "Exits with 1 if --check finds a difference, with 2 if nothing can be made.",
    )
    parser.add_argument("app", metavar="MODULE:APP", help="such as shop.main:app")
    parser.add_argument(
        "-o", "--output", default=FOLDER, metavar="FOLDER", help=f"where the files go (default: {FOLDER})"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; name the files that differ")
    for option, word in (("--include", "also if"), ("--exclude", "not even if")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            choices=FEATURES,
            help=f"show this on the dashboard, {word} it is seen that the app uses it",
            dest="more" if option == "--include" else "less",
        )
    parser.set_defaults(run=run_files, make=make)


def run_files(args: argparse.Namespace) -> int:
    """Make the files of one subcommand, or compare them with those that are there."""
    from fastapi_observe.slo import bundle  # noqa: PLC0415 - these commands alone need it
    from fastapi_observe.slo.grafana.features import detect_features  # noqa: PLC0415
    from fastapi_observe.slo.loading import LoadError, load_plan  # noqa: PLC0415

    folder = Path(args.output)
    try:
        app, settings, plan = load_plan(args.app)
        features = detect_features(app, settings, more=args.more, less=args.less)
        made = args.make(plan, settings, features)
        fitted = bundle.merge_user_edits(made, folder)
        found = bundle.compare(fitted, folder) if args.check else bundle.write(fitted, folder)
    except (LoadError, ValueError, OSError, bundle.UnmanagedFileError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    for problem in plan.problems:
        sys.stderr.write(f"{problem}\n")
    if not args.check and "dashboard.json" in made and features.not_detected:
        sys.stderr.write(
            f"Not on the dashboard, because the app is not seen to use it: {', '.join(features.not_detected)}; "
            "if it does, say --include\n"
        )
    return _tell(found, folder, len(made), check=args.check)


def _tell(found: Any, folder: Path, count: int, *, check: bool) -> int:
    words = ("missing", "differs") if check else ("new", "changed")
    for names, word in zip((found.missing, found.different), words, strict=True):
        for name in names:
            sys.stdout.write(f"{word:<9} {folder / name}\n")
    for name in found.left_over:
        sys.stdout.write(f"left over {folder / name}: its alert is gone, delete it when nobody needs it\n")
    if found.same:
        sys.stdout.write(f"{count} files in {folder} are as they should be\n")
        return 0
    return EXIT_DIFFERS if check else 0


def _dashboard(plan: SLOPlan, _settings: ObserveSettings, features: Features) -> dict[str, str]:
    from fastapi_observe.slo.grafana.dashboard import dashboard_text, make_dashboard  # noqa: PLC0415

    return {"dashboard.json": dashboard_text(make_dashboard(plan, features))}


def _alertmanager(plan: SLOPlan, settings: ObserveSettings, features: Features) -> dict[str, str]:
    return {"alertmanager.yml": _bundle(plan, settings, features)["alertmanager.yml"]}


def _runbooks(plan: SLOPlan, settings: ObserveSettings, features: Features) -> dict[str, str]:
    files = _bundle(plan, settings, features)
    return {name: text for name, text in files.items() if name.startswith("runbooks/")}


def _bundle(plan: SLOPlan, settings: ObserveSettings, features: Features) -> dict[str, str]:
    from fastapi_observe.slo.bundle import make_bundle  # noqa: PLC0415

    return make_bundle(plan, settings, features)


def run_verify(args: argparse.Namespace) -> int:
    """Print what is well and what is not."""
    from fastapi_observe.slo.loading import LoadError, load_plan  # noqa: PLC0415
    from fastapi_observe.slo.prometheus.verify import UnreachableError, verify  # noqa: PLC0415

    try:
        _, settings, plan = load_plan(args.app)
        found = verify(plan, settings, args.prometheus, token=args.token, insecure=args.allow_http_token)
    except (LoadError, UnreachableError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    if args.json:
        sys.stdout.write(json.dumps([each._asdict() for each in found], indent=2) + "\n")
    else:
        rows = [(each.state, each.check, each.message + (f" → {each.hint}" if each.hint else "")) for each in found]
        widths = [max(len(row[at]) for row in rows) for at in (0, 1)]
        for state, what, text in rows:
            sys.stdout.write(f"{state:<{widths[0]}}  {what:<{widths[1]}}  {text}\n")
    return EXIT_DIFFERS if any(each.state == "problem" for each in found) else 0


def run_cost(args: argparse.Namespace) -> int:
    """Print what observing costs."""
    from fastapi_observe.cli.scrape import EXAMPLE, ScrapeError, families, lines  # noqa: PLC0415
    from fastapi_observe.settings.objectives import parse_duration  # noqa: PLC0415
    from fastapi_observe.slo.cost import Prices, ScrapeTotals, as_text, estimate_cost  # noqa: PLC0415

    try:
        interval = float(parse_duration(args.scrape_interval))
        tally = ScrapeTotals()
        for family in families(args.url, tally.counted(lines(args.url, args.token, insecure=args.allow_http_token))):
            tally.add(family)
    except (ValueError, ScrapeError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    if not tally.series:
        nothing = ScrapeError(args.url, "there are no metrics", f"give the URL of the metrics, such as {EXAMPLE}")
        sys.stderr.write(f"{nothing}\n")
        return EXIT_ERROR
    prices = Prices(args.samples, args.lines, args.spans)
    found = estimate_cost(tally, interval, prices, bytes_per_line=args.bytes_per_line)
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if args.json else as_text(found))
    return 0
