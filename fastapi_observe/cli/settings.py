"""The command `settings`: every option, its value and the source of the value."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from fastapi_observe.cli.output import EXIT_ERROR, add_json_argument, align
from fastapi_observe.instrumentors.discovery import choose_instrumentors
from fastapi_observe.instrumentors.switch import Instrumentors
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.settings.sources import describe_accepted, mask, option_metadata, variables
from fastapi_observe.settings.subjects import options_by_subject

if TYPE_CHECKING:
    import argparse

    from fastapi_observe.cli.output import Commands


def add_settings(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "settings",
        help="show each option, its value and the source of the value",
        description="Show each option, its value and the source of the value, with secrets masked. OBSERVE_* variables "
        "take precedence over OTEL_* variables, those over the defaults. Arguments of install() are not known here.",
        epilog="Exits with 2 if an OBSERVE_* variable is invalid.",
    )
    form = parser.add_mutually_exclusive_group()
    add_json_argument(form)
    form.add_argument("--markdown", action="store_true", help="print the documentation of all options as tables")
    parser.set_defaults(run=show_settings)


def show_settings(args: argparse.Namespace) -> int:
    """Print the settings in the requested form; messages about `OTEL_*` variables go to standard error."""
    if args.markdown:
        sys.stdout.write(options_table())
        return 0
    try:
        settings = ObserveSettings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_ERROR
    sys.stdout.write(settings_as_json(settings) if args.json else settings_as_text(settings))
    sys.stderr.write("".join([f"{message}\n" for message in settings.warnings()]))
    return 0


def settings_as_text(settings: ObserveSettings) -> str:
    """Return one aligned line for each option below its subject, where spans go, and the instrumentors."""
    sources = settings.sources()
    rows = [("option", "source", "value")]
    values = settings.masked()
    rows += [(name, sources[name], _as_variable(value)) for name, value in values.items()]
    shown, *lines = align(rows)
    by_name = dict(zip(values, lines, strict=True))
    for subject, names in options_by_subject().items():
        shown += "\n".join(("", "", subject, *(by_name[name] for name in names)))
    target = mask("otlp_endpoint", settings.traces_url)
    exported = f"Spans are exported to {target}" if target else "Spans are not exported (otlp_endpoint)"
    instrumentors = Instrumentors()
    instrumentors.preview(choose_instrumentors(settings))
    return f"{shown}\n\n{exported}\n{instrumentors}\n"


def settings_as_json(settings: ObserveSettings) -> str:
    """Return a JSON object with subject, value and source of each option. Objects passed in code appear as a repr."""
    sources, values = settings.sources(), settings.masked()
    options = {
        name: {"subject": subject, "value": values[name], "source": sources[name]}
        for subject, names in options_by_subject().items()
        for name in names
    }
    return json.dumps(options, indent=2, default=repr) + "\n"


def options_table() -> str:
    """Return the documentation of all options in Markdown: a heading and a table for each subject."""
    header = ("Option", "Description", "Accepts", "Default", "Variable", "OpenTelemetry variable")
    lines = []
    for subject, names in options_by_subject().items():
        rows = [header, ("---",) * len(header), *map(_describe, names)]
        lines += ["", f"### {subject}", "", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join((*lines, "", ""))


def _describe(name: str) -> tuple[str, ...]:
    field = ObserveSettings.model_fields[name]
    default, named = _as_variable(field.default), variables(name, field)
    own = ", ".join(_quote(each) for each in named if not each.startswith("OTEL_"))
    otel = ", ".join(_quote(each) for each in named if each.startswith("OTEL_"))
    cells = (
        f"`{name}`",
        str(field.description),
        "in code only: " * option_metadata(field).code_only + describe_accepted(field),
        f"`{default}`" if default else "",
        own,
        otel,
    )
    return tuple(cell.replace("|", r"\|") for cell in cells)


def _as_variable(value: Any) -> str:
    """Return a value in the form that a variable has."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(_as_variable, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={text}" for name, text in value.items())
    return str(value)


def _quote(variable: str) -> str:
    name, _, key = variable.partition(":")
    return f"`{name}` ({key})" if key else f"`{name}`"
