"""The command `cardinality`: the series of each metric of a `/metrics` endpoint, and the label responsible."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.cli.output import EXIT_ERROR, EXIT_PROBLEM, add_json_argument, align, printable
from fastapi_observe.cli.scrape import ScrapedMetric, ScrapeError, add_token_arguments, display_url, read_token, scrape
from fastapi_observe.metrics.budget import SERIES_PER_PROCESS, STATIC_LABELS, VALUES_PER_LABEL
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    from fastapi_observe.cli.output import Commands
    from fastapi_observe.cli.scrape import Scrape

WARN_RATIO: Final = 0.8
"""Fraction of a limit from which on the report recommends to look at a metric."""

SERIES_PER_METRIC: Final = 2000
"""The default of `max_series_per_metric`, for servers that do not report their limits."""


@dataclass(frozen=True, slots=True)
class SeriesLimits:
    """The limits of the server, or the defaults if it does not report them.

    Each of its `processes` has these limits for itself; the totals of ended processes count as one more.
    """

    max_series_per_metric: int
    max_series_per_process: int
    max_values_per_label: int
    reported: bool
    processes: int

    @classmethod
    def from_scrape(cls, scraped: Scrape) -> SeriesLimits:
        """Read the limits from the numbers that the server reports about itself."""
        reported = scraped.self_reported
        workers = int(reported.get("fastapi_observe_workers", 1))
        return cls(
            max_series_per_metric=int(reported.get("max_series_per_metric", SERIES_PER_METRIC)),
            max_series_per_process=int(reported.get("max_series_per_process", SERIES_PER_PROCESS)),
            max_values_per_label=int(reported.get("max_values_per_label", VALUES_PER_LABEL)),
            reported="max_series_per_metric" in reported,
            processes=workers + 1 if workers > 1 else 1,
        )

    def as_text(self) -> str:
        """Return the limits in one line."""
        text = (
            f"limits: {self.max_series_per_process:,} label sets per process, "
            f"{self.max_series_per_metric:,} per metric, {self.max_values_per_label:,} values per label"
        )
        return text if self.reported else f"{text} (defaults; the server does not report its limits)"


class MetricRow:
    """One metric of the report: its use of the limits, the label responsible, and its growth."""

    def __init__(self, now: ScrapedMetric, before: ScrapedMetric | None, limits: SeriesLimits) -> None:
        self.name = now.name
        self.series = now.series
        self.label_sets = len(now.label_sets)
        self.new = 0 if before is None else len(now.label_sets - before.label_sets)
        self.values = {name: len(values) for name, values in now.values.items()}
        earlier = {} if before is None else before.values
        self.new_values = {
            name: 0 if before is None else len(values - earlier.get(name, set())) for name, values in now.values.items()
        }
        self.label = max(self.values, key=lambda name: (self.new_values[name], self.values[name]), default="")
        """The label with the most new values, or else with the most values."""
        limited = {name: count for name, count in self.values.items() if name not in STATIC_LABELS}
        self.share = max(
            self.label_sets / (limits.max_series_per_metric * limits.processes),
            max(limited.values(), default=0) / (limits.max_values_per_label * limits.processes),
        )
        self.has_overflow = now.has_overflow
        self.is_unlimited = self.share > 1 and not now.has_overflow and self.label_sets > limits.processes

    @property
    def at_limit(self) -> bool:
        """Whether the metric is at a limit or beyond it."""
        return self.has_overflow or self.share >= 1

    def as_json(self) -> dict[str, Any]:
        """Return the row for `--json`."""
        return {
            "name": self.name,
            "series": self.series,
            "label_sets": self.label_sets,
            "new_label_sets": self.new,
            "percent_of_limit": round(100 * self.share, 1),
            "has_overflow": self.has_overflow,
            "labels": {name: {"values": count, "new": self.new_values[name]} for name, count in self.values.items()},
            "growing_label": self.label or None,
        }


class Report:
    """The report about one scrape, or about two scrapes that are `seconds` apart."""

    def __init__(self, now: Scrape, before: Scrape | None, seconds: float) -> None:
        self.limits = limits = SeriesLimits.from_scrape(now)
        self.seconds = seconds
        earlier = {} if before is None else before.metrics
        rows = [
            MetricRow(metric, None if before is None else earlier.get(name, ScrapedMetric(name)), limits)
            for name, metric in now.metrics.items()
        ]
        self.rows = sorted(rows, key=lambda row: (-row.new, -row.series, row.name))
        self.is_comparison = before is not None
        self.series = sum(row.series for row in rows)
        self.label_sets = int(now.self_reported.get("fastapi_observe_series", sum(row.label_sets for row in rows)))
        self.process_at_limit = self.label_sets >= limits.max_series_per_process
        self.at_limit = [row for row in self.rows if row.at_limit]

    def next_step(self) -> str:
        """Return a recommendation in one sentence."""
        if self.at_limit:
            row = max(self.at_limit, key=lambda row: (row.has_overflow, row.new, row.label_sets))
            subject = f"Label {row.label} of {row.name}" if row.label else row.name
            others = len(self.at_limit) - 1
            more = (
                f" {others} more {'metrics are' if others > 1 else 'metric is'} at or above a limit." if others else ""
            )
            if row.is_unlimited:
                return (
                    f"{subject} exceeds the limits, which do not apply to it. Create the metric with observe.metrics."
                    f"{more}"
                )
            return (
                f"{subject} is at its limit; new values are recorded as {OVERFLOW}. "
                f"Use a label with few possible values, never one chosen by clients.{more}"
            )
        if self.process_at_limit:
            return "All metrics together are at their limit. Remove labels of the largest, or raise max_series_per_process."  # noqa: E501
        row = max(self.rows, key=lambda row: (row.new, row.share))
        if row.new:
            left = (1 - row.share) * row.label_sets / row.share / row.new * self.seconds
            subject = f"label {row.label} of {row.name}" if row.label else row.name
            return f"Check {subject}: at the current rate it reaches its limit in {_format_time(left)}."
        if row.share >= WARN_RATIO:
            return f"Check label {row.label} of {row.name}: it is at {row.share:.0%} of its limit."
        return "Nothing to do: no metric is near its limit."

    def as_json(self, url: str, top: int) -> str:
        """Return the report as JSON, with the `top` largest metrics."""
        limits = self.limits
        document = {
            "url": display_url(url),
            "series": self.series,
            "label_sets": self.label_sets,
            "metrics_shown": len(self.rows[:top]),
            "metrics_total": len(self.rows),
            "limits": {
                "max_series_per_metric": limits.max_series_per_metric,
                "max_series_per_process": limits.max_series_per_process,
                "max_values_per_label": limits.max_values_per_label,
                "reported_by_server": limits.reported,
            },
            "seconds_between": self.seconds if self.is_comparison else None,
            "at_limit": [row.name for row in self.at_limit],
            "metrics": [row.as_json() for row in self.rows[:top]],
            "next_step": self.next_step(),
        }
        return json.dumps(document, indent=2) + "\n"

    def as_text(self, url: str, top: int) -> str:
        """Return the report as a table, with the `top` largest metrics."""
        share_of_process = self.label_sets / self.limits.max_series_per_process
        lines = [
            f"{display_url(url)}: {self.series:,} series of {len(self.rows):,} metrics",
            f"{self.label_sets:,} label sets, {share_of_process:.0%} of the limit of a process",
            self.limits.as_text(),
            "",
        ]
        new = ["new"] if self.is_comparison else []
        table = [["series", "label sets", *new, "of limit", "metric", "values of each label, the growing one first"]]
        for row in self.rows[:top]:
            grown = [f"+{row.new:,}"] if self.is_comparison else []
            share = "full" if row.has_overflow else "no limit" if row.is_unlimited else f"{row.share:.0%}"
            table.append([f"{row.series:,}", f"{row.label_sets:,}", *grown, share, row.name, _describe_labels(row)])
        lines.extend(align(table, numbers=4 if self.is_comparison else 3))
        if len(self.rows) > top:
            lines.append(f"... and {len(self.rows) - top} more (--top)")
        return "\n".join([printable(line) for line in [*lines, "", f"Next: {self.next_step()}"]]) + "\n"


def _describe_labels(row: MetricRow) -> str:
    ordered = sorted(row.values, key=lambda name: (name != row.label, -row.values[name], name))
    return ", ".join(
        f"{name} {row.values[name]:,}" + (f" (+{row.new_values[name]:,})" if row.new_values[name] else "")
        for name in ordered
    )


def _format_time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def add_cardinality(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cardinality",
        help="show the number of series of each metric and the label responsible",
        description="Read a /metrics endpoint and show, for each metric, its series, the number of values of each "
        "label, its use of the limits, and the label that grows.",
        epilog="Exits with 1 if a metric is at its limit, with 2 if the metrics cannot be read.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000/metrics")
    add_token_arguments(parser, "bearer token of the metrics")
    parser.add_argument(
        "--top", type=_parse_count, default=20, metavar="N", help="show the N largest metrics (default: 20)"
    )
    parser.add_argument(
        "--compare-after",
        type=_parse_seconds,
        metavar="SECONDS",
        help="scrape twice, this many seconds apart, and show growth",
    )
    add_json_argument(parser)
    parser.set_defaults(run=show_cardinality)


def show_cardinality(args: argparse.Namespace) -> int:
    """Scrape the endpoint once or twice, and print the report."""
    token = read_token(args)
    before = None
    try:
        if args.compare_after is not None:
            before = scrape(args.url, token, allow_http_token=args.allow_http_token)
            sleep(args.compare_after)
        now = scrape(args.url, token, allow_http_token=args.allow_http_token)
    except ScrapeError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    report = Report(now, before, args.compare_after or 0.0)
    sys.stdout.write((report.as_json if args.json else report.as_text)(args.url, args.top))
    return EXIT_PROBLEM if report.at_limit or report.process_at_limit else 0


def _parse_count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"invalid number {text!r}; use a whole number of at least 1")
    return int(text)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 86_400:  # noqa: PLR2004 - a day
        raise argparse.ArgumentTypeError(f"invalid time {text!r}; use seconds, above 0 and up to 86400")
    return seconds
