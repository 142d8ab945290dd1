"""Secret path parameters: which segments of a path are the value of a parameter such as `{token}`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.redaction.patterns import REDACTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PARAMETER: Final = re.compile(r"\{([^{}:]+)[^{}]*\}")
"""A parameter of a route template; its name is the first group."""

MAX_SECRET_TEMPLATES: Final = 256
"""Templates with secret parameters that the paths of one app are compared with."""

MAX_SEGMENTS: Final = 64
"""Segments of a path that are compared. The rest of a longer path is redacted if the app has secret templates."""


def secret_segments(template: str, is_secret: Callable[[str], bool]) -> tuple[int, ...]:
    """Return which segments of a template hold a parameter with a secret name, counted from the start."""
    return tuple(
        at for at, segment in enumerate(template.split("/")) if any(map(is_secret, PARAMETER.findall(segment)))
    )


def hide_parameters(path: str, template: str, secret: tuple[int, ...]) -> str:
    """Return a path without the values of the secret segments of the template that it matched."""
    segments, named = path.split("/"), template.split("/")
    extra = len(segments) - len(named)
    # A server may remove a prefix before it routes (start at `extra`), or the last parameter take several segments.
    for start in (0, extra):
        aligned = zip(named[1:], segments[start + 1 :], strict=False)
        if extra >= 0 and all("{" in name or name == segment for name, segment in aligned):
            for at in secret:
                is_last = at == len(named) - 1
                segments[start + at : len(segments) if is_last else start + at + 1] = [REDACTED]
            return "/".join(segments)
    return f"/{REDACTED}"


class _Template(NamedTuple):
    segments: list[str]
    secret: tuple[int, ...]

    def match(self, segments: list[str], start: int) -> set[int]:
        """Return the segments that are secret if the template starts at `start`; none where it does not match."""
        hidden: set[int] = set()
        for at, segment in enumerate(segments[start:]):
            if at in self.secret:
                hidden.add(start + at)
                if at == len(self.segments) - 1:  # the last parameter may take several segments
                    hidden.update(range(start + at, len(segments)))
            if at >= len(self.segments) or not ("{" in self.segments[at] or self.segments[at] == segment):
                break
        return hidden


class SecretRoutes:
    """The templates of one app that have secret parameters. `is_empty` if there are none."""

    __slots__ = ("_by_first_word", "_from_root", "is_empty")

    def __init__(self, templates: Iterable[str], is_secret: Callable[[str], bool]) -> None:
        self._from_root: list[_Template] = []  # start with a parameter, so compared with the whole path only
        self._by_first_word: dict[str, list[_Template]] = {}
        secret = {each: hidden for each in templates if (hidden := secret_segments(each, is_secret))}
        for template in list(secret)[:MAX_SECRET_TEMPLATES]:
            parsed = _Template(template.split("/")[1:], tuple(at - 1 for at in secret[template]))
            first = parsed.segments[0]
            (self._from_root if "{" in first else self._by_first_word.setdefault(first, [])).append(parsed)
        self.is_empty = not secret

    def hide(self, path: str) -> str:
        """Return a path without the segments at the place of a secret parameter.

        Each template is compared from the start of the path and after any prefix, which a server may remove. Only
        the part of a template before its parameter has to match.
        """
        segments = path.split("/", MAX_SEGMENTS)
        hidden: set[int] = {MAX_SEGMENTS} if len(segments) > MAX_SEGMENTS else set()
        hidden |= self._match(segments)
        if "" in segments[1:] or "." in segments:  # the app, or a server in front of it, may ignore these segments
            kept = [at for at, segment in enumerate(segments) if not at or segment not in {"", "."}]
            hidden.update(kept[at] for at in self._match([segments[at] for at in kept]))
        for at in hidden:
            segments[at] = segments[at] and REDACTED
        return "/".join(segments) if hidden else path

    def _match(self, segments: list[str]) -> set[int]:
        hidden: set[int] = set()
        for template in self._from_root:
            hidden |= template.match(segments, 1)
        for start in range(1, len(segments)):
            for template in self._by_first_word.get(segments[start], ()):
                hidden |= template.match(segments, start)
        return hidden
