"""Where the values of settings come from, and how a wrong one is told: what stands behind `ObserveSettings`."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args, get_origin
from urllib.parse import unquote

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fastapi_observe.settings.renames import RENAMED_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic.fields import FieldInfo

PREFIX: Final = "OBSERVE_"
RESOURCE_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
MAX_SHOWN_LENGTH: Final = 100
"""Characters of a wrong value that an error repeats."""
MASK: Final = "**********"
SECRET: Final = frozenset({"otlp_headers", "otlp_endpoint", "metrics_token"})
"""Options that may hold a password."""
NEVER_EMPTY: Final = frozenset({"metrics_token"})
"""Options that an empty variable does not switch off: a secret that did not arrive must not leave the door open."""
TYPO: Final = 0.85
"""How like an option an unknown `OBSERVE_*` variable must be to be an error: other tools use the prefix too."""


class SettingsError(ValueError):
    """Some settings are wrong; `problems` has one line for each of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 setting is" if len(self.problems) == 1 else f"{len(self.problems)} settings are"
        super().__init__("\n  ".join((f"{count} wrong:", *self.problems)))


# How text from the environment becomes values; what cannot be read raises ValueError.


def split(value: Any) -> Any:
    """Read `a,b`; what is no text is returned as it is."""
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


def pairs(text: str) -> dict[str, str]:
    """Read `k=v,k2=v2`, percent-encoded, as the OpenTelemetry SDK does."""
    found = [item.partition("=") for item in text.split(",") if item.strip()]
    if not all(name.strip() and separator for name, separator, _ in found):
        raise ValueError("not a list of name=value")
    return {unquote(name).strip(): unquote(value).strip() for name, _, value in found}


UNPARSABLE: Final = object()
"""Value of a variable whose text could not be converted."""
UNSET: Final = object()
"""Value of a variable that says nothing about the option it was asked for."""


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """A value with where it came from; `text` is how the variable spelled it."""

    source: str
    value: Any = field(repr=False)
    text: str | None = field(default=None, repr=False)


def sourced(value: Any) -> SourcedValue:
    """Return a value as `Given`; one without a source is an argument."""
    return value if isinstance(value, SourcedValue) else SourcedValue("argument", value)


class VariablesSource(PydanticBaseSettingsSource):
    """Reads for each option `OBSERVE_<NAME>`, then `also`, then the `OTEL_*` variables that the option names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what the first variable that is set says, as `Given`; None if none is."""
        for variable in variables(field_name, field):
            name, _, key = variable.partition(":")
            text = os.environ.get(name, "").strip()
            # only our own variable can be set to nothing: an empty OTEL_* is an unset one (OpenTelemetry specification)
            if text or (name == variable_name(field_name) and name in os.environ):
                value = _convert(field_name, field, name, key, text)
                if value is not UNSET:
                    return SourcedValue(name, value, text), field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the options that the environment sets, and its variables that look like a misspelt option."""
        fields = self.settings_cls.model_fields
        read = {name: self.get_field_value(field, name)[0] for name, field in fields.items()}
        found: dict[str, Any] = {name: given for name, given in read.items() if given is not None}
        known = {variable for name, field in fields.items() for variable in variables(name, field)}
        for variable in sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
            name = variable.removeprefix(PREFIX).lower()
            if name in RENAMED_OPTIONS or difflib.get_close_matches(name, fields, n=1, cutoff=TYPO):
                found.setdefault(name, SourcedValue(variable, UNPARSABLE, os.environ[variable]))
        return found


def _convert(option_name: str, field: FieldInfo, variable: str, key: str, text: str) -> Any:
    """Turn the text of a variable into what the option takes; pydantic does the rest."""
    try:
        if key:
            return pairs(text).get(key) or UNSET
        if special := _SPECIAL.get((option_name, variable)):
            return special(text)
    except ValueError:
        return UNPARSABLE
    kinds = (field.annotation, *get_args(field.annotation))
    if not text and NoneType in kinds and option_name not in NEVER_EMPTY:
        return None
    return text.lower() if any(get_origin(kind) is Literal for kind in kinds) else text


def _enabled(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("neither true nor false")
    return text.lower() == "false"


_SPECIAL: Final[dict[tuple[str, str], Callable[[str], Any]]] = {
    ("tracing", "OTEL_SDK_DISABLED"): _enabled,
    # a ratio sampler without argument keeps everything (OpenTelemetry specification)
    ("sample_ratio", "OTEL_TRACES_SAMPLER"): lambda text: 1.0 if text.lower().endswith("traceidratio") else UNSET,
    # the list names where spans go: without otlp, not to us
    ("otlp_endpoint", "OTEL_TRACES_EXPORTER"): lambda text: (
        UNSET if any(name.startswith("otlp") for name in split(text)) else None
    ),
    ("batch_delay", "OTEL_BSP_SCHEDULE_DELAY"): lambda text: float(text) / 1000,
    ("otlp_metrics_interval", "OTEL_METRIC_EXPORT_INTERVAL"): lambda text: float(text) / 1000,
}
"""Variables that say it in another unit or another way than the option does."""


# What people read: the documentation of an option, and the line about a wrong one.


def option_metadata(field: FieldInfo) -> dict[str, Any]:
    """Return what `option` noted beside pydantic's own: `otel`, `also`, `accepts`, `code_only`."""
    return cast("dict[str, Any]", field.json_schema_extra)


