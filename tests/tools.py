"""What the tests ask of the machine: programs and packages, and the age of the hosts."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from time import monotonic, sleep
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
import starlette

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST_WARNINGS: tuple[str, ...] = (
    # It imports `multipart`, which python-multipart has renamed since.
    "ignore:Please use `import python_multipart` instead.:PendingDeprecationWarning",
    # Its test client names a class of anyio's by an alias that newer anyio deprecates.
    "ignore:The anyio.abc.BlockingPortal alias:DeprecationWarning",
    # Its BaseHTTPMiddleware and its test client leave the ends of their streams open, and generators half read.
    "ignore:Unclosed <MemoryObject:ResourceWarning",
    "ignore:Async generator ':ResourceWarning",
    # FastAPI of that time hands whole fields to pydantic, newer versions of which find options without effect in them.
    "ignore:The 'validation_alias' attribute with value:UserWarning",
)
if int(starlette.__version__.partition(".")[0]) >= 1:
    HOST_WARNINGS = ()
"""Warnings of the hosts about themselves where they are older than Starlette 1.0; every other warning is an error."""


SOAK: Final = "OBSERVE_SOAK" in os.environ
"""Whether the long forms of the tests run."""


def volume(number: int) -> int:
    """Return how often something is repeated: `number` in the soak, a fifth of it by default."""
    return number if SOAK else max(1, number // 5)


def needs(program: str) -> str:
    """Return the path of a program; where it is missing, skip the test, or fail it under `OBSERVE_REQUIRE_ALL=1`."""
    return shutil.which(program) or _missing(f"{program} is not on PATH")


def needs_package(name: str) -> str:
    """Return the name of an importable package or module; where it is missing, skip or fail as `needs` does."""
    try:
        is_found = find_spec(name) is not None
    except ModuleNotFoundError:  # a package around it is missing
        is_found = False
    return name if is_found else _missing(f"the package {name} is not installed")


def _missing(reason: str) -> str:
    if os.environ.get("OBSERVE_REQUIRE_ALL") == "1":
        pytest.fail(f"OBSERVE_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until `condition()` holds; fail the test when it does not within `seconds`."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline
        sleep(0.02)


def held(thing: object) -> int:
    """Return the bytes of all objects that are reachable from `thing`, without code and classes."""
    others = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, FrameType)
    found: dict[int, object] = {}
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) not in found and not isinstance(one, others):
            found[id(one)] = one
            waiting += gc.get_referents(one)
    return sum(map(sys.getsizeof, found.values()))


def remove_tree(path: Path) -> None:
    """Remove a directory that another process may be writing in."""
    until = monotonic() + 10
    while True:
        try:
            shutil.rmtree(path)
        except OSError:
            if path.exists() and monotonic() < until:
                continue
            raise
        return


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """Have a small file system of its own at `directory`; where the user may not mount one, skip the test."""
    directory.mkdir()
    mount = [needs("mount"), "-t", "tmpfs", "-o", options, "none", str(directory)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:  # noqa: S603 - our own arguments
        pytest.skip("file systems cannot be mounted here")
    try:
        yield directory
    finally:
        subprocess.run([needs("umount"), "-l", str(directory)], check=True)  # noqa: S603


@contextmanager
def no_thread_starts() -> Iterator[None]:
    """Let no thread start inside the block, as at the limit of threads."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"  # 3.13
        patch.setattr(f"threading.{name}", fail)
        yield


@contextmanager
def own_standard_output(descriptor: int) -> Iterator[None]:
    """Make an open file, pipe or socket the standard output of this process, and close it at the end."""
    own: Any = sys.__stdout__
    before = os.dup(own.fileno())
    os.dup2(descriptor, own.fileno())
    os.close(descriptor)
    try:
        with redirect_stdout(own):
            yield
    finally:
        os.dup2(before, own.fileno())
        os.close(before)


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    """Lower a limit of this process, such as `RLIMIT_FSIZE` (then disks are full) or `RLIMIT_NOFILE`."""
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
