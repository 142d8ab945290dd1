"""What the report says about queries, calls and statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.machine import MISSING
from benchmarks.report_text import HEAD, number, row, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLED = ("unsampled", "sampled")

TITLES = {
    "query": "`async with db.query(...)` beside the SDK's span",
    "query_with": "`with db.query(...)` beside the SDK's span",
    "operation": "`with observe.operation(...)` beside the SDK's span",
    "engine_ours": "`SELECT 1` through an instrumented engine",
    "engine_again": "`SELECT 1`, bare against bare",
    "client_ours": "call of an instrumented httpx client, clock",
    "client_again": "call of httpx, bare against bare, clock",
    "client_ours_cpu": "call of an instrumented httpx client, CPU",
    "client_again_cpu": "call of httpx, bare against bare, CPU",
}

KINDS = {"engine": "SQLAlchemy, CPU", "client": "httpx, clock"}

SHOWN = 8
"""Number of hostile texts shown: those with the largest growth."""


def operations(found: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the section."""
    for name in SAMPLED:
        rows = [row(title, found[name][step]) for step, title in TITLES.items()]
        yield "\n".join([f"### In a request, {name}", "", HEAD, *rows])
    yield from _contrib(found["contrib"], found["versions"])
    yield "\n".join(_statements(found["statements"]))
    yield "\n".join(_hostile(found["statements"]["hostile"]))


def _contrib(found: dict[str, Any], here: dict[str, str]) -> Iterator[str]:
    yield "### Contrib's instrumentors compared with ours"
    if "skipped" in found:
        yield f"Skipped: {found['skipped']}"
        return
    other = {name: version for name, version in found["versions"].items() if version not in {here.get(name), MISSING}}
    if other:
        yield "In a separate environment: " + ", ".join(f"{name} {version}" for name, version in other.items()) + "."
    head = "| | contrib, ratio to bare | spread | added, us | ours | our added cost relative to it | spread |"
    rows = [_beside(f"{title}, {name}", found[name][kind]) for kind, title in KINDS.items() for name in SAMPLED]
    yield "\n".join([head, "|---" * 7 + "|", *rows])


def _beside(title: str, one: dict[str, Any]) -> str:
    part = one["ours_added_part"]
    return (
        f"| {title} | {number(one['ratio'])} | {spread(one)} | {one['added_us']:.1f} | {number(one['ours']['ratio'])} "
        f"| {number(part['ratio'])} | {spread(part)} |"
    )


def _statements(found: dict[str, Any]) -> Iterator[str]:
    yield "### Parsing statements (CPU microseconds)\n"
    yield "| | ours | SQLite executes | ratio | spread |\n" + "|---" * 5 + "|"
    for name, title in (
        ("same", "one statement repeatedly"),
        ("uncached", "the same without our cache"),
        ("new", "another literal each time, both caches miss"),
    ):
        one = found[name]
        yield f"| {title} | {one['ours_us']:.2f} | {one['sqlite_us']:.2f} | {number(one['ratio'])} | {spread(one)} |"


def _hostile(found: dict[str, Any]) -> Iterator[str]:
    yield "### Parsing hostile text (CPU microseconds)\n"
    yield "| repeated, system | 2 KB | 8 KB | 64 KB | 8 KB to 2 KB | 64 KB to 8 KB |\n" + "|---" * 6 + "|"
    shown = sorted(found.items(), key=lambda pair: -max(one["ratio"] for one in pair[1]["growth"]))
    for name, one in shown[:SHOWN]:
        took = " | ".join(f"{each:.0f}" for each in one["us"])
        yield f"| {name} | {took} | " + " | ".join(number(each["ratio"]) for each in one["growth"]) + " |"
    slowest = max(found, key=lambda name: found[name]["us"][-1])
    yield f"\nThe slowest 64 KB of {len(found)} texts: {slowest}, {found[slowest]['us'][-1]:.0f} microseconds."