def variable_name(name: str) -> str:
    """Return the name of the option's own variable."""
    return PREFIX + name.upper()


def variables(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Return the variables that can set the option, first the one that wins."""
    noted = option_metadata(field)
    return () if noted["code_only"] else (variable_name(name), *noted["also"], *noted["otel"])


def describe_accepted(field: FieldInfo) -> str:
    """Say in words what the option takes."""
    noted, kind = option_metadata(field), field.annotation
    if noted["accepts"]:
        return str(noted["accepts"])
    if noted["code_only"]:
        return "an object, in code only" if kind is Any else "a list of objects, in code only"
    kinds = (kind, *get_args(kind))
    ending = " or None" if NoneType in kinds else ""
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices:
        return ", ".join(choices) + ending
    if kind is bool:
        return "true or false"
    if kind in {int, float}:
        return ("a whole number" if kind is int else "a number") + _range(field)
    return "texts, separated by commas" if get_origin(kind) is tuple else f"text{ending}"


def _range(field: FieldInfo) -> str:
    limits = {
        name: getattr(each, name) for each in field.metadata for name in ("ge", "gt", "le") if hasattr(each, name)
    }
    if "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    return f" above {limits['gt']}" if "gt" in limits else f", at least {limits['ge']}"


def mask(name: str, value: Any) -> Any:
    """Return the option's value with its secrets hidden: header values; user, query and fragment of the endpoint."""
    if name == "otlp_headers" and isinstance(value, Mapping):
        return dict.fromkeys(value, MASK)
    if name == "otlp_endpoint" and isinstance(value, str):
        shown = re.sub(r"^(https?://)?.*@", rf"\1{MASK}@", value, flags=re.IGNORECASE | re.DOTALL)
        return re.sub(r"([?#]).*", rf"\1{MASK}", shown, flags=re.DOTALL)
    return MASK if name in SECRET and value is not None else value


def _shown(name: str, value: Any) -> str:
    """Return a wrong value as an error may repeat it: one line, short, no secrets."""
    if name == "otlp_headers":
        return MASK
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = MAX_SHOWN_LENGTH
    text = shortener.repr(mask(name, value)).replace("\n", " ")
    return text if len(text) <= MAX_SHOWN_LENGTH else text[: MAX_SHOWN_LENGTH - 3] + "..."


def _names(text: str) -> str:
    """Return the names in `k=v,k2=v2`: the values may be of any kind, secrets too, and so may what has no name."""
    items = [item.partition("=") for item in text.split(",") if item.strip()]
    return _shown("", ",".join(f"{name}={MASK}" if separator else MASK for name, separator, _ in items))


def check_combinations(values: Any) -> None:
    """Raise `SettingsError` for options that cannot hold together: one would be ignored, unseen."""
    found = []
    if values.metrics_dependency is not None:
        if values.metrics_port is not None:
            found.append(
                "metrics_dependency and metrics_port: a dependency guards the app's own port only; choose one of them "
                "(metrics_token guards metrics_port)"
            )
        if values.metrics_token is not None:
            found.append(
                "metrics_dependency and metrics_token: each says alone who may read the metrics; choose one of them"
            )
    if found:
        raise SettingsError(found)


def describe_error(settings_cls: type[BaseSettings], name: str, value: Any, items: list[Any]) -> str:
    """Write the line about one wrong option: what it got, from where, what it accepts, what to do."""
    given, fields = sourced(value), settings_cls.model_fields
    in_code = given.source == "argument"
    if name in RENAMED_OPTIONS:
        return _describe_rename(name, fields[RENAMED_OPTIONS[name]], None if in_code else given.source)
    if name not in fields:
        near = [each if in_code else variable_name(each) for each in difflib.get_close_matches(name, fields, n=1)]
        step = f"did you mean {near[0]!r}?" if near else "see all with `python -m fastapi_observe settings`"
        return f"{name if in_code else given.source}: no such option; {step}"
    from_pairs = given.source == RESOURCE_ATTRIBUTES
    got = _names(given.text or "") if from_pairs else _shown(name, given.value if given.text is None else given.text)
    if items and name not in SECRET:
        got += f" (wrong: {', '.join(_shown(name, item) for item in items[:3])})"
    unpaired = given.value is UNPARSABLE and from_pairs
    accepts = "name=value,name2=value2 (percent-encoded)" if unpaired else describe_accepted(fields[name])
    origin, step = (
        ("an argument", f"pass another {name}") if in_code else (given.source, f"correct or unset {given.source}")
    )
    return f"{name}: got {got} from {origin}; accepts {accepts}; {step}"


def _describe_rename(old: str, field: FieldInfo, variable: str | None) -> str:
    """Return the line about an option's former name, given as an argument or as an `OBSERVE_*` variable."""
    new = RENAMED_OPTIONS[old]
    if variable is not None and not option_metadata(field)["code_only"]:
        return f"{variable}: this option is now {new}; set {variable_name(new)}"
    return f"{variable or old}: this option is now {new}; pass {new} to install()"
