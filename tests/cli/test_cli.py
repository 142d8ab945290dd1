"""The command line: the command `settings`, help, version and exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import interpreter
import pytest
from variables import environment, remove_variables

from fastapi_observe.cli.main import main
from fastapi_observe.cli.settings import options_table
from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.settings.renames import REMOVED_COMMANDS, RENAMED_COMMANDS, RENAMED_FLAGS
from fastapi_observe.settings.sources import option_metadata
from fastapi_observe.settings.subjects import options_by_subject

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TextIO


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without variables that set options."""
    remove_variables(monkeypatch)


def test_settings_prints_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each option below its subject: name, source and value, in aligned columns."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OBSERVE_TRACING", "false")
    assert main(["settings"]) == 0
    header, *subjects, last = capsys.readouterr().out.split("\n\n")
    shown = {subject: lines for subject, *lines in map(str.splitlines, subjects)}
    assert {subject: [line.split()[0] for line in lines] for subject, lines in shown.items()} == options_by_subject()
    start = header.index("value")
    lines = [line for lines in shown.values() for line in lines]
    assert {line[start - 2 : start] for line in lines if len(line) > start} == {"  "}
    by_name = {line.split()[0]: (line[:start].split()[1], line[start:]) for line in lines}
    assert by_name["service_name"] == ("OTEL_SERVICE_NAME", "shop")
    assert by_name["tracing"] == ("OBSERVE_TRACING", "false")
    assert by_name["quiet_loggers"] == ("default", "httpx,httpcore,httpx2,httpcore2,aiosqlite,watchfiles")
    assert last.startswith("Spans are not exported (otlp_endpoint)\n")


