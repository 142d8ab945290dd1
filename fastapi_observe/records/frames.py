"""Where in the user's code something happened: the frames of an exception, and the caller of an operation."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from fastapi_observe.records.exceptions import exception_message

if TYPE_CHECKING:
    from types import FrameType

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.redaction.redactor import Redactor

MAX_FRAMES: Final = 50
MAX_CHAIN: Final = 5
"""Frames of one exception, and exceptions of one chain of causes."""

MAX_DEPTH: Final = 200
"""Frames between an operation and the user's code that are looked through."""

_LIBRARIES: Final = (
    *(
        str(Path(sysconfig.get_path(name)).resolve()) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ),
    str(Path(__file__).resolve().parents[1]) + os.sep,
)
_DEMO: Final = str(Path(__file__).resolve().parents[1] / "demo") + os.sep
"""The app of the command `demo`: its frames count as the user's, although they are in this package."""

_LOOP_FUNCTIONS: Final = frozenset({"run_forever", "run_until_complete", "_run_once", "run"})
_MIDDLEWARE: Final = str(Path(__file__).parents[1] / "middleware.py")
_SCRIPTS: Final = str(Path(sysconfig.get_path("scripts")).resolve()) + os.sep


@lru_cache(maxsize=4096)
def is_own_file(name: str) -> bool:
    """Return whether a file is the user's: not of Python, not of an installed package, not of this one."""
    if str(Path(name).resolve()).startswith(_DEMO):
        return True
    if name.startswith("<") or "site-packages" in name or "dist-packages" in name:
        return False
    path = str(Path(name).resolve())
    return not path.startswith(_LIBRARIES) and not path.startswith(_SCRIPTS)


def shorten(name: str) -> str:
    """Return a path relative to the working directory, if it is below it."""
    try:
        return str(Path(name).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return name


class Location(NamedTuple):
    """A place in the user's code. The file is relative to the working directory if it is below it."""

    file: str
    line: int
    function: str


def caller_location() -> Location | None:
    """Return the innermost frame of the user's code on the current stack.

    SQLAlchemy runs its drivers in greenlets, whose stacks are of their own: the search goes on in the parent.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the current frame
    greenlet = sys.modules.get("greenlet")
    current = greenlet.getcurrent() if greenlet is not None else None
    for _ in range(MAX_DEPTH):
        if frame is None:
            current = getattr(current, "parent", None)
            frame = getattr(current, "gr_frame", None)
            if frame is None:
                return None
        code = frame.f_code
        if is_own_file(code.co_filename):
            return Location(shorten(code.co_filename), frame.f_lineno, code.co_qualname)
        frame = frame.f_back
    return None


def innermost_location(frame: FrameType | None) -> Location | None:
    """Return the innermost frame of the user's code on the stack of another thread, which runs an event loop."""
    for _ in range(MAX_DEPTH):
        # What is outside the event loop has called it, and does not block it.
        if frame is None or (frame.f_code.co_name in _LOOP_FUNCTIONS and "asyncio" in frame.f_code.co_filename):
            return None
        if is_own_file(frame.f_code.co_filename):
            return Location(shorten(frame.f_code.co_filename), frame.f_lineno, frame.f_code.co_qualname)
        frame = frame.f_back
    return None


def find_record(frame: FrameType | None) -> RequestRecord | None:
    """Return the record of the request that a stack serves: a local variable of our middleware on it."""
    for _ in range(MAX_DEPTH):
        if frame is None:
            return None
        if frame.f_code.co_filename == _MIDDLEWARE:
            found = frame.f_locals.get("record")
            if found is not None:
                return cast("RequestRecord", found)
        frame = frame.f_back
    return None


def describe_exception(exc: BaseException, redactor: Redactor) -> list[dict[str, Any]]:
    """Return an exception, its causes and the members of its group, the raised one first.

    Each has its type, message and frames, the innermost first, and its relation to one before: `cause`, `context` or
    `member`.
    """
    chain: list[dict[str, Any]] = []
    seen: set[int] = set()
    pending: list[tuple[BaseException | None, str]] = [(exc, "")]
    while pending and len(chain) < MAX_CHAIN:
        current, relation = pending.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        chain.append(
            {
                "type": type(current).__qualname__,
                "message": exception_message(current, redactor)[:4096],
                "frames": _frames(current, redactor),
                "relation": relation,
            }
        )
        if current.__cause__ is not None:
            pending.append((current.__cause__, "cause"))
        elif not current.__suppress_context__:
            pending.append((current.__context__, "context"))
        if isinstance(current, BaseExceptionGroup):
            pending += [(member, "member") for member in current.exceptions[:MAX_CHAIN]]
    return chain


def _frames(exc: BaseException, redactor: Redactor) -> list[dict[str, Any]]:
    frames = []
    trace = exc.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, code.co_qualname))
        trace = trace.tb_next
    return [
        {
            "file": shorten(name),
            "line": line,
            "function": function,
            "own": is_own_file(name),
            "code": redactor.text(linecache.getline(name, line).strip()[:256]),
        }
        for name, line, function in reversed(frames[-MAX_FRAMES:])
    ]
