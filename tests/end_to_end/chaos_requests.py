"""Requests of every kind to `chaos_app`, and its responses byte for byte, without times and what install adds."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from threading import Thread
from typing import Final, NamedTuple

KEY: Final = b"dGhlIHNhbXBsZSBub25jZQ=="
"""The key of RFC 6455's example."""

OPEN: Final = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + KEY
TEXT: Final = b"\x81\x85\x00\x00\x00\x00hello"
CLOSE: Final = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
CLOSED: Final = b"\x88\x02\x03\xe8"
"""Frames: from the client, with a mask of zeros, and the one with which the app says goodbye."""

OURS: Final = re.compile(rb"\r\n(?:x-request-id: ([^\r]*)|traceresponse: [^\r]*|date: [^\r]*)(?=\r\n)", re.IGNORECASE)

BODY: Final = b'{"sent":["\xc3\xa9",1.5,null]}'

REQUESTS: Final = {
    "json": b"GET /json/1",
    "head": b"HEAD /json/1",
    "validation": b"GET /json/one",
    "thread": b"GET /thread/7?page=1&token=secret",
    "body": b"POST /body",
    "bad body": b"POST /body",
    "empty": b"GET /empty",
    "cookies": b"GET /cookies",
    "missing": b"GET /no/such/page",
    "method": b"DELETE /file",
    "slash": b"GET /json/1/",
    "exception": b"GET /fails",
    "stream": b"GET /stream",
    "file": b"GET /file",
    "range": b"GET /file",
    "redirect": b"GET /redirect",
    "websocket": b"GET /websocket",
}
HEADERS: Final = {
    "body": b"content-type: application/json\r\ncontent-length: %d" % len(BODY),
    "bad body": b"content-type: application/json\r\ncontent-length: 3",
    "range": b"range: bytes=10-99",
    "websocket": OPEN,
}
BODIES: Final = {"body": BODY, "bad body": b'{"a'}


class Answer(NamedTuple):
    """A response as it came over the wire, without our headers and the date, and the request id that was among them."""

    wire: bytes
    request_id: str

    @property
    def status(self) -> int:
        """The status of its first line."""
        return int(self.wire.split(b" ", 2)[1])


def ask(port: int, name: str) -> Answer:
    """Send one of REQUESTS on a connection of its own; read until the server closes it."""
    closing = b"" if name == "websocket" else b"connection: close\r\n"
    head = HEADERS.get(name, b"accept: */*")
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(
            b"%b HTTP/1.1\r\nhost: chaos\r\n%b%b\r\n\r\n%b" % (REQUESTS[name], closing, head, BODIES.get(name, b""))
        )
        wire = b""
        if name == "websocket":
            wire = _until(sock, wire, b"\r\n\r\n")
            sock.sendall(TEXT)
            wire = _until(sock, wire, CLOSED)
            with suppress(OSError):  # some servers do not wait for it
                sock.sendall(CLOSE)
        wire = _until(sock, wire, None)
    end = wire.index(b"\r\n\r\n") + 2
    ids = [match[1].decode() for match in OURS.finditer(wire, 0, end) if match[1]]
    assert len(ids) <= 1, "the request id is sent once"
    return Answer(OURS.sub(b"", wire[:end]) + wire[end:], "".join(ids))


def _until(sock: socket.socket, wire: bytes, end: bytes | None) -> bytes:
    """Read on until what was read contains `end`; None: until the connection ends, in whatever way."""
    while end is None or end not in wire:
        try:
            part = sock.recv(65_536)
        except ConnectionResetError:
            part = b""
        if not part:
            assert end is None, wire
            break
        wire += part
    return wire


def ask_everything(port: int) -> dict[str, Answer]:
    """Send each of REQUESTS once, one after the other."""
    return {name: ask(port, name) for name in REQUESTS}


def ask_at_once(port: int, times: int, threads: int = 4) -> list[dict[str, Answer]]:
    """Send each of REQUESTS so many times from each of several threads."""
    answers: list[dict[str, Answer]] = []

    def run() -> None:
        for _ in range(times):
            answers.append(ask_everything(port))  # noqa: PERF401 - what was answered counts, if the next one is not

    running = [Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(answers) == times * threads
    return answers
