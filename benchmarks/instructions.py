"""Executed instructions of one request under callgrind: unlike time, they do not depend on what else runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.inprocess import MiscountError, progress
from benchmarks.instruction_worker import COUNTED, OPERATIONS
from benchmarks.picture import INSTRUCTIONS, alt_of
from benchmarks.process import ROOT, Worker, environment
from benchmarks.worker import WARM_UP

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("callgrind.c")

TIMEOUT = 600
"""Seconds for one process under callgrind."""

MARGIN = 0.02
"""Difference of two ratios that is more than the noise: the writer of log lines wakes up by the clock."""

PEERS = ("native_operations", "contrib_asgi_lean", "instrumentator", "correlation_id")
STACK = "stack"
"""Peers. The hand-wired stack has a process of its own, since it sets up loguru."""


class Run(NamedTuple):
    """One process: what the worker measures, and the row of each variant of the request."""

    kind: str
    ratio: float
    titles: dict[str, str]
    app: str = "ours"


RUNS = (
    Run(
        "requests",
        0.1,
        {
            "number": "10 %",
            "number?a=1": "10 %, with `?a=1`",
            "trivial": "10 %, cheaper endpoint: string parameter, return type",
            "body": "10 %, POST with a body",
            "404": "10 %, 404",
            "traceparent": "sampled `traceparent`",
        },
    ),
    Run("requests", 1.0, {"number": "100 %", "number?a=1": "100 %, with `?a=1`"}),
    Run("requests", 1.0, {"number": "100 %, exported"}, "ours_exporting"),
    Run("concurrent", 0.1, {"number": "10 %, 32 concurrent requests"}),
    Run(
        "served",
        0.1,
        {"number": "10 %, served by uvicorn, keep-alive", "number?a=1": "10 %, served, with `?a=1`"},
    ),
)

SAMPLED = {"unsampled": 0.0, "sampled": 1.0}


class CallgrindError(Exception):
    """The process under callgrind failed, or did not write every count."""


def missing_tools() -> list[str]:
    """Return the programs that are needed and not installed."""
    missing = [name for name in ("valgrind", "gcc") if shutil.which(name) is None]
    if not missing and not any(Path(path, "valgrind/callgrind.h").exists() for path in _include_paths()):
        missing.append("valgrind/callgrind.h")
    return missing


def _include_paths() -> Iterator[str]:
    yield "/usr/include"
    yield "/usr/local/include"
    if (valgrind := shutil.which("valgrind")) is not None:
        yield str(Path(valgrind).resolve().parent.parent / "include")


def build(directory: Path) -> Path:
    """Compile the functions that start and stop counting."""
    library = directory / "callgrind.so"
    includes = [f"-I{path}" for path in _include_paths() if path != "/usr/include"]
    command = ["gcc", "-shared", "-fPIC", "-O1", *includes, "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)  # noqa: S603 - a file of this package
    return library


def count(library: Path, *arguments: str, extra: dict[str, str] | None = None) -> dict[str, float]:
    """Run a worker under callgrind and return the instructions of one request by the name of the count."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, tempfile.TemporaryFile() as lines:
        found = Path(directory)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={found / 'out'}"]
        command += [sys.executable, "-m", "benchmarks.instruction_worker", *arguments]
        done = subprocess.run(  # noqa: S603 - a module of this package
            command,
            cwd=ROOT,
            env=environment({**(extra or {}), "BENCH_CALLGRIND": str(library)}),
            stdout=lines,  # the log lines of ours go to a real file, as in the other measurements
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        counts = dict(filter(None, (parse_dump(path.read_text("utf-8", "replace")) for path in found.glob("out.*"))))
    if done.returncode or not counts:
        raise CallgrindError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return {name: total / COUNTED for name, total in counts.items()}


def parse_dump(text: str) -> tuple[str, int] | None:
    """Return the name and the number of instructions in one file of callgrind; None if it has no name."""
    name, total = "", 0
    for line in text.splitlines():
        if line.startswith("desc: Trigger: Client Request:"):
            name = line.rpartition(":")[2].strip()
        elif line.startswith(("summary:", "totals:")):
            total = int(line.split()[1])
    return (name, total) if name else None


def compare(bare: float, observed: float) -> dict[str, float]:
    """Return a row of the results, in thousands of instructions."""
    return {"bare": bare / 1000, "observed": observed / 1000, "ratio": observed / bare}


def run() -> dict[str, Any]:
    """Measure all rows."""
    rows: dict[str, Any] = {}
    peers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        library = build(Path(directory))
        for one in RUNS:
            progress(f"instructions: {', '.join(one.titles.values())}")
            counts = _count_run(library, one)
            for variant, title in one.titles.items():
                rows[title] = compare(counts[f"bare@{variant}"], counts[f"{one.app}@{variant}"])
        for title, ratio in SAMPLED.items():
            progress(f"instructions: operations, {title}")
            counts = count(library, "operations", str(ratio))
            for step, name in (("statement", "SQLAlchemy statement"), ("call", "httpx call")):
                bare, ours = (counts[f"{step}_{kind}"] - counts["none"] for kind in ("bare", "ours"))
                rows[f"{name}, {title}"] = compare(bare / OPERATIONS, ours / OPERATIONS)
        for part, ratio in (("10%", 0.1), ("100%", 1.0)):
            peers[f"ours {part}"] = rows[part.replace("%", " %")]
            for names in (PEERS, (STACK,)):
                progress(f"instructions: {', '.join(names)}, {part}")
                counts = count(library, "requests", str(ratio), ",".join(("bare", *names)), "number")
                for name in names:
                    peers[f"{name} {part}"] = compare(counts["bare@number"], counts[f"{name}@number"])
    return {"rows": rows, "peers": peers}


def _count_run(library: Path, one: Run) -> dict[str, float]:
    arguments = one.kind, str(one.ratio), f"bare,{one.app}", *one.titles
    if one.app != "ours_exporting":
        return count(library, *arguments)
    with Worker("receiver") as receiver:
        extra = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.said}"}
        counts = count(library, *arguments, extra=extra)
        received = receiver.ask("count")
    if received != WARM_UP + COUNTED:
        raise MiscountError(f"the receiver got {received} spans of {WARM_UP + COUNTED} requests")
    return counts


