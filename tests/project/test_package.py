"""What is published: the wheel and the source distribution, and the wheel's use without anything of this directory."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PUBLIC_EXTRAS = ("fastapi", "grpc", "sqlalchemy", "example")

FASTAPI_APP = """
from fastapi import FastAPI
from fastapi_observe import install

app = FastAPI()

@app.get("/items/{item_id}")
def read_item(item_id: int) -> int:
    return item_id
"""

STARLETTE_APP = """
import sys
sys.modules["fastapi"] = None  # as where it is not installed
from fastapi_observe import install
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def read_item(request):
    return JSONResponse(request.path_params["item_id"])

app = Starlette(routes=[Route("/items/{item_id:int}", read_item)])
"""

SERVED = """
import socket
import sys
import threading
import urllib.request

import fastapi_observe
import uvicorn

assert fastapi_observe.__file__.startswith(sys.argv[1]), fastapi_observe.__file__
install(app)
listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
thread.start()

def get(path):
    # The listener is open: a request waits until the server takes it.
    with urllib.request.urlopen(f"http://127.0.0.1:{listener.getsockname()[1]}{path}", timeout=60) as answer:
        return answer.read().decode()

assert get("/items/7") == "7"
metrics = get("/metrics")
server.should_exit = True
thread.join()
(sample,) = (line for line in metrics.splitlines() if line.startswith("http_requests_total{"))
print(sample)
"""


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the wheel and the source distribution, with the installed hatchling and without a network."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert built.returncode == 0, built.stderr
    (wheel,) = directory.glob("*.whl")
    (source,) = directory.glob("*.tar.gz")
    return wheel, source


def test_the_wheel_is_the_package(distributions: tuple[Path, Path]) -> None:
    """The wheel holds each file of the package, py.typed among them, the pytest plugin, and its own description."""
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = set(wheel.namelist())
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastapi_observe").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name} | {"_fastapi_observe_pytest.py"}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert "fastapi_observe/py.typed" in names


def test_the_source_distribution_can_be_tested(distributions: tuple[Path, Path]) -> None:
    """The source distribution brings the tests and whatever they read."""
    with tarfile.open(distributions[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    wanted = ["fastapi_observe/py.typed", "tests/conftest.py", "example_app/__main__.py", "benchmarks/__main__.py"]
    wanted += ["docs/explanation/design.md"]
    assert {
        *wanted,
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        ".ci/run",
    } <= names


@pytest.mark.parametrize("app", [pytest.param(FASTAPI_APP, id="fastapi"), pytest.param(STARLETTE_APP, id="starlette")])
def test_the_wheel_serves(app: str, distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """The unpacked wheel observes an app under a real uvicorn; Starlette alone is enough."""
    shutil.unpack_archive(distributions[0], tmp_path / "site", "zip")
    script = tmp_path / "served.py"
    script.write_text(f"import sys\nsys.path.insert(0, sys.argv[1])\n{app}{SERVED}", encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)  # noqa: S603 - our own script
    assert done.returncode == 0, done.stderr
    sample = done.stdout.splitlines()[-1]
    assert sample == 'http_requests_total{method="GET",endpoint="/items/{item_id}",status_code="200"} 1'


def test_the_extras_allow_no_less_than_the_dependencies() -> None:
    """A distribution that is in several lists of pyproject.toml has one lower bound for its users."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bounds: dict[str, set[str]] = {}
    for requirement in [*project["dependencies"], *(one for name in PUBLIC_EXTRAS for one in extras[name])]:
        name, _, bound = requirement.partition(">=")
        assert bound, requirement
        bounds.setdefault(name, set()).add(bound)
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_the_design_page_lists_the_private_names_of_other_libraries() -> None:
    """docs/explanation/design.md has each module of `internal/` that uses such names, and what happens without them."""
    page = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
    table = page.partition("<!-- private names -->\n")[2].partition("<!-- /private names -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert all(len(row) == 3 and len(row[2].split()) > 3 for row in rows)
    modules = set()
    for path in (ROOT / "fastapi_observe" / "internal").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.args[1].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"getattr", "hasattr"}
            and isinstance(node.args[1], ast.Constant)
        }
        private = {str(name) for name in names if str(name).startswith("_") and not str(name).startswith("__")}
        module = f"`internal/{path.name}`"
        listed = " ".join(row[1] for row in rows if row[0] == module)
        assert {name for name in private if f"`{name}`" not in listed and f".{name}." not in listed} == set(), module
        if private or "ames of " in (ast.get_docstring(tree) or ""):
            modules.add(module)
    assert {row[0] for row in rows} == modules


def test_the_design_page_names_every_dependency_and_its_job() -> None:
    """docs/explanation/design.md lists the dependencies of pyproject.toml, and the package imports each of them."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
    table = page.partition("<!-- dependencies -->\n")[2].partition("<!-- /dependencies -->")[0]
    jobs = dict(line.strip("|").split("|", 1) for line in table.splitlines()[2:])
    listed = [name for names in jobs for name in re.findall(r"`([^`]+)`", names)]
    assert sorted(listed) == sorted(Requirement(each).name for each in project["dependencies"])
    assert all(len(job.split()) > 3 for job in jobs.values())
    imported = {
        name
        for path in (ROOT / "fastapi_observe").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    for name in listed:
        files = [str(file) for file in metadata.files(name) or () if file.suffix == ".py"]
        modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}
        assert any(each in modules or each.rpartition(".")[0] in modules for each in imported), name
