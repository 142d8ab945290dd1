"""Read options from the environment, and describe invalid ones."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast, get_args, get_origin
from urllib.parse import unquote

from dotenv import dotenv_values
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fastapi_observe.settings.renames import REMOVED_OPTIONS, RENAMED_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pydantic.fields import FieldInfo

PREFIX: Final = "OBSERVE_"
OTEL_PREFIX: Final = "OTEL_"
RESOURCE_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
MAX_SHOWN_LENGTH: Final = 100
"""Maximum length of an invalid value in an error message, in characters."""
MAX_ENV_FILE_BYTES: Final = 1 << 20
MAX_BYTES_DEPTH: Final = 2
"""Collections within each other in which bytes are looked for: `exclude_from` has lists in a mapping."""
MASK: Final = "**********"
SECRET: Final = frozenset({"otlp_headers", "otlp_endpoint", "metrics_token", "console_token"})
"""Options whose value may contain a password."""
NEVER_EMPTY: Final = frozenset({"metrics_token"})
"""Options that an empty variable does not set to None: a secret that fails to arrive must not remove protection."""
FORMER_OPTIONS: Final = RENAMED_OPTIONS.keys() | REMOVED_OPTIONS.keys()
TYPO_CUTOFF: Final = 0.85
"""Minimum similarity of an unknown `OBSERVE_*` variable to an option for it to be an error, from 0 to 1.

Other tools use the same prefix, so that an unknown variable as such is not an error.
"""


class SettingsError(ValueError):
    """Raised for invalid settings; `problems` has one line for each of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 invalid setting" if len(self.problems) == 1 else f"{len(self.problems)} invalid settings"
        super().__init__("\n  ".join((f"{count}:", *self.problems)))


# Parsing of variables. Each function raises ValueError for a string that it cannot parse.


def split(value: Any) -> Any:
    """Split a comma-separated string. Returns any other value unchanged."""
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


def pairs(text: str) -> dict[str, str]:
    """Parse `k=v,k2=v2`, percent-encoded, as the OpenTelemetry SDK does."""
    items = [item.partition("=") for item in text.split(",") if item.strip()]
    if not all(name.strip() and separator for name, separator, _ in items):
        raise ValueError("not a list of name=value")
    return {unquote(name).strip(): unquote(value).strip() for name, _, value in items}


UNPARSABLE: Final = object()
"""Value of a variable whose string could not be parsed."""
UNSET: Final = object()
"""Value of a variable that is set, but does not set this option."""


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """A value and its source: `argument`, or the name of a variable. `text` is the string of the variable."""

    source: str
    value: Any = field(repr=False)
    text: str | None = field(default=None, repr=False)

    @property
    def is_from_otel(self) -> bool:
        """Whether an `OTEL_*` variable set the value."""
        return self.source.startswith(OTEL_PREFIX)


def sourced(value: Any) -> SourcedValue:
    """Return a value as `SourcedValue`. A plain value is an argument."""
    return value if isinstance(value, SourcedValue) else SourcedValue("argument", value)


def has_bytes(value: Any, depth: int = MAX_BYTES_DEPTH) -> bool:
    """Return whether a value is bytes, or a collection of the standard library that has some."""
    if isinstance(value, bytes | bytearray | memoryview):
        return True
    if depth == 0 or not isinstance(value, dict | list | tuple | set | frozenset):
        return False
    members = (*value, *value.values()) if isinstance(value, dict) else value
    return any(has_bytes(each, depth - 1) for each in members)


class OptionMetadata(NamedTuple):
    """Facts about an option that pydantic has no place for; see `settings.types.option`."""

    otel: tuple[str, ...]
    aliases: tuple[str, ...]
    accepts: str
    code_only: bool
    subject: str


def option_metadata(field: FieldInfo) -> OptionMetadata:
    """Return the metadata that `option` stored with the field."""
    return cast("OptionMetadata", cast("dict[str, Any]", field.json_schema_extra)["option"])


def variable_name(name: str) -> str:
    """Return the `OBSERVE_*` variable of an option."""
    return PREFIX + name.upper()


