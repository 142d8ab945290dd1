"""Where a request was wrong: the location of a validation error in names that the app declared, never the client's."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, get_args

DEEPEST: Final = 6
"""Parts of a location that are told apart."""

MOST_ERRORS: Final = 20
"""Errors of one request that are counted."""


def declared_errors(errors: Any, route: Any) -> list[tuple[str, str]]:
    """Return (field, type) for each error: `body.items.[].price`, `missing`.

    A part of the location that is not a parameter or model field of the route reads `*`: a client may choose it (the
    keys of a dictionary, a forbidden extra field). Numbers read `[]`.
    """
    names = declared_names(route)
    return [
        (".".join(_part(part, names) for part in error["loc"][:DEEPEST]) or "*", str(error["type"]))
        for error in errors[:MOST_ERRORS]
    ]


def _part(part: Any, names: set[str]) -> str:
    if isinstance(part, int):
        return "[]"
    return part if part in names else "*"


def declared_names(route: Any) -> set[str]:
    """Collect every name that may stand in a location: kinds of parameters, parameters, fields of their models."""
    names = {"body", "query", "path", "header", "cookie"}
    seen: set[int] = set()
    _from_dependant(getattr(route, "dependant", None), names, seen)
    return names


def _from_dependant(dependant: Any, names: set[str], seen: set[int]) -> None:
    if dependant is None:
        return
    for kind in ("path_params", "query_params", "header_params", "cookie_params", "body_params"):
        for field in getattr(dependant, kind, ()):
            names.update({field.name, field.alias})
            _from_type(field.field_info.annotation, names, seen)
    for inner in getattr(dependant, "dependencies", ()):
        _from_dependant(inner, names, seen)


def _from_type(annotation: Any, names: set[str], seen: set[int]) -> None:
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    for argument in get_args(annotation):
        _from_type(argument, names, seen)
    fields = getattr(annotation, "model_fields", None)
    if isinstance(fields, dict):
        for name, field in fields.items():
            names.update({name, *(alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str))})
            _from_type(field.annotation, names, seen)
    elif dataclasses.is_dataclass(annotation):
        for item in dataclasses.fields(annotation):
            names.add(item.name)
            _from_type(item.type, names, seen)
    elif isinstance(annotation, type) and hasattr(annotation, "__required_keys__"):
        for name, inner in annotation.__annotations__.items():
            names.add(name)
            _from_type(inner, names, seen)
