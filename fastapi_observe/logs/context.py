"""The fields of `log.contextualize`: on every line written in the block, until its request ends."""

from __future__ import annotations

import inspect
import sys
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.internal import loguru
from fastapi_observe.internal.opentelemetry import current_context
from fastapi_observe.records.guard import fail_safe
from fastapi_observe.records.request import CONTEXT_KEY, ExcludedRef, RecordRef
from fastapi_observe.records.wrapping import AsyncWith, wrap_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

F = TypeVar("F", bound="Callable[..., Any]")

FRAMEWORK_PACKAGES: Final = frozenset(
    {
        "anyio",
        "asyncio",
        "concurrent",
        "contextlib",
        "contextvars",
        "fastapi",
        "outcome",
        "starlette",
        "threading",
        "trio",
    }
)
"""Packages that run code of the user in a thread, and step generators there."""

_NO_FIELD: Final = object()

MAX_EXCLUDED: Final = 10_000
"""Requests, excluded ones among them, whose open blocks are held."""

MIN_PURGE: Final = 64
"""Number of requests with open generator blocks from which ended ones are looked for."""


class Block:
    """One entered `with log.contextualize(...)`.

    `reference` is the request it was entered in, None outside any. `generator` is the frame of the generator that it
    was entered in, if each step of that may run in another thread. `loguru_fields` are those of loguru's context before
    and in the block.
    """

    __slots__ = ("abandoned", "fields", "generator", "loguru_fields", "reference", "token")

    def __init__(self, fields: dict[str, Any], reference: RecordRef | None, generator: FrameType | None) -> None:
        self.fields = fields
        self.reference = reference
        self.generator = generator
        self.loguru_fields: tuple[dict[str, Any], dict[str, Any]] | None = None
        # Left in another context than it was entered in, which still has it: an async generator that was not exhausted.
        self.abandoned = False
        self.token: Token[tuple[Block, ...]] | None = None

    def is_valid(self, current: RecordRef | None) -> bool:
        """Return whether the fields still apply to code of the request `current`.

        A context outlives its request, and a server starts the next request of the connection in it; but a request
        that is made inside the block, such as one to an app in the same process, runs while the outer one does.
        """
        if self.abandoned:
            return False
        reference = self.reference
        if reference is None:
            return True
        if reference is current:
            return _is_running(reference)
        return reference.record is not None and not reference.record.complete

    def contains_caller(self) -> bool:
        """Return whether the caller runs inside the block of a generator.

        That is so while the generator is suspended, for its consumer, and while it runs, for what it calls.
        """
        if self.generator is None or self.generator.f_back is None:
            return True
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, and in every supported Python
        while frame is not None:
            if frame is self.generator:
                return True
            frame = frame.f_back
        return False


LOG_BLOCKS: Final[ContextVar[tuple[Block, ...]]] = ContextVar("fastapi_observe_log_blocks", default=())
"""Blocks that the current context has entered, or inherited, the outermost first."""

_GENERATOR_BLOCKS: Final[dict[int, tuple[RecordRef, list[Block]]]] = {}
"""Open blocks of generators, by the id of the request.

Starlette runs each step of a generator (a `def` dependency with `yield`, a streamed body) in a thread with a copy of
the context, so that what one step has set in its context is gone in the next.
"""