def variables(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Return the variables that can set an option, in order of precedence."""
    metadata = option_metadata(field)
    return () if metadata.code_only else (variable_name(name), *metadata.aliases, *metadata.otel)


def env_file_of(values: Any) -> str | None:
    """Return the `.env` file that the options name, or the variable `OBSERVE_ENV_FILE`."""
    given = values.get("env_file") if isinstance(values, dict) else None
    value = os.environ.get(variable_name("env_file")) if given is None else sourced(given).value
    return os.fspath(value) if value and isinstance(value, str | os.PathLike) else None


def read_environment(env_file: str | None) -> dict[str, str]:
    """Return the variables of the process, and those of a `.env` file that the process does not have.

    Raises `SettingsError` if the file cannot be read.
    """
    if env_file is None:
        return dict(os.environ)
    try:
        values = dotenv_values(stream=StringIO(_read_text(env_file), newline=None))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        variable = variable_name("env_file")
        step = f"unset {variable}" if os.environ.get(variable) == env_file else "leave it out"
        raise SettingsError(
            [f"env_file: cannot read {_shorten('env_file', env_file)}: {reason}; correct the path, or {step}"]
        ) from None
    return {name: value for name, value in values.items() if value is not None} | os.environ


def _read_text(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - a path as a string
        content = file.read(MAX_ENV_FILE_BYTES + 1)
    if len(content) > MAX_ENV_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_ENV_FILE_BYTES >> 20} MiB")
    return content.decode()


def read_option(
    name: str, field: FieldInfo, environment: Mapping[str, str], *, ignored: Collection[tuple[str, str]] = ()
) -> SourcedValue | None:
    """Return the value of the first variable of `environment` that sets the option, or None.

    `ignored` holds pairs of option and variable that are treated as unset.
    """
    for variable in variables(name, field):
        source, _, key = variable.partition(":")
        text = environment.get(source, "").strip()
        # An empty OBSERVE_* variable sets the option to an empty value. An empty OTEL_* variable counts as unset
        # (OpenTelemetry specification).
        if (name, source) not in ignored and (text or (source == variable_name(name) and source in environment)):
            value = _parse(name, field, source, key, text)
            if value is not UNSET:
                return SourcedValue(source, value, text)
    return None


class VariablesSource(PydanticBaseSettingsSource):
    """Reads each option from `OBSERVE_<NAME>`, then from its aliases, then from its `OTEL_*` variables."""

    def __init__(self, settings_cls: type[BaseSettings], env_file: str | None) -> None:
        super().__init__(settings_cls)
        self.environment = read_environment(env_file)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # pragma: no cover
        """Return the value of one option as `SourcedValue`, or None. The base class demands it and calls it nowhere."""
        return read_option(field_name, field, self.environment), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the options that the environment sets, and the variables that look like a misspelled option."""
        fields, environment = self.settings_cls.model_fields, self.environment
        read = {name: read_option(name, field, environment) for name, field in fields.items()}
        values: dict[str, Any] = {name: value for name, value in read.items() if value is not None}
        known = {variable for name, field in fields.items() for variable in variables(name, field)}
        for variable in sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
            name = variable.removeprefix(PREFIX).lower()
            if name in FORMER_OPTIONS or difflib.get_close_matches(name, fields, n=1, cutoff=TYPO_CUTOFF):
                values.setdefault(name, SourcedValue(variable, UNPARSABLE, environment[variable]))
        return values


def _parse(option_name: str, field: FieldInfo, variable: str, key: str, text: str) -> Any:
    """Convert the string of a variable into a value for pydantic; `UNPARSABLE` if that fails."""
    try:
        if key:
            return pairs(text).get(key) or UNSET
        if parse := _PARSERS.get((option_name, variable)):
            return parse(text)
    except ValueError:
        return UNPARSABLE
    kinds = (field.annotation, *get_args(field.annotation))
    if not text and NoneType in kinds and option_name not in NEVER_EMPTY:
        return None
    return text.lower() if any(get_origin(kind) is Literal for kind in kinds) else text


def _parse_sdk_disabled(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("neither true nor false")
    return text.lower() == "false"


def _parse_traces_exporter(text: str) -> Any:
    """Return None where the list leaves OTLP out. A list without a known exporter is invalid."""
    names = split(text.lower())
    if any(name.startswith("otlp") for name in names):
        return UNSET
    if not {"none", "console", "zipkin"} & set(names):
        raise ValueError("no exporter of the specification")
    return None


def _parse_print_traces(text: str) -> Any:
    """Return True where the list of exporters has the console. Otherwise it says nothing about this option."""
    return True if "console" in split(text.lower()) else UNSET


_PARSERS: Final[dict[tuple[str, str], Callable[[str], Any]]] = {
    ("tracing", "OTEL_SDK_DISABLED"): _parse_sdk_disabled,
    # A ratio sampler without argument samples every trace (OpenTelemetry specification).
    ("sample_ratio", "OTEL_TRACES_SAMPLER"): lambda text: 1.0 if text.lower().endswith("traceidratio") else UNSET,
    ("otlp_endpoint", "OTEL_TRACES_EXPORTER"): _parse_traces_exporter,
    ("print_traces", "OTEL_TRACES_EXPORTER"): _parse_print_traces,
    ("batch_delay", "OTEL_BSP_SCHEDULE_DELAY"): lambda text: float(text) / 1000,
    ("otlp_metrics_interval", "OTEL_METRIC_EXPORT_INTERVAL"): lambda text: float(text) / 1000,
}
"""Parsers of variables that use another unit or other words than the option."""
_ACCEPTED: Final = {
    ("otlp_endpoint", "OTEL_TRACES_EXPORTER"): "otlp, console or none",
    ("otlp_headers", "OTEL_EXPORTER_OTLP_HEADERS"): "name=value,name2=value2 (percent-encoded)",
    ("otlp_headers", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"): "name=value,name2=value2 (percent-encoded)",
}
"""Accepted values of variables, where they differ from those of the option."""


# Documentation of options, and messages about invalid ones.


def describe_accepted(field: FieldInfo) -> str:
    """Describe the values that an option accepts."""
    metadata, kind = option_metadata(field), field.annotation
    if metadata.accepts:
        return metadata.accepts
    kinds = (kind, *get_args(kind))
    choices = [str(choice) for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices:
        choices += ["None"] * (NoneType in kinds)
        return " or ".join((", ".join(choices[:-1]), choices[-1]))
    if kind is bool:
        return "true or false"
    if kind in {int, float}:
        return ("a whole number" if kind is int else "a number") + _describe_range(field)
    ending = " or None" if NoneType in kinds else ""
    return "strings, separated by commas" if get_origin(kind) is tuple else f"a string{ending}"


def _describe_range(field: FieldInfo) -> str:
    limits = {
        name: getattr(each, name) for each in field.metadata for name in ("ge", "gt", "le") if hasattr(each, name)
    }
    if "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    return f" above {limits['gt']}" if "gt" in limits else f" of at least {limits['ge']}"


def mask(name: str, value: Any) -> Any:
    """Return the option's value without its secrets: header values; user, query and fragment of the endpoint."""
    if name == "otlp_headers" and isinstance(value, Mapping):
        return dict.fromkeys(value, MASK)
    if name == "otlp_endpoint" and isinstance(value, str):
        masked = re.sub(r"^(https?://)?.*@", rf"\1{MASK}@", value, flags=re.IGNORECASE | re.DOTALL)
        return re.sub(r"([?#]).*", rf"\1{MASK}", masked, flags=re.DOTALL)
    return MASK if name in SECRET and value is not None else value


def _shorten(name: str, value: Any) -> str:
    """Return an invalid value for an error message: one line, short, without secrets."""
    if name == "otlp_headers":
        return MASK
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = MAX_SHOWN_LENGTH
    text = shortener.repr(mask(name, value)).replace("\n", " ")
    return text if len(text) <= MAX_SHOWN_LENGTH else text[: MAX_SHOWN_LENGTH - 3] + "..."


def _mask_pairs(text: str) -> str:
    """Return the names of `k=v,k2=v2`. A value may be a secret, and so may an item that has no name."""
    items = [item.partition("=") for item in text.split(",") if item.strip()]
    return _shorten("", ",".join(f"{name}={MASK}" if separator else MASK for name, separator, _ in items))


def check_combinations(values: Any) -> None:
    """Raise `SettingsError` for options that exclude each other: one of them would be ignored silently."""
    problems = []
    provider = values.tracer_provider
    if values.tracing and values.span_processors and not (provider is None or hasattr(provider, "add_span_processor")):
        problems.append(
            "span_processors need a tracer_provider with add_span_processor; leave out span_processors, and pass the "
            "spans to them in that provider"
        )
    if values.metrics_dependency is not None:
        if values.metrics_port is not None:
            problems.append("metrics_dependency cannot protect metrics_port; use metrics_token with metrics_port")
        if values.metrics_token is not None:
            problems.append("metrics_dependency and metrics_token are mutually exclusive; set only one")
    if values.console is True and values.console_token is None and not values.development:
        problems.append("console=True outside development needs console_token; set it, or leave out console")
    if values.metrics and values.metrics_port is None and values.serves_console:
        inner = values.metrics_path.removeprefix(values.console_path)
        # The metrics answer at their path alone: another path below the console, or above it, hides nothing.
        if inner != values.metrics_path and (inner in {"", "/"} or inner.startswith(("/api/", "/assets/"))):
            metrics, console = _shorten("", values.metrics_path), _shorten("", values.console_path)
            problems.append(
                f"metrics_path {metrics} is an address of the development console (console_path {console}); set one of "
                "them to another path"
            )
    if values.contrib_options and values.server_span != "contrib":
        problems.append('contrib_options need server_span="contrib"; set it, or remove contrib_options')
    problems += [
        f"{name} is in constant_labels and in metric_labels; remove it from one of them"
        for name in values.metric_labels
        if name in values.constant_labels
    ]
    if problems:
        raise SettingsError(problems)


def describe_error(settings_cls: type[BaseSettings], name: str, value: Any, items: list[Any]) -> str:
    """Return the line about an invalid option: its value, the source, the accepted values and the next step.

    `items` are the invalid items of a list.
    """
    given, fields = sourced(value), settings_cls.model_fields
    in_code = given.source == "argument"
    if name in RENAMED_OPTIONS:
        return _describe_rename(name, fields[RENAMED_OPTIONS[name]], None if in_code else given.source)
    if name in REMOVED_OPTIONS:
        step = "leave it out" if in_code else "unset it"
        return f"{name if in_code else given.source}: this option was removed: {REMOVED_OPTIONS[name]}; {step}"
    if name not in fields:
        near = [each if in_code else variable_name(each) for each in difflib.get_close_matches(name, fields, n=1)]
        step = f"did you mean {near[0]!r}?" if near else "run `python -m fastapi_observe settings` to list all options"
        return f"{name if in_code else given.source}: no such option; {step}"
    invalid, expected = describe_value(name, fields[name], given, items)
    if in_code:
        return f"{name}: invalid value {invalid} (argument); expected {expected}"
    code_only = option_metadata(fields[name]).code_only
    step = f"fix or unset {given.source}"
    if code_only:
        step = f"this option is set in code only: unset {given.source}, and pass {name} to install()"
    return f"{name}: invalid value {invalid} (from {given.source}); expected {expected}; {step}"


def describe_value(name: str, field: FieldInfo, given: SourcedValue, items: Sequence[Any] = ()) -> tuple[str, str]:
    """Return an invalid value for a message, without secrets, and the accepted values."""
    from_pairs = given.source == RESOURCE_ATTRIBUTES
    text = given.text if given.text is not None else given.value
    invalid = _mask_pairs(str(text)) if from_pairs else _shorten(name, text)
    if items and name not in SECRET:
        invalid += f" (invalid: {', '.join([*dict.fromkeys(_shorten(name, item) for item in items)][:3])})"
    if name in SECRET and has_bytes(given.value):  # which the masked value does not show
        invalid += " (bytes)"
    if from_pairs and given.value is UNPARSABLE:
        return invalid, "name=value,name2=value2 (percent-encoded)"
    return invalid, _ACCEPTED.get((name, given.source)) or describe_accepted(field)


def _describe_rename(old: str, field: FieldInfo, variable: str | None) -> str:
    """Return the line about an option's former name, given as an argument or as an `OBSERVE_*` variable."""
    new = RENAMED_OPTIONS[old]
    if variable is None:
        return f"{old}: this option is now {new}; pass {new} to install()"
    step = f"pass {new} to install()" if option_metadata(field).code_only else f"set {variable_name(new)}"
    return f"{variable}: this option is now {new}; unset it, and {step}"
