"""No value of a client or an object can forge a line, split one in two, or recurse."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from comparison import Server, ask, http_scope
from fastapi import FastAPI
from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen

FORGED = '{"level":"fatal","message":"forged"}'
CORPUS = (
    f"\n{FORGED}",
    f"\r\n{FORGED}\r\n",
    f"\r{FORGED}",
    f"\u2028{FORGED}\u2029{FORGED}",
    f"\x85{FORGED}\x0b{FORGED}\x0c{FORGED}",
    f"\x1b[2K\x1b[1G{FORGED}",
    f"\x1b]0;title\x07{FORGED}",
    f"\x9b31m{FORGED}",
    f"\u202e{FORGED[::-1]}\u202c",
    f"\u2066{FORGED}\u2069",
    f"\x00{FORGED}",
    f"\x08\x08\x08{FORGED}",
    f'"}}\n{FORGED}',
    f'\\"}}\\n{FORGED}',
    f"\ud800{FORGED}",
    "{0} {name} {__class__} {x:>99999999} {",
    "%s %d %(name)s %",
    "<red>x</red> </> <lvl>",
)
"""What an attacker may send to write a line of the log."""


def hidden(character: str) -> bool:
    """Return whether a character moves the cursor, ends a line, turns the text or starts a terminal command."""
    code = ord(character)
    return (
        (code < 32 and character != "\n")
        or 0x7F <= code <= 0x9F
        or character in "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def log_everywhere(seen: Seen, text: str) -> None:
    """Log `text` as message, field, name and exception, by our logger, loguru and `logging`."""
    log = seen.observe.log
    log.info(text, field=text, nested={text: [text]})
    logger.info(text)
    logger.bind(field=text).info("bound")
    if text.isascii() or text.encode("utf-8", "ignore").decode() == text:  # pytest cannot pass a lone surrogate on
        logging.getLogger("user").warning("said %s", text, extra={"field": text})
        logging.getLogger("user").warning(text)
        logging.getLogger(text).warning("named")
    try:
        raise ValueError(text)  # noqa: TRY301 - what is said is the point
    except ValueError:
        log.exception("failed", field=text)
    with seen.observe.tracing.span(text):
        log.info("inside")


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_a_json_line_is_one_line(observed: Callable[..., Seen], text: str, tmp_path: Path) -> None:
    """On standard output and in the file each line is one JSON object, and none has the forged level."""
    file = tmp_path / "shop.log"
    seen = observed(FastAPI(), log_file=str(file), log_format="json")
    log_everywhere(seen, text)
    seen.observe.flush()
    lines = seen.lines
    assert len(lines) in {5, 8}
    assert not [line for line in lines if line["level"] == "fatal" or line["message"] == "forged"]
    (written,) = tmp_path.glob("shop*.log")
    data = written.read_bytes()
    assert not set(data) & {*range(10), *range(11, 32), 127}
    assert [json.loads(line)["message"] for line in data.splitlines()] == [line["message"] for line in lines]
    for raw in ("\u2028", "\u2029", "\x85"):
        assert raw.encode() not in data


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_hidden_characters_are_escaped_in_text(
    observed: Callable[..., Seen], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new line starts with a time or a blank."""
    seen = observed(FastAPI(), log_format="text")
    log_everywhere(seen, text)
    seen.observe.flush()
    written = capsys.readouterr().out
    assert not [character for character in written if hidden(character)]
    for line in written.splitlines():
        assert line[:1] in {" ", ""} or line[:2].isdigit(), line


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_a_request_cannot_forge_a_line(observed: Callable[..., Seen], text: str) -> None:
    """Path, query, user agent and method are values of one line."""
    seen = observed(app := FastAPI(), log_format="json")
    raw = text.encode("utf-8", "surrogatepass")
    scope = http_scope(f"/{text}", text, query_string=raw, headers=[(b"host", raw), (b"user-agent", raw)])
    asyncio.run(ask(app, scope, Server([{"type": "http.request", "body": b"", "more_body": False}]), []))
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.request"]
    assert len(seen.lines) < 4
    assert line["message"] == "HTTP request completed"
    assert line["fields"]["method"] == "_OTHER"


# Nothing calls itself


class Chatty:
    """An object that logs when it is converted to text, and when it is deleted."""

    def __init__(self, how: Callable[[str], object]) -> None:
        self._how = how

    def __str__(self) -> str:
        self._how("asked for its text")
        return "said"

    __repr__ = __str__

    def __del__(self) -> None:
        self._how("deleted")


@pytest.mark.parametrize("how", ["ours", "loguru", "logging"])
def test_an_object_that_logs_while_it_is_logged(observed: Callable[..., Seen], how: str) -> None:
    """Each call is one line, and none waits for itself."""
    seen = observed(FastAPI())
    say_it: dict[str, Callable[[str], object]] = {
        "ours": seen.observe.log.info,
        "loguru": logger.info,
        "logging": logging.getLogger("user").warning,
    }
    speaking = Chatty(say_it[how])
    seen.observe.log.info("first", thing=speaking)
    logging.getLogger("user").warning("second %s", speaking)
    del speaking  # pytest's own handler keeps it alive in its records
    messages = [line["message"] for line in seen.lines]
    assert [one for one in messages if one not in {"asked for its text", "deleted"}] == ["first", "second said"]
    assert "asked for its text" in messages


def test_a_sink_and_a_handler_that_log(observed: Callable[..., Seen]) -> None:
    """A sink or handler of the user may log: one more line, without end of recursion."""
    seen = observed(FastAPI())
    messages: list[str] = []

    def sink(message: Any) -> None:
        messages.append(str(message.record["message"]))
        if "again" not in messages[-1]:
            logging.getLogger("user").warning("sink again")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())
            if "again" not in messages[-1]:
                seen.observe.log.info("handler again")

    handler, number = Handler(), logger.add(sink, format="{message}")
    logging.getLogger("user").addHandler(handler)
    try:
        logger.info("to loguru")
        logging.getLogger("user").warning("to logging")
    finally:
        logger.remove(number)
        logging.getLogger("user").removeHandler(handler)
    messages = [line["message"] for line in seen.lines]
    assert messages.count("to loguru") == messages.count("to logging") == 1
    assert {"sink again", "handler again"} <= set(messages)
    assert len(messages) < 10
