"""The checks of `doctor` of why records or requests have no line, or each record has two."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

import interpreter
import pytest
from fastapi import FastAPI
from variables import remove_variables

from fastapi_observe import install
from fastapi_observe.doctor.app import check_app
from fastapi_observe.doctor.check import Check, run_checks
from fastapi_observe.doctor.lines import check_lines
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Seen

COMMAND: Final = "import sys; from fastapi_observe.cli.main import main; sys.exit(main(sys.argv[1:]))"
MODULE: Final = """
from fastapi import FastAPI
from fastapi_observe import install
app = FastAPI(title="shop")
install(app)
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine."""
    remove_variables(monkeypatch)


def by_subject(checks: list[Check]) -> dict[str, Check]:
    """Return the checks by subject."""
    return {check.subject: check for check in checks}


@pytest.fixture
def checked(observed: Callable[..., Seen]) -> Callable[..., dict[str, Check]]:
    """Return a function that installs on an app and checks it."""

    def check(app: FastAPI | None = None, **options: Any) -> dict[str, Check]:
        app = FastAPI(title="shop") if app is None else app
        install(app, **{"otlp_endpoint": None, **options})
        return by_subject(run_checks(lambda: check_app(app.state.observe)))

    return check


def test_why_lines_are_missing() -> None:
    """A level, an option and `logging.disable` are named."""
    assert not [*check_lines(ObserveSettings())]
    assert not [*check_lines(ObserveSettings(logs=False, log_requests=False))]
    for options, found in (
        ({"log_requests": False}, "requests have no line (log_requests of install)"),
        ({"log_level": "WARNING"}, "lines below warn are dropped, and with them those of successful requests"),
        ({"capture_logging": False}, "records of logging are not written as lines"),
    ):
        (check,) = check_lines(ObserveSettings(**options))
        assert (check.verdict, check.found.startswith(found)) == ("look", True), check
    logging.disable(logging.INFO)
    try:
        (check,) = check_lines(ObserveSettings())
    finally:
        logging.disable(logging.NOTSET)
    assert check.found == "logging.disable() drops records up to level INFO"


def test_disabled_loggers(observed: Callable[..., Seen]) -> None:
    """Those of the user's code are named first, then those of libraries and those that servers have."""
    names = [
        "_granian",
        "asyncio",
        "httpx",
        "pydantic.main",
        "fastapi_observe.demo",
        "test_cli_doctor_lines",
        "zeta.shop",
    ]
    before = {name: logging.getLogger(name).disabled for name in names}
    for name in names:
        logging.getLogger(name).disabled = True
    try:
        checks = [*check_app(observed(FastAPI(title="shop")).observe)]
        assert "lines" not in {each.subject for each in check_lines(ObserveSettings())}
    finally:
        for name, disabled in before.items():
            logging.getLogger(name).disabled = disabled
    found = "loggers are disabled, so their records have no line: test_cli_doctor_lines, zeta.shop, _granian, asyncio, "
    assert ("look", f"{found}fastapi_observe.demo and 2 more") in {(each.verdict, each.found) for each in checks}


def test_a_handler_that_is_replaced_at_the_start(tmp_path: Path) -> None:
    """A plain console handler that was added after `install` is on no line twice; one with a format of its own is."""
    for name, make, verdict in (
        ("plain", "logging.StreamHandler()", "ok"),
        ("own", "logging.StreamHandler()\nhandler.setFormatter(type('Own', (logging.Formatter,), {})())", "look"),
    ):
        added = f"import logging\nhandler = {make}\nlogging.getLogger('shop').addHandler(handler)\n"
        (tmp_path / f"{name}.py").write_text(MODULE + added, encoding="utf-8")
        run = interpreter.run(COMMAND, "doctor", f"{name}:app", "--json", directory=tmp_path)
        checks = by_subject([Check(**each) for each in json.loads(run.stdout)])
        assert checks["duplicates"].verdict == verdict


def test_loggers_without_lines(checked: Callable[..., dict[str, Check]]) -> None:
    """Loggers that do not propagate are to be looked at; quiet loggers and levels of one's own are named."""
    detached, strict = logging.getLogger("shop.detached"), logging.getLogger("shop.strict")
    of_library, level = logging.getLogger("sqlalchemy"), logging.getLogger("sqlalchemy").level
    assert "lines" not in {subject for subject, check in checked().items() if "shop." in check.found}
    detached.propagate = False
    strict.setLevel(logging.ERROR)
    of_library.setLevel(logging.ERROR)
    try:
        app = FastAPI(title="shop")
        install(app, quiet_loggers=["shop.quiet"], instrument=[])
        checks = [check for check in check_app(app.state.observe) if check.subject == "lines"]
        assert "lines" not in checked(capture_logging=False)
    finally:
        detached.propagate = True
        strict.setLevel(logging.NOTSET)
        of_library.setLevel(level)
    looked, *named = [(check.verdict, check.found) for check in checks]
    assert looked == ("look", "loggers do not propagate, so their records have no line: shop.detached")
    assert named[0] == ("ok", "records below warn are dropped of shop.quiet (quiet_loggers of install)")
    assert named[1][0] == "look"
    assert named[1][1].startswith("loggers have a level of their own above log_level, which those below them inherit: ")
    assert "shop.strict (ERROR)" in named[1][1]
    assert "shop.quiet" not in named[1][1]
    assert checks[2].step.startswith("remove their level (setLevel, or level in dictConfig)")
    assert (named[2][0], "sqlalchemy (ERROR)" in named[2][1]) == ("ok", True)


def test_excluded_routes(checked: Callable[..., dict[str, Check]]) -> None:
    """Excluded routes are named with their signals; excluding all is to be looked at."""

    def shop() -> FastAPI:
        app = FastAPI(title="shop")
        app.get("/health")(lambda: {"id": 7})
        app.get("/orders")(lambda: {"id": 7})
        return app

    assert "exclusions" not in checked(shop())
    check = checked(shop(), exclude_paths=["/health"], exclude_from={"logs": ["GET /orders"]})["exclusions"]
    assert check.found == "excluded routes (2 of 2): GET /health, GET /orders (logs)"
    assert check.verdict == "look"
    assert check.step == "correct exclude_paths (exclude_paths of install) or exclude_from (exclude_from of install)"
    check = checked(shop(), exclude_urls=["/health$", "/docs$"])["exclusions"]
    assert (check.verdict, check.step) == ("ok", "correct exclude_urls (exclude_urls of install)")
    assert check.found == "excluded routes (3 of 4): GET /docs, HEAD /docs, GET /health"


@pytest.mark.parametrize("delay", [True, False])
def test_a_file_that_is_standard_output(tmp_path: Path, delay: bool) -> None:  # noqa: FBT001
    """A handler on /dev/stdout writes to the console too, one on another file does not."""
    code = """
import logging
logging.getLogger("shop").addHandler(logging.FileHandler({file!r}, delay={delay}))
"""
    for file, verdict in (("/dev/stdout", "look"), ("/dev/stderr", "look"), ("app.log", "ok"), ("/dev/null", "ok")):
        (tmp_path / "shop.py").write_text(MODULE + code.format(file=file, delay=delay), encoding="utf-8")
        run = interpreter.run(COMMAND, "doctor", "shop:app", "--json", directory=tmp_path)
        check = by_subject([Check(**each) for each in json.loads(run.stdout)])["duplicates"]
        assert check.verdict == verdict
        assert ("The handler FileHandler of the logger 'shop' writes to the console" in check.found) == (
            verdict != "ok"
        )
