"""The commands and configurations of the documentation, run page by page as a reader would."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from servers import serving
from servers_of_workers import free_port
from tools import needs, needs_package
from uvicorn import main as uvicorn_command

from fastapi_observe import current, observability
from fastapi_observe.cli.main import main
from fastapi_observe.cli.output import EXIT_PROBLEM
from fastapi_observe.export import causes
from fastapi_observe.requests import access
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.traces import service

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN_ELSEWHERE: Final = {"tutorial/objective.md"}
"""Pages whose commands tests/slo/test_slo_page.py runs, with a real Prometheus."""
LANGUAGES: Final = {"python", "py", "sh", "console", "json", "yaml", "promql", "text", "alloy", "markdown", ""}
ASSIGNMENT: Final = re.compile(r"[A-Z_]+=")
DEFAULT_APP: Final = """
from fastapi import FastAPI

from fastapi_observe import install

app = FastAPI(title="shop")
install(app)


@app.get("/orders/{order_id}")
async def read_order(order_id: int) -> int:
    return order_id
"""
"""The app that pages without one of their own mean by `main:app`."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text("utf-8")
    found = re.finditer(r"^( *)```+([^\n]*)\n(.*?)^\1```+$", text, re.MULTILINE | re.DOTALL)
    return [Block(each[2].strip(), each[3], text.count("\n", 0, each.start()) + 1) for each in found]


def name(page: Path) -> str:
    """Return the path of a page below docs."""
    return page.relative_to(ROOT / "docs").as_posix() if page.is_relative_to(ROOT / "docs") else page.name


ALL: Final = [(page, block) for page in PAGES for block in blocks(page)]
WITH_COMMANDS: Final = [
    page for page in PAGES if name(page) not in RUN_ELSEWHERE and any(each.language == "sh" for each in blocks(page))
]


