"""`python -m fastapi_observe cardinality URL` shows which metric has how many series, and which label makes them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.cli.scrape import ScrapedMetric, ScrapeError, display_url, printable, scrape
from fastapi_observe.metrics.budget import OVERFLOW, SERIES_PER_PROCESS, STATIC_LABELS, VALUES_PER_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastapi_observe.cli.scrape import Scrape

FULL: Final = 1
"""Exit status when a metric is at its bound."""

UNREADABLE: Final = 2
"""Exit status when there is nothing to read, as argparse uses it for wrong arguments."""

WARN_RATIO: Final = 0.8
"""Part of a bound from which on a metric is worth a look."""

SERIES_PER_METRIC: Final = 2000

_NOTHING: Final = ScrapedMetric("")


@dataclass(frozen=True, slots=True)
class SeriesLimits:
    """The bounds of the server that was asked; the defaults where it does not tell them.

    Each of its `processes` keeps to them for itself, and what ended ones have left counts as one.
    """

    max_series_per_metric: int
    max_series_per_process: int
    max_values_per_label: int
    told: bool
    processes: int

    @classmethod
    def from_families(cls, scraped: Scrape) -> SeriesLimits:
        """Read them from what the server tells."""
        told = scraped.self_reported
        workers = int(told.get("fastapi_observe_workers", 1))
        return cls(
            max_series_per_metric=int(told.get("max_series_per_metric", SERIES_PER_METRIC)),
            max_series_per_process=int(told.get("max_series_per_process", SERIES_PER_PROCESS)),
            max_values_per_label=int(told.get("max_values_per_label", VALUES_PER_LABEL)),
            told="max_series_per_metric" in told,
            processes=workers + 1 if workers > 1 else 1,
        )

    def as_text(self) -> str:
        """Name the bounds."""
        text = (
            f"bounds: {self.max_series_per_process:,} label sets of a process, {self.max_series_per_metric:,} of a metric, "  # noqa: E501
            f"{self.max_values_per_label:,} values of a label"
        )
        return text if self.told else f"{text} (the defaults: the server tells none)"


class MetricRow:
    """One metric, as it is shown: how full it is, which label makes its series, and what is new in it."""

    def __init__(self, now: ScrapedMetric, before: ScrapedMetric | None, bounds: SeriesLimits) -> None:
        self.name = now.name
        self.series = now.series
        self.label_sets = len(now.label_sets)
        self.new = 0 if before is None else len(now.label_sets - before.label_sets)
        self.values = {name: len(values) for name, values in now.values.items()}
        earlier = {} if before is None else before.values
        self.new_values = {
            name: 0 if before is None else len(values - earlier.get(name, set())) for name, values in now.values.items()
        }
        # The one that grows: with the most new values, else with the most.
        self.label = max(self.values, key=lambda name: (self.new_values[name], self.values[name]), default="")
        counted = {name: count for name, count in self.values.items() if name not in STATIC_LABELS}
        self.share = max(
            self.label_sets / (bounds.max_series_per_metric * bounds.processes),
            max(counted.values(), default=0) / (bounds.max_values_per_label * bounds.processes),
        )
        self.overflown = now.overflown
        self.unbounded = self.share > 1 and not now.overflown and self.label_sets > bounds.processes

    @property
    def at_limit(self) -> bool:
        """Whether the metric is at its bound, or beyond it."""
        return self.overflown or self.share >= 1

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` says of it."""
        return {
            "name": self.name,
            "series": self.series,
            "label_sets": self.label_sets,
            "new_label_sets": self.new,
            "percent_of_limit": round(100 * self.share, 1),
            "overflown": self.overflown,
            "labels": {name: {"values": count, "new": self.new_values[name]} for name, count in self.values.items()},
            "growing_label": self.label or None,
        }


