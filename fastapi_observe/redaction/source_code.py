"""Lines of source code in tracebacks: where the value of a secret name ends, so that the rest of the line stays."""

from __future__ import annotations

import re
from typing import Final

MAX_SOURCE_LINES: Final = 16
"""Lines of one statement in a traceback."""

_FRAME: Final = re.compile(r"[ |+]{0,64}+File \"")
_INDENTED: Final = re.compile(r"(?: {1,64}+\|)? {4}")
_LITERAL: Final = re.compile(r"\"(?>(?:[^\"\\\n]|\\.)*)\"?|'(?>(?:[^'\\\n]|\\.)*)'?")
_IN_STRING: Final = re.compile(rf"\\*+(?:{_LITERAL.pattern})|[^\s\"']*+")
_KEYWORD: Final = re.compile(r" (?:and|as|else|for|if|in|is|not|or) ")


def is_source_line(text: str, at: int) -> bool:
    """Return whether a position is in a line of source code: an indented one, below the frame of a traceback."""
    if text.find('File "', 0, at) < 0:
        return False
    start = text.rfind("\n", 0, at) + 1
    for _ in range(MAX_SOURCE_LINES):
        if not start or _INDENTED.match(text, start) is None:
            return False
        start = text.rfind("\n", 0, start - 1) + 1
        if _FRAME.match(text, start) is not None:
            return True
    return False


def expression_end(text: str, at: int) -> int:
    """Return the end of the expression at a position of a source line, or of the word if it is inside a string."""
    line_end = text.find("\n", at)
    line_end = len(text) if line_end < 0 else line_end
    quote = _open_quote(text, text.rfind("\n", 0, at) + 1, at)
    if quote:
        word = None if text.startswith(quote, at) else _IN_STRING.match(text, at, line_end)
        return at if word is None else word.end()
    depth, end = 0, at
    while end < line_end:
        character = text[end]
        if character in "\"'":
            end = _LITERAL.match(text, end, line_end).end()  # type: ignore[union-attr]  # it starts with a quote
            continue
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                break
        elif not depth and (character in ",;:#" or (character == " " and _KEYWORD.match(text, end) is not None)):
            break
        end += 1
    return at + len(text[at:end].rstrip())


def _open_quote(text: str, start: int, end: int) -> str:
    """Return the quote of the string literal that is open at `end`, or an empty string."""
    quote, at = "", start
    while at < end:
        character = text[at]
        if character == "\\":
            at += 1
        elif not quote and character in "\"'":
            quote = character
        elif character == quote:
            quote = ""
        at += 1
    return quote