def changes(committed: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each row: its ratio, and that of the committed results."""
    for part in ("rows", "peers"):
        for title, one in now[part].items():
            before = committed.get(part, {}).get(title)
            if before is None:
                yield f"{title}: {one['ratio']:.3f} (new)"
                continue
            change = one["ratio"] - before["ratio"]
            verdict = "same" if abs(change) <= MARGIN else "more" if change > 0 else "fewer"
            yield f"{title}: {one['ratio']:.3f}, committed {before['ratio']:.3f} ({change:+.3f}, {verdict})"


def report(found: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the section of RESULTS.md."""
    head = "| | ratio to bare | bare, thousands | added, thousands |\n|---|---|---|---|"
    yield (
        "Executed instructions of one request, in all threads, counted by callgrind; they repeat to about 0.01 on any "
        "machine. Ours is `install(app)` with all signals at the defaults, without the limit of traces per second; "
        "log lines go to a file. Statements (open connection, SQLite) and calls (httpx with a mock transport) are "
        f"{OPERATIONS} in a request, whose own instructions are subtracted."
    )
    yield f"![{alt_of(pictured(found), INSTRUCTIONS)}](instructions.svg)"
    yield "\n".join([head, *(_row(title, one) for title, one in found["rows"].items())])
    yield "### Peers, instructions"
    yield "\n".join([head, *(_row(title, one) for title, one in _by_ratio(found["peers"]))])


def pictured(found: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of ours and of the peers as the sections that a picture is drawn from."""
    ours = {f"trivial {part}": found["peers"][f"ours {part}"] for part in ("10%", "100%")}
    peers = {name: one for name, one in found["peers"].items() if not name.startswith("ours ")}
    return {"inprocess": {"variants": ours}, "peers": peers}


def _by_ratio(rows: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(rows.items(), key=lambda item: float(item[1]["ratio"]))


def _row(title: str, one: dict[str, float]) -> str:
    return f"| {title} | {one['ratio']:.2f} | {one['bare']:.0f} | {one['observed'] - one['bare']:.0f} |"
