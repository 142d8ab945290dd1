"""Report of scrapers, collectors, event loop lag and multiprocess mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.report_text import HEAD, number, row, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRAPERS = {
    "alone": "no scraper",
    "again": "no scraper, again",
    "scraped": "50 scrapers, each once per second",
    "plain": "50 clients of a plain route, at the same rate and size",
    "flooded": "50 scrapers, each without a pause",
    "plain flood": "50 clients of a plain route, at the same rate and size",
}

GUESSES = {
    "alone": "no wrong tokens",
    "again": "no wrong tokens, again",
    "guessed": "1,000 wrong tokens per second",
    "bare alone": "the bare app alone",
    "bare nothing": "the bare app, 1,000 responses of 404 per second",
}

COLLECTORS = {
    "off": "no export",
    "again": "no export, again",
    "ok": "a collector that accepts",
    "refused": "a port that is closed",
    "hang": "a collector that never responds",
}

SIDES = {
    "bare": "spans created, not exported",
    "again": "spans created, not exported, again",
    "ours": "exported by ours",
    "stock": "exported by the SDK's `BatchSpanProcessor`",
}


def production(found: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the section."""
    if not found["urgent"]:
        yield "**Server and load ran without real-time priority, so p99 includes interference by other processes.**"
    yield "\n".join(_beside("### Requests while `/metrics` is scraped, 400 per second", found["scrapers"], SCRAPERS))
    if "guesses" in found:
        yield "\n".join(_beside("### Requests while wrong tokens are sent to `/metrics`", found["guesses"], GUESSES))
    yield "\n".join(_beside("### Requests while spans are exported, all sampled", found["collectors"], COLLECTORS))
    yield "\n".join(_lags(found["lag"]))
    yield "\n".join(_workers(found["workers"]))


def _beside(title: str, found: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    yield f"{title}\n"
    yield "| | p50, ms | p99, ms | p99 against the first | spread | added, ms | responses/s | bytes | their p50, ms |"
    yield "|---" * 9 + "|"
    for name, said in names.items():
        one = found[name]
        p99, others = one["p99_ratio"], one.get("others")
        theirs = f"{others['rate']:.0f} | {others['size']:.0f} | {others['p50'] * 1e3:.1f}" if others else " | | "
        yield (
            f"| {said} | {one['p50'] * 1e3:.3f} | {one['p99'] * 1e3:.3f} | {number(p99['ratio'])} | {spread(p99)} "
            f"| {one['p99_more'] * 1e3:+.3f} | {theirs} |"
        )


def _lags(found: dict[str, Any]) -> Iterator[str]:
    yield "### Event loop lag at 3,000 spans per second (milliseconds)\n"
    yield "| | p50 | p99 | p99.9 | p99.9 above bare's | spread |\n" + "|---" * 6 + "|"
    for name, said in SIDES.items():
        one = found[name]
        lags = " | ".join(f"{one[part] * 1e3:.2f}" for part in ("p50", "p99", "p99.9"))
        yield f"| {said} | {lags} | {one['more'] * 1e3:+.2f} | {one['low'] * 1e3:+.2f} to {one['high'] * 1e3:+.2f} |"


def _workers(found: dict[str, Any]) -> Iterator[str]:
    yield "### Four workers, compared with prometheus_client's multiprocess mode (wall-clock)\n"
    yield (
        "| | ours | stock metrics in our multiprocess mode | stock | ours against stock | spread |\n" + "|---" * 6 + "|"
    )
    rows = {f"scrape, 4 x {routes} routes, ms": (one, "ms") for routes, one in found["scrape"].items()}
    for title, (one, unit) in {**rows, "`observe`, us": (found["observe"], "us")}.items():
        sides = " | ".join(f"{one[unit][side]:.2f}" for side in ("ours", "client", "stock"))
        yield f"| {title} | {sides} | {number(one['ratio'])} | {spread(one)} |"
    yield f"\n{HEAD.replace('ratio to bare', 'ratio to a single process').replace('bare, us', 'single, us')}"
    yield row("a request in a worker, CPU", found["request"])
    yield row("a single process against a single process", found["request"]["noise"])
