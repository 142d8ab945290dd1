"""Validate options: an invalid `OTEL_*` variable is ignored, any other invalid value is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from fastapi_observe.settings.sources import SettingsError, SourcedValue, describe_error, read_option, sourced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic_settings import BaseSettings

GRPC_EXTRA: Final = "needs an extra; run pip install 'fastapi-observe[grpc]'"

S = TypeVar("S", bound="BaseSettings")


class Validated(NamedTuple, Generic[S]):
    """Settings, the values that they were made of, and the values that were ignored by option and variable."""

    settings: S
    values: dict[str, Any]
    ignored: dict[tuple[str, str], SourcedValue]


def read_iterators(value: Any) -> Any:
    """Return a value with tuples in place of iterators, which can be read once only: `validate` reads several times."""
    if isinstance(value, dict):
        return {name: read_iterators(member) for name, member in value.items()}
    return tuple(value) if isinstance(value, Iterator) else value


def validate(
    settings_cls: type[S], values: dict[str, Any], handler: Callable[[Any], S], environment: Mapping[str, str]
) -> Validated[S]:
    """Return the settings that pydantic's `handler` makes of the values.

    Raises `SettingsError` with a line for each invalid option.
    """
    ignored: dict[tuple[str, str], SourcedValue] = {}
    while True:
        try:
            settings = handler(values)
            if not _lacks_grpc(settings):
                return Validated(settings, values, ignored)
            name = "otlp_protocol"
            if not sourced(values[name]).is_from_otel:
                raise SettingsError([f"{name}='grpc' {GRPC_EXTRA}, or use 'http/protobuf'"])
        except ValidationError as error:
            invalid = _invalid_options(error, values)
            if not invalid:
                # model_validate: __init__ has raised SettingsError already, or the value is not a mapping.
                raise
            # One variable at a time: without a valid protocol, a valid endpoint may look invalid.
            from_otel = next((name for name in invalid if sourced(values[name]).is_from_otel), None)
            if from_otel is None:
                raise SettingsError(
                    [describe_error(settings_cls, name, values[name], items) for name, items in invalid.items()]
                ) from None
            name = from_otel
        values = dict(values)
        given = values.pop(name)
        ignored[name, given.source] = given
        other = read_option(name, settings_cls.model_fields[name], environment, ignored=ignored)
        if other is not None:
            values[name] = other


def _lacks_grpc(settings: Any) -> bool:
    """Return whether the settings export over gRPC, which cannot be imported."""
    if settings.otlp_protocol != "grpc" or settings.otlp_endpoint is None:
        return False
    try:
        import grpc  # type: ignore[import-untyped]  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return True
    return False


def _invalid_options(error: ValidationError, values: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the options that pydantic rejected, in their order, each with its invalid items if it is a list.

    For a union, pydantic reports the whole value once for each of its types.
    """
    invalid: dict[str, list[Any]] = {}
    for detail in error.errors():
        if not detail["loc"]:
            return {}
        name = str(detail["loc"][0])
        items = invalid.setdefault(name, [])
        if len(detail["loc"]) > 1 and detail["input"] is not sourced(values[name]).value:
            items.append(detail["input"])
    return invalid
