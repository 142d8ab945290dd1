"""`SourcedSettings`: immutable settings that know the source of each value. `ObserveSettings` declares the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fastapi_observe.settings.sources import (
    PREFIX,
    UNPARSABLE,
    VariablesSource,
    env_file_of,
    has_bytes,
    mask,
    option_metadata,
    sourced,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class SourcedSettings(BaseSettings):
    """Settings from arguments and from the variables of each option, with the source of each value."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=False,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    # Type checkers take the signature from the fields.
    if not TYPE_CHECKING:  # pragma: no branch

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise error.errors()[0]["ctx"]["error"] from None

    def sources(self) -> dict[str, str]:
        """Return the source of each option: `argument`, the name of a variable, or `default`."""
        return {name: self._sources.get(name, "default") for name in type(self).model_fields}

    def warnings(self) -> tuple[str, ...]:
        """Return messages about settings without effect, such as `OTEL_*` variables that are invalid or not read."""
        return self._warnings

    def masked(self) -> dict[str, Any]:
        """Return every option and its value, with secrets masked."""
        return {name: mask(name, getattr(self, name)) for name in type(self).model_fields}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from self.masked().items()

    @field_validator("*", mode="before")
    @classmethod
    def _unpack(cls, value: Any, info: ValidationInfo) -> Any:
        value = sourced(value).value
        if value is UNPARSABLE:
            raise ValueError(f"{info.field_name} cannot be parsed")
        # pydantic takes bytes for strings, but not everything reads the option through pydantic, such as `env_file_of`.
        name = str(info.field_name)
        if has_bytes(value) and not option_metadata(cls.model_fields[name]).code_only:
            raise ValueError(f"{name} has bytes")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - VariablesSource reads them
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - secrets are left to the deployment
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence: arguments, then the variables of each option in their order."""
        return init_settings, VariablesSource(settings_cls, env_file_of(init_settings()))
