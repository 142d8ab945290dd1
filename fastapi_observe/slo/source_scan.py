"""What the source of an app uses without showing it in its routes: jobs, operations and business metrics."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BLOCKS: Final = {"job": "jobs", "operation": "operations"}
"""Features by the function whose result is used as a block or as a decorator."""

BUSINESS_METHODS: Final = frozenset({"user_registered", "user_logged_in", "order_created", "revenue"})
"""Methods of `metrics.business`."""

FRAMEWORKS: Final = frozenset({"fastapi", "starlette", "fastapi_observe"})


def scan_sources(functions: Iterable[Any]) -> Iterator[str]:
    """Yield the features that the imported modules of the packages of some functions use.

    A call counts if its name is written out: `with observe.job("send mail"):`, `@operation("price order")`,
    `metrics.business.order_created()`. A module without a source yields nothing.
    """
    packages = {str(getattr(function, "__module__", "")).partition(".")[0] for function in functions} - FRAMEWORKS
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in packages and file and file.endswith(".py"):
            try:
                tree = ast.parse(Path(file).read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            yield from _used_features(tree)


def _used_features(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in BUSINESS_METHODS and _name(node.value) == "business":
            yield "business"
        for call in _blocks(node):
            if isinstance(call, ast.Call) and call.args and _is_text(call.args[0]):
                feature = BLOCKS.get(_name(call.func))
                if feature is not None:
                    yield feature


def _blocks(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the decorators of a function and the context managers of a block."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from node.decorator_list
    elif isinstance(node, ast.With | ast.AsyncWith):
        for item in node.items:
            yield item.context_expr


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
