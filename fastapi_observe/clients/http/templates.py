"""`Templates`: which path template of a client fits a URL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_PATH: Final = 1024
"""Characters of a path that are shown, and that a template is looked for in."""


class Templates:
    """The path templates of one client; the first that fits names a call.

    `{name}` stands for one segment, `{name:path}` for any number of them. `prefix` is the path of the client's base
    URL: templates fit behind it too.
    """

    def __init__(self, templates: Iterable[str], prefix: str = "") -> None:
        if isinstance(templates, str):
            raise TypeError(f'templates is a str; pass a list of them: templates=["{templates}"]')
        self._templates = tuple(templates)
        for template in self._templates:
            if not isinstance(template, str) or not template.startswith("/"):
                raise ValueError(f"{template!r:.80} is no path template; write it like /invoices/{{id}}")
        choices = "|".join(f"({_pattern(template)})" for template in self._templates)
        self._pattern = re.compile(f"(?:{re.escape(prefix.rstrip('/'))})?(?:{choices})")

    def find(self, raw_path: bytes) -> str | None:
        """Return the template of the path of a URL, as it is sent, or None."""
        if not self._templates:
            return None
        path = raw_path.partition(b"?")[0].decode("latin-1")
        if "%" in path:  # an encoded slash is part of its segment
            path = unquote(path.replace("%2F", "%252F").replace("%2f", "%252F"))
        if len(path) > LONGEST_PATH:
            return None
        match = self._pattern.fullmatch(path)
        return None if match is None or match.lastindex is None else self._templates[match.lastindex - 1]


def _pattern(template: str) -> str:
    parts = re.split(r"(\{[^{}/]*\})", template)
    return "".join(
        re.escape(part) if at % 2 == 0 else ".+" if part.endswith(":path}") else "[^/]+"
        for at, part in enumerate(parts)
    )
