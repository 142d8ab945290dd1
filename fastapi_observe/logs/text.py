"""Log lines for people: one line for each record and request, and below a request what went wrong or took long."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal import json
from fastapi_observe.logs.line import LINE_LIMITS, MAX_MESSAGE, to_json_safe, to_text, truncate
from fastapi_observe.records.frames import DEFAULT_OWN_CODE, describe_exception
from fastapi_observe.terminal.exceptions import render_exception, render_heading
from fastapi_observe.terminal.style import (
    TIMES,
    Style,
    columns,
    escape_controls,
    format_duration,
    is_terminal,
    terminal_width,
)
from fastapi_observe.terminal.tree import render_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TextIO

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.redaction.redactor import Redactor
    from fastapi_observe.terminal.spans import SpanRow

STACK_PREFIX: Final = "    | "
"""Start of each row of a stack trace. No line starts with it."""

INDENT: Final = " " * 13
"""Start of each row below a request: the columns of the time. No line starts with it."""

MAX_TARGET: Final = 1024
MIN_ALIGNED_WIDTH: Final = 100
TARGET_COLUMNS: Final = 34
"""Characters of a path, and the columns that are kept for it on terminals of at least that width."""

SHOWN_ATTRIBUTE: Final = "_fastapi_observe_shown"
"""Attribute of an exception: the trace or request in which it has been printed."""

LEVEL_COLORS: Final = {"debug": "dim", "info": "green", "warn": "yellow"}


class TextFormat:
    """Formats lines for `stream`: short ids, and colors if it is a terminal.

    `spans` takes the spans of a request that has ended, by the ids of its trace and its server span. `link` returns
    the address of its trace in the console, or an empty string. `slow_after` returns the seconds from which a request
    is slow. `own_code` knows which frames of an exception are the
    user's. `raw_targets` shows paths and queries as they were sent. `all_trees` prints the tree of every request.
    """

    def __init__(self, stream: TextIO | None, *, raw_targets: bool = False, all_trees: bool = False) -> None:
        self._style = Style.for_stream(stream)
        self._aligned = is_terminal(stream)
        self._raw_targets = raw_targets
        self.all_trees = all_trees
        self.own_code = DEFAULT_OWN_CODE
        self.spans: Callable[[str, str], list[SpanRow]] = lambda _trace_id, _span_id: []
        self.link: Callable[[RequestRecord], str] = lambda _record: ""
        self.slow_after: Callable[[str], float] = lambda _endpoint: float("inf")
        pick = self._style.pick
        self._marks = {"info": pick("✓", "+"), "warn": "!", "error": pick("✗", "x")}
        self._sampled = {"head": pick("●", "*"), "tail": pick("◐", "t"), False: pick("○", "-")}

    def line(
        self, line: Mapping[str, Any], exc: BaseException | None = None, redactor: Redactor | None = None
    ) -> bytes:
        """Format any line: time, level, message, fields, short trace id; then `exc`, or else its stack trace."""
        level = line["level"]
        parts = [f"{self._head(level, level.upper().ljust(5))} {legible_text(line['message'])}"]
        parts.append(_pairs(line["fields"]))
        parts.append(line.get("trace_id", "")[:8])
        rows = ["  ".join(part for part in parts if part)]
        if exc is not None and redactor is not None:
            rows += self._exception(exc, redactor, line.get("trace_id") or line.get("request_id", ""))
        elif "exception" in line:
            # Other line ends are escaped.
            stack = line["exception"]["stacktrace"].removesuffix("\n").split("\n")
            rows += [f"{STACK_PREFIX}{legible_text(row)}" for row in stack]
        return self._encode(rows)

    def operation(self, line: Mapping[str, Any]) -> bytes:
        """Format the line of an operation. Of its exception the type and message only: the request prints the rest."""
        heading = render_heading(line["exception"], self._style) if "exception" in line else []
        rows = self.line({**line, "exception": {"stacktrace": ""}}).decode(self._style.encoding).split("\n")[:1]
        return self._encode([*rows, *(INDENT + row for row in heading)])

    def job(self, line: Mapping[str, Any], record: RequestRecord, redactor: Redactor) -> bytes:
        """Format the line of a job, and below one that failed or was slow its spans and its exception."""
        spans = self.spans(record.trace_id, record.span_id)
        plain = {key: value for key, value in line.items() if key != "exception"}
        rows = self.line(plain).decode(self._style.encoding).split("\n")[:1]
        # With `all_trees` the tree has been printed when the first span ended.
        if (record.exception is not None or self._is_slow(record)) and not self.all_trees:
            rows += self._tree(spans, record.span_id)
        if record.exception is not None:
            rows += self._exception(record.exception, redactor, record.trace_id)
        return self._encode(rows)

    def request(self, line: Mapping[str, Any], record: RequestRecord, redactor: Redactor) -> bytes:
        """Format a request line: time, mark, method, path, status, durations, sampled mark and short trace id.

        Below a request that failed or was slow are its spans, its exception and a link, all in one text.
        """
        fields = line["fields"]
        spans = self.spans(record.trace_id, record.span_id)
        failed, slow = line["level"] == "error", self._is_slow(record)
        rows = [self._request_row(line, record, slow=slow)]
        if failed or slow or self.all_trees:
            rows += self._tree(spans, record.span_id)
        if record.exception is not None:
            rows += self._exception(record.exception, redactor, record.trace_id or record.request_id)
        elif failed and fields.get("error_type"):
            rows.append(f"{INDENT}{self._style.paint(legible_text(fields['error_type']), 'red')}")
        link = self.link(record) if failed or slow else ""
        if link:
            rows.append(f"{INDENT}{self._style.pick('→', '->')} {self._style.paint(escape_controls(link), 'dim')}")
        return self._encode(rows)

    def tree(self, record: RequestRecord) -> bytes:
        """Format the tree of a request whose line is not written; empty if there are no spans."""
        rows = render_tree(self.spans(record.trace_id, record.span_id), self._style, width=terminal_width())
        return self._encode(rows) if rows else b""

    def _is_slow(self, record: RequestRecord) -> bool:
        if record.websocket:
            return False
        return (record.duration if record.ttfb is None else record.ttfb) > self.slow_after(record.endpoint)

    def _tree(self, spans: list[SpanRow], root_id: str) -> list[str]:
        return render_tree(spans, self._style, width=terminal_width(), indent=INDENT, root_id=root_id)

    def _request_row(self, line: Mapping[str, Any], record: RequestRecord, *, slow: bool) -> str:
        fields, paint = line["fields"], self._style.paint
        color = LEVEL_COLORS.get(line["level"], "red")
        target = f"{fields['method']} {self._target(fields, record)}"
        duration = format_duration(record.duration)
        if self._aligned and terminal_width() >= MIN_ALIGNED_WIDTH:
            target += " " * (TARGET_COLUMNS - columns(target))
            duration = duration.rjust(8)
        status = f"closed {fields['close_code']}" if "close_code" in fields else str(fields["status_code"])
        outcome = "" if fields["outcome"] in {"ok", "client_error", "server_error"} else fields["outcome"]
        mark = self._sampled[fields["sampled"]]
        parts = [
            f"{self._head(line['level'], self._marks[line['level']])} {target}",
            paint(status, color),
            paint(duration, "yellow" if slow else ""),
            self._time_of(fields, "db"),
            self._time_of(fields, "external"),
            outcome,
            "" if record.current.fields is None else _pairs(record.current.fields.fields),
            f"{mark} {line['trace_id'][:8]}" if "trace_id" in line else "",
        ]
        return "  ".join(part for part in parts if part)

    def _target(self, fields: Mapping[str, Any], record: RequestRecord) -> str:
        """Return the path that was requested: in development as it was sent, with its query, else redacted."""
        if not self._raw_targets:
            return legible_text(fields["url"])
        query = record.scope.get("query_string") or b""
        text = query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
        return escape_controls(truncate(f"{record.path}?{text}" if text else record.path, MAX_TARGET))

    def _time_of(self, fields: Mapping[str, Any], kind: str) -> str:
        """Return the time and number of the operations of one kind; empty without any."""
        if f"{kind}_ms" not in fields:
            return ""
        count = fields[f"{kind}_count"]
        times = f" {self._style.pick(TIMES, 'x')}{count}" if count > 1 else ""
        return f"{kind} {format_duration(fields[f'{kind}_ms'] / 1000)}{times}"

    def _exception(self, exc: BaseException, redactor: Redactor, where: str) -> list[str]:
        """Return the rows of an exception; its first row only if the same trace has printed it."""
        chain = describe_exception(exc, redactor, self.own_code)
        if where and getattr(exc, SHOWN_ATTRIBUTE, "") == where:
            first = render_heading(chain[0], self._style)[0]
            return [f"{INDENT}{first} {self._style.paint('(printed above)', 'dim')}"]
        try:
            setattr(exc, SHOWN_ATTRIBUTE, where)
        except Exception:  # noqa: BLE001 - an exception may forbid attributes; then it is printed again
            where = ""
        return render_exception(chain, self._style, indent=INDENT)

    def _head(self, level: str, mark: str) -> str:
        now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
        return f"{now} {self._style.paint(mark, LEVEL_COLORS.get(level, 'red'))}"

    def _encode(self, rows: Iterable[str]) -> bytes:
        return self._style.encode("\n".join(rows) + "\n")


def _pairs(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{legible_text(key)}={_readable(value)}" for key, value in fields.items())


def legible_text(value: object) -> str:
    """Return `value` as text with control characters escaped."""
    return escape_controls(to_text(value, MAX_MESSAGE))


def _readable(value: Any) -> str:
    if isinstance(value, str):
        text = legible_text(value)
        return f'"{text}"' if not text or " " in text else text
    return legible_text(json.dumps(to_json_safe(value, LINE_LIMITS[1], LINE_LIMITS[1].depth, ())).decode())
