"""The public surface is exactly what it says, every name in it is explained, and importing it changes nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastapi_observe
from fastapi_observe import ObserveSettings

PACKAGE = Path(fastapi_observe.__file__).parent
PUBLIC = [
    "Availability",
    "DatabaseDep",
    "ExternalDep",
    "HttpClientDep",
    "Latency",
    "LogDep",
    "MetricsDep",
    "Observability",
    "ObservabilityDep",
    "ObserveSettings",
    "PoolState",
    "SLOOptions",
    "SettingsError",
    "SpanDep",
    "TraceContext",
    "TracingDep",
    "generate_rules",
    "get_observability",
    "install",
    "install_worker",
    "job",
    "operation",
    "slo",
    "traced",
]
MUTABLE = {"observability.INSTALLED"}
"""Module-level state: what is installed in this process."""


def test_the_names() -> None:
    """`__all__`, `dir` and what can be imported are the same names."""
    assert fastapi_observe.__all__ == PUBLIC
    assert dir(fastapi_observe) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(fastapi_observe, name) is not None
    with pytest.raises(AttributeError, match="module 'fastapi_observe' has no attribute 'instal'"):
        _ = fastapi_observe.instal


def test_every_name_is_explained() -> None:
    """A function or class says what it is; an alias has its line of use below it."""
    tree = ast.parse((PACKAGE / "dependencies.py").read_text("utf-8"))
    explained: set[str] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for one, after in itertools.pairwise(body):
                if (
                    isinstance(one, ast.Assign)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    explained |= {target.id for target in one.targets if isinstance(target, ast.Name)}
    for name in PUBLIC:
        thing = getattr(fastapi_observe, name)
        assert name in explained if name.endswith("Dep") else inspect.getdoc(thing), name


@pytest.mark.parametrize(
    "name", ["Observability", "ObserveSettings", "TraceContext", "TracingDep", "MetricsDep", "LogDep", "DatabaseDep"]
)
def test_every_method_is_explained(name: str) -> None:
    """What users call has a docstring, on the classes and on what the aliases give."""
    thing: Any = getattr(fastapi_observe, name)
    kind = thing.__origin__ if name.endswith("Dep") else thing
    for at, member in vars(kind).items():
        if not at.startswith(("_", "model_")) and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(member), f"{kind.__name__}.{at}"


def test_modules_hold_no_state() -> None:
    """No module keeps a list, dict or set that changes, but the one that is known; constants are Final or frozen."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign):
                targets: list[ast.expr] = node.targets
            elif isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith("Final"):
                targets = [node.target]
            else:
                continue
            kinds = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Call)
            module = importlib.import_module("fastapi_observe" + ("" if name == "__init__" else f".{name}"))
            if isinstance(node.value, kinds) and name != "__main__":
                values = [
                    (ast.unparse(target), vars(sys.modules[module.__name__])[ast.unparse(target)]) for target in targets
                ]
                found |= {f"{name}.{at}" for at, value in values if isinstance(value, list | dict | set)}
    assert {one for one in found if not one.endswith("__all__")} == MUTABLE


def imported_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    environment = {**os.environ, "PYDANTIC_DISABLE_PLUGINS": "__all__"}  # a plugin may import anything
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return set(done.stdout.split())


def test_importing_is_light() -> None:
    """What plain Starlette does not need is not imported with us: FastAPI, httpx, the exporters."""
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert imported_by("import fastapi_observe") & {"fastapi", "httpx", "grpc", "sqlalchemy", exporter} == set()
    assert "fastapi" in imported_by("from fastapi_observe import LogDep")


def test_the_package_is_typed() -> None:
    """Type checkers of users read our annotations."""
    assert (PACKAGE / "py.typed").exists()


def test_install_takes_every_setting() -> None:
    """Each option of `ObserveSettings` can be given to `install`, and nothing is listed twice."""
    assert list(inspect.signature(fastapi_observe.install).parameters) == ["app", "settings", "overrides"]
    assert all(field.description for field in ObserveSettings.model_fields.values())
