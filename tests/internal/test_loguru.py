"""The private names of loguru and `logging`: what each function does with them, and without them."""

from __future__ import annotations

import logging
import sys

import pytest
from loguru import logger

from fastapi_observe.internal import loguru


def test_the_names_are_there() -> None:
    """The installed version has all of them: handlers, their level, the console ones, context fields."""
    assert loguru.CONTEXT is not None
    number = logger.add(sys.__stderr__ or sys.stderr, level="ERROR")
    try:
        handler = (loguru.handlers() or {})[number]
        assert loguru.replace_level(handler, 50) == 40
        assert loguru.replace_level(handler, 40) == 50
        assert "sink=<stderr>" in loguru.console_handlers()[number]
    finally:
        logger.remove(number)
    with logger.contextualize(job=1):
        assert loguru.contextualize_fields() == {"job": 1}
    child = logging.getLogger("named.child")
    names = [each.name for each in loguru.named_loggers()]
    assert child.name in names
    assert names == sorted(names)


def test_the_names_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed or changed; only a level that cannot be replaced raises."""
    with monkeypatch.context() as patch:
        patch.setattr(loguru, "CORE", None)
        patch.setattr(loguru, "CONTEXT", None)
        patch.delattr(logging.root.manager, "loggerDict")
        assert loguru.handlers() is None
        assert loguru.console_handlers() == {}
        assert loguru.contextualize_fields() == {}
        assert loguru.named_loggers() == []
        with pytest.raises(AttributeError):
            loguru.replace_level(object(), 50)
