"""The folders of the package are its architecture: imports between them point one way, and no module cycle exists."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

PACKAGE: Final = Path(__file__).parents[2] / "fastapi_observe"
SIGNALS: Final = frozenset({"traces", "metrics", "logs"})
MAX_FILES: Final = 16
MAX_LINES: Final = 600


def module_name(path: Path) -> str:
    """Return the dotted name of a file below the package; an `__init__.py` has the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


MODULES: Final = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this package that a file imports anywhere, imports for types included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    found: set[str] = set()
    for name in names:
        if name.split(".")[0] == "fastapi_observe":
            inner = name.partition(".")[2]
            found.add(inner if inner in MODULES else inner.rpartition(".")[0] or "__init__")
    return found


IMPORTS: Final = {name: imported_modules(path) for name, path in MODULES.items()}


def folder(module: str) -> str:
    """Return the top-level folder of a module; a module outside the folders is its own."""
    return module.partition(".")[0]


def folder_imports() -> dict[str, set[str]]:
    """Return for each folder the other folders that it imports."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for module, imported in IMPORTS.items():
        arrows[folder(module)] |= {folder(other) for other in imported} - {folder(module)}
    return arrows


def test_folders_import_in_one_direction() -> None:
    """The folders can be put in an order in which each imports only earlier ones."""
    order = [*TopologicalSorter(folder_imports()).static_order()]
    assert order[-1] in {"__init__", "__main__"}


def test_modules_import_in_one_direction() -> None:
    """The modules can be put in an order in which each imports only earlier ones."""
    assert set(TopologicalSorter(IMPORTS).static_order()) <= set(MODULES)


def test_no_signal_imports_another() -> None:
    """Traces, metrics and logs know the records only, and not each other."""
    arrows = folder_imports()
    for signal in SIGNALS:
        assert not arrows[signal] & (SIGNALS - {signal})


def test_the_layers_below_the_signals_know_no_signal() -> None:
    """What is measured does not depend on who reports it; what carries telemetry does not depend on who makes it."""
    arrows = folder_imports()
    for lower in ("internal", "settings", "redaction", "records", "requests", "workers", "export"):
        assert not arrows[lower] & (SIGNALS | {"clients", "slo", "observability", "middleware"}), lower


def test_folders_are_small() -> None:
    """A folder has about 15 files, and a file about 600 lines: one subject each."""
    sizes: dict[Path, int] = defaultdict(int)
    for path in MODULES.values():
        sizes[path.parent] += 1
        assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES, path
    assert not {str(path): size for path, size in sizes.items() if size > MAX_FILES}


def test_modules_open_with_one_sentence() -> None:
    """The first line of a file says what is in it, in one sentence."""
    for name, path in MODULES.items():
        sentence = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
        assert sentence.endswith("."), name
        assert "\n" not in sentence, name
        assert not re.search(r"[.!?] [A-Z]", sentence), name


def test_no_group_is_repeated_possessively(capsys: pytest.CaptureFixture[str]) -> None:
    """Python 3.11.2 reads `(?:...)*+` wrongly, and showed numbers of a statement: `(?>(?:...)*)` means the same."""
    for name, path in MODULES.items():
        if "re.compile(" not in path.read_text("utf-8"):
            continue
        for value in vars(importlib.import_module(f"fastapi_observe.{name}")).values():
            patterns = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            for pattern in patterns:
                if isinstance(pattern, re.Pattern):
                    re.compile(pattern.pattern, pattern.flags | re.DEBUG)
        assert not re.search(r"\d[.:] +POSSESSIVE_REPEAT ", capsys.readouterr().out), name
