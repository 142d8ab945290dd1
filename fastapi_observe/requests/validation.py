"""Locations and types of validation errors, in names that the app declared, never the client's."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

from typing_extensions import is_typeddict  # recognizes typing.TypedDict and its own; pydantic accepts both

from fastapi_observe.internal.fastapi import declared_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LOCATION_PARTS: Final = 6
"""Parts of a location that are reported."""

MAX_COUNTED_ERRORS: Final = 20
"""Errors of one request that are reported."""


def validation_error_locations(errors: Any, route: Any) -> list[tuple[str, str]]:
    """Return (field, type) for each error, such as `body.items.[].price`, `missing`.

    A part of the location that is not a declared parameter or model field of the route is `*`, because a client may
    choose it (keys of a dictionary, a forbidden extra field). An index is `[]`.
    """
    names = declared_names(route)
    return [
        (".".join(_location_part(part, names) for part in error["loc"][:MAX_LOCATION_PARTS]) or "*", str(error["type"]))
        for error in errors[:MAX_COUNTED_ERRORS]
    ]


def _location_part(part: Any, names: set[str]) -> str:
    if isinstance(part, int):
        return "[]"
    return part if part in names else "*"


def declared_names(route: Any) -> set[str]:
    """Return all names that may be part of a location: kinds of parameters, parameters, fields of their models."""
    names = {"body", "query", "path", "header", "cookie"}
    seen: dict[int, Any] = {}
    for field in declared_fields(route):
        names.update({field.name, field.alias})
        _add_names(field.annotation, names, seen)
        if field.is_header:  # the fields of a header model are sent with hyphens
            names.update([name.replace("_", "-") for name in names])
    return names


def _add_names(annotation: Any, names: set[str], seen: dict[int, Any]) -> None:
    if id(annotation) in seen:
        return
    seen[id(annotation)] = annotation  # keeps the object alive, so that its id is not reused
    for argument in (*get_args(annotation), getattr(annotation, "__value__", None)):  # the value of `type X = ...`
        _add_names(argument, names, seen)
    fields = getattr(annotation, "model_fields", None)
    if isinstance(fields, dict):
        for name, field in fields.items():
            names.update({name, *_aliases(field.alias), *_aliases(field.validation_alias)})
            _add_names(field.annotation, names, seen)
    elif isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or is_typeddict(annotation)):
        for name, inner in _annotations(annotation).items():
            names.add(name)
            _add_names(inner, names, seen)


def _aliases(alias: Any) -> Iterator[str]:
    """Iterate over the names in an alias: a string, `AliasChoices` or `AliasPath`."""
    if isinstance(alias, str):
        yield alias
    for part in getattr(alias, "choices", None) or getattr(alias, "path", None) or ():
        yield from _aliases(part)


def _annotations(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass or TypedDict, as strings if a name in them cannot be resolved."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return inspect.get_annotations(kind)