def closed_pipe() -> int:
    """Return the write end of a pipe whose read end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (lambda: os.open("/dev/full", os.O_WRONLY), "cannot write the output: No space left on device\n"),
        (closed_pipe, ""),
    ],
)
def test_output_that_cannot_be_written(
    opened: Callable[[], int], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is named; a reader that has enough, such as head, is not. The rest of the output goes nowhere."""
    with os.fdopen(opened(), "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["settings"]) == 2
    assert capsys.readouterr().err == message


def test_standard_output_is_closed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no `sys.stdout` then."""
    for command in ("settings", "doctor"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert main([command]) == 2
        assert capsys.readouterr().err == "cannot write the output: standard output is closed\n"


@pytest.mark.parametrize(
    ("make_input", "reason"),
    [
        (lambda _: None, "it is closed"),
        (lambda path: path.open("a", encoding="utf-8"), "not readable"),
        (lambda path: path.open(encoding="utf-8"), "it is not text"),
    ],
)
def test_standard_input_that_cannot_be_read(
    make_input: Callable[[Path], TextIO | None],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--token -` says why in one line, with the next step."""
    (tmp_path / "token").write_bytes(b"\xff")
    for command in (["cardinality"], ["doctor", "--url"]):
        with make_input(tmp_path / "token") or contextlib.nullcontext() as opened:
            monkeypatch.setattr(sys, "stdin", opened)
            assert main([*command, "http://127.0.0.1:1", "--token", "-"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"cannot read the token from standard input: {reason}; redirect it from a file ")


def test_every_option_has_a_subject() -> None:
    """No option is left out or twice, no subject is declared twice, and none is too long to be read at a glance."""
    subjects = options_by_subject()
    assert [name for names in subjects.values() for name in names] == list(ObserveSettings.model_fields)
    declared = [option_metadata(field).subject for field in ObserveSettings.model_fields.values()]
    assert [subject for subject in declared if subject] == list(subjects)
    assert {subject: len(names) for subject, names in subjects.items() if len(names) > 16} == {}


def test_settings_masks_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No form shows a header's value or the password in the endpoint."""
    monkeypatch.setenv("OBSERVE_OTLP_ENDPOINT", "http://me:hush@c:4318")
    monkeypatch.setenv("OBSERVE_OTLP_HEADERS", "authorization=hush")
    assert main(["settings"]) == main(["settings", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "hush" not in shown
    assert "authorization=**********" in shown
    assert "Spans are exported to http://**********@c:4318/v1/traces" in shown


def test_settings_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` prints subject, value and source of every option."""
    monkeypatch.setenv("OBSERVE_EXCLUDE_PATHS", "/a,/b")
    assert main(["settings", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)
    assert list(options) == list(ObserveSettings.model_fields)
    assert options["exclude_paths"] == {
        "subject": "Requests",
        "value": ["/a", "/b"],
        "source": "OBSERVE_EXCLUDE_PATHS",
    }


def test_settings_as_markdown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--markdown` prints the documentation, whatever the environment sets."""
    expected = options_table()
    monkeypatch.setenv("OBSERVE_SAMPLE_RATIO", "wrong")
    assert main(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out == expected


def test_invalid_settings_exit_with_two(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid variable is an error on stderr with exit status 2."""
    monkeypatch.setenv("OBSERVE_SAMPLE_RATIO", "3")
    assert main(["settings"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("1 invalid setting:\n  sample_ratio: invalid value '3' (from OBSERVE_SAMPLE_RATIO)")


def test_ignored_variables_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages about `OTEL_*` variables without effect go to stderr; the exit status stays 0."""
    with environment("OTEL_TRACES_SAMPLER=xray", "OTEL_BSP_EXPORT_TIMEOUT=1"):
        assert main(["settings", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["sampler"]["source"] == "default"
    assert [line.split()[0] for line in printed.err.splitlines()] == ["Ignored", "fastapi-observe"]


def test_help_shows_the_name_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage and commands are shown under the name of the call: the script, or the module."""
    for called, name in (("/x/fastapi_observe/__main__.py", "python -m fastapi_observe"), ("/x/observe", "observe")):
        script = "import sys\nfrom fastapi_observe.cli.main import main\nsys.argv = sys.argv[1:]\nmain()"
        done = interpreter.run(script, called, "--help")
        shown = done.stdout
        assert done.returncode == 0
        assert shown.startswith(f"usage: {name} [-h]")
        assert re.findall(r"^    (\w+)\b", shown, re.MULTILINE) == [
            "settings",
            "doctor",
            "cardinality",
            "cost",
            "slo",
            "show",
            "demo",
        ]
    with pytest.raises(SystemExit, match="0"):
        main(["slo", "--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"^    (\w+)\b", shown, re.MULTILINE) == ["check", "report", "bundle", "verify"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctr", "main:app"], "there is no command 'doctr'; did you mean 'doctor'?"),
        (["slo", "chek", "main:app"], "there is no command 'chek'; did you mean 'check'?"),
        (["nothing-like-it"], "choose from"),
        (["slo", "doctor"], "choose from"),
    ],
)
def test_a_misspelled_command(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest command is named, of those at this place; without a near one, all are."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_former_names_are_errors_with_the_new_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A former name of a command or flag exits with 2 and names the new one, which exists."""
    for old, new in RENAMED_COMMANDS.items():
        with pytest.raises(SystemExit, match="2"):
            main([old, "shop:app"])
        assert f"the command {old} is now {new}" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="0"):
            main([*new.split(), "--help"])
        assert capsys.readouterr().out.startswith("usage: ")
    for old, instead in REMOVED_COMMANDS.items():
        with pytest.raises(SystemExit, match="2"):
            main([old, "shop:app"])
        assert f"the command {old} was removed: {instead}" in capsys.readouterr().err
    for old, new in RENAMED_FLAGS.items():
        with pytest.raises(SystemExit, match="2"):
            main(["cardinality", "http://127.0.0.1:1", f"{old}=5"])
        assert f"the flag {old} is now {new}" in capsys.readouterr().err


def test_version_is_that_of_the_package() -> None:
    """`python -m fastapi_observe --version` prints the installed version; without installation it is unknown."""
    script = "import runpy, warnings\nrunpy.run_module('fastapi_observe', run_name='__main__')"
    done = interpreter.run(script, "--version")
    assert (done.returncode, done.stdout) == (0, f"fastapi-observe {metadata.version('fastapi-observe')}\n")
    assert package_version("a-package-that-is-not-installed") == "unknown"


COMMANDS = (
    ("settings",),
    ("doctor",),
    ("show",),
    ("demo",),
    ("cardinality",),
    ("cost",),
    ("slo", "check"),
    ("slo", "report"),
    ("slo", "bundle"),
    ("slo", "verify"),
)


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_every_help_has_the_same_form(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description, one line about each argument, the exit statuses; the same words for the same options."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    shown = re.sub(r"\n {10,}", "  ", capsys.readouterr().out.rstrip())  # the help of a long name is on its own line
    usage, description, *groups, epilog = shown.split("\n\n")
    assert usage.startswith("usage: ")
    assert re.fullmatch(r"[A-Z].*\.", description)
    assert "Exits with " in epilog
    assert epilog.endswith(".")
    options = dict(
        re.split(r"  +", line.strip(), maxsplit=1) for group in groups for line in group.splitlines()[1:] if line
    )
    for name, text in options.items():
        assert not text.endswith("."), name
    shared = {
        "--json": "print JSON, for scripts",
        "--allow-http-token": "send the token to a public address over plain http too",
    }
    assert {name: options[name] for name in shared if name in options}.items() <= shared.items()
    assert all("; - reads it from standard input" in options[name] for name in options if name == "--token TOKEN")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--port", "x"], "invalid port 'x'; use a whole number from 0 to 65535"),
        (["cost", "u", "--price-per-million-spans", "x"], "invalid price 'x'; use a number of at least 0"),
        (["cost", "u", "--price-per-million-spans", "-1"], "invalid price '-1'; use a number of at least 0"),
        (["cost", "u", "--bytes-per-line", "inf"], "invalid size 'inf'; use a number of at least 0"),
        (["cardinality", "u", "--top", "0"], "invalid number '0'; use a whole number of at least 1"),
        (["slo", "bundle", "a:b", "--only", "rules,x"], "invalid part 'x'; choose from rules, dashboard"),
        (["slo", "bundle", "a:b", "--include", "jobs,x"], "invalid feature 'x'; choose from database, external"),
    ],
)
def test_invalid_arguments_name_what_is_valid(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was given, and what is accepted; status 2."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("command", "status"), [("check", 1), ("report", 1), ("bundle", 2)])
def test_all_invalid_objectives_are_reported_at_once(tmp_path: Path, command: str, status: int) -> None:
    """Those that `install` refuses are reported with those that depend on the routes, also those of a wrong type."""
    (tmp_path / "wrong_objectives.py").write_text(
        "from fastapi import FastAPI\nfrom fastapi_observe import install, Availability, Latency\napp = FastAPI()\n"
        "install(app, slos=[Availability('a', 100), Availability('b', 99, routes=['/nothing']),\n"
        "    Latency('c', 95, within='soon'), Availability(['d'], 99), Availability('E F', 99)])\n",
        "utf-8",
    )
    script = "import sys\nfrom fastapi_observe.cli.main import main\nsys.exit(main())"
    done = interpreter.run(script, "slo", command, "wrong_objectives:app", directory=tmp_path)
    assert done.returncode == status
    problems = [line.split(":")[1].strip() for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert problems == ["SLO05 a", "SLO01 b", "SLO04 c", "SLO09 ['d']", "SLO09 E F"]


@pytest.mark.parametrize(("command", "header"), [("report", "objective  alert"), ("check", "objective  target")])
def test_an_app_without_objectives_has_nothing_to_report(tmp_path: Path, command: str, header: str) -> None:
    """The command says so on standard error, and what the app prints at its import is there too."""
    (tmp_path / "no_objectives.py").write_text(
        "from fastapi import FastAPI\nfrom fastapi_observe import install\n"
        "print('imported')\napp = FastAPI()\ninstall(app)\n",
        "utf-8",
    )
    script = "import sys\nfrom fastapi_observe.cli.main import main\nsys.exit(main())"
    done = interpreter.run(script, "slo", command, "no_objectives:app", directory=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(header)
    assert "imported\n" in done.stderr
    assert done.stderr.endswith("no_objectives:app has no objectives; pass slos=[...] to install(), or use @slo\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "a b", "--url", "http://127.0.0.1:1"], "invalid trace 'a b'; use last, slow, failed or a trace id\n"),
        (["cardinality", "ftp://x"], "cannot read ftp://x: not an http or https URL; use one such as http://"),
        (["cost", "ftp://x"], "cannot read ftp://x: not an http or https URL; use one such as http://"),
        (["slo", "check", "nothing"], "invalid app 'nothing'; use MODULE:APP, such as shop.main:app\n"),
    ],
)
def test_errors_have_a_next_step(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error: what happened, then what to do, after a semicolon; status 2."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert not printed.out