class LogContext(AsyncWith):
    """Adds fields to every line written in a `with` or `async with` block. Neither entering nor leaving raises.

    A block may be left in another thread or context than it was entered in. As a decorator it is a block around each
    call of a function, coroutine function, generator or async generator.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        self._entered: list[Block] = []

    def __call__(self, function: F) -> F:
        """Return `function` with each call in a block of its own."""
        return wrap_calls(function, lambda: _CallBlock(self._fields))  # type: ignore[no-any-return]

    def __enter__(self) -> None:
        """Enter the block."""
        self._enter(sys._getframe(1))  # noqa: SLF001 - see Block.contains_caller

    def __exit__(self, *_exc: object) -> None:
        """Leave the block."""
        self._leave()

    @fail_safe("logs.context")
    def _enter(self, frame: FrameType | None) -> None:
        reference = current_context().get(CONTEXT_KEY)
        if not isinstance(reference, RecordRef) or not _is_running(reference):
            reference = None
        block = Block(self._fields, reference, None if reference is None else _stepped_generator(frame))
        self._entered.append(block)
        # Without those of ended requests, or they would add up on a connection whose requests inherit the context.
        block.token = LOG_BLOCKS.set((*(each for each in LOG_BLOCKS.get() if each.is_valid(reference)), block))
        if reference is None and loguru.CONTEXT is not None:
            # For sinks of the user. Not in a request: the next one may inherit its context. Not by loguru's own block,
            # which must be left in the context and in the order that it was entered in.
            before = loguru.CONTEXT.get()
            block.loguru_fields = before, {**before, **self._fields}
            loguru.CONTEXT.set(block.loguru_fields[1])
        elif reference is not None and block.generator is not None:
            _purge()
            _GENERATOR_BLOCKS.setdefault(id(reference), (reference, []))[1].append(block)

    @fail_safe("logs.context")
    def _leave(self) -> None:
        if not self._entered:
            return
        blocks = LOG_BLOCKS.get()
        # Several tasks may have entered the same object: each leaves the block that its context has.
        block = next((each for each in reversed(blocks) if each in self._entered), self._entered[-1])
        self._entered.remove(block)
        token, block.token = block.token, None
        try:
            if token is not None:
                LOG_BLOCKS.reset(token)
        except ValueError:  # another context, such as that of the task that closes an async generator
            block.abandoned = block.generator is None
        if block in blocks:
            LOG_BLOCKS.set(tuple(each for each in blocks if each is not block))
        if block.loguru_fields is not None and loguru.CONTEXT is not None:
            before, inside = block.loguru_fields
            current = loguru.CONTEXT.get()
            if current is not inside:  # another block was left later than this one, or this is another context
                before = {key: value for key, value in current.items() if self._fields.get(key, _NO_FIELD) is not value}
            loguru.CONTEXT.set(before)
        if block.generator is not None:
            _, open_blocks = _GENERATOR_BLOCKS.get(id(block.reference), (None, []))
            if block in open_blocks:
                open_blocks.remove(block)
            if not open_blocks:
                _GENERATOR_BLOCKS.pop(id(block.reference), None)
            block.generator = None


class _CallBlock(LogContext):
    """The block around one call of a decorated function. A suspended generator is outside."""

    def open(self) -> None:
        """Enter the block."""
        self._enter(None)

    def suspend(self) -> None:
        """Leave the block."""
        self._leave()

    def resume(self) -> None:
        """Enter the block again."""
        self._enter(None)

    def close(self, _exc: BaseException | None = None) -> None:
        """Leave the block."""
        self._leave()


def context_fields() -> dict[str, Any]:
    """Return the fields that apply to the calling code, those of inner blocks last."""
    fields = {**loguru.contextualize_fields()}
    blocks = LOG_BLOCKS.get()
    if not blocks and not _GENERATOR_BLOCKS:
        return fields
    found = current_context().get(CONTEXT_KEY)
    current = found if isinstance(found, RecordRef) else None
    if current is not None and _GENERATOR_BLOCKS:
        for block in _GENERATOR_BLOCKS.get(id(current), (None, []))[1].copy():
            if block not in blocks and block.is_valid(current) and block.contains_caller():
                fields.update(block.fields)
    for block in blocks:
        if block.is_valid(current):
            fields.update(block.fields)
    return fields


def is_context_of_ended_request() -> bool:
    """Return whether the current context was left over by a request that has ended.

    asyncio lets a context out of its task (python/cpython#140947): uvicorn starts the next request of a connection in
    the context of the one before.
    """
    reference = current_context().get(CONTEXT_KEY)
    return isinstance(reference, RecordRef) and (reference.record is None or reference.record.complete)


def _is_running(reference: RecordRef) -> bool:
    """Return whether a request has not ended. Always true for an excluded one, which has no record."""
    return reference.record is not None or isinstance(reference, ExcludedRef)


def _stepped_generator(frame: FrameType | None) -> FrameType | None:
    """Return the generator of the user that library code steps in this thread, if `frame` runs in one.

    Each step may then run in another thread. A generator that code of the user consumes is left to contexts: they are
    the same for both.
    """
    outermost: FrameType | None = None
    while frame is not None:
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            return None
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in FRAMEWORK_PACKAGES:
            outermost = frame
        frame = frame.f_back
    return outermost if outermost is not None and outermost.f_code.co_flags & inspect.CO_GENERATOR else None


def _purge() -> None:
    """Forget the blocks of ended requests, whose generators were never finished."""
    if len(_GENERATOR_BLOCKS) < MIN_PURGE:
        return
    for key, (reference, _) in list(_GENERATOR_BLOCKS.items()):
        # Whether an excluded request has ended is not known: those are forgotten when there are very many.
        if not _is_running(reference) or (reference.record is None and len(_GENERATOR_BLOCKS) > MAX_EXCLUDED):
            _GENERATOR_BLOCKS.pop(key, None)
