"""Which segments of a path no route answered are secret: those where a template of the app has a secret parameter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi_observe.redaction.patterns import REDACTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PARAMETER: Final = re.compile(r"\{([^{}:]+)[^{}]*\}")
"""A parameter of a template, its name in a group."""

MAX_TEMPLATES: Final = 256
"""Templates with secret parameters that one app's paths are compared with."""

MAX_SEGMENTS: Final = 64
"""Segments of a path that are compared; a longer one is hidden behind them if the app has such templates."""


def secret_segments(template: str, is_secret: Callable[[str], bool]) -> tuple[int, ...]:
    """Return which segments of a template hold a parameter with a secret name, counted from the start."""
    return tuple(
        at for at, segment in enumerate(template.split("/")) if any(map(is_secret, PARAMETER.findall(segment)))
    )


class SecretRoutes:
    """The templates of one app that have secret parameters; false if there are none."""

    __slots__ = ("_by_word", "_first")

    def __init__(self, templates: Iterable[str], is_secret: Callable[[str], bool]) -> None:
        self._first: list[_Template] = []  # whose first segment is a parameter: compared with the whole path only
        self._by_word: dict[str, list[_Template]] = {}
        found = {each: hidden for each in templates if (hidden := secret_segments(each, is_secret))}
        for template in list(found)[:MAX_TEMPLATES]:
            segments = template.split("/")[1:]
            known = segments, tuple(at - 1 for at in found[template])
            if "{" in segments[0]:
                self._first.append(known)
            else:
                self._by_word.setdefault(segments[0], []).append(known)

    def __bool__(self) -> bool:
        return bool(self._first or self._by_word)

    def hide(self, path: str) -> str:
        """Return a path without the segments that stand where a template has a secret parameter.

        Templates are compared from the start and behind any prefix that a server may keep for itself; of a template
        only what stands before the parameter has to fit.
        """
        segments = path.split("/", MAX_SEGMENTS)
        hidden: set[int] = {MAX_SEGMENTS} if len(segments) > MAX_SEGMENTS else set()
        hidden |= self._secret_segments(segments)
        if "" in segments[1:] or "." in segments:  # the app, or a server before it, may take these for nothing
            kept = [at for at, segment in enumerate(segments) if not at or segment not in {"", "."}]
            hidden.update(kept[at] for at in self._secret_segments([segments[at] for at in kept]))
        for at in hidden:
            segments[at] = segments[at] and REDACTED
        return "/".join(segments) if hidden else path

    def _secret_segments(self, segments: list[str]) -> set[int]:
        found: set[int] = set()
        for template in self._first:
            found |= _found(template, segments, 1)
        for start in range(1, len(segments)):
            for template in self._by_word.get(segments[start], ()):
                found |= _found(template, segments, start)
        return found


_Template = tuple[list[str], tuple[int, ...]]


def _found(template: _Template, segments: list[str], start: int) -> set[int]:
    named, secret = template
    found: set[int] = set()
    for at, segment in enumerate(segments[start:]):
        if at in secret:
            found.add(start + at)
            if at == len(named) - 1:  # it may take several segments
                found.update(range(start + at, len(segments)))
        if at >= len(named) or not ("{" in named[at] or named[at] == segment):
            break
    return found
