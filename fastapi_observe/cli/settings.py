"""`python -m fastapi_observe settings` shows what the settings are and where each came from."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.settings.sources import describe_accepted, mask, variables

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

WRONG = 2
"""Exit status for wrong settings, as argparse uses it for wrong arguments."""


def add_settings(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `settings`."""
    parser = commands.add_parser(
        "settings",
        help="show every option, its value and where the value came from",
        description="Show every option, where its value came from and the value, with secrets masked. "
        "OBSERVE_* variables win over OTEL_* variables, those over the defaults.",
        epilog="Exits with 2 and says what is wrong if a variable has a value that is not accepted.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the same as JSON, for machines")
    form.add_argument("--markdown", action="store_true", help="document the options as a Markdown table instead")
    parser.set_defaults(run=show_settings)


def show_settings(args: argparse.Namespace) -> int:
    """Print the settings in the form that was args."""
    if args.markdown:
        sys.stdout.write(options_table())
        return 0
    try:
        settings = ObserveSettings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG
    sys.stdout.write(as_json(settings) if args.json else as_text(settings))
    return 0


def as_text(settings: ObserveSettings) -> str:
    """Write one aligned line for each option, and where spans go in the end."""
    sources = settings.sources()
    rows = [("option", "from", "value")]
    rows += [(name, sources[name], _brief(value)) for name, value in settings.masked().items()]
    target = mask("otlp_endpoint", settings.traces_url) or "nowhere"
    return "\n".join((*aligned(rows), "", f"Spans go to: {target}", ""))


def as_json(settings: ObserveSettings) -> str:
    """Write an object with `value` and `source` of each option; objects given in code as their repr."""
    sources = settings.sources()
    options = {name: {"value": value, "source": sources[name]} for name, value in settings.masked().items()}
    return json.dumps(options, indent=2, default=repr) + "\n"


def options_table() -> str:
    """Document every option as a row of a Markdown table, from the fields alone."""
    rows = [("Option", "What it is", "Accepts", "Default", "Variable", "OpenTelemetry variable")]
    for name, field in ObserveSettings.model_fields.items():
        default, named = _brief(field.default), variables(name, field)
        own = ", ".join(_named(each) for each in named if not each.startswith("OTEL_"))
        otel = ", ".join(_named(each) for each in named if each.startswith("OTEL_"))
        rows.append(
            (
                f"`{name}`",
                str(field.description),
                describe_accepted(field),
                f"`{default}`" if default else "",
                own,
                otel,
            )
        )
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join((lines[0], "|" + " --- |" * len(rows[0]), *lines[1:], ""))


def aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield each row as a line, every column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _brief(value: Any) -> str:
    """Write a value as a variable would hold it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(_brief, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={text}" for name, text in value.items())
    return str(value)


def _named(variable: str) -> str:
    name, _, key = variable.partition(":")
    return f"`{name}` ({key})" if key else f"`{name}`"
