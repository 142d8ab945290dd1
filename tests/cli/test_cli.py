"""The command line: what it prints, in which form, and how it ends."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from importlib import metadata

import pytest

from fastapi_observe.cli.main import main
from fastapi_observe.cli.settings import options_table
from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.model import ObserveSettings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without a variable that could say something."""
    for name in list(os.environ):
        if name.startswith(("OBSERVE_", "OTEL_", "FASTAPI_ENV")):
            monkeypatch.delenv(name)


def test_settings_prints_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option stands on a line of its own: name, source, value, each column beginning at one place."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OBSERVE_TRACING", "false")
    assert main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(ObserveSettings.model_fields)
    assert {line[line.index(word) - 1] for line in lines[1:3] for word in ("OTEL", "default") if word in line} == {" "}
    start = lines[0].index("value")
    by_name = {line.split()[0]: (line[:start].split()[1], line[start:]) for line in lines[1:-2]}
    assert by_name["service_name"] == ("OTEL_SERVICE_NAME", "shop")
    assert by_name["tracing"] == ("OBSERVE_TRACING", "false")
    assert by_name["quiet_loggers"] == ("default", "httpx,httpcore,httpx2,httpcore2,aiosqlite")
    assert lines[-1] == "Spans go to: nowhere"


def test_settings_masks_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither form shows a header's value or the password in the endpoint."""
    monkeypatch.setenv("OBSERVE_OTLP_ENDPOINT", "http://me:hush@c:4318")
    monkeypatch.setenv("OBSERVE_OTLP_HEADERS", "authorization=hush")
    assert main(["settings"]) == main(["settings", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "hush" not in shown
    assert "authorization=**********" in shown
    assert "Spans go to: http://**********@c:4318/v1/traces" in shown


def test_settings_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` gives value and source of every option."""
    monkeypatch.setenv("OBSERVE_EXCLUDE_PATHS", "/a,/b")
    assert main(["settings", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)
    assert list(options) == list(ObserveSettings.model_fields)
    assert options["exclude_paths"] == {"value": ["/a", "/b"], "source": "OBSERVE_EXCLUDE_PATHS"}


def test_settings_as_markdown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--markdown` documents the options, whatever the environment says."""
    expected = options_table()
    monkeypatch.setenv("OBSERVE_SAMPLE_RATIO", "wrong")
    assert main(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out == expected


def test_wrong_settings_end_with_two(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is told on stderr, nothing is printed, and the exit status is 2."""
    monkeypatch.setenv("OBSERVE_SAMPLE_RATIO", "3")
    assert main(["settings"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("1 setting is wrong:\n  sample_ratio: got '3' from OBSERVE_SAMPLE_RATIO")


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` says what the command is called and lists the subcommands."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m fastapi_observe ")
    assert re.search(r"settings +show every option", shown)
    assert re.search(r"cardinality\s+show which metric", shown)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m fastapi_observe --version` prints the installed version; without installation it is unknown."""
    monkeypatch.setattr(metadata, "version", lambda name: f"1.2.3 of {name}")
    monkeypatch.setattr(sys, "argv", ["fastapi_observe", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("fastapi_observe", run_name="__main__")
    assert capsys.readouterr().out == "fastapi-observe 1.2.3 of fastapi-observe\n"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert package_version("fastapi-observe") == "unknown"
