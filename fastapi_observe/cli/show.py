"""The command `show`: a trace of a running app, from its development console."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from fastapi_observe.cli.output import EXIT_ERROR, EXIT_PROBLEM, add_json_argument, printable
from fastapi_observe.cli.scrape import NO_URL, add_token_arguments, read_token, split_app_url
from fastapi_observe.console.discovery import running_servers, working_directory
from fastapi_observe.slo.http_get import GetError, get, iter_body
from fastapi_observe.terminal.exceptions import render_exception
from fastapi_observe.terminal.spans import SpanRow
from fastapi_observe.terminal.style import Style, escape_controls, format_duration, terminal_width
from fastapi_observe.terminal.tree import render_tree

if TYPE_CHECKING:
    import argparse

    from fastapi_observe.cli.output import Commands
    from fastapi_observe.console.discovery import RunningServer

MAX_SHOWN_ROWS: Final = 200
MAX_LOG_LINES: Final = 50
MAX_LOG_LINE_LENGTH: Final = 2000
"""Rows of the tree, log lines, and characters of a log line that are printed. `--json` has everything."""

MAX_QUOTED_LENGTH: Final = 50
"""Characters of an invalid name that an error shows."""

REQUEST_MESSAGES: Final = frozenset({"HTTP request completed", "WebSocket connection closed"})
"""Log lines that repeat what the first row says."""

_NOT_FOUND: Final = {
    "last": "no request yet; send the app one",
    "slow": "no request yet; send the app one",
    "failed": "no request that has failed",
}

MAX_LISTED_SERVERS: Final = 5
"""Servers that a message lists."""

NO_SERVER: Final = "no development server of this user was found"
NO_SERVER_STEP: Final = "start one (fastapi dev main.py) and send it a request, or pass --url http://127.0.0.1:8000"


class ShowError(Exception):
    """Raised if the console cannot be read. The message has the reason and the next step."""

    def __init__(self, reason: str, step: str) -> None:
        super().__init__(f"{printable(reason)}; {step}")


def add_show(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        help="show a trace of the app that runs in development",
        description="Print a request of the running app with its spans, exception and log lines, as the development "
        "console holds it.",
        epilog="Without --url it reads the newest development server that this user started in the current directory. "
        "If there is none, it reads the one of another directory, and says so. If there are several of them, pass "
        "--url. Exits with 1 if there is no such trace, with 2 if the console cannot be read.",
    )
    parser.add_argument(
        "trace",
        metavar="last|slow|failed|TRACE_ID",
        help="the last request, the slowest, the last that failed, or a trace id or the first digits of one",
    )
    add_json_argument(parser)
    parser.add_argument(
        "--url", metavar="URL", help="of the app or its console, such as http://127.0.0.1:8000 or .../observe"
    )
    add_token_arguments(parser, "token of the console")
    parser.set_defaults(run=show)


def show(args: argparse.Namespace) -> int:
    """Read the trace, and print it."""
    try:
        url, token, server = _choose(args)
        found = _read(url, args.trace, token, allow_http_token=args.allow_http_token)
    except ShowError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    if found is None:
        wanted = _NOT_FOUND.get(args.trace, f"no such trace: {printable(args.trace)}; open it to see those it has")
        sys.stderr.write(f"{printable(url)} holds {wanted}\n")
        return EXIT_PROBLEM
    if args.json:
        sys.stdout.write(json.dumps(found | _server_fields(server)) + "\n")
        return 0
    style = Style.for_stream(sys.stdout)
    try:
        rows = [*_elsewhere(server), *_render(found, style), f"{url}/#trace={escape_controls(str(found['trace_id']))}"]
        text = "\n".join(rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        sys.stderr.write(f"{ShowError(f'{url} is not the console of this version', 'use --json')}\n")
        return EXIT_ERROR
    sys.stdout.write(style.encode(text + "\n").decode(style.encoding))
    return 0


def _choose(args: argparse.Namespace) -> tuple[str, str | None, RunningServer | None]:
    """Return the URL of the console, the token for it, and the server that was found if there is no `--url`."""
    token = read_token(args)
    if args.url is not None:
        return *_console_url(args.url, token), None
    try:
        servers = running_servers(os.environ.get("OBSERVE_MULTIPROCESS_DIRECTORY") or None)
    except OSError as error:
        raise ShowError(f"development servers cannot be looked up: {error}", "pass --url") from error
    if not servers:
        raise ShowError(NO_SERVER, NO_SERVER_STEP)
    here = [server for server in servers if _is_here(server)]
    newest = (here or servers)[0]
    others = [server for server in servers if server.url != newest.url]  # its other workers have the same URL
    if others and not here:
        raise ShowError(
            f"no development server of this directory was found, but several of others: {_list([newest, *others])}",
            f"pass --url, such as --url {printable(newest.url)}, or change to the directory of one",
        )
    sys.stderr.write(f"Reading {_describe(newest)}.\n")
    if others:
        sys.stderr.write(f"Also running, for --url: {_list(others)}.\n")
    return newest.url, token or newest.token, newest


def _is_here(server: RunningServer) -> bool:
    return server.directory != "" and server.directory == working_directory()


def _elsewhere(server: RunningServer | None) -> list[str]:
    """Return the first row of the output if the server that was found runs in another directory."""
    if server is None or _is_here(server):
        return []
    return [f"No development server of this directory runs. This is {_describe(server)}:"]


def _server_fields(server: RunningServer | None) -> dict[str, Any]:
    """Return what `--json` adds about the server that was found, without its token."""
    if server is None:
        return {}
    fields = {"url": server.url, "service": server.service, "pid": server.pid, "directory": server.directory}
    return {"server": fields}


def _describe(server: RunningServer) -> str:
    directory = f", in {server.directory}" if server.directory else ""
    return printable(f"{server.service} at {server.url} (pid {server.pid}{directory})")


def _list(servers: list[RunningServer]) -> str:
    return "; ".join(map(_describe, servers[:MAX_LISTED_SERVERS]))


def _console_url(url: str, token: str | None) -> tuple[str, str | None]:
    """Return the URL of a console without query and last slash, and the token, which may be in the query."""
    parts = split_app_url(url)
    if parts is None:
        raise ShowError(*NO_URL)
    path = parts.path.rstrip("/") or "/observe"
    return f"{parts.scheme}://{parts.netloc}{path}", token or parse_qs(parts.query).get("t", [None])[0]


def _read(url: str, name: str, token: str | None, *, allow_http_token: bool) -> dict[str, Any] | None:
    """Return a trace of the console; None if it does not hold it. Raises `ShowError`."""
    if not name.isalnum() or not name.isascii():
        raise ShowError(f"invalid trace {name[:MAX_QUOTED_LENGTH]!r}", "use last, slow, failed or a trace id")
    target = f"{url}/api/traces/{name.lower()}"
    try:
        with get(
            target, headers={"Accept": "application/json"}, token=token, allow_http_token=allow_http_token
        ) as response:
            body = b"".join(iter_body(response))
            is_console = "lit-html" in response.headers.get("content-security-policy", "")
            status = response.status_code
    except GetError as error:
        raise ShowError(f"cannot read {url}: {error.reason}", error.step) from error
    if status == 404 and is_console:  # noqa: PLR2004
        return None
    if status != 200:  # noqa: PLR2004
        step = "the app must run in development; from another machine pass --token"
        raise ShowError(f"there is no console for this client at {url} (HTTP {status})", step)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ShowError(f"{url} is not a console: the response is not a JSON object", "check --url")
    return found


def _render(trace: dict[str, Any], style: Style) -> list[str]:
    """Return the rows of a trace: what ended in it, its tree, its exceptions and its log lines."""
    rows = [_summary_row(summary, style) for summary in trace["summaries"]]
    rows.append(style.paint(f"trace {escape_controls(str(trace['trace_id']))}", "dim"))
    spans = [_to_row(span) for span in trace["spans"]]
    rows += render_tree(spans, style, width=terminal_width(), max_rows=MAX_SHOWN_ROWS)
    if trace["dropped_spans"]:
        rows.append(f"{trace['dropped_spans']} further spans were not held")
    for summary in trace["summaries"]:
        if summary["exception"]:
            rows += ["", *render_exception(summary["exception"], style)]
    lines = [line for line in trace["lines"] if line.get("message") not in REQUEST_MESSAGES]
    if lines:
        rows += ["", *(_line_row(line, style) for line in lines[:MAX_LOG_LINES])]
    if len(lines) > MAX_LOG_LINES:
        rows.append(f"{len(lines) - MAX_LOG_LINES} more lines")
    return rows


def _summary_row(summary: dict[str, Any], style: Style) -> str:
    started = datetime.fromtimestamp(summary["time"] / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    failed = bool(summary["failed"])
    kinds = [kind for kind in ("db", "external") if f"{kind}_ms" in summary]
    parts = [
        f"{style.pick('✗', 'x') if failed else style.pick('✓', '+')} {summary['method']} {summary['path']}".strip(),
        str(summary["status"] or ""),
        format_duration(float(summary["duration_ms"]) / 1000),
        *[f"{kind} {format_duration(summary[f'{kind}_ms'] / 1000)}" for kind in kinds],
        "" if summary["outcome"] == "ok" else str(summary["outcome"]),
        f"{summary['method']} {summary['endpoint']}".strip() if summary["endpoint"] != summary["path"] else "",
        started,
    ]
    first, *rest = [escape_controls(part) for part in parts]
    return "  ".join([style.paint(first, "red" if failed else "green"), *(part for part in rest if part)])


def _line_row(line: dict[str, Any], style: Style) -> str:
    level = str(line.get("level", ""))
    color = {"warn": "yellow", "error": "red", "fatal": "red"}.get(level, "dim")
    fields = line.get("fields") or {}
    text = "  ".join(
        [str(line.get("message", "")), " ".join(f"{key}={json.dumps(value)}" for key, value in fields.items())]
    )
    time = str(line.get("timestamp", ""))[11:23]
    level = style.paint(escape_controls(level.upper().ljust(5)), color)
    return f"{escape_controls(time)} {level} {escape_controls(text[:MAX_LOG_LINE_LENGTH])}".rstrip()


def _to_row(span: dict[str, Any]) -> SpanRow:
    return SpanRow(
        str(span["span_id"]),
        str(span["parent_id"]),
        str(span["name"]),
        str(span["kind"]),
        int(span["start"]),
        int(span["end"]),
        str(span["status"]),
        dict(span["attributes"]),
        (),
        str(span["scope"]),
    )
