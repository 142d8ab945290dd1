"""What the report says about scrapers, collectors, the event loop and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.report_text import HEAD, number, row, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRAPERS = {
    "alone": "nobody scrapes",
    "again": "nobody scrapes, again",
    "scraped": "50 scrapers, each once a second",
    "plain": "50 clients of a plain route, as much as that",
    "flooded": "50 scrapers, each without a pause",
    "plain flood": "50 clients of a plain route, as much as that",
}

GUESSES = {
    "alone": "nobody guesses",
    "again": "nobody guesses, again",
    "guessed": "1,000 wrong tokens a second",
    "bare alone": "the bare app alone",
    "bare nothing": "the bare app, 1,000 answers of 404 a second",
}

COLLECTORS = {
    "off": "no export",
    "again": "no export, again",
    "ok": "a collector that takes it",
    "refused": "nobody listens",
    "hang": "a collector that never answers",
}

SIDES = {
    "bare": "spans made, none exported",
    "again": "spans made, none exported, again",
    "ours": "exported by ours",
    "stock": "exported by the SDK's `BatchSpanProcessor`",
}


def production(found: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the section."""
    if not found["urgent"]:
        yield "**Server and load had no precedence over the machine's other processes: p99 shows those too.**"
    yield "\n".join(_beside("### Requests while `/metrics` is scraped, 400 a second", found["scrapers"], SCRAPERS))
    if "guesses" in found:
        yield "\n".join(_beside("### Requests while tokens are tried at `/metrics`", found["guesses"], GUESSES))
    yield "\n".join(_beside("### Requests while spans are exported, all sampled", found["collectors"], COLLECTORS))
    yield "\n".join(_lags(found["lag"]))
    yield "\n".join(_workers(found["workers"]))


def _beside(title: str, found: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    yield f"{title}\n"
    yield "| | p50, ms | p99, ms | p99 against the first | spread | added, ms | answers/s | bytes | their p50, ms |"
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
    yield "### Lag of the event loop at 3,000 spans a second (milliseconds)\n"
    yield "| | p50 | p99 | p99.9 | p99.9 above bare's | spread |\n" + "|---" * 6 + "|"
    for name, said in SIDES.items():
        one = found[name]
        lags = " | ".join(f"{one[part] * 1e3:.2f}" for part in ("p50", "p99", "p99.9"))
        yield f"| {said} | {lags} | {one['more'] * 1e3:+.2f} | {one['low'] * 1e3:+.2f} to {one['high'] * 1e3:+.2f} |"


def _workers(found: dict[str, Any]) -> Iterator[str]:
    yield "### Four workers, beside prometheus_client's multiprocess mode (clock)\n"
    yield "| | ours | stock's metrics in a worker of ours | stock | ours against stock | spread |\n" + "|---" * 6 + "|"
    rows = {f"scrape, 4 x {routes} routes, ms": (one, "ms") for routes, one in found["scrape"].items()}
    for title, (one, unit) in {**rows, "`observe`, us": (found["observe"], "us")}.items():
        sides = " | ".join(f"{one[unit][side]:.2f}" for side in ("ours", "client", "stock"))
        yield f"| {title} | {sides} | {number(one['ratio'])} | {spread(one)} |"
    yield f"\n{HEAD.replace('ratio to bare', 'ratio to a single process').replace('bare, us', 'single, us')}"
    yield row("a request in a worker, CPU", found["request"])
    yield row("a single process against a single process", found["request"]["noise"])