class Report:
    """What two scrapes, or one, say together."""

    def __init__(self, now: Scrape, before: Scrape | None, seconds: float) -> None:
        self.bounds = bounds = SeriesLimits.from_families(now)
        self.seconds = seconds
        earlier = {} if before is None else before.metrics
        rows = [
            MetricRow(counted, None if before is None else earlier.get(name, _NOTHING), bounds)
            for name, counted in now.metrics.items()
        ]
        self.rows = sorted(rows, key=lambda row: (-row.new, -row.series, row.name))
        self.watched = before is not None
        self.series = sum(row.series for row in rows)
        self.kept = int(now.self_reported.get("fastapi_observe_series", sum(row.label_sets for row in rows)))
        self.all_full = self.kept >= bounds.max_series_per_process
        self.full = [row for row in self.rows if row.at_limit]

    def next_step(self) -> str:
        """Say what to do, in one sentence."""
        if self.full:
            row = max(self.full, key=lambda row: (row.new, row.label_sets))
            who = f"label {row.label} of {row.name}" if row.label else row.name
            if row.unbounded:
                return f"{who} is beyond the bounds and nothing holds it: make the metric with `observe.metrics`."
            return (
                f"{who} is at its bound: give it few values, none that a client chooses; what is new reads {OVERFLOW}."
            )
        if self.all_full:
            return "All metrics together are at their bound: take labels from the largest, or raise max_series_per_process."  # noqa: E501
        row = max(self.rows, key=lambda row: (row.new, row.share))
        if row.new:
            left = (1 - row.share) * row.label_sets / row.share / row.new * self.seconds
            return f"Label {row.label or '(none)'} of {row.name} grows: at this rate it is full in {_time(left)}."
        if row.share >= WARN_RATIO:
            return f"Look at label {row.label} of {row.name}: it will be at its bound soon."
        return "Nothing: no metric is near its bound."

    def as_json(self, url: str, top: int) -> str:
        """Return the report for machines."""
        bounds = self.bounds
        document = {
            "url": display_url(url),
            "series": self.series,
            "label_sets": self.kept,
            "metrics_shown": len(self.rows[:top]),
            "metrics_total": len(self.rows),
            "bounds": {
                "max_series_per_metric": bounds.max_series_per_metric,
                "max_series_per_process": bounds.max_series_per_process,
                "max_values_per_label": bounds.max_values_per_label,
                "reported_by_server": bounds.told,
            },
            "seconds_between": self.seconds if self.watched else None,
            "at_limit": [row.name for row in self.full],
            "metrics": [row.as_json() for row in self.rows[:top]],
            "next_step": self.next_step(),
        }
        return json.dumps(document, indent=2) + "\n"

    def as_text(self, url: str, top: int) -> str:
        """Return the report for people."""
        bounds = self.bounds
        lines = [
            f"{display_url(url)}: {self.series:,} series of {len(self.rows):,} metrics",
            f"{self.kept:,} label sets, {self.kept / bounds.max_series_per_process:.0%} of the bound of a process",
            bounds.as_text(),
            "",
        ]
        new = ["new"] if self.watched else []
        table = [["series", "label sets", *new, "of bound", "metric", "values of its labels, the growing one first"]]
        for row in self.rows[:top]:
            grown = [f"+{row.new:,}"] if self.watched else []
            share = "full" if row.at_limit else f"{row.share:.0%}"
            table.append([f"{row.series:,}", f"{row.label_sets:,}", *grown, share, row.name, self._labels(row)])
        lines.extend(_aligned(table, numbers=4 if self.watched else 3))
        if len(self.rows) > top:
            lines.append(f"... and {len(self.rows) - top} more (--top)")
        return "\n".join([printable(line) for line in [*lines, "", f"Next: {self.next_step()}"]]) + "\n"

    def _labels(self, row: MetricRow) -> str:
        ordered = sorted(row.values, key=lambda name: (name != row.label, -row.values[name], name))
        return ", ".join(
            f"{name} {row.values[name]:,}" + (f" (+{row.new_values[name]:,})" if row.new_values[name] else "")
            for name in ordered
        )


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _aligned(rows: Sequence[Sequence[str]], numbers: int) -> Iterator[str]:
    """Yield each row as a line; the first `numbers` columns stand at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if at < numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def add_cardinality(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `cardinality`."""
    parser = commands.add_parser(
        "cardinality",
        help="show which metric of a /metrics endpoint has how many series, and which label makes them",
        description="Read a /metrics endpoint and show the series of each metric, the values of each label, how much "
        "of the bounds that is, and the label that grows.",
        epilog="Exits with 1 if a metric is at its bound, with 2 if the metrics cannot be read.",
    )
    parser.add_argument("url", metavar="URL", help="for example http://127.0.0.1:8000/metrics")
    parser.add_argument("--token", help="bearer token; - reads it from standard input")
    parser.add_argument(
        "--allow-http-token", action="store_true", help="send the token over plain http to a public host too"
    )
    parser.add_argument("--top", type=_count, default=20, metavar="N", help="show the N largest metrics (20)")
    parser.add_argument("--compare-after", type=_seconds, metavar="SECONDS", help="read twice, and show what is new")
    parser.add_argument("--json", action="store_true", help="the same as JSON, for machines")
    parser.set_defaults(run=show_cardinality)


def show_cardinality(args: argparse.Namespace) -> int:
    """Read the endpoint once or twice, and print the report."""
    token = sys.stdin.readline().strip() if args.token == "-" else args.token  # noqa: S105 - no token
    before = None
    try:
        if args.compare_after is not None:
            before = scrape(args.url, token, insecure=args.allow_http_token)
            sleep(args.compare_after)
        now = scrape(args.url, token, insecure=args.allow_http_token)
    except ScrapeError as error:
        sys.stderr.write(f"{error}\n")
        return UNREADABLE
    report = Report(now, before, args.compare_after or 0.0)
    sys.stdout.write((report.as_json if args.json else report.as_text)(args.url, args.top))
    return FULL if report.full or report.all_full else 0


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of metrics: give one from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 86_400:  # noqa: PLR2004 - a day
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give seconds, more than 0, at most a day")
    return seconds
