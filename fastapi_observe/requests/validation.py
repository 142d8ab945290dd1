"""Where a request was wrong: the location of a validation error in names that the app declared, never the client's."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

from typing_extensions import is_typeddict  # typing.TypedDict's and its own: pydantic takes both

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LOCATION_PARTS: Final = 6
"""Parts of a location that are told apart."""

MAX_COUNTED_ERRORS: Final = 20
"""Errors of one request that are counted."""


def validation_error_locations(errors: Any, route: Any) -> list[tuple[str, str]]:
    """Return (field, type) for each error: `body.items.[].price`, `missing`.

    A part of the location that is not a parameter or model field of the route reads `*`: a client may choose it (the
    keys of a dictionary, a forbidden extra field). Numbers read `[]`.
    """
    names = declared_names(route)
    return [
        (".".join(_part(part, names) for part in error["loc"][:MAX_LOCATION_PARTS]) or "*", str(error["type"]))
        for error in errors[:MAX_COUNTED_ERRORS]
    ]


def _part(part: Any, names: set[str]) -> str:
    if isinstance(part, int):
        return "[]"
    return part if part in names else "*"


def declared_names(route: Any) -> set[str]:
    """Collect every name that may stand in a location: kinds of parameters, parameters, fields of their models."""
    names = {"body", "query", "path", "header", "cookie"}
    _from_dependant(getattr(route, "dependant", None), names, {})
    return names


def _from_dependant(dependant: Any, names: set[str], seen: dict[int, Any]) -> None:
    if dependant is None:
        return
    for kind in ("path_params", "query_params", "header_params", "cookie_params", "body_params"):
        for field in getattr(dependant, kind, ()):
            names.update({field.name, field.alias})
            _from_type(field.field_info.annotation, names, seen)
            if kind == "header_params":  # the fields of a model are headers with hyphens
                names.update([name.replace("_", "-") for name in names])
    for inner in getattr(dependant, "dependencies", ()):
        _from_dependant(inner, names, seen)


def _from_type(annotation: Any, names: set[str], seen: dict[int, Any]) -> None:
    if id(annotation) in seen:
        return
    seen[id(annotation)] = annotation  # kept alive, so that no id can be used again
    for argument in (*get_args(annotation), getattr(annotation, "__value__", None)):  # the value of `type X = ...`
        _from_type(argument, names, seen)
    fields = getattr(annotation, "model_fields", None)
    if isinstance(fields, dict):
        for name, field in fields.items():
            names.update({name, *_aliases(field.alias), *_aliases(field.validation_alias)})
            _from_type(field.annotation, names, seen)
    elif isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or is_typeddict(annotation)):
        for name, inner in _annotations(annotation).items():
            names.add(name)
            _from_type(inner, names, seen)


def _aliases(alias: Any) -> Iterator[str]:
    """Walk the names in an alias: a text, `AliasChoices` or `AliasPath`."""
    if isinstance(alias, str):
        yield alias
    for part in getattr(alias, "choices", None) or getattr(alias, "path", None) or ():
        yield from _aliases(part)


def _annotations(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass or TypedDict; as they are written where a name in them is not to be found."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return inspect.get_annotations(kind)
