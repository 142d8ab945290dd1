"""The command `doctor`: what is wrong with a set-up, and what to do next."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from opentelemetry.context import set_value

from fastapi_observe.cli.output import EXIT_ERROR, EXIT_PROBLEM, align, printable
from fastapi_observe.cli.scrape import NO_URL, add_token_arguments, read_token, split_app_url
from fastapi_observe.doctor.app import check_app
from fastapi_observe.doctor.check import Check, run_checks
from fastapi_observe.doctor.probe import probe_app, probe_exports
from fastapi_observe.doctor.process import (
    check_log_file,
    check_multiprocess_directory,
    check_settings,
    check_versions,
)
from fastapi_observe.internal.opentelemetry import SUPPRESSION_KEY, attach_context, detach_context
from fastapi_observe.observability import INSTALLED
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.slo.loading import LoadError, get_observability_of, load_app
from fastapi_observe.terminal.style import Style

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from fastapi_observe.cli.output import Commands

COLORS: Final = {"ok": "green", "look": "yellow", "wrong": "red"}


def add_doctor(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="find what is wrong with the set-up, with the next step",
        description="Check settings, versions, exports, access to the metrics, duplicates, workers, clock and disk. An "
        "empty request is sent to each export endpoint.",
        epilog="Exits with 1 if something is wrong, with 2 if the app cannot be imported, or a setting or "
        "--url is invalid.",
    )
    parser.add_argument("app", nargs="?", metavar="MODULE:APP", help="such as main:app, to check an installed app")
    parser.add_argument("--url", help="of the running app, such as http://127.0.0.1:8000")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    add_token_arguments(parser, "token of the metrics or of the console")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Run the checks and print them."""
    # The app switches instrumentors on, and would export spans of our own requests.
    token = attach_context(set_value(SUPPRESSION_KEY, True))  # noqa: FBT003
    try:
        with standard_output_to_standard_error():
            checks = _check(args)
    except (LoadError, SettingsError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    finally:
        detach_context(token)
    sys.stdout.write(checks_as_json(checks) if args.json else checks_as_text(checks))
    return EXIT_PROBLEM if any(check.verdict == "wrong" for check in checks) else 0


@contextlib.contextmanager
def standard_output_to_standard_error() -> Iterator[None]:
    """Send what an app prints at its import to standard error: it is not part of the result.

    The descriptor is replaced, not `sys.stdout`, which handlers of `logging` are compared with. Our own lines of level
    info are left out: they are for the log of an app that runs.
    """
    logging.getLogger("fastapi_observe").addFilter(_is_warning)
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        logging.getLogger("fastapi_observe").removeFilter(_is_warning)
        for each in INSTALLED:
            each.logs.flush(1.0)
        with contextlib.suppress(ValueError):  # closed by the app
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        if sys.stdout.closed:
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - stays open


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _check(args: argparse.Namespace) -> list[Check]:
    groups = [check_versions]
    if args.app is not None:
        observability = get_observability_of(load_app(args.app), args.app)
        settings = observability.settings
        observability.logs.attach()  # what is found is what the app has after its start
        groups.append(partial(check_app, observability))
    else:
        settings = ObserveSettings()
    if args.app is not None or args.url is None:
        of_settings = (
            partial(check_settings, is_running=False),
            probe_exports,
            check_log_file,
            check_multiprocess_directory,
        )
        groups[1:1] = [partial(check, settings) for check in of_settings]
    if args.url is not None:
        url, token = _app_url(args.url, read_token(args))
        groups.append(partial(probe_app, url, token, allow_http_token=args.allow_http_token))
    return [*dict.fromkeys(run_checks(*groups))]  # a running app reports some again, such as the versions


def _app_url(url: str, token: str | None) -> tuple[str, str | None]:
    """Return the URL of an app from that of the app, its metrics or its console, and the token of the console."""
    parts = split_app_url(url)
    if parts is None:
        raise LoadError("; ".join(NO_URL))
    path = parts.path.rstrip("/").removesuffix("/metrics").removesuffix("/observe")
    return f"{parts.scheme}://{parts.netloc}{path}", token or parse_qs(parts.query).get("t", [None])[0]


def checks_as_json(checks: list[Check]) -> str:
    """Return a JSON array with an object for each check."""
    return json.dumps([check._asdict() for check in checks], indent=2) + "\n"


def checks_as_text(checks: list[Check]) -> str:
    """Return a line for each check, the next step below it, and how many are wrong."""
    style = Style.for_stream(sys.stdout)
    lines = []
    for check, line in zip(
        checks,
        align([(check.verdict, printable(check.subject), printable(check.found)) for check in checks]),
        strict=True,
    ):
        lines.append(style.paint(line[: len(check.verdict)], COLORS[check.verdict]) + line[len(check.verdict) :])
        if check.step and check.verdict != "ok":
            lines.append(f"{'':7}{printable(check.step[:1].upper() + check.step[1:])}.")
    counts = Counter(check.verdict for check in checks)
    lines += ["", f"{counts['ok']} ok, {counts['look']} to look at, {counts['wrong']} wrong"]
    return style.encode("\n".join(lines) + "\n").decode(style.encoding)
