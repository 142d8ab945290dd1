"""The command `cost`: an estimate of the cost of an app's telemetry, and savings."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from fastapi_observe.cli.output import EXIT_ERROR, add_json_argument, parse_number
from fastapi_observe.cli.scrape import (
    ScrapeError,
    add_token_arguments,
    no_metrics,
    parse_families,
    read_lines,
    read_token,
)
from fastapi_observe.settings.objectives import parse_duration
from fastapi_observe.slo.cost import Prices, ScrapeTotals, as_text, estimate_cost

if TYPE_CHECKING:
    import argparse

    from fastapi_observe.cli.output import Commands


def add_cost(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cost",
        help="estimate the cost of an app's telemetry and suggest savings",
        description="Read a /metrics endpoint and estimate the cost of the app's telemetry, by metric and by route, "
        "with suggested savings.",
        epilog="Log lines and spans are those since the start of the process. Exits with 2 if the metrics cannot be "
        "read.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000/metrics")
    add_token_arguments(parser, "bearer token of the metrics")
    parser.add_argument(
        "--scrape-interval", default="15s", metavar="TIME", help="scrape interval of Prometheus (default: 15s)"
    )
    parser.add_argument(
        "--bytes-per-line",
        type=parse_number("size", 0),
        default=650,
        metavar="N",
        help="average size of a log line (default: 650)",
    )
    for items, words in (("samples", "samples"), ("lines", "log lines"), ("spans", "spans")):
        parser.add_argument(
            f"--price-per-million-{items}",
            type=parse_number("price", 0),
            default=0.0,
            metavar="PRICE",
            dest=items,
            help=f"price of your provider for a million {words}",
        )
    add_json_argument(parser)
    parser.set_defaults(run=show_cost)


def show_cost(args: argparse.Namespace) -> int:
    """Scrape the endpoint, and print the estimate."""
    totals = ScrapeTotals()
    try:
        interval = float(parse_duration(args.scrape_interval))
        lines = read_lines(args.url, read_token(args), allow_http_token=args.allow_http_token)
        for family in parse_families(args.url, totals.count_bytes(lines)):
            totals.add(family)
        if not totals.series:
            raise no_metrics(args.url)
    except (ValueError, ScrapeError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    prices = Prices(args.samples, args.lines, args.spans)
    estimate = estimate_cost(totals, interval, prices, bytes_per_line=args.bytes_per_line)
    sys.stdout.write(json.dumps(estimate, indent=2) + "\n" if args.json else as_text(estimate))
    return 0
