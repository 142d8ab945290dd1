"""The picture in docs/design.md is what the modules are: read from their source, imports for types included."""

from __future__ import annotations

import ast
import importlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastapi_observe"
DESIGN = (ROOT / "docs" / "design.md").read_text("utf-8")
TREE = DESIGN.split("```\nfastapi_observe/\n")[1].split("```")[0]
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent == PACKAGE
}
LONGEST_FILE = 400

STOREYS = (
    ("records", "settings"),
    ("signals", "clients", "runtime", "slo"),
    ("observability",),
    ("edges",),
    ("install",),
    ("__init__", "__main__"),
)
"""The rooms of the house, from the ground up: who imports whom is who stands above whom."""

ROOMS = {
    "middleware": "edges",
    "scraping": "edges",
    "dependencies": "edges",
    "installed": "edges",
    "cli": "edges",
    "testing": "edges",
    "cli_settings": "edges",
    "cli_cardinality": "edges",
    "cli_bundle": "edges",
    "cli_scrape": "edges",
    "cli_slo": "edges",
    "objectives": "observability",
    "settings_objectives": "settings",
    "settings_sources": "settings",
    "settings_types": "settings",
}
"""Modules outside a folder that share a room; every other one is a room of its own."""


def room(module: str) -> str:
    """Return the room that a module stands in."""
    first = module.split(".", 1)[0]
    return ROOMS.get(first, first)


def storey(module: str) -> int:
    """Return how high a module stands."""
    return next(at for at, rooms in enumerate(STOREYS) if room(module) in rooms)


def family(module: str) -> str:
    """Return the signal that a module of `signals` belongs to: the line of the tree that names it."""
    name = module.removeprefix("signals.") + ".py"
    return next(families for families in FAMILIES if name in FAMILIES[families])


def _families() -> dict[str, set[str]]:
    lines = re.split(r"\n(?= {4}\w)", TREE.split("  signals/")[1].split("\n  clients/")[0])[1:]
    named = [re.findall(r"\w+\.py", line) for line in lines]
    return {names[0]: set(names) for names in named}


FAMILIES = _families()


def imports(module: str) -> set[str]:
    """Return the modules of ours that a module imports anywhere: at the top, inside functions, for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            name = node.module or ""
            found.update(
                f"{name}.{alias.name}" if f"{name}.{alias.name}".removeprefix("fastapi_observe.") in MODULES else name
                for alias in node.names
            )
    ours = {name for name in found if name.split(".")[0] == "fastapi_observe"}
    return {name.removeprefix("fastapi_observe.") if "." in name else "__init__" for name in ours}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports from its own room and from storeys below; nothing from a room beside it or above."""
    for other in imports(module):
        assert room(other) == room(module) or storey(other) < storey(module), f"{module} imports {other}"


def test_no_signal_imports_another() -> None:
    """Tracing, metrics and logs are strangers: each imports modules of its own family only."""
    signals = [module for module in MODULES if module.startswith("signals.")]
    assert set(FAMILIES) == {"tracing.py", "metrics.py", "logs.py"}
    for module in signals:
        for other in imports(module):
            assert not other.startswith("signals.") or family(other) == family(module), f"{module} imports {other}"


def test_there_is_no_cycle() -> None:
    """The modules can be put in an order in which each imports earlier ones only."""
    order = [*TopologicalSorter({module: imports(module) for module in MODULES}).static_order()]
    assert set(order) == set(MODULES)
    assert order[-1] in {"__init__", "__main__"}


def test_the_tree_names_every_module() -> None:
    """Every module stands in the tree of docs/design.md, in its folder, and no other does."""
    named: set[str] = set()
    for part in re.split(r"\n(?= {2}\w)", "\n" + TREE):
        folder = re.match(r"\s*(\w+)/", part)
        prefix = f"{folder[1]}." if folder else ""
        written = re.findall(r"\b\w+\.py\b", part) if folder else re.findall(r"(?:^\s+|by way of )(\w+\.py)", part)
        named |= {prefix + name.removesuffix(".py") for name in written}
    assert named == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_one_sentence(module: str) -> None:
    """The first line says what the reader will find, in one sentence; reasons may follow below it."""
    text = ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8"))) or ""
    sentence = text.split("\n\n")[0]
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not re.search(r"[.!?] [A-Z]", sentence)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_short(module: str) -> None:
    """A file over 400 lines is two files."""
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if "re.compile(" in path.read_text("utf-8")])
def test_no_group_is_repeated_possessively(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Python 3.11.2 reads `(?:...)*+` wrongly, and showed numbers of a statement: `(?>(?:...)*)` says the same."""
    for value in vars(importlib.import_module(f"fastapi_observe.{module}")).values():
        for pattern in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]:
            if isinstance(pattern, re.Pattern):
                re.compile(pattern.pattern, pattern.flags | re.DEBUG)
    assert not re.search(r"\d[.:] +POSSESSIVE_REPEAT ", capsys.readouterr().out)
