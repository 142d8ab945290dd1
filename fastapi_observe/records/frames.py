"""Places in the user's code: the frames of an exception, and the caller of an operation."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from fastapi_observe.records.exceptions import exception_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.redaction.redactor import Redactor

MAX_FRAMES: Final = 50
MAX_CHAIN: Final = 5
"""Frames of one exception, and exceptions of one chain of causes."""

MAX_SEARCHED_FRAMES: Final = 200
"""Frames between an operation and the user's code that are looked through."""

MAX_BLOCKING_FRAMES: Final = 5000
"""Frames of a blocked event loop that are looked through, once for each stall: 1,000 take about half a millisecond."""

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
_LOOP_PACKAGES: Final = frozenset({"asyncio", "nest_asyncio"})
_SELECTOR_MODULES: Final = frozenset({"selectors", "asyncio.windows_events"})
"""Modules in which a loop waits for events."""
_MIDDLEWARE: Final = str(Path(__file__).parents[1] / "middleware.py")
_SCRIPTS: Final = str(Path(sysconfig.get_path("scripts")).resolve()) + os.sep


_NEVER_OWN: Final = frozenset({"fastapi", "starlette", __name__.partition(".")[0], *sys.stdlib_module_names})
"""Packages that have endpoints or call `install` without being the user's app."""

MAX_KNOWN_FILES: Final = 4096


class OwnCode:
    """Distinguishes the user's code from that of libraries, and finds the places in it.

    It is what is not of Python, not of this package, and not of an installed package, unless that is the app itself:
    images of containers install it alongside its libraries. `list_modules` returns the modules of the app; the packages
    that they are in are its own.
    """

    def __init__(self, list_modules: Callable[[], Iterable[str]] = tuple) -> None:
        self._list_modules = list_modules
        self._roots: tuple[str, ...] | None = None
        self._known: dict[str, bool] = {}

    def includes(self, name: str) -> bool:
        """Return whether a file is the user's."""
        known = self._known.get(name)
        if known is None:
            known = self._is_own(name)
            if len(self._known) < MAX_KNOWN_FILES:
                self._known[name] = known
        return known

    def includes_module(self, name: str) -> bool:
        """Return whether a module, or a logger of that name, is the user's: also if there is no such module."""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            return False
        try:
            spec = getattr(sys.modules.get(top), "__spec__", None) or find_spec(top)
            if spec is None:
                return True
            places = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or ())]  # a namespace package
            return any(self.includes(place) for place in places)
        except Exception:  # noqa: BLE001 - such as __main__; a module or an import hook may have anything as its spec
            return True

    def _is_own(self, name: str) -> bool:
        if name.startswith("<"):
            return False
        path = str(Path(name).resolve())
        if path.startswith(_DEMO):
            return True
        if self._roots is None:
            self._roots = tuple(_package_roots(self._list_modules()))
        for root in self._roots:
            if path.startswith(root) and not _is_installed(path[len(root) :]):  # a virtual environment may be in there
                return True
        return not (_is_installed(name) or path.startswith((*_LIBRARIES, _SCRIPTS)))

    def caller_location(self) -> Location | None:
        """Return the innermost frame of the user's code on the current stack.

        SQLAlchemy runs its drivers in greenlets, whose stacks are of their own: the search goes on in the parent.
        """
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the current frame
        greenlet = sys.modules.get("greenlet")
        current = greenlet.getcurrent() if greenlet is not None else None
        for _ in range(MAX_SEARCHED_FRAMES):
            if frame is None:
                current = getattr(current, "parent", None)
                frame = getattr(current, "gr_frame", None)
                if frame is None:
                    return None
            if self.includes(frame.f_code.co_filename):
                return _location(frame)
            frame = frame.f_back
        return None

    def innermost_location(self, frame: FrameType | None, loop_caller: int) -> Location | None:
        """Return the place of the code that an event loop runs, from the stack of its thread.

        It is the innermost frame of the user's code, else the innermost frame; None if the loop has called nothing, or
        waits for events. `loop_caller` is the id of the frame that runs a loop without frames of its own.
        """
        innermost, called = frame, None
        for _ in range(MAX_BLOCKING_FRAMES):
            # What is outside the event loop has called it, and does not block it.
            if frame is None or id(frame) == loop_caller or _is_loop(frame):
                break
            if self.includes(frame.f_code.co_filename):
                return _location(frame)
            called, frame = frame, frame.f_back
        if innermost is None or called is None or called.f_globals.get("__name__") in _SELECTOR_MODULES:
            return None
        return _location(innermost)


DEFAULT_OWN_CODE: Final = OwnCode()
"""For code that knows no app: no installed package is the user's."""


def calling_module() -> str:
    """Return the name of the module outside this package that has called it."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    package = __name__.partition(".")[0]
    for _ in range(MAX_SEARCHED_FRAMES):
        if frame is None:
            break
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] != package:
            spec = frame.f_globals.get("__spec__")  # `python -m shop` runs shop.__main__ under another name
            return str(getattr(spec, "name", name))
        frame = frame.f_back
    return ""


def _package_roots(modules: Iterable[str]) -> Iterator[str]:
    """Yield the directories of the top-level packages of modules, and the files of those that are in no package."""
    for top in {name.partition(".")[0] for name in modules} - _NEVER_OWN:
        module = sys.modules.get(top)
        directories = getattr(module, "__path__", None)
        if directories is not None:
            yield from (str(Path(directory).resolve()) + os.sep for directory in directories)
        elif getattr(module, "__file__", None):
            yield str(Path(str(module.__file__)).resolve())  # type: ignore[union-attr]


def _is_installed(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path


def shorten(name: str) -> str:
    """Return a path relative to the working directory, if it is below it."""
    try:
        return str(Path(name).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return name


class Location(NamedTuple):
    """A line of code. The file is relative to the working directory if it is below it."""

    file: str
    line: int
    function: str


def _is_loop(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package in _LOOP_PACKAGES and frame.f_code.co_name in _LOOP_FUNCTIONS


def _location(frame: FrameType) -> Location:
    return Location(shorten(frame.f_code.co_filename), frame.f_lineno, frame.f_code.co_qualname)


def find_record(frame: FrameType | None) -> RequestRecord | None:
    """Return the record of the request that a stack serves: a local variable of our middleware on it."""
    for _ in range(MAX_BLOCKING_FRAMES):
        if frame is None:
            return None
        if frame.f_code.co_filename == _MIDDLEWARE:
            found = frame.f_locals.get("record")
            if found is not None:
                return cast("RequestRecord", found)
        frame = frame.f_back
    return None


def describe_exception(
    exc: BaseException, redactor: Redactor, own_code: OwnCode = DEFAULT_OWN_CODE
) -> list[dict[str, Any]]:
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
                "frames": _frames(current, redactor, own_code),
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


def _frames(exc: BaseException, redactor: Redactor, own_code: OwnCode) -> list[dict[str, Any]]:
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
            "own": own_code.includes(name),
            "code": redactor.text(linecache.getline(name, line).strip()[:256]),
        }
        for name, line, function in reversed(frames[-MAX_FRAMES:])
    ]
