"""Text on a terminal: colors, width, the characters it can show, and escaping."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing import Any

DEFAULT_WIDTH: Final = 100
MIN_WIDTH: Final = 40
MAX_WIDTH: Final = 200
"""Columns: where the width is unknown, and the limits of what is used."""

CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Characters that move a terminal's cursor, break a line or change the reading direction, and invisible ones."""

_COLORS: Final = {"dim": "\x1b[2m", "green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[31m", "bold": "\x1b[1m"}
_RESET: Final = "\x1b[0m"
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_DRAWING: Final = "✓✗●◐○├└│█…→←" + TIMES


class Style(NamedTuple):
    """The abilities of a terminal."""

    colors: bool = False
    unicode: bool = True
    encoding: str = "utf-8"

    @classmethod
    def for_stream(cls, stream: Any) -> Style:
        """Return the style of a stream: `NO_COLOR` and `FORCE_COLOR` decide before its being a terminal does."""
        encoding = getattr(stream, "encoding", None) or "utf-8"
        colors = is_terminal(stream) or bool(os.environ.get("FORCE_COLOR"))
        colors = colors and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        try:
            _DRAWING.encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return cls(colors, unicode=False, encoding="ascii")
        return cls(colors, unicode=True, encoding=encoding)

    def paint(self, text: str, color: str) -> str:
        """Return a text in a color, where there are colors."""
        return f"{_COLORS[color]}{text}{_RESET}" if self.colors and color and text else text

    def pick(self, preferred: str, plain: str) -> str:
        """Return the preferred characters where they can be shown, else the plain ones."""
        return preferred if self.unicode else plain

    def encode(self, text: str) -> bytes:
        """Encode a text for the stream; what it cannot show is escaped."""
        return text.encode(self.encoding, "backslashreplace")


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal. A closed one is not."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def terminal_width() -> int:
    """Return the columns of the terminal now; `COLUMNS` is considered first."""
    return min(MAX_WIDTH, max(MIN_WIDTH, shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns))


def escape_controls(text: str) -> str:
    """Return a text with its control characters escaped: it stays on its line and cannot move the cursor."""
    return CONTROL.sub(_escape_character, text)


def _escape_character(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - 1, 2 bytes


def columns(text: str) -> int:
    """Return how many columns an escaped text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def fit(text: str, width: int, ellipsis: str = "…") -> str:
    """Return a text cut and padded to exactly `width` columns."""
    if columns(text) > width:
        while text and columns(text) > width - len(ellipsis):
            text = text[: min(len(text) - 1, width)]
        text += ellipsis
    return text + " " * (width - columns(text))


def format_duration(seconds: float) -> str:
    """Return a duration in milliseconds, from a second on in seconds."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    milliseconds = seconds * 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"  # noqa: PLR2004 - two digits