class Reader:
    """A reader who copies a page into files and types its commands; ports are replaced by free ones."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self._directory = directory
        self._monkeypatch = monkeypatch
        self._stack = stack
        self._ports = {str(usual): free_port() for usual in (8000, 8001)}
        self._served: set[str] = set()
        self.write("main", DEFAULT_APP)

    def _replace_ports(self, text: str) -> str:
        return re.sub(r"\b(8000|8001)\b", lambda found: str(self._ports[found[0]]), text)

    def write(self, module: str, code: str) -> None:
        """Write a module of the page."""
        (self._directory / f"{module}.py").write_text(self._replace_ports(code), "utf-8")
        sys.modules.pop(module, None)
        importlib.invalidate_caches()

    def type_in(self, block: str) -> None:
        """Run the commands of a block."""
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                self._run(line, words)

    def _run(self, line: str, words: list[str]) -> None:
        with self._monkeypatch.context() as patch:
            while words and ASSIGNMENT.match(words[0]):
                variable, _, value = words.pop(0).partition("=")
                patch.setenv(variable, value)
                if variable.startswith("O"):
                    assert variable in ObserveSettings().sources().values(), line
            if not words:
                assert main(["settings"]) == 0
                return
            if words[:3] == ["python", "-m", "uvicorn"]:
                del words[:2]
            if words[:2] == ["python", "-m"]:
                assert words[2] == "fastapi_observe", line
                self._command([self._replace_ports(word) for word in words[3:]])
            elif words[0] in SERVER_OPTIONS:
                self._serve(words)
            elif words[0] == "pip":
                assert words[1] == "install"
                for requirement in words[2:]:
                    check_requirement(requirement)
            else:
                assert words[0] in {"curl", "printf", "python"}, f"a command that no test knows: {line}"
                self._serve_what_is_asked(line)
                done = subprocess.run(  # noqa: S603 - our own pages
                    [needs("bash"), "-c", f"set -o pipefail\n{self._replace_ports(line)}"],
                    cwd=self._directory,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def _command(self, arguments: list[str]) -> None:
        if arguments[0] == "demo":  # tests/cli/test_cli_demo.py runs it
            return
        self._serve_what_is_asked(" ".join(arguments) if arguments[0] != "show" else "127.0.0.1:8000")
        # `doctor` also reports what earlier tests in this process have lost on purpose, such as log lines.
        found_something = EXIT_PROBLEM if arguments[0] == "doctor" else 0
        assert main(arguments) in {0, found_something}, arguments

    def _serve(self, words: list[str]) -> None:
        module = SERVER_OPTIONS[words[0]](words[1:])
        self.serve(
            module, words[words.index("--port") + 1] if "--port" in words else "8000", development=words[0] == "fastapi"
        )

    def _serve_what_is_asked(self, line: str) -> None:
        if "127.0.0.1:" in line and "8000" not in self._served:
            self.serve("main", "8000", development=True)

    def serve(self, module: str, port: str, *, development: bool) -> None:
        """Serve a module at a port of the page, until the page ends; a second server takes the place of the first."""
        if port in self._served:
            return
        self._served.add(port)
        if development:
            self._monkeypatch.setenv("FASTAPI_ENV", "development")
        app = importlib.import_module(module).app
        self._stack.enter_context(serving(app, port=self._ports[port]))


def read_uvicorn(words: list[str]) -> str:
    """Return the module of an app that uvicorn is to serve; options that it does not have raise."""
    context = uvicorn_command.make_context("uvicorn", list(words))
    return str(context.params["app"]).partition(":")[0]


def read_gunicorn(words: list[str]) -> str:
    """Return the module of an app that gunicorn is to serve; options that it does not have raise."""
    options = importlib.import_module(needs_package("gunicorn") + ".config").Config().parser().parse_args(words)
    return str(options.args[0]).partition(":")[0]


def read_fastapi(words: list[str]) -> str:
    """Return the module of an app that `fastapi dev` is to serve."""
    assert words[0] == "dev"
    assert words[2::2] in ([], ["--port"])
    return words[1].removesuffix(".py")


SERVER_OPTIONS: Final = {"uvicorn": read_uvicorn, "gunicorn": read_gunicorn, "fastapi": read_fastapi}


def check_requirement(text: str) -> None:
    """Check that what a page installs exists: extras of this package, and packages that our extras name."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    if text.startswith("."):  # a checkout, or the wheel that `make dist` builds
        wheel = f"./{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
        path, _, extra = text.removesuffix("]").partition("[")
        assert path in {".", wheel}
        text = f"{project['name']}[{extra}]"
    requirement = Requirement(text)
    if requirement.name == project["name"]:
        assert requirement.extras <= set(extras)
    else:
        known = {Requirement(each).name for each in [*project["dependencies"], *chain(*extras.values())]}
        assert requirement.name in known


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Have a reader in an empty directory; what their apps install is closed after the page."""
    before, modules = list(observability.INSTALLED), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OBSERVE_MULTIPROCESS_DIRECTORY", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with ExitStack() as stack:
        yield Reader(tmp_path, monkeypatch, stack)
    for one in reversed([each for each in observability.INSTALLED if each not in before]):
        one.close()
    for module in set(sys.modules) - modules:
        if module in {"main", "payments"}:
            del sys.modules[module]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=[name(page) for page in WITH_COMMANDS])
def test_commands_run(page: Path, reader: Reader) -> None:
    """Every command of a page succeeds, in the order of the page and with the files that it shows."""
    for block in blocks(page):
        if block.language == "python":
            first = re.match(r"# (\w+)\.py\n", block.text)
            if first:
                reader.write(first[1], block.text)
        elif block.language == "sh":
            reader.type_in(block.text)


@pytest.mark.parametrize(("page", "block"), ALL, ids=[f"{name(page)}-{block.line}" for page, block in ALL])
def test_blocks_are_well_formed(page: Path, block: Block) -> None:
    """What is not run is at least what it says to be: Python, shell, JSON or YAML."""
    assert block.language in LANGUAGES, page
    if block.language == "py":
        compile(block.text, str(page), "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        assert isinstance(yaml.safe_load(block.text), dict)
    elif block.language in {"sh", "console"}:
        done = subprocess.run([needs("bash"), "-n"], input=block.text, capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode == 0, done.stderr


def test_few_commands_are_only_checked() -> None:
    """Blocks that no test runs are those of programs that the tests do not have: containers and clusters."""
    for page, block in ALL:
        if block.language == "console":
            words = {word for line in block.text.splitlines() for word in line.split()[:4]}
            assert words & {"docker", "kubectl", "helm", "ddtrace-run", "make", "pytest"}, f"{name(page)}:{block.line}"


def test_messages_on_the_troubleshooting_page_are_those_of_the_code() -> None:
    """A reader searches for the words of the log on the page."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    assert causes.SPEAKS_GRPC in text
    assert "`Denied a request for the metrics`" in text
    assert '"Denied a request for the metrics: ' in inspect.getsource(access)
    for message, module in (
        ("A global tracer provider was set after install(app)", service),
        ("get_observability() is ambiguous: ", current),
    ):
        assert f"`{message}" in text
        assert message in inspect.getsource(module)
